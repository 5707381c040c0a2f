"""VAE and IWAE: densities and samples against an integral over the latents, the terms
of the ELBO, training steps against finite differences, networks, wrong arguments."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers, ops
from scipy import stats
from scipy.special import expit, logsumexp
from users_models import WidePrior
from zoo import cases, numpy, tensor

import kgen
from kgen.models import VAE

pytestmark = pytest.mark.portable

PIXELS = (2, 2, 1)
IMAGES = zoo.every_image(PIXELS, 2)  # (16, 2, 2, 1)


def vae(levels=2, num_classes=None, **kwargs):
    """2 latents, weights far from zero."""
    kwargs = {"latent_dim": 2, "hidden_units": (6,), "activation": "tanh"} | kwargs
    model = zoo.tiny("vae", PIXELS, levels, num_classes, scale=1.3, **kwargs)
    return widen(model, model.encoder)


def iwae(latent_dim, num_samples, num_classes=None):
    kwargs = {"hidden_units": (6,), "upper_units": (5,), "activation": "tanh"}
    kwargs |= {"latent_dim": latent_dim, "num_samples": num_samples}
    model = zoo.tiny("iwae", PIXELS, 2, num_classes, scale=1.3, **kwargs)
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


# Densities and samples. Models without classes ignore the label


def vae_log_prob(model, x, label=0, scale=1.0):
    """log p(x) by the trapezoid rule over both latents: sum of p(x | z) p(z), (B,)."""
    axis, step = np.linspace(-8.0 * scale, 8.0 * scale, 81, retstep=True)
    z = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)  # (81 81, 2)
    return integrate(model, x, z, stats.norm.logpdf(z, 0.0, scale).sum(-1), step, label)


def iwae_log_prob(model, x, label):
    """The same over z_1 and z_2, of one dimension each."""
    axis, step = np.linspace(-9.0, 9.0, 121, retstep=True)
    mean, log_var = numpy(model.upper_decoders[0](tensor(axis[:, None]))).T  # of z_1
    # a narrow p(z_1 | z_2) needs a scaled grid: z_1 = mean + sigma e
    z = mean[:, None] + np.exp(log_var / 2)[:, None] * axis  # (z_2, e)
    prior = stats.norm.logpdf(axis)[:, None] + stats.norm.logpdf(axis)
    return integrate(model, x, z.reshape(-1, 1), prior.ravel(), step, label)


def integrate(model, x, z, prior, step, label):
    """log of the sum over rows of z of p(x | z) times exp(prior) step^2: (B,)."""
    labels = model.prepare_labels(np.full(len(z), label))
    params = model._params(tensor(z), labels)[None]  # (1, rows, H, W, P)
    log_p = model.likelihood.log_prob(params, ops.convert_to_tensor(x[:, None]))
    return logsumexp(numpy(log_p) + prior + 2 * np.log(step), axis=1)


def log_weights(model, x, label=0, k=20_000):
    """log w of k latents of each image: (B, k)."""
    x, *labels = model.prepare_inputs(x, np.full(len(x), label))
    keys, streams = kgen.random.image_keys(x), tensor(np.arange(k), "int32")
    return numpy(model._log_weights(x, keys, streams, *labels))


def check_density(model, exact, label=0):
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
    bound = numpy(model.log_prob(x, 4096, labels=np.full(len(x), label)))
    expected = logsumexp(weights[:, :4096], -1) - np.log(4096)
    np.testing.assert_allclose(bound, expected, rtol=1e-5)
    assert weights.mean() < exact.mean() - 0.01  # the ELBO is a lower bound
    return weights


@pytest.mark.parametrize("levels", cases([2], [4]))
def test_vae_densities_and_samples_match_the_integral(levels):
    model, x = vae(levels), zoo.every_image(PIXELS, levels)
    check_density(model, vae_log_prob(model, x))


def test_latents_of_another_shape_are_the_same():
    """(1, 2) in place of 2, and the same weights; the default networks reshape them."""
    plain, sizes = vae(num_classes=2), {"hidden_units": (6,), "activation": "tanh"}
    model = VAE(PIXELS, num_classes=2, latent_dim=(1, 2), **sizes)
    model.set_weights(plain.get_weights())
    labels = np.arange(len(IMAGES)) % 2
    z = np.random.default_rng(0).normal(size=(3, 1, 2)).astype("float32")
    pairs = [
        (m.elbo(IMAGES, labels), m.log_prob(IMAGES, 7, labels), m.sample(5, seed=1))
        for m in (plain, model)
    ]
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-6)
    encoded = [m.encode(IMAGES, labels) for m in (plain, model)]
    for a, b in zip(*encoded, strict=True):
        assert b.shape == (len(IMAGES), 1, 2)
        np.testing.assert_allclose(numpy(a), numpy(b)[:, 0], rtol=1e-6)
    decoded = [
        m.decode(z.reshape(3, *m.latent_shape), [0, 1, 1]) for m in (plain, model)
    ]
    np.testing.assert_allclose(*map(numpy, decoded), rtol=1e-6)
    again = VAE.from_config(model.get_config())
    again.compile("sgd")
    logs = again.evaluate(IMAGES, labels, verbose=0)
    assert np.isfinite(list(logs.values())).all()
    again.fit(IMAGES, labels, verbose=0)
    with pytest.raises(ValueError, match=r"expected \(batch, 1, 2\)"):
        model.decode(z[:, 0], [0, 1, 1])


def test_vae_of_another_prior_matches_its_integral():
    same = vae()
    model = WidePrior(PIXELS, latent_dim=2, hidden_units=(6,), activation="tanh")
    model.set_weights(same.get_weights())
    exact = vae_log_prob(model, IMAGES, scale=2.0)
    assert np.abs(exact - vae_log_prob(same, IMAGES)).max() > 0.1
    check_density(model, exact)
    model.compile("adam")
    logs = model.evaluate(IMAGES, verbose=0)
    elbo = numpy(model.elbo(IMAGES)).mean()
    assert logs["elbo_nats"] == pytest.approx(elbo, rel=1e-5)
    assert elbo < exact.mean() and logs["kl_nats"] > 0


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
    parts = scores["reconstruction_nats"] + scores["kl_nats"]
    for got, expected in (
        (scores["bound_nats"], bound),
        (scores["loss"], -bound),
        (scores["bits_per_dim"], -bound / 4 / np.log(2)),
        (scores["elbo_nats"], weights.mean()),
        (parts, -weights.mean()),
    ):
        assert got == pytest.approx(expected, rel=1e-5)


def test_iwae_of_one_layer_is_a_vae_with_another_objective():
    """With the same weights: the same log w and samples; with k = 1 the ELBO."""
    ours, other = iwae(2, 1), vae()
    other.set_weights(ours.get_weights())
    w, v = (log_weights(model, IMAGES, k=7) for model in (ours, other))
    np.testing.assert_allclose(w, v, rtol=1e-5)
    np.testing.assert_array_equal(ours.sample(9, seed=1), other.sample(9, seed=1))
    terms = ours._terms(IMAGES, None, tensor(np.ones((16, 1, 2))))
    bound, elbo = numpy(terms["bound_nats"]), numpy(terms["elbo_nats"])
    np.testing.assert_allclose(bound, elbo, rtol=1e-5)


def test_elbo_terms_are_the_closed_forms():
    model = vae(beta=3.0)
    epsilon = np.random.default_rng(2).normal(size=(16, 2))
    mean, log_var = map(numpy, model.encode(IMAGES))
    logits = numpy(model._params(tensor(mean + np.exp(log_var / 2) * epsilon)))
    reconstruction = -stats.bernoulli.logpmf(IMAGES, expit(logits)).sum((1, 2, 3))
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(-1)
    expected = {
        "loss": reconstruction + 3 * kl,
        "elbo_nats": -reconstruction - kl,
        "reconstruction_nats": reconstruction,
        "kl_nats": kl,
        "bits_per_dim": (reconstruction + kl) / (4 * np.log(2)),
    }
    terms = model._terms(IMAGES, None, tensor(epsilon))
    assert terms.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(numpy(terms[name]), values, 1e-4, err_msg=name)


def test_wrong_latents_and_numbers_of_samples_raise():
    with pytest.raises(ValueError, match=r"expected \(batch, 2\)"):
        vae().decode(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="num_samples must be a positive"):
        vae().log_prob(IMAGES[:3], 0)


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
    expected = numpy(model.decode(kgen.random.normals(seeds, 3)))
    np.testing.assert_allclose(model.sample_expected(8, seed=1), expected, rtol=1e-5)


def test_interpolation_ends_at_the_reconstructions(digits):
    model, a, b = zoo.shared("vae", zoo.SHAPE, zoo.LEVELS), digits[:2], digits[2:4]
    path = numpy(model.interpolate(a, b, 5))
    assert path.shape == (2, 5, 8, 8, 1)
    middle = model.decode((model.encode(a)[0] + model.encode(b)[0]) / 2)
    images = model.reconstruct(a), middle, model.reconstruct(b)
    for i, expected in zip((0, 2, 4), images, strict=True):
        np.testing.assert_allclose(path[:, i], numpy(expected), rtol=1e-4)


# Training


def test_iwae_step_follows_the_gradient_of_its_bound():
    """Eq. 14, in which each sample has its share of the weights."""
    model, labels = iwae((2, 1), 3, num_classes=2), np.arange(16) % 2
    epsilon = tensor(np.random.default_rng(5).normal(size=(16, 3, 3)))
    fn = kgen.backend.compile_function(
        model, lambda *data: model._log_terms(*data, epsilon)
    )
    model.sampling.noise = lambda shape: epsilon

    def loss():
        log_px, ratio = fn(IMAGES, tensor(labels, "int32"))
        return -logsumexp(numpy(log_px) + numpy(ratio), axis=-1).mean()

    zoo.check_step(model, loss, IMAGES, labels)


def test_weight_0_omits_an_image_and_2_counts_it_twice():
    """In the step, sum(w l) / B as in Keras, and in the means of the metrics."""
    results = []
    for x, weight in (
        (IMAGES[4:8], np.array([2.0, 0.0, 1.0, 1.0], "float32")),
        (IMAGES[[4, 4, 6, 7]], None),
    ):
        model = vae()
        model.sampling.noise = ops.zeros
        model.compile(keras.optimizers.SGD(0.1))
        logs = model.fit(x, sample_weight=weight, shuffle=False, verbose=0).history
        results.append((zoo.weights(model), logs["kl_nats"]))
    zoo.assert_same(results[0][0], results[1][0], atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_regularizers_of_user_networks_are_minimized():
    last = layers.Dense(4, kernel_regularizer=keras.regularizers.L2(1000.0))
    encoder = zoo.sequential(PIXELS, layers.Flatten(), last)
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
SHAPES = cases([(7, 5, 1)], [((28, 28, 1),), ((9, 12, 3),), ((1, 6, 1),)])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", cases(["both"], SIZES))
def test_networks_for_any_shape_train_every_weight(kind, shape, rng):
    model = VAE(shape, 5, latent_dim=3, num_classes=2, **SIZES[kind])
    x, y = rng.integers(0, 5, (3, *shape)), np.array([0, 1, 1])
    assert model.sample(2, seed=0).shape == (2, *shape)
    before = zoo.weights(model)
    model.compile(keras.optimizers.Adam(1e-2))
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])
    for after, value in zip(zoo.weights(model), before, strict=True):
        assert np.any(after != value)
