"""Integer images: checks, levels, binary draws, and reading files."""

import contextlib
import importlib
import warnings

import numpy as np

from kgen.checks import is_integer

EXIF_ORIENTATION, EXIF_SIDEWAYS = 0x0112, (5, 6, 7, 8)
# The contents of a file decide how it is decoded, whatever its name ends in; Pillow
# would start Ghostscript for PostScript.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def as_images(x):
    """Checks integer images and gives them the shape and dtype kgen works with.

    Args:
        x: (N, H, W, C) or (N, H, W) array of integers (or booleans) in 0..255.

    Returns:
        (N, H, W, C) uint8 array; not a copy when `x` already is one.

    Raises:
        ValueError: floats (NaN included), wrong rank, empty, out of range.
    """
    x = _convert_array(x, "images of integers")
    if x.dtype.kind == "f":
        nan = "" if np.isfinite(x).all() else " that hold NaN or infinity"
        raise ValueError(
            f"expected images of integers in 0..levels-1, got {x.dtype} values{nan}: "
            "pass integers (0..1 floats become 8-bit by np.round(x * 255).astype("
            "'uint8')); kgen.data.quantize then gives fewer levels"
        )
    if x.dtype.kind not in "bui":
        raise ValueError(f"expected images of integers, got an array of {x.dtype}")
    if x.ndim not in (3, 4):
        raise ValueError(
            "expected images of shape (N, H, W, C) or (N, H, W), got the shape "
            f"{x.shape}; one image needs x[None]"
        )
    if x.size == 0:
        raise ValueError(f"expected at least one image, got an empty array {x.shape}")
    if x.min() < 0 or x.max() > 255:
        raise ValueError(
            f"expected integers in 0..255, got values from {x.min()} to {x.max()}: "
            "negative or larger values must be shifted or scaled into 0..255 first"
        )
    x = x[..., None] if x.ndim == 3 else x  # (N, H, W, C)
    return x.astype(np.uint8, copy=False)


def _convert_array(x, expected):
    try:
        return np.asarray(x)
    except (ValueError, TypeError) as error:  # rows of different lengths
        raise ValueError(f"expected {expected}, got no array: {error}") from error


def as_labels(labels, count):
    """Class labels of `count` images as a (N,) int32 array; ValueError if not."""
    labels = _convert_array(labels, "integer class labels")
    if labels.shape != (count,) or labels.dtype.kind not in "ui" or labels.min() < 0:
        raise ValueError(
            f"expected one integer class label >= 0 for each of the {count} images, "
            f"shape ({count},), got shape {labels.shape} of {labels.dtype}"
        )
    return labels.astype(np.int32)


def check_levels(levels, source_levels):
    """ValueError unless `levels` can be made of `source_levels`."""
    fits = is_integer(levels) and is_integer(source_levels)
    if not fits or not 2 <= levels <= source_levels <= 256:
        raise ValueError(
            f"expected levels in 2..{source_levels}, as many as the source has at "
            f"most (256 at most), got levels={levels!r}; leave levels=None to keep all"
        )


def quantize(images, levels, source_levels=256):
    """Reduces integer images to fewer grey levels: floor(x * levels / source_levels).

    Args:
        images: (N, H, W, C) or (N, H, W) integers in 0..source_levels-1.
        levels: how many levels to keep, 2..source_levels.
        source_levels: how many levels `images` have, at most 256.

    Returns:
        (N, H, W, C) uint8 in 0..levels-1.

    Raises:
        ValueError: `levels` is below 2 or above `source_levels`, or the images are
            not integers in 0..source_levels-1.
    """
    check_levels(levels, source_levels)
    images = as_images(images)
    table = np.arange(source_levels) * levels // source_levels
    return _look_up(table, images)


def threshold(images, source_levels):
    """Binary images, uint8: 1 where the grey level is at least half the largest."""
    return _look_up(2 * np.arange(source_levels) >= source_levels - 1, images)


def _look_up(table, images):
    """`table` (levels,) at every pixel of uint8 `images`, as uint8."""
    if images.max() >= len(table):
        raise ValueError(
            f"expected values in 0..{len(table) - 1}, got {images.max()}: "
            "source_levels must be the number of levels the images really have"
        )
    return table.astype(np.uint8)[images]


def bernoulli(images, source_levels, rng):
    """Binary images, uint8: each pixel is 1 with its grey level as probability.

    The darkest level is always 0 and the brightest, source_levels-1, always 1.
    """
    p = images / np.float32(source_levels - 1)  # (..., H, W, C)
    return (rng.random(images.shape, dtype=np.float32) < p).astype(np.uint8)


def bernoulli_once(images, source_levels, key, index):
    """Bernoulli draw that depends, for each image, on `key` and its index alone.

    So an image is drawn the same whichever split or batch it is read in.

    Args:
        images: (N, H, W, C) uint8.
        source_levels: their number of levels.
        key: list of non-negative integers (the seed and the like).
        index: (N,) position of each image in its source.

    Returns:
        (N, H, W, C) uint8, zeros and ones.
    """
    drawn = np.empty_like(images)  # (N, H, W, C)
    for row, i in enumerate(index):
        rng = np.random.default_rng([*key, int(i)])
        drawn[row] = bernoulli(images[row], source_levels, rng)
    return drawn


def need(module, package):
    """Imports an optional module; an ImportError names the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {package}, which cannot be imported ({error}): "
            f"pip install {package}"
        ) from error


def fit_image(image, size, channels):
    """Converts a Pillow image or array, resizes it and crops its centre.

    Args:
        image: PIL.Image, or (H, W, C) uint8 array of 1, 3 or 4 channels.
        size: (H, W) or None to keep the image's own.
        channels: 1 (grey) or 3 (RGB); alpha is dropped.

    Returns:
        (H, W, channels) uint8 array.
    """
    Image = need("PIL.Image", "pillow")
    ImageOps = need("PIL.ImageOps", "pillow")
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if image.mode.startswith("I"):  # 16 bits: Pillow's convert would clip at 255
        values = np.asarray(image).astype(np.int64)
        if 0 < values.max() < 4096:
            raise ValueError(
                f"16-bit values that end at {values.max()}, as those of 10 or 12 bits "
                "do: convert it to 8 bits"
            )
        image = Image.fromarray((values >> 8).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if size and image.size != (size[1], size[0]):
        image = ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image.height, image.width, channels)


@contextlib.contextmanager
def _open_image(path):
    """A regular file as a Pillow image whose pixels are 8 or 16 bits and not too many;
    in the block too, a ValueError names a file that cannot be read."""
    Image = need("PIL.Image", "pillow")
    try:
        if not path.is_file():  # opening a pipe would wait for a writer
            raise ValueError("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=FORMATS)
        with opened as image:
            if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
                raise ValueError("its values are of 32 bits: convert it to 8 bits")
            yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        words = f"{error}; for more set PIL.Image.MAX_IMAGE_PIXELS"
        raise ValueError(f"cannot read the image {path}: {words}") from error
    except (OSError, SyntaxError, ValueError) as error:
        words = f"cannot read the image {path} ({error}): replace or remove it"
        raise ValueError(words) from error


def _orientation(image):
    """EXIF's orientation of an opened Pillow image, or None."""
    if image.format == "PNG" and "exif" not in image.info:
        return None  # getexif would decode the whole image to look behind it
    return image.getexif().get(EXIF_ORIENTATION)


def scan(files, size):
    """Reads every file's header: the size (H, W) of the images, and are all grey."""
    sizes, grey = {}, True
    for path in files:
        with _open_image(path) as image:
            wh, mode, turned = image.size, image.mode, _orientation(image)
        wh = wh[::-1] if turned in EXIF_SIDEWAYS else wh
        sizes.setdefault(wh[::-1], path)
        grey = grey and (mode in ("1", "L", "LA", "La") or mode.startswith("I"))
        if not size and len(sizes) > 1:
            (a, first), (b, second) = list(sizes.items())[:2]
            raise ValueError(
                f"the images differ in size: {first.name} is {a[0]}x{a[1]} and "
                f"{second.name} is {b[0]}x{b[1]} (height x width); pass image_size= "
                "to resize and crop them all"
            )
    return size or next(iter(sizes)), grey


def read_image(path, size, channels):
    """One file as (H, W, channels) uint8; ValueError names a file it cannot read."""
    ImageOps = need("PIL.ImageOps", "pillow")
    with _open_image(path) as image:
        upright = ImageOps.exif_transpose(image) if _orientation(image) else image
        return fit_image(upright, size, channels)
