"""VAE and IWAE: densities and samples against an integral over the latents, the terms
of the ELBO, training steps against finite differences, networks, wrong arguments."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers, ops
from scipy import stats
from scipy.special import expit, logsumexp, softmax
from zoo import numpy, tensor

import kgen
from kgen.models import IWAE, VAE

pytestmark = pytest.mark.portable

PIXELS = (2, 2, 1)
IMAGES = zoo.every_image(PIXELS, 2)  # (16, 2, 2, 1)


def slow(*arguments):
    return pytest.param(*arguments, marks=pytest.mark.exhaustive)


def vae(levels=2, num_classes=None, **kwargs):
    """2 latents, weights far from zero."""
    kwargs = {"latent_dim": 2, "hidden_units": (6,), "activation": "tanh"} | kwargs
    model = zoo.tiny("vae", PIXELS, levels, num_classes, scale=1.3, **kwargs)
    return widen(model, model.encoder)


def iwae(latent_dim, num_samples, num_classes=None):
    sizes = {"hidden_units": (6,), "upper_units": (5,), "activation": "tanh"}
    model = IWAE(PIXELS, 2, num_classes, latent_dim, num_samples, **sizes)
    zoo.randomize(model, 1.3)
    for network in model.upper_decoders:
        network.layers[-1].kernel.assign(0.5 * network.layers[-1].kernel)
    return widen(model, model.encoder, *model.upper_encoders)


def widen(model, *encoders):
    """Makes q wide, so that the importance weights have a variance and no outliers."""
    for network in encoders:
        last, half = network.layers[-1], network.output_shape[-1] // 2
        last.kernel.assign(0.3 * last.kernel)
        last.bias.assign([0.3] * half + [1.0] * half)
    return model


def fix_noise(model, epsilon):
    """Makes the Sampling layer return `epsilon`, whatever the shape."""
    model.sampling.noise = lambda shape: tensor(epsilon)


# Densities and samples


def vae_log_prob(model, x, label=None, side=8.0, n=81):
    """log p(x) by the trapezoid rule over both latents: sum of p(x | z) p(z), (B,)."""
    axis = np.linspace(-side, side, n)
    z = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)  # (n n, 2)
    prior = stats.norm.logpdf(z).sum(-1) + 2 * np.log(axis[1] - axis[0])
    return integrate(model, x, z, prior, label)


def iwae_log_prob(model, x, label=None, side=9.0, n=121):
    """The same over z_1 and z_2, of one dimension each."""
    axis = np.linspace(-side, side, n)
    mean, log_var = numpy(model.upper_decoders[0](tensor(axis[:, None]))).T  # of z_1
    # a narrow p(z_1 | z_2) needs a scaled grid: z_1 = mean + sigma e
    z = mean[:, None] + np.exp(log_var / 2)[:, None] * axis  # (z_2, e)
    prior = stats.norm.logpdf(axis)[:, None] + stats.norm.logpdf(axis)
    prior = prior.ravel() + 2 * np.log(axis[1] - axis[0])
    return integrate(model, x, z.reshape(-1, 1), prior, label)


def integrate(model, x, z, prior, label):
    """The sum over rows of z of p(x | z) times exp(prior): log of it, (B,)."""
    labels = None if label is None else tensor(np.full(len(z), label), "int32")
    params = model._params(tensor(z), labels)[None]  # (1, rows, H, W, P)
    log_p = model.likelihood.log_prob(params, ops.convert_to_tensor(x[:, None]))
    return logsumexp(numpy(log_p).astype("float64") + prior, axis=1)


def log_weights(model, x, label=None, k=20_000):
    """log w of k latents of each image: (B, k)."""
    labels = [] if label is None else [tensor(np.full(len(x), label), "int32")]

    def fn(x, streams, *labels):
        return model.log_weights(x, kgen.random.image_keys(x), streams, *labels)

    fn = kgen.backend.compiled(model, fn)
    return numpy(fn(ops.convert_to_tensor(x), tensor(np.arange(k), "int32"), *labels))


def check_density(model, exact, label=None):
    """Importance weights, bounds and samples agree with log p(x) of every image."""
    x, p = zoo.every_image(PIXELS, model.levels), np.exp(exact)
    assert p.sum() == pytest.approx(1.0, abs=1e-4)
    samples = model.sample(20_480, seed=4, labels=label, verbose=0)
    counts = np.bincount(zoo.image_index(samples, model.levels), minlength=len(x))
    assert zoo.chi_square(counts, p) > 1e-3
    x, exact = x[:: len(x) // 16], exact[:: len(x) // 16]
    weights = log_weights(model, x, label)  # (16, 20000)
    ratio = np.exp(weights - exact[:, None])
    error = ratio.std(1) / np.sqrt(20_000)
    assert np.all(np.abs(ratio.mean(1) - 1) < 5 * error + 1e-4)  # E[w] = p(x)
    labels = None if label is None else np.full(len(x), label)
    bound = numpy(model.log_prob(x, 4096, labels=labels))
    assert np.all(np.abs(bound - exact) < 5 * np.sqrt(20_000 / 4096) * error + 1e-3)
    # E[bound_k] of k = 1 (the ELBO), 10, 1000, each from different weights: on the
    # same weights the order could not fail
    parts = weights[:, :5000], weights[:, 5000:10_000], weights[:, 10_000:]
    bounds = [
        logsumexp(part.reshape(len(x), -1, k), -1).mean() - np.log(k)
        for part, k in zip(parts, (1, 10, 1000), strict=True)
    ]
    assert bounds[0] < bounds[1] - 0.01 and bounds[1] < bounds[2] + 1e-3
    assert bounds[2] <= exact.mean() + 5 * error.mean()
    assert exact.mean() - bounds[0] > 5 * abs(exact.mean() - bounds[2])
    return weights


@pytest.mark.parametrize("levels", [2, slow(4)])
def test_vae_densities_and_samples_match_the_integral(levels):
    model = vae(levels)
    exact = vae_log_prob(model, zoo.every_image(PIXELS, levels))
    weights = check_density(model, exact)
    # The single-sample ELBO of training has the mean of log w
    x = zoo.every_image(PIXELS, levels)[:: levels**4 // 16][5]
    epsilon = np.random.default_rng(3).normal(size=(20_000, 2))
    repeated = np.broadcast_to(x, (20_000, *PIXELS))
    elbo = numpy(model._terms(repeated, None, tensor(epsilon))["elbo_nats"])
    error = np.hypot(elbo.std(), weights[5].std()) / np.sqrt(20_000)
    assert abs(elbo.mean() - weights[5].mean()) < 5 * error


def test_labels_condition_densities_and_samples_of_a_vae():
    model = vae(num_classes=3)
    exact = [vae_log_prob(model, IMAGES, label) for label in range(3)]
    for label in range(3):
        check_density(model, exact[label], label)
        assert np.abs(exact[label] - exact[label - 1]).max() > 0.1
    # a label for each image, whatever those of the others
    mixed = np.arange(16) % 3
    one = [numpy(model.log_prob(IMAGES, 5, labels=np.full(16, k))) for k in range(3)]
    together = numpy(model.log_prob(IMAGES, 5, labels=mixed))
    np.testing.assert_allclose(together, np.choose(mixed, one), rtol=1e-5)


def test_iwae_of_two_layers_matches_the_integral_over_both():
    """Given labels; and `evaluate` reports the bound of the model's k = 4."""
    model = iwae((1, 1), 4, num_classes=2)
    exact = [iwae_log_prob(model, IMAGES, label) for label in range(2)]
    assert np.abs(exact[0] - exact[1]).max() > 0.1
    weights = [check_density(model, exact[label], label) for label in range(2)]
    model.compile("adam")
    scores = model.evaluate(IMAGES, np.ones(16, "int32"), verbose=0)
    weights = weights[1][:, :4]
    bound = (logsumexp(weights, -1) - np.log(4)).mean()
    assert scores["bound_nats"] == pytest.approx(bound, rel=1e-5)
    assert scores["loss"] == pytest.approx(-bound, rel=1e-5)
    assert scores["elbo_nats"] == pytest.approx(weights.mean(), rel=1e-5)
    assert scores["bits_per_dim"] == pytest.approx(-bound / 4 / np.log(2), rel=1e-5)
    parts = scores["reconstruction_nats"] + scores["kl_nats"]
    assert parts == pytest.approx(-scores["elbo_nats"], rel=1e-5)


def test_iwae_of_one_layer_is_a_vae_with_another_objective():
    """With the same weights: the same log w and samples; with k = 1 the ELBO."""
    ours, other = iwae(2, 1), vae()
    other.set_weights(ours.get_weights())
    w, v = (log_weights(model, IMAGES, k=7) for model in (ours, other))
    np.testing.assert_allclose(w, v, rtol=1e-5)
    np.testing.assert_array_equal(ours.sample(9, seed=1), other.sample(9, seed=1))
    epsilon = tensor(np.ones((16, 1, 2)))
    terms = kgen.backend.compiled(ours, lambda x: ours._terms(x, None, epsilon))(IMAGES)
    bound, elbo = numpy(terms["bound_nats"]), numpy(terms["elbo_nats"])
    np.testing.assert_allclose(bound, elbo, rtol=1e-5)


def test_elbo_terms_are_the_closed_forms():
    model = vae(beta=3.0)
    epsilon = tensor(np.random.default_rng(2).normal(size=(16, 2)))

    def compute(x):
        mean, log_var = model.encode(x)
        logits = model._params(mean + ops.exp(log_var / 2) * epsilon)
        return model._terms(x, None, epsilon), mean, log_var, logits

    results = kgen.backend.compiled(model, compute)(IMAGES)
    terms, mean, log_var, logits = keras.tree.map_structure(numpy, results)
    reconstruction = -stats.bernoulli.logpmf(IMAGES, expit(logits)).sum((1, 2, 3))
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(-1)
    expected = {
        "loss": reconstruction + 3 * kl,
        "elbo_nats": -reconstruction - kl,
        "reconstruction_nats": reconstruction,
        "kl_nats": kl,
        "bits_per_dim": (reconstruction + kl) / (4 * np.log(2)),
    }
    assert terms.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(terms[name], values, rtol=1e-4, err_msg=name)


def test_overflowing_log_variance_gives_a_finite_elbo():
    model = vae()
    model.encoder.layers[-1].bias.assign([0.0, 0.0, 1e6, -1e6])
    assert np.all(np.isfinite(numpy(model._terms(IMAGES, None)["elbo_nats"])))


def test_bounds_depend_on_the_image_and_not_on_its_batch(digits):
    """Of `elbo`, this is in test_train_step.py: batches of `evaluate` against one."""
    model, x = zoo.shared("vae", zoo.SHAPE, zoo.LEVELS), digits[:6]
    together = numpy(model.log_prob(x, 2000))  # computed in two parts of the samples
    half = [numpy(model.log_prob(x[3:], 2000, seed=seed)) for seed in (0, 1)]
    np.testing.assert_allclose(together[3:], half[0], rtol=1e-5)
    assert np.all(half[0] != half[1])
    bound = kgen.metrics.importance_weighted_bound
    batched = bound(model, x, 2000, batch_size=3, verbose=0)
    np.testing.assert_allclose(batched, together, rtol=1e-5)


def test_expected_samples_are_means_given_the_sampled_latents():
    model = zoo.shared("vae", zoo.SHAPE, zoo.LEVELS)
    seeds = tensor(kgen.random.image_seeds(1, 8), "int32")
    means = kgen.backend.compiled(
        model, lambda seeds: model.decode(kgen.random.normals(seeds, 3))
    )
    expected = model.sample_expected(8, seed=1)
    np.testing.assert_allclose(expected, numpy(means(seeds)), rtol=1e-5)


def test_interpolation_ends_at_the_reconstructions(digits):
    model, a, b = zoo.shared("vae", zoo.SHAPE, zoo.LEVELS), digits[:2], digits[2:4]

    def compute(a, b):
        middle = model.decode((model.encode(a)[0] + model.encode(b)[0]) / 2)
        images = model.reconstruct(a), middle, model.reconstruct(b)
        return model.interpolate(a, b, 5), images

    path, images = kgen.backend.compiled(model, compute)(a, b)
    assert path.shape == (2, 5, 8, 8, 1)
    for i, expected in zip((0, 2, 4), images, strict=True):
        np.testing.assert_allclose(numpy(path)[:, i], numpy(expected), rtol=1e-4)


# Training


def slopes(model, fn, h=1e-2):
    """Central differences of `fn()` by the first element of each variable."""
    out = []
    for v in model.trainable_variables:
        value, pair = numpy(v).copy(), []
        for sign in (1, -1):
            moved = value.copy()
            moved[(0,) * value.ndim] += sign * h
            v.assign(moved)
            pair.append(fn())
        v.assign(value)
        out.append((pair[0] - pair[1]) / (2 * h))
    return out


def check_step(model, expected, *data):
    """SGD(1) moves the first element of each variable by minus `expected`."""
    before = [numpy(v).copy() for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(*data, batch_size=16, shuffle=False, verbose=0)
    steps = [
        (b - numpy(v))[(0,) * b.ndim]
        for b, v in zip(before, model.trainable_variables, strict=True)
    ]
    np.testing.assert_allclose(steps, expected, atol=2e-3, rtol=0)
    assert np.abs(expected).max() > 0.05


def test_vae_step_follows_finite_differences_of_its_loss():
    model = vae(beta=4.0)
    epsilon = tensor(np.random.default_rng(5).normal(size=(16, 2)))
    fix_noise(model, epsilon)
    fn = kgen.backend.compiled(model, lambda x: model._terms(x, None, epsilon)["loss"])
    check_step(model, slopes(model, lambda: numpy(fn(IMAGES)).mean()), IMAGES)


def test_iwae_step_weighs_each_sample_by_its_share():
    """Eq. 14: the gradient of L_k is the sum of w_i / sum w times that of log w_i."""
    model, labels = iwae((2, 1), 3, num_classes=2), np.arange(16) % 2
    epsilon = tensor(np.random.default_rng(5).normal(size=(16, 3, 3)))
    fix_noise(model, epsilon)

    fn = kgen.backend.compiled(model, lambda *data: model._log_terms(*data, epsilon))

    def log_w():
        log_px, ratio = fn(IMAGES, tensor(labels, "int32"))
        return (numpy(log_px) + numpy(ratio)).astype("float64")  # (16, 3)

    share = softmax(log_w(), -1)
    expected = [-(share * each).sum(-1).mean() for each in slopes(model, log_w)]
    check_step(model, expected, IMAGES, labels)


def test_weight_0_omits_an_image_and_2_counts_it_twice():
    """In the step, sum(w l) / B as in Keras, and in the means of the metrics."""
    results = []
    for x, weight in (
        (IMAGES[4:8], np.array([2.0, 0.0, 1.0, 1.0], "float32")),
        (IMAGES[[4, 4, 6, 7]], None),
    ):
        model = vae()
        fix_noise(model, np.zeros((4, 2)))
        model.compile(keras.optimizers.SGD(0.1))
        logs = model.fit(x, sample_weight=weight, shuffle=False, verbose=0).history
        results.append((zoo.weights(model), logs["kl_nats"]))
    zoo.assert_same(results[0][0], results[1][0], atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_regularizers_of_user_networks_are_minimized():
    last = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(1000.0))
    encoder = keras.Sequential([layers.Input(PIXELS), layers.Flatten(), last])
    model = VAE(PIXELS, latent_dim=2, encoder=encoder, hidden_units=(6,))
    model.compile(keras.optimizers.SGD(1e-4))
    before = np.square(numpy(last.kernel)).sum()
    model.fit(IMAGES, batch_size=2, verbose=0)
    assert np.square(numpy(last.kernel)).sum() < 0.1 * before


SIZES = {
    "dense": {"hidden_units": (8, 6)},
    "convolutional": {"filters": (4, 8)},
    "both": {"filters": (4, 8), "hidden_units": (8,)},
}
SHAPES = [(28, 28, 1), (9, 12, 3), (1, 6, 1)]


@pytest.mark.parametrize("shape", [(7, 5, 1), *(slow(shape) for shape in SHAPES)])
@pytest.mark.parametrize("kind", ["both", slow("dense"), slow("convolutional")])
def test_networks_for_any_shape_train_every_weight(kind, shape, rng):
    model = VAE(shape, 5, latent_dim=3, num_classes=2, **SIZES[kind])
    x, y = rng.integers(0, 5, (3, *shape)), np.array([0, 1, 1])
    assert model.sample(2, seed=0).shape == (2, *shape)
    before = zoo.weights(model)
    model.compile(keras.optimizers.Adam(1e-2))
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])
    for after, value in zip(zoo.weights(model), before, strict=True):
        assert np.any(after != value)


BOUNDS = {
    "vae": {"beta": 1.0, "latent_dim": 4},
    "iwae": {"latent_dim": (8, 4), "num_samples": 5, "upper_units": (16,)},
}


@pytest.mark.parametrize(
    "name, likelihood",
    [
        ("vae", "discretized_logistic"),
        slow("vae", "categorical"),
        slow("vae", "logistic_mixture"),
        ("iwae", "discretized_logistic"),
    ],
)
def test_training_raises_the_bound_on_digits(name, likelihood, digits):
    sizes = BOUNDS[name] | {"hidden_units": (64,), "likelihood": likelihood}
    model = zoo.new(name, **sizes)
    model.compile(keras.optimizers.Adam(1e-2))
    first = model.evaluate(digits[:64], verbose=0)["bits_per_dim"]
    model.fit(digits[64:], epochs=8, batch_size=32, verbose=0)
    scores = model.evaluate(digits[:64], verbose=0)
    assert scores["bits_per_dim"] < first - 0.7
    if name == "iwae":
        assert scores["bound_nats"] > scores["elbo_nats"] + 0.1


# Wrong arguments


def test_wrong_arguments_of_a_vae_raise():
    def encoder(shape, units):
        return keras.Sequential(
            [layers.Input(shape), layers.Flatten(), layers.Dense(units)]
        )

    for message, wrong in (
        (r"must give \(None, 4\).*got \(None, 3\)", {"encoder": encoder(PIXELS, 3)}),
        ("is incompatible with the layer", {"encoder": encoder((9, 9, 1), 4)}),
        ("expects 1 .*input", {"encoder": encoder(PIXELS, 4), "num_classes": 10}),
        ("hidden_units must be a tuple", {"hidden_units": 16}),
        ("latent_dim must be a positive", {"latent_dim": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            VAE(PIXELS, **{"latent_dim": 2, "hidden_units": (6,)} | wrong)
    with pytest.raises(ValueError, match=r"expected \(batch, 2\)"):
        vae().decode(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="num_samples must be positive"):
        vae().log_prob(IMAGES[:3], 0)


def test_wrong_arguments_of_an_iwae_raise():
    for wrong in ({"latent_dim": ()}, {"beta": 2.0}):
        with pytest.raises(ValueError, match="one latent_dim or more, no beta"):
            IWAE(PIXELS, **wrong)
    with pytest.raises(ValueError, match="latent_dim must be a tuple of positive"):
        IWAE(PIXELS, latent_dim=(4, 0))
    with pytest.raises(ValueError, match="num_samples must be a positive"):
        IWAE(PIXELS, num_samples=0)
