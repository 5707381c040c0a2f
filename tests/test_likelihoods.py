"""Likelihoods against float64 sums written from the papers' equations, brute-force
sums over all colours, torch.distributions, and their own draws."""

import functools
import itertools

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import expit, log_softmax

import kgen
from kgen.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    LogisticMixture,
    gaussian_draw,
    gaussian_kl,
    gaussian_log_prob,
    likelihood_of,
)

CASES = [  # likelihood, levels, channels
    (Bernoulli(), 2, 3),
    (Categorical(2), 2, 1),
    (Categorical(5), 5, 3),
    (DiscretizedLogistic(2), 2, 3),
    (DiscretizedLogistic(17), 17, 1),
    (DiscretizedLogistic(256), 256, 1),
    (LogisticMixture(2, 3), 2, 3),
    (LogisticMixture(17, 1), 17, 3),
    (LogisticMixture(256), 256, 1),
]
CASES = [
    pytest.param(*case, id=f"{case[0].name}-{case[1]}-{case[2]}") for case in CASES
]
INDEPENDENT = [case for case in CASES if case.values[0].name != "logistic_mixture"]
ONE_CHANNEL = [
    pytest.param(kind, levels, id=f"{kind.name}-{levels}")
    for kind, levels in (
        *((case.values[0], case.values[1]) for case in INDEPENDENT),
        (LogisticMixture(2, 3), 2),
        (LogisticMixture(17, 1), 17),
        (LogisticMixture(256), 256),
    )
]


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x), dtype)


def numpy(x):
    return ops.convert_to_numpy(x)


@functools.cache
def program(kind, method, rank=4):
    """The method as one compiled function: on JAX its operations one by one would
    each be compiled, for every shape. One for each rank of the parameters, of which
    TensorFlow would else forget the shapes."""
    return kgen.backend.compiled(keras.Sequential(), getattr(kind, method))


def images(params, n):
    """(P,) or (n, P) -> n images of one pixel (n, 1, 1, P)."""
    params = np.broadcast_to(params, (n, np.shape(params)[-1]))
    return tensor(params[:, None, None])


def pixels(kind, params, x):
    """log p of n pixels: params (P,) or (n, P), x (n, C) -> (n,)."""
    x = tensor(x[:, None, None], "int32")
    return numpy(program(kind, "log_prob")(images(params, len(x)), x))


def colours(levels, channels):
    return np.indices((levels,) * channels).reshape(channels, -1).T


def drawn(kind, params, u):
    """Draws for n pixels: params (P,) or (n, P), u (n, C) -> (n, C)."""
    out = program(kind, "draw")(images(params, len(u)), tensor(u[:, None, None]))
    assert keras.backend.standardize_dtype(out.dtype) == "int32"
    return numpy(out)[:, 0, 0]


def expected(kind, params):
    """mean of n pixels: (n, P) -> (n, C)."""
    return numpy(program(kind, "mean")(images(params, len(params))))[:, 0, 0]


def gradient(kind, params, x):
    """d log p / d params of n pixels: (n, P)."""
    model = keras.Sequential()

    def slopes(params, x):
        log_prob = functools.partial(kind.log_prob, x=x)
        return kgen.backend.input_gradient(model, log_prob, params)

    slopes = kgen.backend.compiled(model, slopes, gradients=True)
    out = slopes(images(params, len(x)), tensor(x[:, None, None], "int32"))
    return numpy(ops.stop_gradient(out))[:, 0, 0]


def bin_masses(x, mean, log_scale, levels):
    """The logistic's CDF differences, in float64, of the tail that has digits."""
    scaled = 2 * x / (levels - 1) - 1
    upper = np.where(x == levels - 1, np.inf, scaled + 1 / (levels - 1))
    lower = np.where(x == 0, -np.inf, scaled - 1 / (levels - 1))
    scale = np.exp(np.clip(log_scale, -7, 7))
    cdf = stats.logistic.cdf
    return np.where(
        scaled > mean,
        cdf(-lower, -mean, scale) - cdf(-upper, -mean, scale),
        cdf(upper, mean, scale) - cdf(lower, mean, scale),
    )


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
    blocks = params.reshape(*x.shape, -1)  # (n, C, P / C)
    if kind.name == "bernoulli":
        return stats.bernoulli.logpmf(x, expit(blocks[..., 0])).sum(-1)
    if kind.name == "categorical":
        terms = np.take_along_axis(log_softmax(blocks, axis=-1), x[..., None], -1)
        return terms.sum((-2, -1))
    return np.log(bin_masses(x, blocks[..., 0], blocks[..., 1], levels)).sum(-1)


def tame(kind, channels, rng, n=None, log_scale=-1.5):
    """Parameters whose probabilities have digits in float64, (P,) or (n, P), with log
    scales around the given one."""
    size = kind.params_per_pixel(channels)
    params = rng.normal(0, 0.8, size if n is None else (n, size))
    if kind.name == "discretized_logistic":
        params[..., 1::2] = params[..., 1::2] * 0.5 + log_scale
    if kind.name == "logistic_mixture":
        K = kind.num_mixtures
        for c in range(channels):
            start = kind.params_per_pixel(c) + K  # the log scales of channel c
            params[..., start : start + K] *= 0.5
            params[..., start : start + K] += log_scale
    return params


def test_parameters_per_pixel():
    sizes = [
        [kind.params_per_pixel(channels) for channels in (1, 2, 3, 4)]
        for kind in (
            Bernoulli(),
            Categorical(5),
            DiscretizedLogistic(5),
            LogisticMixture(5, 1),
            LogisticMixture(5),
        )
    ]
    assert sizes == [
        [1, 2, 3, 4],
        [5, 10, 15, 20],
        [2, 4, 6, 8],
        [3, 6, 10, 15],
        [30, 60, 100, 150],
    ]


@pytest.mark.parametrize("kind,levels,channels", CASES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_probabilities_of_all_colours_sum_to_one(kind, levels, channels, scale, rng):
    x = colours(levels, channels)
    for _ in range(5):
        params = rng.normal(0, scale, kind.params_per_pixel(channels))
        total = np.exp(pixels(kind, params, x).astype("float64")).sum()
        assert total == pytest.approx(1.0, abs=2e-5)


def test_probabilities_of_the_sharpest_logistics_sum_to_one(rng):
    """At a tenth of a bin: values in [-1, 1] would leave sums off by 1e-5."""
    means = rng.uniform(-1, 1, 100)
    params = np.stack([means, np.full(100, -7.0)], axis=-1).repeat(256, axis=0)
    x = np.tile(np.arange(256), 100)[:, None]
    logs = pixels(DiscretizedLogistic(256), params, x).astype("float64")
    np.testing.assert_allclose(np.exp(logs).reshape(100, 256).sum(-1), 1, atol=2e-6)


@pytest.mark.parametrize(
    "kind,levels,channels",
    [*CASES, pytest.param(LogisticMixture(256), 256, 3, id="logistic_mixture-256-3")],
)
def test_values_and_gradients_are_the_equations(kind, levels, channels, rng):
    """Against the float64 sums and their central differences, at random colours, at
    both end levels, and where bins are a hundred-thousandth of the scale."""
    n = 24
    params = tame(kind, channels, rng, n)
    params[-4:] = tame(kind, channels, rng, 4, log_scale=6.0)
    x = rng.integers(0, levels, (n, channels))
    x[:4], x[4:8] = 0, levels - 1
    theirs = exact(kind, params, x, levels)
    np.testing.assert_allclose(pixels(kind, params, x), theirs, rtol=1e-4, atol=2e-5)
    slopes = [
        exact(kind, params + h, x, levels) - exact(kind, params - h, x, levels)
        for h in 1e-5 * np.eye(params.shape[1])
    ]
    slopes = np.stack(slopes, axis=-1) / 2e-5
    np.testing.assert_allclose(gradient(kind, params, x), slopes, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("kind,levels,channels", CASES)
def test_nothing_overflows(kind, levels, channels, rng):
    """Parameters of 0 and +-1e4 in any combination: the tiniest scales, far from the
    image and upon it, decided and undecided weights; both end levels."""
    n = 64
    params = rng.choice([-1e4, 0.0, 1e4], (n, kind.params_per_pixel(channels)))
    params[0], params[1] = 1e4, -1e4
    x = rng.choice([0, 1, levels // 2, levels - 1], (n, channels))
    logs = pixels(kind, params, x)
    assert np.all(np.isfinite(logs)) and np.all(logs <= 1e-6)
    assert np.all(np.isfinite(gradient(kind, params, x)))
    for u in (1e-7, 0.5, 1 - 1e-7):
        out = drawn(kind, params, np.full((n, channels), u))
        assert out.min() >= 0 and out.max() <= levels - 1
    mean = expected(kind, params)
    assert mean.shape == (n, channels)
    assert np.all(np.isfinite(mean)) and mean.min() >= 0 and mean.max() <= levels - 1


def test_bernoulli_and_categorical_against_torch(rng):
    torch = pytest.importorskip("torch")
    logits, x = rng.normal(0, 3, (4, 3, 5, 2)), rng.integers(0, 2, (4, 3, 5, 2))
    ours = numpy(Bernoulli().log_prob(tensor(logits), tensor(x, "int32")))
    with torch.device("cpu"):
        theirs = torch.distributions.Bernoulli(logits=torch.tensor(logits))
        theirs = theirs.log_prob(torch.tensor(x, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(ours, theirs.sum((1, 2, 3)), rtol=1e-5)
    logits, x = rng.normal(0, 3, (4, 2, 3, 2, 5)), rng.integers(0, 5, (4, 2, 3, 2))
    flat = tensor(logits.reshape(4, 2, 3, 10))
    ours = numpy(Categorical(5).log_prob(flat, tensor(x, "int32")))
    with torch.device("cpu"):
        theirs = torch.distributions.Categorical(logits=torch.tensor(logits))
        theirs = theirs.log_prob(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours, theirs.sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("kind,levels,channels", INDEPENDENT)
def test_each_channel_owns_a_contiguous_block(kind, levels, channels, rng):
    """Three channels are three images of one channel, their parameters in a row."""
    blocks = [tame(kind, 1, rng, 6) for _ in range(3)]
    together = np.concatenate(blocks, axis=-1)
    x, u = rng.integers(0, levels, (6, 3)), rng.uniform(size=(6, 3))
    parts = [(p, x[:, c : c + 1], u[:, c : c + 1]) for c, p in enumerate(blocks)]
    alone = sum(pixels(kind, p, x) for p, x, _ in parts)
    np.testing.assert_allclose(pixels(kind, together, x), alone, rtol=1e-5)
    alone = np.concatenate([drawn(kind, p, u) for p, _, u in parts], axis=-1)
    np.testing.assert_array_equal(drawn(kind, together, u), alone)
    alone = np.concatenate([expected(kind, p) for p in blocks], axis=-1)
    np.testing.assert_allclose(expected(kind, together), alone, rtol=1e-5)


@pytest.mark.parametrize("kind,levels,channels", CASES)
def test_map_has_each_pixels_own_log_probability(kind, levels, channels, rng):
    """And sums to log_prob; a further axis of parameters broadcasts, as a VAE's
    importance samples do."""
    params = tame(kind, channels, rng, 2 * 3 * 2 * 3).reshape(2, 3, 2, 3, -1)
    x = rng.integers(0, levels, (2, 1, 2, 3, channels))
    given = tensor(params), tensor(x, "int32")
    ours = numpy(program(kind, "log_prob_map", 5)(*given))
    assert ours.shape == (2, 3, 2, 3)
    for b, k, i, j in itertools.product(range(2), range(3), range(2), range(3)):
        theirs = exact(kind, params[b, k, i, j], x[b, :, i, j], levels)[0]
        assert ours[b, k, i, j] == pytest.approx(theirs, rel=1e-4, abs=2e-5)
    whole = numpy(program(kind, "log_prob", 5)(*given))
    np.testing.assert_allclose(whole, ours.sum((-2, -1)), rtol=1e-5)


@pytest.mark.parametrize("kind,levels", ONE_CHANNEL)
def test_draws_follow_the_probabilities(kind, levels, rng):
    """Draws at evenly spread uniforms have the probabilities as frequencies, the
    inverse CDF is monotone, and `mean` is the probabilities' mean."""
    params = tame(kind, 1, rng)
    n = 20_000
    values = drawn(kind, params, (np.arange(n)[:, None] + 0.5) / n).ravel()
    order = np.diff(values)
    assert np.all(order <= 0) if kind.name == "bernoulli" else np.all(order >= 0)
    frequencies = np.bincount(values, minlength=levels) / n
    p = np.exp(exact(kind, params, np.arange(levels)[:, None], levels))
    np.testing.assert_allclose(frequencies, p, atol=2e-4)
    mean = expected(kind, params[None])[0]
    assert mean == pytest.approx([p @ np.arange(levels)], rel=1e-4)


@pytest.mark.parametrize("kind", [DiscretizedLogistic(256), LogisticMixture(256)])
def test_draws_are_exact_in_both_tails(kind, rng):
    """The smallest level x with F(x) > u, for u = 2^-24 as well as 1 - 2^-24, the
    least and the greatest that kgen.random.uniforms gives: 1 part in 100 of either."""
    levels, n = 256, 60
    tails = np.resize([2.0**-24, 2.0**-20, 1e-3], n)
    for low in (True, False):
        params = tame(kind, 1, rng, n, log_scale=-4.0)
        out = drawn(kind, params, (tails if low else 1 - tails)[:, None])[:, 0]
        for x, p, tail in zip(out, params, tails, strict=True):
            masses = np.exp(exact(kind, p, np.arange(levels)[:, None], levels))
            if low:  # F(x - 1) <= u < F(x)
                assert masses[:x].sum() <= 1.01 * tail < 1.02 * masses[: x + 1].sum()
            else:  # 1 - F(x - 1) >= 1 - u > 1 - F(x)
                assert masses[x + 1 :].sum() < 1.01 * tail <= 1.02 * masses[x:].sum()


@pytest.mark.parametrize("T", [0.4, 3.0])
def test_a_temperature_takes_probabilities_to_its_inverse(T, rng):
    u = (np.arange(4000) + 0.5) / 4000  # a draw from these has the exact frequencies
    for kind, levels in ((Bernoulli(), 2), (Categorical(5), 5)):
        params = rng.normal(size=(1, 1, 1, kind.params_per_pixel(1))) * 2
        every = np.arange(levels).reshape(-1, 1, 1, 1)
        params_of = tensor(np.repeat(params, levels, 0))
        log_p = numpy(kind.log_prob(params_of, tensor(every, "int32")))
        p = np.exp(log_softmax(log_p.astype("float64") / T))
        drawn = kind.draw(tensor(params), tensor(u.reshape(-1, 1, 1, 1)), T)
        counts = np.bincount(numpy(drawn).ravel(), minlength=levels)
        np.testing.assert_allclose(counts / 4000, p, atol=1e-3)


@pytest.mark.parametrize("T", [0.4, 3.0])
def test_a_temperature_multiplies_the_scales_of_logistics(T, rng):
    u = tensor(rng.random((200, 3, 3, 1)))
    one, K = DiscretizedLogistic(256), 4
    params = rng.normal(size=(200, 3, 3, 2))
    wider = params + [0.0, np.log(T)]
    close = numpy(one.draw(tensor(params), u, T)) - numpy(one.draw(tensor(wider), u))
    assert np.abs(close).max() <= 1 and np.mean(close != 0) < 0.01
    mixture = LogisticMixture(256, K)
    params = rng.normal(size=(200, 3, 3, 3 * K))
    warm = np.concatenate(
        [params[..., :K] / T, params[..., K : 2 * K], params[..., 2 * K :] + np.log(T)],
        axis=-1,
    )
    close = numpy(mixture.draw(tensor(params), u, T))
    close = close - numpy(mixture.draw(tensor(warm), u))
    assert np.abs(close).max() <= 1 and np.mean(close != 0) < 0.01


def test_categorical_draws_no_level_without_probability(rng):
    """Rounding leaves some sums of 255 probabilities below the largest uniform."""
    logits = rng.normal(0, 1, (200, 256))
    logits[:, -1] = -1e4
    assert drawn(Categorical(256), logits, np.full((200, 1), 1 - 2.0**-24)).max() < 255


def test_colours_are_drawn_jointly(rng):
    """20,000 draws of 27 colours by chi-square, with components far apart and strong
    coupling, so that later channels depend on earlier ones."""
    kind, K, n = LogisticMixture(3, 3), 3, 20_000
    params = rng.normal(0, 1.0, kind.params_per_pixel(3)).reshape(-1, K)
    params[[2, 4, 7]] = -1.5  # log scales
    params = params.ravel()
    p = np.exp(exact(kind, params, colours(3, 3), 3))
    joint = p.reshape(3, 3, 3)
    apart = np.einsum("i,j,k", joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1)))
    assert np.abs(joint - apart).sum() > 0.2  # or the test could not see dependence
    counts = drawn(kind, params, rng.uniform(size=(n, 3))) @ [9, 3, 1]
    counts = np.bincount(counts, minlength=27)
    assert stats.chisquare(counts, p * n).pvalue > 1e-3


def test_mean_of_coupled_channels(rng):
    """Exact for the first channel; for later ones within 1/50 of a level, where little
    mass is beyond the ends and the scale is about a bin."""
    kind, K, levels = LogisticMixture(17, 3), 3, 17
    for _ in range(3):
        params = rng.normal(0, 0.3, kind.params_per_pixel(3)).reshape(-1, K)
        params[[2, 4, 7]] = -2.5  # log scales
        params[1] = 0.4 + params[1] / 4  # off the middle, where couplings do nothing
        params[[5, 8, 9]] = 0.3 + params[[5, 8, 9]] / 4  # alphas
        x = colours(levels, 3)
        theirs = np.exp(exact(kind, params.ravel(), x, levels)) @ x
        apart = params.copy()
        apart[[5, 8, 9]] = 0
        ours, apart = expected(kind, np.stack([params.ravel(), apart.ravel()]))
        assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
        np.testing.assert_allclose(ours, theirs, atol=0.02)
        assert np.all(np.abs(apart - theirs)[1:] > 0.04)  # coupling does move means


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_mixture_of_one_is_the_discretized_logistic(levels, rng):
    one, plain = LogisticMixture(levels, 1), DiscretizedLogistic(levels)
    params = tame(one, 1, rng, 40)
    x, u = rng.integers(0, levels, (40, 1)), rng.uniform(size=(40, 1))
    np.testing.assert_allclose(
        pixels(one, params, x), pixels(plain, params[:, 1:], x), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(drawn(one, params, u), drawn(plain, params[:, 1:], u))
    np.testing.assert_allclose(
        expected(one, params), expected(plain, params[:, 1:]), rtol=1e-5
    )


@pytest.mark.parametrize("kind,levels", ONE_CHANNEL)
def test_half_precision_parameters_are_summed_in_float32(kind, levels, rng):
    params = rng.normal(0, 1, (2, 28, 28, kind.params_per_pixel(1))).astype("float16")
    x = tensor(rng.integers(0, levels, (2, 28, 28, 1)), "int32")
    half = program(kind, "log_prob")(ops.convert_to_tensor(params), x)
    full = program(kind, "log_prob")(tensor(params), x)
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


def test_gaussian_draws_against_scipy(rng):
    """At the uniforms' own grid, from its least to its greatest number."""
    u = (rng.integers(0, 2**23, (50, 4)) + 0.5) / 2**23
    u[0], u[1] = 2.0**-24, 1 - 2.0**-24
    mean, log_var = rng.normal(size=4), rng.normal(size=4)
    theirs = stats.norm.ppf(u, mean, np.exp(log_var / 2))
    ours = gaussian_draw(tensor(u), tensor(mean), tensor(log_var))
    np.testing.assert_allclose(numpy(ours), theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        numpy(gaussian_draw(tensor(u))), stats.norm.ppf(u), rtol=1e-4, atol=1e-5
    )


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


def test_names_and_wrong_arguments():
    assert likelihood_of(None, 2).name == "bernoulli"
    assert likelihood_of(None, 17).name == "discretized_logistic"
    assert likelihood_of("discretised_logistic", 17).name == "discretized_logistic"
    assert likelihood_of("categorical", 17).levels == 17
    assert likelihood_of("logistic_mixture", 17).num_mixtures == 10
    mixture = likelihood_of("logistic_mixture", 17, num_mixtures=5)
    assert mixture.num_mixtures == 5
    every = "'bernoulli', 'categorical', 'discretized_logistic', 'logistic_mixture'"
    with pytest.raises(ValueError, match=f"{every}; got 'poisson'"):
        likelihood_of("poisson", 2)
    with pytest.raises(ValueError, match="over 2 levels; got levels=17"):
        likelihood_of("bernoulli", 17)
    with pytest.raises(ValueError, match="num_mixtures must be positive; got 0"):
        LogisticMixture(17, 0)
    with pytest.raises(ValueError, match="5 mixtures take .* got 20"):
        mixture.mean(np.zeros((1, 1, 1, 20), "float32"))
