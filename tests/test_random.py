"""Seeds to noise: known answers, distributions, independence of the batch."""

import numpy as np
import pytest
from keras import ops
from scipy import stats

from kgen import random

KNOWN = [  # Random123's published vectors for threefry2x32, 20 rounds
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def word(value):
    return ops.convert_to_tensor(np.array([value], "uint32").astype("int32"))


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("key,counter,expected", KNOWN)
def test_threefry_gives_the_published_answers(key, counter, expected):
    words = random.threefry(*map(word, key), *map(word, counter))
    assert tuple(int(numpy(w).astype("uint32")[0]) for w in words) == expected


def test_uniforms_are_threefry_words_and_never_the_ends():
    seeds = ops.convert_to_tensor(random.image_seeds(3, 200))
    u = numpy(random.uniforms(seeds, 501))
    assert u.dtype == "float32" and u.shape == (200, 501)
    assert 0 < u.min() and u.max() < 1
    a, b = random.threefry(word(3), word(17), word(5), word(0))
    bits = [(int(numpy(w).astype("uint32")[0]) >> 9) for w in (a, b)]
    assert u[17, 5] == np.float32((bits[0] + 0.5) / 2**23)
    assert u[17, 251 + 5] == np.float32((bits[1] + 0.5) / 2**23)


def test_noise_fits_its_distribution():
    seeds = ops.convert_to_tensor(random.image_seeds(1, 300))
    u, z = numpy(random.uniforms(seeds, 300)), numpy(random.normals(seeds, 300, 1))
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    for other in (np.roll(u, 1, 0), np.roll(u, 1, 1), u.T, stats.norm.cdf(z)):
        assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 4 / 300


def test_an_image_depends_on_its_own_seed_alone():
    many = random.image_seeds(9, 6)
    some = ops.convert_to_tensor(many[[4, 1]])
    everyone = numpy(random.uniforms(ops.convert_to_tensor(many), 10))
    np.testing.assert_array_equal(everyone[[4, 1]], random.uniforms(some, 10))
    assert len(np.unique(everyone)) == everyone.size


def test_streams_of_one_seed_differ_and_broadcast():
    seeds = ops.convert_to_tensor(random.image_seeds(2, 3))
    both = numpy(random.normals(seeds, 5, ops.convert_to_tensor([0, 7], "int32")))
    assert both.shape == (3, 2, 5)
    np.testing.assert_array_equal(both[:, 0], numpy(random.normals(seeds, 5, 0)))
    np.testing.assert_array_equal(both[:, 1], numpy(random.normals(seeds, 5, 7)))
    assert np.all(both[:, 0] != both[:, 1])


def test_image_keys_are_functions_of_the_image(digits):
    keys = numpy(random.image_keys(ops.convert_to_tensor(digits), seed=5))
    assert keys.shape == (len(digits), 2) and np.all(keys[:, 1] == 5)
    assert len(np.unique(keys[:, 0])) == len(np.unique(digits, axis=0))
    one = numpy(random.image_keys(ops.convert_to_tensor(digits[7:8]), seed=5))
    np.testing.assert_array_equal(one[0], keys[7])
    changed = digits[7:8].copy()
    changed[0, 3, 3, 0] ^= 1
    assert numpy(random.image_keys(ops.convert_to_tensor(changed)))[0, 0] != one[0, 0]


@pytest.mark.parametrize("seed,error", [(-1, ValueError), (2**31, ValueError)])
def test_seeds_out_of_range(seed, error):
    with pytest.raises(error, match="0..2"):
        random.image_seeds(seed, 1)


@pytest.mark.parametrize("seed", [1.5, True, "7"])
def test_seeds_that_are_no_integers(seed):
    with pytest.raises(TypeError, match="integer"):
        random.image_seeds(seed, 1)
