"""Checks of images, labels, latents and weights. Errors give what was expected, what
came, and what to do."""

import warnings

import keras
import numpy as np
from keras import ops

from kgen import backend


def check_data(model, x, y=None, what="x"):
    """What `fit` is given: arrays whole, of data sets with random access a batch."""
    if x is None or isinstance(x, (list, tuple, dict, str, int, float)):
        raise ValueError(
            f"{what}: expected an array of images or a data set; got a "
            f"{type(x).__name__}. Pass labels beside the images: fit(images, labels)."
        )
    if isinstance(x, keras.utils.PyDataset):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(x[0])
    values = x if isinstance(x, np.ndarray) else backend.concrete(x)
    if values is not None:
        check_images(values, model.image_shape, model.levels, what)
        if model.prepare_labels(y) is not None and len(x) != len(y):
            raise ValueError(f"{what}: expected a label an image; got {len(y)} labels.")
        if model.levels > 2 and values.max() == 1:
            warnings.warn(
                f"{what}: all values are 0 or 1, and the model has {model.levels} "
                "levels, of which 1 is all but black. Is it to have levels=2?",
                stacklevel=3,
            )


def check_images(x, image_shape, levels, what="x", values=True):
    """Raises a ValueError unless x is (B, *image_shape) integers in 0..levels-1.

    With `values=False`, or while tracing, only shape and dtype are looked at.
    """
    expected = (
        f"expected integer images (batch, {', '.join(map(str, image_shape))}) with "
        f"values 0..{levels - 1}"
    )
    seen = np.asarray(x) if isinstance(x, (np.ndarray, list, tuple)) else None
    if seen is None and values:
        seen = backend.concrete(x)
    look = x if seen is None else seen
    if not hasattr(look, "dtype") or not hasattr(look, "shape"):
        raise ValueError(f"{what}: {expected}; got {type(x).__name__}.")
    if tuple(look.shape[1:]) != tuple(image_shape) or len(look.shape) != 4:
        shape = tuple(look.shape)
        advice = " Pass one image as x[None]." if shape == tuple(image_shape) else ""
        if len(shape) == 3 and (*shape[1:], 1) == tuple(image_shape):
            advice = " Add the axis of channels: x[..., None]."
        raise ValueError(f"{what}: {expected}; got shape {shape}.{advice}")
    dtype = _name(look.dtype)
    if not dtype.startswith(("int", "uint", "bool")):
        nans = dtype.startswith("float") and seen is not None and np.isnan(seen).any()
        raise ValueError(
            f"{what}: {expected}; got {dtype}{' with NaN' if nans else ''}. Pass the "
            "integers themselves: kgen scales inside. `kgen.data.quantize` maps 8-bit "
            "images to fewer levels."
        )
    if seen is None or not values:
        return
    if seen.size == 0:
        raise ValueError(f"{what}: {expected}; got no images at all.")
    low, high = int(seen.min()), int(seen.max())
    if low < 0 or high > levels - 1:
        raise ValueError(
            f"{what}: {expected}; got values {low}..{high}. Build the model with "
            f"levels={high + 1} or more, or map the images with `kgen.data.quantize`."
        )


def _name(dtype):
    """Of a dtype of NumPy, TensorFlow, JAX, PyTorch or Keras, such as "int32"."""
    return getattr(dtype, "name", str(dtype).removeprefix("torch."))


def check_labels(labels, num_classes, values=True):
    """Raises a ValueError unless labels are integers (B,) in 0..num_classes-1.

    With `values=False`, or while tracing, only shape and dtype are looked at.
    """
    if labels is None:
        raise ValueError(
            f"This model is conditional (num_classes={num_classes}): pass labels with "
            "the images, as `fit(x, labels)` or in the data set as (images, labels)."
        )
    expected = f"labels: expected integer labels (batch,) in 0..{num_classes - 1}"
    if isinstance(labels, (list, tuple)):
        labels = np.asarray(labels)
    if not hasattr(labels, "dtype") or labels.dtype == object:
        raise ValueError(f"{expected}; got {labels!r}.")
    shape, dtype = tuple(labels.shape), _name(labels.dtype)
    if len(shape) != 1 or not dtype.startswith(("int", "uint")):
        advice = " Pass labels[:, 0]." if len(shape) == 2 and shape[1] == 1 else ""
        raise ValueError(f"{expected}; got {dtype} {shape}.{advice}")
    seen = labels if isinstance(labels, np.ndarray) else None
    if seen is None and values:
        seen = backend.concrete(labels)
    if seen is not None and seen.size and (seen.min() < 0 or seen.max() >= num_classes):
        raise ValueError(f"{expected}; got {seen.min()}..{seen.max()}.")


def clip(values, count, axis=None):
    """Integers (B, ...) as int32, clipped to 0..count-1, and whether there are values
    below and above: two booleans over these axes, None where the type has no such
    values. In plain ops, for compiled steps."""
    dtype = keras.backend.standardize_dtype(values.dtype)
    if dtype == "uint8":  # as bytes: one reduction, over a quarter of the memory
        if count >= 256:
            return ops.cast(values, "int32"), None, None
        above = ops.max(values, axis=axis) > count - 1
        return ops.cast(ops.minimum(values, count - 1), "int32"), None, above
    if dtype not in ("uint32", "int64", "uint64"):
        values = ops.cast(values, "int32")  # int8 cannot be compared with 256
    below, above = (
        ops.min(values, axis=axis) < 0,
        ops.max(values, axis=axis) > count - 1,
    )
    return ops.cast(ops.clip(values, 0, count - 1), "int32"), below, above


@keras.saving.register_keras_serializable(package="kgen")
class OutOfRange(keras.metrics.Metric):
    """Counts the batches of an epoch with wrong values: those of data sets are seen by
    the compiled step alone, which cannot raise. `result` is how often any were seen."""

    def __init__(self):
        super().__init__(name="out_of_range")
        names = "below", "above", "labels"  # which values are wrong
        self.counts = [
            self.add_variable((), initializer="zeros", name=name) for name in names
        ]

    def update_state(self, *flags):
        """Booleans: whether a batch has values below or above the range, or labels out
        of it; None where it cannot."""
        for count, flag in zip(self.counts, flags, strict=True):
            if flag is not None:
                one = backend.replica_sum(ops.cast(flag, "float32"))
                count.assign(count + one)

    def result(self):
        below, above, labels = self.counts
        return below + above + labels

    def check(self, levels, num_classes, where):
        """Raises a ValueError if there were any."""
        kinds = [
            "values below 0",
            f"values above {levels - 1}",
            f"labels that are not in 0..{(num_classes or 0) - 1}",
        ]
        counts = [int(ops.convert_to_numpy(count)) for count in self.counts]
        pairs = zip(kinds, counts, strict=True)
        wrong = [f"{kind} (batches: {n})" for kind, n in pairs if n]
        if wrong:
            raise ValueError(
                f"{where}: expected integer images with values 0..{levels - 1}; got "
                f"{' and '.join(wrong)}. Build the model with as "
                "many levels (and classes) as the data have, or map the images with "
                "`kgen.data.quantize`."
            )


def all_finite(variables):
    """Whether no float of them is NaN or infinite."""
    floats = [v for v in variables if "float" in v.dtype]
    return all(np.isfinite(ops.convert_to_numpy(v)).all() for v in floats)


def finite_weights(model, what):
    """Raises a ValueError if a weight is NaN or infinite: it would sample zeros."""
    bad = [v.path for v in model.weights if not all_finite([v])]
    if bad:
        raise ValueError(
            f"{what}: {len(bad)} of {len(model.weights)} weights hold NaN or infinity, "
            f"{bad[0]} among them. Take an earlier backup or preset."
        )


def prepare_latents(z, shape):
    """z as float32; raises a ValueError unless it is (B, *shape) and finite."""
    expected = f"(batch, {', '.join(map(str, shape))})"
    z = np.asarray(z) if isinstance(z, (list, tuple)) else z
    dtype = _name(getattr(z, "dtype", type(z).__name__))
    if not dtype.startswith(("float", "bfloat", "int", "uint")):
        raise ValueError(f"z: expected numbers {expected}; got {dtype}.")
    z = ops.cast(z, "float32")
    if not z.shape or tuple(z.shape[1:]) != tuple(shape):
        raise ValueError(f"z: expected {expected}; got shape {tuple(z.shape)}.")
    values = backend.concrete(z)
    if values is not None and not np.isfinite(values).all():
        raise ValueError("z: expected finite numbers; got NaN or infinity among them.")
    return z
