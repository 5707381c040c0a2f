"""GenerativeModel: what all families share.

Images are integers in 0..levels-1, (B, H, W, C), channels last. Metrics carry their
unit; per-image values are summed over the event, averaged over the images.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from kgen import backend, export, files, fitting, limits, presets, random
from kgen.batching import in_batches
from kgen.checks import is_integer, portable, positive, sizes
from kgen.optimizers import Alternating
from kgen.signatures import Input, Output, Signature
from kgen.tensor_checks import OutOfRange, check_data, check_images, check_labels, clip


@dataclasses.dataclass(frozen=True)
class Headline:
    """The number that a model is judged by: a metric of `evaluate`, or a distance of
    samples (`kgen.metrics.Distances`)."""

    metric: str
    unit: str
    better: str  # "lower" or "higher"
    kind: str  # "exact", "bound" on what is exact, or "distance"


class GenerativeModel(keras.Model):
    """A model of images that `fit` trains with its own step, and that draws images.

    Families define `train_step` and `test_step` (under `backend.step`), `call`,
    `draw(seeds, labels)` and, for the exported model, `endpoints()`.

    Results of its methods, such as `log_prob` and `reconstruct`, carry no gradients on
    PyTorch, whose graph would keep memory: pass `gradients=True` to differentiate them.
    TensorFlow's tapes and JAX's transformations go through them in any case.

    Args:
        image_shape: (H, W, C).
        levels: number of integer values a pixel can take, 2 to 256; exact models also
            take discrete codes, up to 65,536.
        num_classes: None, or K for a model of images given labels 0..K-1.
        **kwargs: `name`, `dtype`, `trainable` of `keras.Model`.
    """

    headline = None  # a Headline, of each family
    max_levels = 256  # 8 bits

    config_names = ("name", "image_shape", "levels", "num_classes")

    def __init__(self, image_shape, levels=2, num_classes=None, **kwargs):
        super().__init__(**kwargs)
        self.image_shape = sizes("image_shape", image_shape)
        if len(self.image_shape) != 3:
            raise ValueError(
                f"image_shape must be (height, width, channels); got {image_shape}."
            )
        if not is_integer(levels) or not 2 <= levels <= self.max_levels:
            raise ValueError(
                f"levels must be in 2..{self.max_levels}, an integer; got {levels!r}."
            )
        if num_classes is not None:
            positive(num_classes=num_classes)
        self.levels = int(levels)
        self.image_dtype = "uint8" if levels <= 256 else "int32"
        self.num_classes = num_classes
        self.num_dims = int(np.prod(self.image_shape))
        self.seed_generator = keras.random.SeedGenerator()
        self.out_of_range = OutOfRange()
        self._draw = backend.compile_function(self, self.draw)

    def get_config(self):
        """The constructor's arguments in `config_names`, of this class and of its
        bases. Each is an attribute; a likelihood or a prior is kept by its name."""
        classes = reversed(type(self).__mro__)
        names = [n for cls in classes for n in vars(cls).get("config_names", ())]
        values = {name: getattr(self, name) for name in names}
        values = {k: getattr(value, "name", value) for k, value in values.items()}
        return super().get_config() | values

    # Data

    def scale(self, x):
        """Integers 0..levels-1 to floats 0..1 of the model's compute dtype."""
        return ops.cast(x, self.compute_dtype) / (self.levels - 1)

    def one_hot(self, labels):
        """Labels (B,) -> (B, K)."""
        return ops.one_hot(ops.cast(labels, "int32"), self.num_classes)

    def prepare_inputs(self, x, labels=None):
        """(images,) or, for conditional models, (images, labels), as tensors; a
        ValueError if they are wrong."""
        check_images(x, self.image_shape, self.levels)
        labels = self.prepare_labels(labels)
        x = ops.convert_to_tensor(x)
        if labels is not None:
            given, images = labels.shape[0], x.shape[0]
            if given != images and None not in (given, images):  # None when traced
                raise ValueError(f"labels: expected {images}, got {given}.")
        return (x,) if labels is None else (x, labels)

    def prepare_labels(self, labels):
        """Labels as a tensor, or None: other models have no use for them, whatever the
        data set carries. A ValueError if they are wrong."""
        if self.num_classes is None:
            return None
        check_labels(labels, self.num_classes)
        return ops.cast(labels, "int32")

    def unpack(self, data):
        """A batch that `fit` passes on -> images, labels or None, weights or None.

        Wrong values are clipped and counted; `fit` and `evaluate` raise by that count.
        """
        x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        labels = labels if self.num_classes is not None else None
        x, labels, flags = self._clip(x, labels)
        self.out_of_range.update_state(*flags)
        return x, labels, sample_weight

    def _clip(self, x, labels, of_each=False):
        """Images and labels, int32, in their ranges, and the flags of
        `OutOfRange.update_state`, of the batch or `of_each` image."""
        check_images(x, self.image_shape, self.levels, values=False)
        x, below, above = clip(x, self.levels, (1, 2, 3) if of_each else None)
        if self.num_classes is None:
            return x, None, (below, above, None)
        check_labels(labels, self.num_classes, values=False)
        axis = 1 if of_each else None
        labels, low, high = clip(labels[:, None], self.num_classes, axis)
        wrong = high if low is None else ops.logical_or(low, high)
        return x, labels[:, 0], (below, above, wrong)

    def call_inputs(self, inputs):
        """What `call` is given, images or (images, labels), in their ranges: images,
        labels or None, and a (B,) of zeros, NaN for images with wrong values, which
        `predict` of a data set raises by."""
        x, labels = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        check_images(x, self.image_shape, self.levels)
        if self.num_classes is not None:
            check_labels(labels, self.num_classes)
        x, labels, flags = self._clip(x, labels, of_each=True)
        nan = ops.zeros((ops.shape(x)[0],))
        for flag in flags:
            nan = nan if flag is None else ops.where(flag, float("nan"), nan)
        return x, labels, nan

    # Training

    def compile(self, optimizer="rmsprop", loss=None, metrics=None, **kwargs):
        """As `keras.Model.compile`; the loss and the metrics are the model's own."""
        if loss is not None or metrics or kwargs.get("weighted_metrics"):
            raise ValueError(
                f"{type(self).__name__} brings its own loss and metrics: compile it "
                "with an optimizer only."
            )
        optimizer = keras.optimizers.get(optimizer)
        if optimizer is None:
            raise ValueError("compile: expected an optimizer; got None.")
        if isinstance(optimizer, Alternating):
            optimizer.assign_variables(self)
        self._given_jit_compile = kwargs.get("jit_compile", "auto")
        super().compile(optimizer=optimizer, **kwargs)
        # The weights are there, so their moments can be: then files always hold both.
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def get_compile_config(self):
        # Keras stores what "auto" became here; another backend would be forced to it.
        config = super().get_compile_config()
        if config:
            config = portable(config) | {"jit_compile": self._given_jit_compile}
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))

    def minimize(self, fn, network=None, with_norm=False):
        """One optimizer step on `fn() -> (scalar loss, aux)`; returns these, unscaled,
        and `with_norm` the gradient's l2 norm (of a TensorFlow replica's share).

        `network`, an attribute such as "generator", limits it to that network's
        variables and to its member of an `Alternating` optimizer.
        """
        of = self if network is None else getattr(self, network)
        scale = self.optimizer.scale_loss(1.0)
        loss, aux, gradients = backend.minimize(self, fn, of.trainable_variables)
        if not with_norm:
            return loss, aux
        each = [ops.cast(ops.convert_to_tensor(g), "float32") for g in gradients]
        return loss, aux, ops.sqrt(sum(ops.sum((g / scale) ** 2) for g in each))

    def input_gradient(self, fn, x):
        """d sum(fn(x)) / dx, which a penalty may differentiate again."""
        return backend.input_gradient(self, fn, x)

    def objective(self, per_image, sample_weight=None):
        """Training objective: the mean over the batch of per-image losses (B,), as
        Keras weighs them, and the penalties of the user's own layers."""
        if sample_weight is not None:
            per_image = per_image * ops.cast(sample_weight, per_image.dtype)
        return backend.replica_mean(per_image) + sum(self.losses)

    def update_metrics(self, values, sample_weight=None):
        """Updates each metric from its per-image values (B,), and returns the logs.

        Exactly `get_metrics_result()`: with other keys, Keras would report the last
        batch only. Means over images, so that uneven batches average exactly.
        """
        values, weight = backend.replica_metrics(values, sample_weight)
        for metric in self.metrics:
            if metric.name in values:  # the user's own layers may bring others
                metric.update_state(values[metric.name], weight)
        return self.get_metrics_result()

    def get_metrics_result(self):
        """As Keras', but NaN from the first image with wrong values on."""
        results = super().get_metrics_result()
        wrong = results.pop(self.out_of_range.name)
        nan = ops.where(wrong > 0, float("nan"), 0.0)
        return {k: v + nan for k, v in results.items()}

    def fit(
        self, x=None, y=None, *args, validation_data=None, callbacks=None, **kwargs
    ):
        """As `keras.Model.fit`, with images checked where their values can be seen;
        what is done with data and callbacks is in kgen/fitting.py."""
        check_data(self, x, y)
        _check_batch_size(args, kwargs)
        y = _placeholder(x, y, kwargs)
        if validation_data is not None:
            parts = keras.utils.unpack_x_y_sample_weight(validation_data)
            check_data(self, *parts[:2], what="validation_data")
            x_val, *rest = fitting.adapt_for_evaluation(parts[0]), *parts[1:]
            alone = all(part is None for part in rest)
            kwargs["validation_data"] = x_val if alone else (x_val, *rest)
        prepared = fitting.prepare(self, x, callbacks, kwargs)
        with backend.preserve_state(self), prepared as (x, callbacks):
            try:
                history = super().fit(x, y, *args, callbacks=callbacks, **kwargs)
            except FloatingPointError:  # of StopOnNaN
                self._check_ranges("fit")
                raise
        self._check_ranges("fit")
        return history

    def evaluate(self, x=None, y=None, *args, return_dict=True, **kwargs):
        """As `keras.Model.evaluate`; returns {metric: value} unless asked not to."""
        check_data(self, x, y)
        if kwargs.get("_use_cached_eval_dataset"):  # by `fit`, after an epoch
            self._check_ranges("fit")
        y = _placeholder(x, y, kwargs)
        size = _check_batch_size(args, kwargs)
        x = fitting.adapt_for_evaluation(x)
        with backend.preserve_state(self), backend.allow_uneven_batches(x, size):
            logs = super().evaluate(x, y, *args, return_dict=return_dict, **kwargs)
        self._check_ranges("evaluate")
        return logs

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`, of images or a tuple (images, labels)."""
        check_data(self, *(x if isinstance(x, tuple) else (x, None)))
        size = _check_batch_size(args, kwargs)
        with backend.preserve_state(self), backend.allow_uneven_batches(x, size):
            predicted = super().predict(x, *args, **kwargs)
        wrong = np.isnan(predicted).reshape(len(predicted), -1).any(axis=1)
        if wrong.any():
            raise ValueError(
                f"predict: {wrong.sum()} of {len(wrong)} results are NaN, the first of "
                f"image {wrong.argmax()}. Either weights are NaN, or its values are "
                f"not in 0..{self.levels - 1}, or its label is not a class."
            )
        return predicted

    def _check_ranges(self, where):
        """Raises a ValueError if images since the metrics were reset had wrong values;
        data sets show theirs in the compiled step alone."""
        self.out_of_range.check(self.levels, self.num_classes, where)

    def train_on_batch(self, x, y=None, *args, **kwargs):
        """As `keras.Model.train_on_batch`, with the batch checked."""
        check_data(self, x, y)
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x, y=None, *args, **kwargs):
        """As `keras.Model.test_on_batch`, with the batch checked."""
        check_data(self, x, y)
        return super().test_on_batch(x, y, *args, **kwargs)

    # Drawing

    def draw(self, seeds, labels=None):
        """Images from seeds, int32 (B, 2) [and labels (B,)], and from nothing else:
        (B, H, W, C) integers. In plain ops, for it is compiled and exported."""
        raise NotImplementedError

    def sample(self, n, seed=None, labels=None, verbose="auto"):
        """Draws `n` images.

        Args:
            n: how many; long work is split, with a progress bar.
            seed: int in 0..2**31-1 for a repeatable draw, the same on every backend and
                in the exported model (image i has the served seed `seed * 2**32 + i`);
                None continues the model's own seed generator.
            labels: (n,) integers or one for all, for conditional models; by default
                the classes in turn.
            verbose: 0 for no progress bar.

        Returns: NumPy (n, H, W, C), values 0..levels-1; uint8, of more than 256 levels
        int32.
        """
        rows = self.requests(n, seed, labels)
        drawn = in_batches(self._draw, rows, self.image_shape, verbose)
        return drawn.astype(self.image_dtype)

    def requests(self, n, seed, labels):
        """What `draw` takes for images 0..n-1, checked: NumPy seeds (n, 2) [and labels
        (n,)], in a list."""
        if not is_integer(n) or n < 0:
            raise ValueError(f"n must be an integer, 0 or more images; got {n!r}.")
        if seed is None:
            words = ops.convert_to_numpy(self.seed_generator.next()).astype("int64")
            seed = int(np.random.SeedSequence(abs(words)).generate_state(1)[0] >> 1)
        seeds = random.image_seeds(seed, n)
        if self.num_classes is None:
            return [seeds]
        labels = np.arange(n) % self.num_classes if labels is None else labels
        labels = np.asarray(labels) if np.ndim(labels) else np.full(n, labels)
        check_labels(labels, self.num_classes)
        if len(labels) != n:
            raise ValueError(f"labels: expected one or {n}, got {len(labels)}.")
        return [seeds, labels.astype("int32")]

    # Keeping

    def summary(self, line_length=None, positions=None, print_fn=None, **kwargs):
        """As `keras.Model.summary`, with layers under the names of the model's
        attributes, and with weights that are in no layer."""
        attributes = vars(self)
        if hasattr(self, "named_children"):  # PyTorch keeps layers apart
            attributes = attributes | dict(self.named_children())
        for name, value in attributes.items():
            if not name.startswith("_"):
                _name_layers(name, value)
        super().summary(line_length, positions, print_fn, **kwargs)
        for w in (w for w in self.weights if w.path == f"{self.name}/{w.name}"):
            (print_fn or print)(f" {w.name}: weight of the model, {tuple(w.shape)}")

    def endpoints(self):
        """{name: Signature} of what is exported. A model's own inputs and outputs need
        no more than their description here."""
        seed = {"seed": Input("int64", kind="seed")}
        images = {"images": Output(self.image_dtype, self.image_shape)}
        return {"sample": self.signature(self._draw_images, seed, images)}

    def signature(self, function, inputs, outputs):
        """A Signature of these inputs, and, if the model is conditional, of labels."""
        if self.num_classes is not None:
            label = Input("int64", interval=(0, self.num_classes - 1))
            inputs = inputs | {"label": label}
        return Signature(function, inputs, outputs)

    @property
    def image_input(self):
        """Integer images as a signature takes them: int32, for 256 as uint8 is 0."""
        return Input("int32", self.image_shape, (0, self.levels - 1), "image")

    def _draw_images(self, seeds, labels=None):
        seeds_and_labels = (seeds,) if labels is None else (seeds, labels)
        return ops.cast(self.draw(*seeds_and_labels), self.image_dtype)

    def export(self, path, **kwargs):
        """Writes a SavedModel for TensorFlow Serving to `path`; see `kgen.export`."""
        return export.export(self, path, **kwargs)

    def save(self, filepath, overwrite=True, **kwargs):
        """As `keras.Model.save`; the file is written atomically."""
        with files.atomic(filepath, replace=overwrite) as path:
            super().save(path, **kwargs)

    def save_weights(self, filepath, overwrite=True, **kwargs):
        """As `keras.Model.save_weights`; the file is written atomically."""
        if kwargs.get("max_shard_size"):  # several files: Keras' own way
            return super().save_weights(filepath, overwrite, **kwargs)
        with files.atomic(filepath, replace=overwrite) as path:
            super().save_weights(path, **kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        """As `keras.Model.load_weights`; arrays that claim more bytes than the file has
        raise a ValueError before they are read."""
        path = files.check_path("filepath", filepath)
        if path.suffix in (".h5", ".hdf5") and path.is_file():
            limits.count_stored_weights(path, path.stat().st_size, path)
        return super().load_weights(filepath, *args, **kwargs)

    def save_to_preset(self, folder, card=None):
        """Writes `config.json`, `metadata.json` and `model.weights.h5` to `folder`, and
        `model_card.json` if there is a card, a dict."""
        presets.save(self, folder, card)

    @classmethod
    def from_preset(cls, name, load_weights=True):
        """The model that `save_to_preset` wrote to a folder, or one of those in
        `kgen.presets.list()`; any family from GenerativeModel."""
        return presets.load(cls, name, load_weights)

    # Keras leaves the state of seed generators out of weight files: a resumed run
    # would repeat its first noise. The root model keeps all of them, in its own group.

    def _seed_states(self):
        weights = {id(v) for v in self.weights}
        return [v for v in self.variables if id(v) not in weights]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for i, state in enumerate(self._seed_states()):
            store[f"seed_{i}"] = ops.convert_to_numpy(state)

    def load_own_variables(self, store):
        super().load_own_variables(
            {k: store[k] for k in store.keys() if not k.startswith("seed_")}
        )
        for i, state in enumerate(self._seed_states()):
            if f"seed_{i}" in store.keys():
                state.assign(store[f"seed_{i}"])


def _name_layers(name, value):
    """Names layers after an attribute: "head", of lists "head_0", "blocks_2_1"."""
    if isinstance(value, keras.Layer):
        value.name = name
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _name_layers(f"{name}_{i}", inner)


def _check_batch_size(args, kwargs):
    """The batch size among arguments of `fit` and its like; Keras' default is 32."""
    size = args[0] if args else kwargs.get("batch_size")
    if size is not None:
        positive(batch_size=size)
    return size or 32


def _placeholder(x, y, kwargs):
    """Labels for Keras, which drops `sample_weight` without a word if y is None."""
    if y is None and kwargs.get("sample_weight") is not None:
        return np.zeros(len(x), "int32")
    return y
