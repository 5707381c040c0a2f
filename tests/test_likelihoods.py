"""Likelihoods against float64 sums written from the papers' equations, brute-force
sums over all colors, and their own samples."""

import functools

import keras
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, log_softmax
from zoo import chi_square, every_image, numpy, tensor

from kgen import backend
from kgen.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    LogisticMixture,
    gaussian_kl,
    gaussian_log_prob,
    likelihood_of,
)
from kgen.random import inverse_normal_cdf

BERNOULLI, CATEGORICAL, MIXTURE = Bernoulli(), Categorical(5), LogisticMixture(256)
LOGISTIC, ONE_COMPONENT = DiscretizedLogistic(256), LogisticMixture(17, 1)
CASES = [  # likelihood, levels, channels: the kinds, other levels and channels, others
    (BERNOULLI, 2, 3),
    (CATEGORICAL, 5, 3),
    (LOGISTIC, 256, 1),
    (ONE_COMPONENT, 17, 3),
    (DiscretizedLogistic(2), 2, 3),
    (MIXTURE, 256, 1),
    (Categorical(2), 2, 1),
    (DiscretizedLogistic(17), 17, 1),
    (LogisticMixture(2, 3), 2, 3),
    (MIXTURE, 256, 3),
]
N = 256  # pixels at once: each method is compiled for one shape


def cases(default=6, stop=9, of=3):
    """`of` values of each case before `stop`; exhaustive from `default` on."""
    return [
        pytest.param(
            *case[:of],
            id="-".join([case[0].name, *map(str, case[1:of])]),
            marks=pytest.mark.exhaustive if i >= default else (),
        )
        for i, case in enumerate(CASES[:stop])
    ]


@functools.cache
def program(kind, method, shape):
    """The method as one compiled function: on JAX its operations one by one would
    each be compiled. One for each shape of the parameters, of which TensorFlow would
    else forget the channels."""
    model = keras.Sequential()

    def gradient(params, x):
        log_prob = functools.partial(kind.log_prob, x=x)
        return backend.input_gradient(model, log_prob, params)

    fn = gradient if method == "gradient" else getattr(kind, method)
    return backend.compile_function(model, fn, gradients=method == "gradient")


def apply(method, kind, params, values=None, *args):
    """A method at n images of one pixel, N at a time: params (P,) or (n, P), values
    (n, C) -> (n, ...)."""
    n = len(params if values is None else values)
    params = np.broadcast_to(params, (n, np.shape(params)[-1]))
    parts = []
    for i in range(0, n, N):
        rows = np.arange(i, i + N) % n  # the last part is filled up
        given = [tensor(params[rows][:, None, None])]  # (N, 1, 1, P)
        if values is not None:
            dtype = "int32" if values.dtype.kind in "iu" else "float32"
            given.append(tensor(values[rows][:, None, None], dtype))
        fn = program(kind, method, given[0].shape)
        parts.append(numpy(fn(*given, *args)))
    out = np.concatenate(parts)[:n]
    return out.reshape(n, *out.shape[3:])


log_prob = functools.partial(apply, "log_prob")  # (kind, params, x) -> (n,)
gradient = functools.partial(apply, "gradient")  # (kind, params, x) -> (n, P)
mean = functools.partial(apply, "mean")  # (kind, params) -> (n, C)


def draw(kind, params, u, temperature=1.0):
    """By inverse CDF of uniforms u (n, C) -> (n, C)."""
    out = apply("draw", kind, params, u, tensor(temperature))
    assert out.dtype == "int32"
    return out


def colors(levels, channels):
    return every_image((channels,), levels).astype("int64")


def bin_masses(x, mean, log_scale, levels):
    """The logistic's CDF differences, in float64, of the tail that has digits."""
    scaled, half = 2 * x / (levels - 1) - 1, 1 / (levels - 1)
    upper = np.where(x == levels - 1, np.inf, scaled + half)
    lower = np.where(x == 0, -np.inf, scaled - half)
    scale, sign = np.exp(np.clip(log_scale, -7, 7)), np.where(scaled > mean, -1, 1)
    cdf = stats.logistic(sign * mean, scale).cdf
    return np.abs(cdf(sign * upper) - cdf(sign * lower))


def exact_mixture(params, x, levels, K):
    """Equations 2 and 3 of PixelCNN++: float64 params (n, K runs), x (n, C) -> (n,)."""
    runs = iter(np.moveaxis(params.reshape(len(params), -1, K), 1, 0))  # (n, K) each
    p = np.exp(log_softmax(next(runs), axis=-1))
    scaled = 2 * x / (levels - 1) - 1
    for c in range(x.shape[1]):
        mean, log_scale = next(runs), next(runs)
        for before in range(c):
            mean = mean + np.tanh(next(runs)) * scaled[:, before, None]
        p = p * bin_masses(x[:, c, None], mean, log_scale, levels)
    return np.log(p.sum(-1))


def exact(kind, params, x, levels):
    """log p in float64: params (P,) or (n, P), x (n, C) -> (n,)."""
    params = np.broadcast_to(params, (len(x), params.shape[-1]))
    if kind.name == "logistic_mixture":
        return exact_mixture(params, x, levels, kind.num_mixtures)
    blocks = params.reshape(*x.shape, -1)  # (n, C, P / C): a block for each channel
    if kind.name == "bernoulli":
        terms = stats.bernoulli.logpmf(x, expit(blocks[..., 0]))
    elif kind.name == "categorical":
        terms = np.take_along_axis(log_softmax(blocks, -1), x[..., None], -1)[..., 0]
    else:
        terms = np.log(bin_masses(x, blocks[..., 0], blocks[..., 1], levels))
    return terms.sum(-1)


def probabilities(kind, params, levels):
    """Of all levels of one channel, in float64."""
    return np.exp(exact(kind, params, colors(levels, 1), levels))


# Runs of parameters that are log scales: of K values each in a mixture, else of one
LOG_SCALES = {"discretized_logistic": [1, 3, 5], "logistic_mixture": [2, 4, 7]}


def moderate(kind, channels, rng, n=None, log_scale=-1.5):
    """Parameters whose probabilities have digits in float64, (P,) or (n, P), with log
    scales around the given one."""
    size = kind.params_per_pixel(channels)
    params = rng.normal(0, 0.8, size if n is None else (n, size))
    runs = params.reshape(*params.shape[:-1], -1, getattr(kind, "num_mixtures", 1))
    scales = LOG_SCALES.get(kind.name, [])[:channels]
    runs[..., scales, :] = 0.5 * runs[..., scales, :] + log_scale
    return params


# Probabilities


@pytest.mark.parametrize("kind,levels,channels", cases())
def test_probabilities_of_all_colors_sum_to_one(kind, levels, channels, rng):
    x = colors(levels, channels)
    for scale in np.repeat([0.1, 3.0, 30.0], 5):
        params = rng.normal(0, scale, kind.params_per_pixel(channels))
        total = np.exp(log_prob(kind, params, x).astype("float64")).sum()
        assert total == pytest.approx(1.0, abs=2e-5)


def test_probabilities_of_sharpest_logistics_sum_to_one(rng):
    """At a tenth of a bin: values in [-1, 1] would leave sums off by 1e-5."""
    means = rng.uniform(-1, 1, 100)
    params = np.stack([means, np.full(100, -7.0)], axis=-1).repeat(256, axis=0)
    logs = log_prob(LOGISTIC, params, np.tile(np.arange(256), 100)[:, None])
    total = np.exp(logs.astype("float64")).reshape(100, 256).sum(-1)
    np.testing.assert_allclose(total, 1, atol=2e-6)


@pytest.mark.parametrize("kind,levels,channels", cases(stop=10))
def test_values_and_gradients_are_the_equations(kind, levels, channels, rng):
    """Against the float64 sums and their central differences, at random colors, at
    both end levels, and where bins are a hundred-thousandth of the scale."""
    n = 24
    params = moderate(kind, channels, rng, n)
    params[-4:] = moderate(kind, channels, rng, 4, log_scale=6.0)
    x = rng.integers(0, levels, (n, channels))
    x[:4], x[4:8] = 0, levels - 1
    expected = exact(kind, params, x, levels)
    np.testing.assert_allclose(
        log_prob(kind, params, x), expected, rtol=1e-4, atol=2e-5
    )
    slopes = [
        exact(kind, params + h, x, levels) - exact(kind, params - h, x, levels)
        for h in 1e-5 * np.eye(params.shape[1])
    ]
    slopes = np.stack(slopes, axis=-1) / 2e-5
    np.testing.assert_allclose(gradient(kind, params, x), slopes, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind,levels,channels", cases())
def test_nothing_overflows(kind, levels, channels, rng):
    """Parameters of 0 and +-1e4 in any combination: the tiniest scales, far from the
    image and upon it, decided and undecided weights; both end levels."""
    n = 64
    params = rng.choice([-1e4, 0.0, 1e4], (n, kind.params_per_pixel(channels)))
    params[0], params[1] = 1e4, -1e4
    x = rng.choice([0, 1, levels // 2, levels - 1], (n, channels))
    logs = log_prob(kind, params, x)
    assert np.all(np.isfinite(logs)) and np.all(logs <= 1e-6)
    assert np.all(np.isfinite(gradient(kind, params, x)))
    for u in (1e-7, 0.5, 1 - 1e-7):
        out = draw(kind, params, np.full((n, channels), u))
        assert out.min() >= 0 and out.max() <= levels - 1
    means = mean(kind, params)
    assert means.shape == (n, channels) and np.all(np.isfinite(means))
    assert means.min() >= 0 and means.max() <= levels - 1


@pytest.mark.parametrize("kind,levels", cases(3, stop=3, of=2))
def test_each_channel_is_sampled_from_its_own_block(kind, levels, rng):
    """Three channels are three images of one channel, their parameters in a row."""
    blocks = [moderate(kind, 1, rng, 6) for _ in range(3)]
    together = np.concatenate(blocks, axis=-1)
    u = rng.uniform(size=(6, 3))
    alone = np.hstack([draw(kind, p, u[:, [c]]) for c, p in enumerate(blocks)])
    np.testing.assert_array_equal(draw(kind, together, u), alone)
    alone = np.hstack([mean(kind, p) for p in blocks])
    np.testing.assert_allclose(mean(kind, together), alone, rtol=1e-5)


@pytest.mark.parametrize("kind,levels,channels", cases(4))
def test_map_has_log_probabilities_of_each_pixel(kind, levels, channels, rng):
    """And sums to log_prob; a further axis of parameters broadcasts, as a VAE's
    importance samples do."""
    params = moderate(kind, channels, rng, 2 * 3 * 2 * 3).reshape(2, 3, 2, 3, -1)
    x = rng.integers(0, levels, (2, 1, 2, 3, channels))
    given = tensor(params), tensor(x, "int32")
    found = numpy(program(kind, "log_prob_map", params.shape)(*given))
    size, pixels = params.shape[-1], np.broadcast_to(x, (2, 3, 2, 3, channels))
    expected = exact(kind, params.reshape(-1, size), pixels.reshape(36, -1), levels)
    expected = expected.reshape(2, 3, 2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
    whole = numpy(program(kind, "log_prob", params.shape)(*given))
    np.testing.assert_allclose(whole, found.sum((-2, -1)), rtol=1e-5)


@pytest.mark.parametrize("kind,levels", cases(4, of=2))
def test_half_precision_is_summed_in_float32(kind, levels, rng):
    params = rng.normal(0, 1, (2, 28, 28, kind.params_per_pixel(1))).astype("float16")
    x = tensor(rng.integers(0, levels, (2, 28, 28, 1)), "int32")
    fn = program(kind, "log_prob", params.shape)
    half, full = fn(tensor(params, "float16"), x), fn(tensor(params), x)
    np.testing.assert_allclose(numpy(half), numpy(full), rtol=1e-6)


# Samples and means


@pytest.mark.parametrize("kind,levels", cases(of=2))
def test_samples_follow_the_probabilities(kind, levels, rng):
    """Samples at evenly spread uniforms have the probabilities as frequencies, the
    inverse CDF is monotone, and `mean` is the probabilities' mean."""
    params = moderate(kind, 1, rng)
    n = 32 * N
    values = draw(kind, params, (np.arange(n)[:, None] + 0.5) / n).ravel()
    order = np.diff(values)
    assert np.all(order <= 0) if kind.name == "bernoulli" else np.all(order >= 0)
    frequencies = np.bincount(values, minlength=levels) / n
    p = probabilities(kind, params, levels)
    np.testing.assert_allclose(frequencies, p, atol=2e-4)
    expected = [p @ np.arange(levels)]
    assert mean(kind, params[None])[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", [LOGISTIC, MIXTURE])
def test_samples_are_exact_in_both_tails(kind, rng):
    """The smallest level x with F(x) > u, for u = 2^-24 as well as 1 - 2^-24, the
    least and the greatest that kgen.random.uniforms gives: 1 part in 100 of either."""
    tails = np.resize([2.0**-24, 2.0**-20, 1e-3], 60)
    for low in (True, False):
        params = moderate(kind, 1, rng, 60, log_scale=-4.0)
        out = draw(kind, params, (tails if low else 1 - tails)[:, None])[:, 0]
        for x, p, tail in zip(out, params, tails, strict=True):
            masses = probabilities(kind, p, 256)
            if low:  # F(x - 1) <= u < F(x)
                assert masses[:x].sum() <= 1.01 * tail < 1.02 * masses[: x + 1].sum()
            else:  # 1 - F(x - 1) >= 1 - u > 1 - F(x)
                assert masses[x + 1 :].sum() < 1.01 * tail <= 1.02 * masses[x:].sum()


SPLITS = {BERNOULLI: (1, 1), CATEGORICAL: (5, 5), LOGISTIC: (0, 1), MIXTURE: (10, 20)}


@pytest.mark.parametrize("T", [0.4, 3.0])
@pytest.mark.parametrize("kind", SPLITS)
def test_temperature_divides_logits_and_multiplies_scales(kind, T, rng):
    """So probabilities are taken to the power 1 / T; means of logistics stay."""
    params = 2 * rng.normal(size=(1800, kind.params_per_pixel(1)))
    logits, means, log_scales = np.split(params, SPLITS[kind], axis=1)
    changed = np.hstack([logits / T, means, log_scales + np.log(T)])
    u = rng.random((1800, 1))
    difference = draw(kind, params, u, T) - draw(kind, changed, u)
    assert np.abs(difference).max() <= 1 and np.mean(difference != 0) < 0.01


def test_categorical_samples_no_level_of_probability_zero(rng):
    """Rounding leaves some sums of 255 probabilities below the largest uniform."""
    logits = rng.normal(0, 1, (200, 256))
    logits[:, -1] = -1e4
    assert draw(Categorical(256), logits, np.full((200, 1), 1 - 2.0**-24)).max() < 255


def test_colors_are_sampled_jointly(rng):
    """20,000 samples of 27 colors by chi-square, with components far apart and strong
    coupling, so that later channels depend on earlier ones."""
    kind, n = LogisticMixture(3, 3), 20_000
    params = rng.normal(0, 1.0, kind.params_per_pixel(3)).reshape(-1, 3)
    params[[2, 4, 7]] = -1.5  # log scales
    params = params.ravel()
    p = np.exp(exact(kind, params, colors(3, 3), 3))
    joint = p.reshape(3, 3, 3)
    apart = np.einsum("i,j,k", joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1)))
    assert np.abs(joint - apart).sum() > 0.2  # or the test could not see dependence
    counts = draw(kind, params, rng.uniform(size=(n, 3))) @ [9, 3, 1]
    assert chi_square(np.bincount(counts, minlength=27), p) > 1e-3


def test_mean_of_coupled_channels(rng):
    """Exact for the first channel; for later ones within 1/50 of a level, where little
    mass is beyond the ends and the scale is about a bin."""
    kind, levels, x = LogisticMixture(17, 3), 17, colors(17, 3)
    for _ in range(3):
        params = rng.normal(0, 0.3, kind.params_per_pixel(3)).reshape(-1, 3)
        params[[2, 4, 7]] = -2.5  # log scales
        params[1] = 0.4 + params[1] / 4  # off the middle, where couplings do nothing
        params[[5, 8, 9]] = 0.3 + params[[5, 8, 9]] / 4  # alphas
        expected = np.exp(exact(kind, params.ravel(), x, levels)) @ x
        uncoupled = params.copy()
        uncoupled[[5, 8, 9]] = 0
        found, uncoupled = mean(kind, np.stack([params.ravel(), uncoupled.ravel()]))
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert np.all(np.abs(uncoupled - expected)[1:] > 0.04)  # coupling moves means


# Gaussians


def test_gaussian_kl_and_density_agree_with_scipy(rng):
    """The KL divergence by Gauss-Hermite quadrature, exact for a quadratic."""
    mean, log_var = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    sigma = np.exp(log_var / 2)
    nodes, shares = np.polynomial.hermite_e.hermegauss(5)
    z = nodes[:, None, None] * sigma + mean  # (5, 3, 4)
    log_q = stats.norm.logpdf(z, mean, sigma)
    ratio = log_q - stats.norm.logpdf(z)
    expected = np.tensordot(shares / shares.sum(), ratio, 1).sum(-1)
    found = numpy(gaussian_kl(tensor(mean), tensor(log_var)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = numpy(gaussian_log_prob(tensor(z), tensor(mean), tensor(log_var)))
    np.testing.assert_allclose(found, log_q.sum(-1), rtol=1e-5)


def test_gaussian_samples_agree_with_scipy(rng):
    """At the uniforms' own grid, from its least to its greatest number."""
    u = (rng.integers(0, 2**23, (50, 4)) + 0.5) / 2**23
    u[0], u[1] = 2.0**-24, 1 - 2.0**-24
    found = numpy(inverse_normal_cdf(tensor(u)))
    np.testing.assert_allclose(found, stats.norm.ppf(u), rtol=1e-4, atol=1e-5)


# Arguments


@pytest.mark.once
def test_likelihoods_have_their_names_and_sizes():
    assert likelihood_of(None, 2).name == "bernoulli"
    assert likelihood_of(None, 17).name == "discretized_logistic"
    assert likelihood_of("discretised_logistic", 17).name == "discretized_logistic"
    assert likelihood_of("categorical", 17).levels == 17
    assert likelihood_of("logistic_mixture", 17).num_mixtures == 10
    assert likelihood_of("logistic_mixture", 17, num_mixtures=5).num_mixtures == 5
    kinds = BERNOULLI, CATEGORICAL, LOGISTIC, ONE_COMPONENT, MIXTURE
    for channels, sizes in ((2, [2, 10, 4, 6, 60]), (4, [4, 20, 8, 15, 150])):
        assert [kind.params_per_pixel(channels) for kind in kinds] == sizes


@pytest.mark.once
def test_wrong_likelihoods_raise():
    every = "'bernoulli', 'categorical', 'discretized_logistic', 'logistic_mixture'"
    for fn, arguments, words in (
        (likelihood_of, ("poisson", 2), f"{every}; got 'poisson'"),
        (likelihood_of, ("bernoulli", 17), "over 2 levels; got levels=17"),
        (LogisticMixture, (17, 0), "num_mixtures must be positive; got 0"),
        (ONE_COMPONENT.mean, (np.zeros((1, 1, 1, 20)),), "1 mixtures take .* got 20"),
    ):
        with pytest.raises(ValueError, match=words):
            fn(*arguments)
