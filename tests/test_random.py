"""Seeds to noise: known answers, distributions, independence of the batch."""

import functools

import keras
import numpy as np
import pytest
from scipy import stats
from zoo import numpy, tensor

from kgen import backend, random


def threefry(key, counter):
    """Two words, as Python integers."""
    words = np.array([*key, *counter], "uint32").astype("int32")[:, None]
    found = random.threefry(*(tensor(word, "int32") for word in words))
    return tuple(int(numpy(word).astype("uint32")[0]) for word in found)


@functools.cache
def program(name, count, rank):
    """A compiled function of (seeds, stream), the stream of this rank."""
    fn = getattr(random, name)
    return backend.compile_function(
        keras.Sequential(), lambda seeds, s: fn(seeds, count, s)
    )


def noise(name, seeds, count, stream=0):
    fn = program(name, count, np.ndim(stream))
    return numpy(fn(tensor(seeds, "int32"), tensor(stream, "int32")))


def test_threefry_gives_the_published_answers():
    """Random123's vectors for threefry2x32, 20 rounds."""
    ones, pi = (2**32 - 1,) * 2, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
    assert threefry(ones, ones) == (0x1CB996FC, 0xBB002BE7)
    assert threefry(pi[2:], pi[:2]) == (0xC4923A9C, 0x483DF7A0)


def test_uniforms_are_threefry_words_without_0_and_1():
    u = noise("uniforms", random.image_seeds(3, 300), 301)
    assert u.dtype == "float32" and u.shape == (300, 301)
    assert 0 < u.min() and u.max() < 1
    bits = [word >> 9 for word in threefry((3, 17), (5, 0))]
    assert u[17, 5] == np.float32((bits[0] + 0.5) / 2**23)
    assert u[17, 151 + 5] == np.float32((bits[1] + 0.5) / 2**23)


def test_noise_fits_its_distribution():
    u = noise("uniforms", random.image_seeds(1, 301), 301)
    z = noise("normals", random.image_seeds(1, 301), 301, 1)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    for other in (np.roll(u, 1, 0), np.roll(u, 1, 1), u.T, stats.norm.cdf(z)):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 4 / 301


def test_noise_depends_on_seed_and_stream_alone():
    seeds = random.image_seeds(9, 6)
    z = noise("normals", seeds, 5, [0, 7])
    assert z.shape == (6, 2, 5) and len(np.unique(z)) == z.size
    for i, stream in enumerate((0, 7)):
        alone = noise("normals", seeds[[4, 1]], 5, stream)
        np.testing.assert_allclose(z[[4, 1], i], alone, rtol=1e-5)


def test_image_keys_are_functions_of_the_image(digits):
    keys = numpy(random.image_keys(tensor(digits, "uint8"), seed=5))
    assert keys.shape == (len(digits), 2) and np.all(keys[:, 1] == 5)
    assert len(np.unique(keys[:, 0])) == len(np.unique(digits, axis=0))
    pair = np.repeat(digits[7:8], 2, axis=0)
    pair[1, 3, 3, 0] ^= 1
    key, changed = numpy(random.image_keys(tensor(pair, "uint8"), seed=5))
    np.testing.assert_array_equal(key, keys[7])
    assert changed[0] != key[0]


@pytest.mark.once
def test_wrong_seeds_raise():
    for seed in (-1, 2**31):
        with pytest.raises(ValueError, match="0..2"):
            random.image_seeds(seed, 1)
    for seed in (1.5, True, "7"):
        with pytest.raises(TypeError, match="integer"):
            random.image_seeds(seed, 1)
