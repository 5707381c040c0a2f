"""Grids of images, as arrays and as PNG files."""

from pathlib import Path

import numpy as np

from kgen import files
from kgen.checks import is_integer, positive


def image_grid(images, levels, columns=None, separator=1):
    """Images (N, H, W, C) in 0..levels-1 -> one picture, uint8 (height, width, 3).

    Rows are filled first; small images are enlarged by a whole factor. `columns` is by
    default about the square root of N. Of other than 1 or 3 channels, the first one or
    three are shown.
    """
    if not is_integer(levels) or not 2 <= levels <= 256:
        raise ValueError(f"levels must be an integer in 2..256; got {levels!r}.")
    if columns is not None:
        positive(columns=columns)
    images = _convert_images(images) * (255.0 / (levels - 1))
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


def _convert_images(images):
    """float32 (N, H, W, C), N at least 1; a ValueError otherwise."""
    try:
        images = np.asarray(images)
    except ValueError:  # rows of different lengths
        images = np.zeros(())
    numbers = images.dtype.kind in "buif" and np.isfinite(images).all()
    if not numbers or images.ndim != 4 or not images.size:
        raise ValueError(
            "images must be finite numbers of shape (N, H, W, C), one image or more; "
            f"got {images.dtype} of shape {images.shape}."
        )
    return images.astype("float32")


def save_grid(path, images, levels, columns=None):
    """Writes `image_grid(...)` as a PNG, atomically; returns the path."""
    from PIL import Image

    with files.atomic(path) as unfinished:
        Image.fromarray(image_grid(images, levels, columns)).save(unfinished)
    return Path(path)
