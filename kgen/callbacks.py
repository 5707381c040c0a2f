"""Pictures, distances and progress while `fit` runs, the same on every backend."""

import datetime
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kgen import files
from kgen.checks import positive


def image_grid(images, levels, columns=None, separator=1):
    """Images (N, H, W, C) in 0..levels-1 -> one picture, uint8 (height, width, 3).

    Rows are filled first; small images are enlarged by a whole factor. `columns` is by
    default about the square root of N. Of other than 1 or 3 channels, the first one or
    three are shown.
    """
    images = np.asarray(images, "float32") * (255.0 / (levels - 1))
    images = images[..., :3] if images.shape[-1] >= 3 else images[..., :1]
    N, H, W, _ = images.shape
    columns = columns or int(np.ceil(np.sqrt(N)))
    rows = -(-N // columns)
    cells = np.full((rows * columns, H + separator, W + separator, 3), 90, "uint8")
    cells[:N, :H, :W] = np.clip(np.rint(images), 0, 255)  # one channel spreads to three
    picture = cells.reshape(rows, columns, H + separator, W + separator, 3)
    picture = picture.transpose(0, 2, 1, 3, 4).reshape(
        rows * (H + separator), columns * (W + separator), 3
    )
    factor = max(1, 560 // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def save_grid(path, images, levels, columns=None):
    """Writes `image_grid(...)` as a PNG, whole or not at all; returns the path."""
    from PIL import Image

    with files.atomic(path) as unfinished:
        Image.fromarray(image_grid(images, levels, columns)).save(unfinished)
    return Path(path)


class _Pictures(keras.callbacks.Callback):
    """A PNG after every `every`-th epoch, `<name>_epoch_001.png`, its path printed."""

    def __init__(self, folder, every, verbose):
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be a positive number of epochs; got {every}.")
        self.folder, self.every, self.verbose = Path(folder), every, verbose

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        # On JAX, looking at self.model fetches the weights: once an epoch at most.
        path = self.folder / f"{self.name}_epoch_{epoch + 1:03d}.png"
        self.write(path)
        if self.verbose:
            print(f"{self.name}: {path}", flush=True)


class SampleGrid(_Pictures):
    """Draws `n` samples after an epoch, always from the same seed.

    Args:
        folder: where `samples_epoch_001.png` and so on go.
        n: how many images.
        every: draw after every so many epochs.
        seed: of the draw; the same for all pictures, so that they can be compared.
        labels: for conditional models; by default the classes in turn.
        verbose: whether to print the path.
    """

    name = "samples"

    def __init__(self, folder, n=64, every=1, seed=0, labels=None, verbose=1):
        super().__init__(folder, every, verbose)
        self.n, self.seed, self.labels = n, seed, labels

    def write(self, path):
        images = self.model.sample(self.n, self.seed, self.labels, verbose=0)
        save_grid(path, images, self.model.levels)


class ReconstructionGrid(_Pictures):
    """Pairs of rows after an epoch: images above, their reconstructions below.

    Args:
        folder: where `reconstructions_epoch_001.png` and so on go.
        images: integers (N, H, W, C); the first 32 are used.
        labels: (N,), for conditional models.
        every: draw after every so many epochs.
        verbose: whether to print the path.
    """

    name = "reconstructions"

    def __init__(self, folder, images, labels=None, every=1, verbose=1):
        super().__init__(folder, every, verbose)
        self.images = np.asarray(images[:32])
        self.labels = None if labels is None else np.asarray(labels[:32])

    def write(self, path):
        save_reconstructions(path, self.model, self.images, self.labels)


def save_reconstructions(path, model, images, labels=None, columns=8):
    """Writes pairs of rows, images above, `model.reconstruct` of them below."""
    below = ops.convert_to_numpy(model.reconstruct(images, labels))
    blank = -len(images) % columns
    pairs = []
    for row in (images, below):
        padded = np.pad(np.asarray(row, "float32"), [(0, blank), *[(0, 0)] * 3])
        pairs.append(padded.reshape(-1, columns, *model.image_shape))
    picture = np.stack(pairs, axis=1).reshape(-1, *model.image_shape)
    return save_grid(path, picture, model.levels, columns)


def save_completions(path, model, images, known_rows=None, draws=3, labels=None):
    """Writes a column for each image: the image, its known upper rows, `draws` of
    `model.complete` from them, from seeds 0, 1, ...; by default half the rows known."""
    images = np.asarray(images)
    rows = model.image_shape[0] // 2 if known_rows is None else known_rows
    known = images.copy()
    known[:, rows:] = 0
    pictures = [images, known]
    for seed in range(draws):
        pictures.append(model.complete(known, rows, seed, labels, verbose=0))
    picture = np.concatenate(pictures)
    return save_grid(path, picture, model.levels, columns=len(images))


class Progress(keras.callbacks.Callback):
    """One line an epoch: the metrics, and the time that the rest will take; within long
    epochs, one line every `seconds`.

    For runs of many epochs, with `fit(verbose=0)`.

    Args:
        metrics: names to show; by default all.
        every: print after every so many epochs, the first and the last.
        seconds: within an epoch, the time between lines; None for none.
    """

    def __init__(self, metrics=None, every=1, seconds=30):
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be a positive number of epochs; got {every}.")
        self.metrics, self.every, self.seconds = metrics, every, seconds

    def on_train_begin(self, logs=None):
        self._first = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._printed = epoch, time.time()
        self._epoch_start = self._printed
        if self._first is None:
            self._first, self._start = epoch, time.time()

    def on_train_batch_end(self, batch, logs=None):
        now, steps = time.time(), self.params.get("steps")
        if not (self.seconds and steps) or now - self._printed < self.seconds:
            return
        self._printed = now
        loss = f"  loss {float(logs['loss']):.4g}" if logs and "loss" in logs else ""
        took = (now - self._epoch_start) / (batch + 1)
        left = datetime.timedelta(seconds=round(took * (steps - batch - 1)))
        print(
            f"epoch {self._epoch + 1}/{self.params['epochs']}, step {batch + 1}/{steps}"
            f"{loss}  {left} left in the epoch",
            flush=True,
        )

    def on_epoch_end(self, epoch, logs=None):
        done, total = epoch + 1, self.params["epochs"]
        if done % self.every and done not in (self._first + 1, total):
            return
        names = self.metrics or sorted(logs)
        values = "  ".join(f"{k} {logs[k]:.4g}" for k in names if k in logs)
        took = (time.time() - self._start) / (done - self._first)
        left = datetime.timedelta(seconds=round(took * (total - done)))
        print(
            f"epoch {done}/{total}  {values}  {took:.2g} s/epoch, {left} left",
            flush=True,
        )


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
        self.distances.floor(self.n)  # what is wrong is told before the first epoch

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
        print(
            "distances: "
            + ", ".join(f"{k} {values[k]:.4g} ({own:.4g})" for k, own in pairs.items()),
            flush=True,
        )


class SetEpoch(keras.callbacks.Callback):
    """Tells a data set which epoch it is, by its `set_epoch(epoch)`, so that a resumed
    run sees what the uninterrupted one would have. A further `fit` on the same data set
    goes on where the last one ended. kgen's `fit` adds this callback by itself."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def on_train_begin(self, logs=None):
        self._first, self._before = None, getattr(self.data, "epochs_seen", 0)

    def on_epoch_begin(self, epoch, logs=None):
        if self._first is None:
            self._first = epoch
        epoch = max(epoch, self._before + epoch - self._first)
        self.data.set_epoch(epoch)
        self.data.epochs_seen = epoch + 1
