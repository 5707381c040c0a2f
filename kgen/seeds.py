"""The seeds of images, for which no framework is needed."""

import numpy as np


def image_seeds(seed, n):
    """The seeds of images 0..n-1 of the run `seed`: int32 (n, 2).

    Image i has the 64-bit seed `seed * 2**32 + i`, which is what an exported model's
    `seed` input takes. So the first images do not depend on `n`.

    Raises:
        TypeError, ValueError: `seed` is not an integer in 0..2**31-1.
    """
    check_seed(seed)
    return np.stack([np.full(n, seed), np.arange(n)], axis=-1).astype("int32")


def check_seed(seed):
    """Raises a TypeError or a ValueError unless it is an integer in 0..2**31-1."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an integer; got {seed!r}.")
    if not 0 <= seed < 2**31:
        raise ValueError(f"seed must be in 0..2**31-1; got {seed}.")
