"""Callbacks that measure samples while `fit` runs, warm up the KL, and watch for NaN
and of GANs that collapse."""

import math
import warnings

import keras
import numpy as np
from keras import ops

from kgen import random
from kgen.callbacks.progress import print_line
from kgen.checks import not_negative, positive


class SampleDistances(keras.callbacks.Callback):
    """Measures samples after an epoch: `distances(samples)` goes into the logs.

    So History, CSVLogger, ModelCheckpoint and all else in `callbacks` after this one
    have it. The names are in every epoch's logs, NaN where nothing was measured; the
    first epoch of a `fit` is always measured, for Keras never finds better than NaN.

    Args:
        distances: `kgen.metrics.Distances`, for images as the model draws.
        n: how many samples, 6 or more.
        every: measure after every so many epochs, and the first.
        seed: of the draw, the same each time.
        labels: for conditional models; by default the classes in turn.
        verbose: whether to print a line: values, in brackets those of the data itself.
    """

    def __init__(self, distances, n=1000, every=1, seed=0, labels=None, verbose=1):
        super().__init__()
        positive(n=n, every=every)
        self.distances, self.n, self.every = distances, n, every
        self.seed, self.labels, self.verbose = seed, labels, verbose

    def on_train_begin(self, logs=None):
        self._first = True
        self.distances.check_model(self.model)
        self.distances.floor(self.n)  # errors come before the first epoch

    def on_epoch_end(self, epoch, logs=None):
        values = dict.fromkeys(self.distances.names, float("nan"))
        if self._first or (epoch + 1) % self.every == 0:
            self._first = False
            images = self.model.sample(self.n, self.seed, self.labels, verbose=0)
            values = self.distances(images)
            if self.verbose:
                self._print(values)
        if logs is not None:
            logs.update(values)

    def _print(self, values):
        pairs = {k: values[f"{k}_floor"] for k in values if f"{k}_floor" in values}
        pairs = (f"{k} {values[k]:.4g} ({own:.4g})" for k, own in pairs.items())
        print_line(self, f"distances: {', '.join(pairs)}")


class KLWarmUp(keras.callbacks.Callback):
    """Raises a VAE's `beta` linearly: in epoch i, counted from 0, it is
    start + (end - start) min(1, i / epochs).

    So the decoder learns to use the latents before the KL presses them to the prior
    (Bowman et al. 2016, arXiv:1511.06349; Sonderby et al. 2016, arXiv:1602.02282).
    The losses of different epochs do not compare; `elbo_nats` does.

    Args:
        epochs: how many epochs the warm-up takes.
        start: beta of the first epoch.
        end: beta after the warm-up.
    """

    def __init__(self, epochs, start=0.0, end=1.0):
        super().__init__()
        positive(epochs=epochs)
        not_negative(start=start, end=end)
        self.epochs, self.start, self.end = epochs, start, end

    def on_train_begin(self, logs=None):
        if "beta" not in self.model.get_config():
            name = type(self.model).__name__
            raise ValueError(f"KLWarmUp is for a VAE, with a `beta`; got a {name}.")

    def on_epoch_begin(self, epoch, logs=None):
        done = min(1.0, epoch / self.epochs)
        self.model.beta = self.start + (self.end - self.start) * done


class StopOnNaN(keras.callbacks.Callback):
    """Ends `fit` with a FloatingPointError that names the first metric to become NaN or
    infinite. kgen's `fit` adds it unless there is a `keras.callbacks.TerminateOnNaN` or
    a CollapseGuard, which end it more quietly or only warn.

    Args:
        first_batch: how many batches of the first epoch another run has had.
    """

    async_safe = True  # Keras need not wait for each batch's metrics

    def __init__(self, first_batch=0):
        super().__init__()
        self.first_batch = first_batch

    def on_train_begin(self, logs=None):
        self._first = None

    def on_epoch_begin(self, epoch, logs=None):
        self._first = epoch if self._first is None else self._first
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        skipped = self.first_batch if self._epoch == self._first else 0
        self._check(
            logs or {}, f"batch {skipped + batch + 1} of epoch {self._epoch + 1}"
        )

    def on_epoch_end(self, epoch, logs=None):
        self._check(logs or {}, f"epoch {epoch + 1}")

    def _check(self, logs, where):
        bad = [k for k, v in logs.items() if not np.all(np.isfinite(np.asarray(v)))]
        if not bad:
            return
        bad.sort(key=lambda k: k in ("loss", "val_loss"))  # the sum of all others
        also = f" (and {', '.join(bad[1:])})" if bad[1:] else ""
        raise FloatingPointError(
            f"{bad[0]} is {logs[bad[0]]} after {where}{also}. The weights are lost; a "
            "backup or a saved model has earlier ones. Look for NaN in sample weights "
            "and in your own layers; lower the learning rate or set `clipnorm`; in "
            "place of mixed_float16 take mixed_bfloat16."
        )


class CollapseGuard(keras.callbacks.Callback):
    """Reports that a GAN's training has collapsed and what to try; stops it by
    default.

    - a metric is NaN or infinite: at once;
    - the discriminator is right on at least `accuracy` of the real images and of the
      generated ones: after `patience` epochs in a row (not of critics, whose scores
      say no such thing);
    - `n` images of the generator itself (not its average, which begins as one grey
      image) are nearly identical, their standard deviation less than a hundredth of
      the range on average over pixels: after `patience` epochs in a row.

    Args:
        accuracy: from which D is saturated; G's gradient is then next to nothing.
        patience: in epochs.
        n: samples drawn after each epoch, 2 or more; 0 for none.
        stop: whether to end the training; a RuntimeWarning is given in any case.
    """

    def __init__(self, accuracy=0.99, patience=5, n=16, stop=True):
        super().__init__()
        positive(patience=patience)
        if not 0.5 < accuracy <= 1.0 or n < 0 or n == 1:
            raise ValueError(
                "accuracy must be in 0.5..1, n 0 or at least 2; got "
                f"accuracy={accuracy}, n={n}."
            )
        self.accuracy, self.patience, self.n, self.stop = accuracy, patience, n, stop

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "discriminator"):
            name = type(self.model).__name__
            raise ValueError(f"CollapseGuard is for a GAN; got a {name}.")
        self._saturated, self._same, self._told = 0, 0, set()

    def on_train_batch_end(self, batch, logs=None):
        for name, value in (logs or {}).items():
            if not math.isfinite(float(value)):
                self._tell(
                    "finite",
                    f"{name} is not finite at batch {batch + 1}",
                    "lower learning rates, `gradient_penalty` or `spectral_norm=True`; "
                    "under mixed_float16, mixed_bfloat16 or float32",
                )

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        right = min(logs.get(f"accuracy_{k}", 0.0) for k in ("real", "generated"))
        self._saturated = self._saturated + 1 if right >= self.accuracy else 0
        if self._saturated >= self.patience:
            self._tell(
                "saturated",
                f"for {self._saturated} epochs the discriminator has been right on "
                f"{right:.1%} of the images or more: the generator learns little",
                "a slower discriminator, loss='non_saturating' in place of 'minimax', "
                "`r1_penalty`, `spectral_norm=True` or a Wasserstein critic",
            )
        self._same = self._same + 1 if self.n and self._all_the_same() else 0
        if self._same >= self.patience:
            self._tell(
                "same",
                f"for {self._same} epochs {self.n} samples have been all but one image",
                "`gradient_penalty`, `r1_penalty` or `spectral_norm=True`, or a slower "
                "generator",
            )

    def _all_the_same(self):
        """Of one class, where there are classes."""
        model = self.model
        labels = None if model.num_classes is None else np.zeros(self.n, "int32")
        seeds = ops.convert_to_tensor(random.image_seeds(0, self.n))
        images = model.make_from_seeds(seeds, labels)
        images = ops.convert_to_numpy(ops.stop_gradient(images))
        return images.std(axis=0).mean() < 0.01

    def _tell(self, key, what, remedy):
        if key not in self._told:
            self._told.add(key)
            warnings.warn(
                f"CollapseGuard: {what}. Try {remedy}.", RuntimeWarning, stacklevel=2
            )
        self.model.stop_training = self.stop or self.model.stop_training
