"""Likelihoods against scipy, brute-force sums and their own draws."""

import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import expit, log_softmax

from kgen.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    gaussian_kl,
    gaussian_log_prob,
    likelihood_of,
)

CASES = [
    (Bernoulli(), 2),
    (Categorical(2), 2),
    (Categorical(5), 5),
    (DiscretizedLogistic(2), 2),
    (DiscretizedLogistic(17), 17),
    (DiscretizedLogistic(256), 256),
]
NAMES = [f"{kind.name}-{levels}" for kind, levels in CASES]


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x), dtype)


def numpy(x):
    return ops.convert_to_numpy(x)


def pixel(kind, params, values):
    """log p of each of `values` for one pixel with `params`: (len(values),)."""
    n = len(values)
    params = np.broadcast_to(params, (n, 1, 1, len(params)))
    return numpy(
        kind.log_prob(tensor(params), tensor(values, "int32")[:, None, None, None])
    )


@pytest.mark.parametrize("kind,levels", CASES, ids=NAMES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_probabilities_of_all_levels_sum_to_one(kind, levels, scale, rng):
    for _ in range(5):
        params = rng.normal(0, scale, kind.num_params)
        total = np.exp(pixel(kind, params, np.arange(levels)).astype("float64")).sum()
        assert total == pytest.approx(1.0, abs=2e-5)


@pytest.mark.parametrize("kind,levels", CASES, ids=NAMES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_nothing_overflows(kind, levels, size):
    params = np.full(kind.num_params, size)
    if kind.num_params > 1:
        params[-1] = -size
    logs = pixel(kind, params, np.arange(levels))
    assert np.all(np.isfinite(logs)) and np.all(logs <= 1e-6)
    u = tensor([[[[1e-7]]], [[[1 - 1e-7]]]])
    both = tensor(np.broadcast_to(params, (2, 1, 1, len(params))))
    drawn = numpy(kind.draw(both, u))
    assert drawn.min() >= 0 and drawn.max() <= levels - 1
    mean = numpy(kind.mean(both))
    assert np.all(np.isfinite(mean)) and mean.min() >= 0 and mean.max() <= levels - 1


def test_bernoulli_against_scipy(rng):
    logits, x = rng.normal(0, 3, (4, 3, 5, 2)), rng.integers(0, 2, (4, 3, 5, 2))
    ours = numpy(Bernoulli().log_prob(tensor(logits), tensor(x, "int32")))
    theirs = stats.bernoulli.logpmf(x, expit(logits)).sum((1, 2, 3))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_categorical_against_scipy(rng):
    logits, x = rng.normal(0, 3, (4, 2, 3, 2, 5)), rng.integers(0, 5, (4, 2, 3, 2))
    flat = tensor(logits.reshape(4, 2, 3, 10))
    ours = numpy(Categorical(5).log_prob(flat, tensor(x, "int32")))
    terms = np.take_along_axis(log_softmax(logits, -1), x[..., None], -1)
    np.testing.assert_allclose(ours, terms.sum((1, 2, 3, 4)), rtol=1e-5)


def test_discretized_logistic_is_the_integrated_density(rng):
    levels = 17
    mean, log_scale = rng.normal(0, 0.5, 6), rng.normal(-1.5, 0.5, 6)
    edges = (np.arange(levels + 1) - 0.5) * 2 / (levels - 1) - 1
    edges[0], edges[-1] = -np.inf, np.inf
    for m, s in zip(mean, log_scale, strict=True):
        expected = np.diff(stats.logistic.cdf(edges, m, np.exp(s)))
        ours = np.exp(pixel(DiscretizedLogistic(levels), [m, s], np.arange(levels)))
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_discretized_logistic_reads_means_and_scales_per_channel():
    """Two channels: parameters are (mean, mean, log scale, log scale)."""
    kind = DiscretizedLogistic(256)
    params = tensor([[[[-1.0, 1.0, -6.0, -6.0]]]])
    np.testing.assert_allclose(numpy(kind.mean(params))[0, 0, 0], [0, 255], atol=0.5)
    best = numpy(kind.log_prob(params, tensor([[[[0, 255]]]], "int32")))
    worst = numpy(kind.log_prob(params, tensor([[[[255, 0]]]], "int32")))
    assert best > -2 and worst < -100


@pytest.mark.parametrize("kind,levels", CASES, ids=NAMES)
def test_draws_follow_the_probabilities(kind, levels, rng):
    """Draws at evenly spread uniforms have the probabilities as frequencies, and the
    inverse CDF is monotone."""
    params = rng.normal(0, 1.0, kind.num_params)
    if kind.name == "discretized_logistic":
        params = np.array([0.3, -2.0])
    n = 20_000
    u = ((np.arange(n) + 0.5) / n)[:, None, None, None]
    drawn = numpy(
        kind.draw(tensor(np.broadcast_to(params, (n, 1, 1, len(params)))), tensor(u))
    )
    order = np.diff(drawn.ravel())
    assert np.all(order <= 0) if kind.name == "bernoulli" else np.all(order >= 0)
    frequencies = np.bincount(drawn.ravel(), minlength=levels) / n
    expected = np.exp(pixel(kind, params, np.arange(levels)))
    np.testing.assert_allclose(frequencies, expected, atol=2e-4)
    mean = numpy(kind.mean(tensor(params.reshape(1, 1, 1, -1))))[0, 0, 0, 0]
    assert mean == pytest.approx(float(expected @ np.arange(levels)), rel=1e-4)


@pytest.mark.parametrize("kind,levels", CASES, ids=NAMES)
def test_half_precision_parameters_are_summed_in_float32(kind, levels, rng):
    params = rng.normal(0, 1, (2, 28, 28, kind.num_params)).astype("float16")
    x = tensor(rng.integers(0, levels, (2, 28, 28, 1)), "int32")
    half = kind.log_prob(ops.convert_to_tensor(params), x)
    full = kind.log_prob(tensor(params.astype("float32")), x)
    np.testing.assert_allclose(numpy(half), numpy(full), rtol=1e-6)


def test_gaussian_kl_and_density_against_scipy(rng):
    mean, log_var = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    sigma = np.exp(log_var / 2)
    ours = numpy(gaussian_kl(tensor(mean), tensor(log_var)))
    z = rng.normal(size=(200_000, 3, 4)) * sigma + mean
    ratio = stats.norm.logpdf(z, mean, sigma) - stats.norm.logpdf(z)
    ratio = ratio.sum(-1)
    error = ratio.std(0) / np.sqrt(len(z))
    assert np.all(np.abs(ours - ratio.mean(0)) < 5 * error)
    density = gaussian_log_prob(tensor(z[:5]), tensor(mean), tensor(log_var))
    expected = stats.norm.logpdf(z[:5], mean, sigma).sum(-1)
    np.testing.assert_allclose(numpy(density), expected, rtol=1e-5)


def test_gaussian_kl_against_torch(rng):
    torch = pytest.importorskip("torch")
    mean, log_var = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    normal = torch.distributions.Normal
    q = normal(torch.tensor(mean), torch.tensor(log_var).mul(0.5).exp())
    p = normal(torch.zeros(3, 4), torch.ones(3, 4))
    theirs = torch.distributions.kl_divergence(q, p).sum(-1).numpy()
    np.testing.assert_allclose(
        numpy(gaussian_kl(tensor(mean), tensor(log_var))), theirs, rtol=1e-5
    )


def test_names():
    assert likelihood_of(None, 2).name == "bernoulli"
    assert likelihood_of(None, 17).name == "discretized_logistic"
    assert likelihood_of("discretised_logistic", 17).name == "discretized_logistic"
    with pytest.raises(ValueError, match="'poisson'"):
        likelihood_of("poisson", 2)
    with pytest.raises(ValueError, match="over 2 levels; got levels=17"):
        likelihood_of("bernoulli", 17)
