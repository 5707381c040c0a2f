"""Batches of images in memory, in an order that repeats."""

import keras
import numpy as np

from kgen.checks import boolean, is_integer, positive
from kgen.data.images import as_images, as_labels, bernoulli, check_levels


class Batches(keras.utils.PyDataset):
    """Batches of images in memory that repeat exactly: fit(x), evaluate(x) take it.

    What is in batch i is a pure function of (seed, epoch, i): the order of the
    images and the binarisation draws. `set_epoch` sets the epoch, so that
    a resumed training repeats; without it every end of an epoch moves on by one.
    (`keras.Model.fit` visits the batches in random order unless shuffle=False.)

    Args:
        images: (N, H, W, C) or (N, H, W) integers in 0..255.
        labels: None or (N,) integer class labels.
        batch_size: images in a batch; the last batch may be smaller.
        shuffle: a new order every epoch; False keeps the data's order.
        binarize: draw every pixel anew each epoch, 1 with its grey level as
            probability.
        source_levels: levels of `images` that binarize divides by; None means 256.
        seed: non-negative integer.
        drop_remainder: leave a smaller last batch out.

    Raises:
        ValueError: images or labels are not what is said above.
    """

    def __init__(
        self,
        images,
        labels=None,
        batch_size=128,
        shuffle=True,
        binarize=False,
        source_levels=None,
        seed=0,
        drop_remainder=False,
    ):
        super().__init__()
        boolean(shuffle=shuffle, binarize=binarize, drop_remainder=drop_remainder)
        if source_levels is not None:
            check_levels(source_levels, 256)
        self.images = as_images(images)  # (N, H, W, C)
        most = len(self.images) if drop_remainder else np.inf
        positive(batch_size=batch_size)
        if batch_size > most:
            raise ValueError(
                f"batch_size={batch_size} leaves no batch of {most} images"
            )
        self.drop_remainder = drop_remainder
        self.labels = None if labels is None else as_labels(labels, len(self.images))
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.binarize = binarize
        self.source_levels = source_levels or 256
        if binarize and self.images.max() >= self.source_levels:
            raise ValueError(
                f"expected values in 0..{self.source_levels - 1}, got "
                f"{self.images.max()}: set source_levels to the images' levels"
            )
        if not is_integer(seed) or seed < 0:
            raise ValueError(f"expected a seed of 0 or more, an integer, got {seed!r}")
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch, first_batch=0):
        """Sets the epoch (from 0) that the next batches belong to, and how many of its
        batches to leave out: a run that was interrupted has had them."""
        self.epoch, self.first_batch = epoch, first_batch
        count = len(self.images)
        rng = np.random.default_rng([self.seed, epoch])
        self._order = rng.permutation(count) if self.shuffle else np.arange(count)

    def on_epoch_end(self):
        """Moves on to the next epoch (Keras calls it)."""
        self.set_epoch(self.epoch + 1)

    def __len__(self):
        """Number of batches in an epoch, or left in this one."""
        N, B = len(self.images), self.batch_size
        batches = N // B if self.drop_remainder else -(-N // B)
        return batches - self.first_batch

    def __getitem__(self, i):
        """Batch i of this epoch.

        Returns:
            images (B, H, W, C) uint8, or with labels (images, labels (B,) int32).

        Raises:
            IndexError: i is not in 0..len(self)-1.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"expected a batch index in 0..{len(self) - 1}, got {i}")
        i += self.first_batch
        rows = self._order[i * self.batch_size : (i + 1) * self.batch_size]  # (B,)
        x = self.images[rows]  # (B, H, W, C)
        if self.binarize:
            rng = np.random.default_rng([self.seed, self.epoch, i])
            x = bernoulli(x, self.source_levels, rng)
        return x if self.labels is None else (x, self.labels[rows])
