"""Pictures while `fit` runs, and the functions that draw them."""

from pathlib import Path

import keras
import numpy as np
from keras import ops

from kgen import files, random
from kgen.callbacks.progress import print_line
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


class _Pictures(keras.callbacks.Callback):
    """A PNG after every `every`-th epoch, `<name>_epoch_001.png`, its path printed."""

    def __init__(self, folder, every, verbose):
        super().__init__()
        positive(every=every)
        self.folder, self.every = files.check_path("folder", folder), every
        self.verbose = verbose

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        # On JAX, looking at self.model fetches the weights: once an epoch at most.
        path = self.folder / f"{self.name}_epoch_{epoch + 1:03d}.png"
        self.write(path)
        if self.verbose:
            print_line(self, f"{self.name}: {path}")


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
        positive(n=n)
        if seed is not None:
            random.image_seeds(seed, 1)  # which raises for a wrong one
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

    def on_train_begin(self, logs=None):
        if not hasattr(self.model, "reconstruct"):
            name = type(self.model).__name__
            raise ValueError(f"ReconstructionGrid is for a VAE; got a {name}.")

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
