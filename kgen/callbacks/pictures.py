"""Pictures of samples, reconstructions and completions, also while `fit` runs."""

import keras
import numpy as np
from keras import ops

from kgen import files, random
from kgen.callbacks.progress import print_line
from kgen.checks import positive
from kgen.pictures import save_grid


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
