"""Bad input gets an error that says what was expected, what came, and what to do."""

import keras
import numpy as np

from kgen import backend


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
        raise ValueError(f"{what}: {expected}; got shape {tuple(look.shape)}.")
    dtype = keras.backend.standardize_dtype(look.dtype)
    if not (dtype.startswith(("int", "uint")) or dtype == "bool"):
        nans = seen is not None and bool(np.isnan(seen).any())
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


def check_labels(labels, num_classes):
    """Raises a ValueError unless labels are integers (B,) in 0..num_classes-1."""
    if labels is None:
        raise ValueError(
            f"This model is conditional (num_classes={num_classes}): pass labels with "
            "the images, as `fit(x, labels)` or in the data set as (images, labels)."
        )
    seen = backend.concrete(labels)
    seen = np.asarray(labels) if isinstance(labels, (np.ndarray, list)) else seen
    expected = f"expected integer labels (batch,) in 0..{num_classes - 1}"
    if seen is None:
        return
    if seen.ndim != 1 or not np.issubdtype(seen.dtype, np.integer):
        raise ValueError(f"labels: {expected}; got {seen.dtype} {seen.shape}.")
    if seen.size and (seen.min() < 0 or seen.max() >= num_classes):
        raise ValueError(f"labels: {expected}; got {seen.min()}..{seen.max()}.")
