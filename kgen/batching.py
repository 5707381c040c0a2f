"""Batched evaluation with few batch sizes, since each is compiled once."""

import keras
import numpy as np
from keras import ops

MAX_BATCH = 256  # images at once


class Share(keras.utils.PyDataset):
    """The i-th of n parts of each batch of a PyDataset: images in order, the first
    parts larger by one where they cannot be equal."""

    def __init__(self, data, i, n):
        super().__init__()
        self.data, self.i, self.n = data, i, n

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        batch = self.data[index]
        images = len(keras.tree.flatten(batch)[0])
        if images < self.n:
            raise ValueError(
                f"Batch {index} has {images} images for {self.n} processes: choose a "
                "batch size which leaves a larger rest."
            )
        rows = np.array_split(np.arange(images), self.n)[self.i]
        return keras.tree.map_structure(lambda a: a[rows], batch)

    def on_epoch_end(self):
        self.data.on_epoch_end()


class Still(keras.utils.PyDataset):
    """A data set as it is in this epoch, whatever is done with it: for validation,
    which is to be of the same images each time."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]

    def set_epoch(self, epoch):
        pass


def in_batches(fn, arguments, empty_shape, verbose="auto"):
    """`fn(*arguments)` for arrays of any length, in batches, with a progress bar.

    Parts are filled up to a power of two with copies of their first row, whose results
    are dropped; so `fn`'s result for a row may depend on that row alone.

    Args:
        fn: compiled function of tensors (B, ...), to a tensor (B, ...).
        arguments: NumPy arrays (n, ...).
        empty_shape: of a row of the result, for n = 0.
        verbose: 0 for no progress bar.

    Returns: NumPy (n, ...).
    """
    n = len(arguments[0])
    bar = None
    if verbose and n > 4 * MAX_BATCH:
        bar = keras.utils.Progbar(n, unit_name="image")
    out = []
    for start in range(0, n, MAX_BATCH):
        part = [a[start : start + MAX_BATCH] for a in arguments]
        size = len(part[0])
        padding = min(MAX_BATCH, 1 << (size - 1).bit_length()) - size
        part = [np.concatenate([a, np.repeat(a[:1], padding, 0)]) for a in part]
        out.append(ops.convert_to_numpy(fn(*part))[:size])
        if bar:
            bar.add(size)
    return np.concatenate(out) if out else np.zeros((0, *empty_shape), "float32")
