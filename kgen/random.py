"""Seeds to noise: a counter-based generator that gives the same numbers everywhere.

Threefry-2x32 with 20 rounds (Salmon, Moraes, Dror and Shaw 2011, "Parallel random
numbers: as easy as 1, 2, 3", SC11) in 32-bit integer additions, rotations and
exclusive-ors, so that TensorFlow, JAX, PyTorch and an exported graph all draw the same
image from the same seed, and image b of a batch depends on seed b alone. No framework's
own generator does this: theirs differ from one another, and take one seed a batch.

Shapes: B = images in the batch. A seed is a pair of 32-bit words, int32 (B, 2).
"""

import numpy as np
from keras import ops

from kgen import backend
from kgen.seeds import check_seed
from kgen.seeds import image_seeds as image_seeds

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def of_batch(draw, n):
    """`draw(n)`, noise for the n images at hand, first axis n. Where each of several
    devices has a part of the batch: its part of the whole batch's noise, for their seed
    generators are in one state."""
    first, total = backend.replica_rows(n)
    return draw(n) if total is n else draw(total)[first : first + n]


def image_keys(x, seed=0):
    """Seeds made of the images themselves: int32 (B, 2).

    For estimates that shall be functions of the image: equal images get equal noise,
    whatever batch they are in, and different images different noise. A multilinear hash
    modulo 2**32 with fixed odd coefficients.

    Args:
        x: integers (B, H, W, C).
        seed: int in 0..2**31-1, for another draw.
    """
    check_seed(seed)
    dims = int(np.prod(x.shape[1:]))
    coefficients = np.random.default_rng(dims).integers(-(2**31), 2**31, dims) | 1
    x = ops.reshape(ops.cast(x, "int32"), (-1, dims))  # (B, D)
    word = ops.sum(x * ops.convert_to_tensor(coefficients, "int32"), axis=-1)  # (B,)
    word = ops.cast(word, "int32")  # PyTorch sums into int64
    return ops.stack([word, ops.full_like(word, seed)], axis=-1)


def uniforms(seeds, count, stream=0):
    """`count` uniform numbers for each seed, each in (0, 1): float32 (B, count).

    The numbers are (k + 1/2) / 2**23, exact in float32: never 0, never 1.

    Args:
        seeds: int32 (B, 2).
        count: how many.
        stream: streams of one seed are independent. An int in 0..2**31-1, or int32
            (S,), which gives (B, S, count).
    """
    counter0 = ops.convert_to_tensor(np.arange((count + 1) // 2), "int32")
    counter1 = ops.convert_to_tensor(stream, "int32")[..., None]  # (1,) or (S, 1)
    shape = (-1,) + (1,) * len(counter1.shape)
    key0 = ops.reshape(seeds[:, 0], shape)  # (B, 1) or (B, 1, 1)
    key1 = ops.reshape(seeds[:, 1], shape)
    words = threefry(key0, key1, counter0, counter1)  # (B, [S,] count / 2) twice
    bits = ops.concatenate(words, axis=-1)[..., :count]
    return (ops.cast(_shift_right(bits, 9), "float32") + 0.5) * 2.0**-23


def normals(seeds, count, stream=0):
    """Standard normal numbers by inverse CDF, float32, shaped as `uniforms`."""
    return inverse_normal_cdf(uniforms(seeds, count, stream))


def inverse_normal_cdf(u):
    """N(0, I) of uniforms u in (0, 1): float32, of their shape."""
    return float(np.sqrt(2.0)) * ops.erfinv(2.0 * ops.cast(u, "float32") - 1.0)


def threefry(key0, key1, counter0, counter1):
    """Threefry-2x32-20 of key and counter words that broadcast: two int32 tensors."""
    keys = (key0, key1, key0 ^ key1 ^ _PARITY)
    x0 = key0 + counter0 + ops.zeros_like(counter1)
    x1 = key1 + counter1 + ops.zeros_like(counter0)
    for block in range(5):
        for rotation in _ROTATIONS[4 * (block % 2) :][:4]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, rotation) ^ x0
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + keys[(block + 2) % 3] + (block + 1)
    return x0, x1


def _rotate_left(x, bits):
    return ops.bitwise_or(ops.left_shift(x, bits), _shift_right(x, 32 - bits))


def _shift_right(x, bits):
    """A logical shift of int32: the arithmetic one fills with the sign."""
    return ops.bitwise_and(ops.right_shift(x, bits), (1 << (32 - bits)) - 1)
