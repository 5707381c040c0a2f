"""The VAE's mathematics: the ELBO's terms, bounds on a p(x) that can be integrated,
gradients, training through `compute_loss` as the oracle, conditioning."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import stats
from scipy.special import expit

import kgen
from kgen.models import VAE


def numpy(x):
    return ops.convert_to_numpy(x)


def close(a, b, **tolerance):
    np.testing.assert_allclose(numpy(a), numpy(b), **tolerance)


def tiny(levels=2, **kwargs):
    """A 2-dimensional latent and 2x2 pixels, with weights far from zero."""
    model = VAE((2, 2, 1), levels, latent_dim=2, hidden_units=(6,), **kwargs)
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(0, 0.7, v.shape))
    return model


def all_images(levels=2):
    grid = np.indices((levels,) * 4).reshape(4, -1).T
    return grid.reshape(-1, 2, 2, 1).astype("uint8")


def fixed_noise(model, epsilon):
    """Makes the Sampling layer draw `epsilon`, whatever the shape asked for."""
    model.sampling.noise = lambda shape: ops.convert_to_tensor(epsilon, "float32")


def grid_log_prob(model, x, labels=None, side=8.0, n=161):
    """log p(x) by the trapezoid rule over z: the sum of p(x | z) p(z) on a grid."""
    axis = np.linspace(-side, side, n)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    prior = stats.norm.logpdf(z).sum(-1) + 2 * np.log(axis[1] - axis[0])
    given = None if labels is None else np.full(len(z), labels[0])
    params = model._params(
        ops.convert_to_tensor(z, "float32"),
        None if given is None else ops.convert_to_tensor(given, "int32"),
    )
    out = []
    for image in x:
        repeated = np.broadcast_to(image, (len(z), *image.shape))
        log_p = model.likelihood.log_prob(params, ops.convert_to_tensor(repeated))
        out.append(np.logaddexp.reduce(numpy(log_p).astype("float64") + prior))
    return np.array(out)


def unbiased(model, x, exact, labels=None, k=20_000):
    """Asserts that E[w] = p(x), within 5 standard errors; returns the log weights and
    the relative standard error of a mean of k."""
    x = ops.convert_to_tensor(x)
    given = [] if labels is None else [ops.convert_to_tensor(labels, "int32")]
    streams = ops.convert_to_tensor(np.arange(k), "int32")
    weights = numpy(model.log_weights(x, kgen.random.image_keys(x), streams, *given))
    ratio = np.exp(weights - exact[:, None])
    error = ratio.std(1) / np.sqrt(k)
    assert np.all(np.abs(ratio.mean(1) - 1) < 5 * error + 1e-4)
    return weights, error


def test_elbo_terms_are_the_closed_forms():
    model, x = tiny(beta=3.0), all_images()
    epsilon = np.random.default_rng(2).normal(size=(16, 2))
    terms = {k: numpy(v) for k, v in model._terms(x, None, epsilon).items()}
    mean, log_var = map(numpy, model.encode(x))
    z = mean + np.exp(log_var / 2) * epsilon
    logits = numpy(model._params(ops.convert_to_tensor(z, "float32"), None))
    reconstruction = -stats.bernoulli.logpmf(x, expit(logits)).sum((1, 2, 3))
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(-1)
    np.testing.assert_allclose(terms["reconstruction_nats"], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(terms["kl_nats"], kl, rtol=1e-4)
    np.testing.assert_allclose(terms["elbo_nats"], -reconstruction - kl, rtol=1e-4)
    np.testing.assert_allclose(terms["loss"], reconstruction + 3 * kl, rtol=1e-4)
    bits = (reconstruction + kl) / (4 * np.log(2))
    np.testing.assert_allclose(terms["bits_per_dim"], bits, rtol=1e-4)


@pytest.mark.parametrize("levels", [2, 4])
def test_bounds_tighten_to_the_integral_and_probabilities_sum_to_one(levels):
    """ELBO <= importance-weighted bound <= log p(x), within Monte Carlo error."""
    model = tiny(levels)
    x = all_images(levels)
    exact = grid_log_prob(model, x)
    assert np.exp(exact).sum() == pytest.approx(1.0, abs=1e-4)
    x, exact = x[:: len(x) // 16], exact[:: len(x) // 16]
    weights, error = unbiased(model, x, exact)
    many = numpy(model.log_prob(x, 5000))
    assert np.all(np.abs(many - exact) < 5 * 2 * error + 1e-3)  # 20,000 / 4 samples
    # E[bound_k] from disjoint groups of k weights, k = 1 (the ELBO), 10, 1000
    # and each k from weights of its own: on the same ones the order could not fail
    parts = weights[:, :5000], weights[:, 5000:10_000], weights[:, 10_000:]
    bounds = [
        np.logaddexp.reduce(part.reshape(len(x), -1, k), -1).mean() - np.log(k)
        for part, k in zip(parts, (1, 10, 1000), strict=True)
    ]
    assert bounds[0] < bounds[1] - 0.01 and bounds[1] < bounds[2] + 1e-3
    assert bounds[2] <= exact.mean() + 5 * error.mean()
    assert exact.mean() - bounds[0] > 5 * abs(exact.mean() - bounds[2])


def test_elbo_estimates_average_to_the_elbo():
    """The mean of the single-sample ELBO over noise is E[log w], by another road."""
    model, x = tiny(), all_images()[5:6]
    epsilon = np.random.default_rng(3).normal(size=(20_000, 2))
    repeated = np.repeat(x, len(epsilon), 0)
    one = numpy(model._terms(repeated, None, epsilon)["elbo_nats"])
    streams = ops.convert_to_tensor(np.arange(20_000), "int32")
    keys = kgen.random.image_keys(ops.convert_to_tensor(x))
    other = numpy(model.log_weights(ops.convert_to_tensor(x), keys, streams))[0]
    error = np.hypot(one.std(), other.std()) / np.sqrt(20_000)
    assert abs(one.mean() - other.mean()) < 5 * error


def test_bounds_are_functions_of_the_image_whatever_the_batch(binary):
    model = VAE((8, 8, 1), latent_dim=3, hidden_units=(8,))
    together, alone = (
        model.log_prob(binary[:6], 3000),
        model.log_prob(binary[4:5], 3000),
    )
    np.testing.assert_allclose(numpy(together)[4], numpy(alone)[0], rtol=1e-5)
    assert numpy(model.log_prob(binary[4:5], 50)) != numpy(
        model.log_prob(binary[4:5], 50, seed=1)
    )
    np.testing.assert_allclose(
        numpy(model.elbo(binary[:6]))[4], numpy(model.elbo(binary[4:5]))[0], rtol=1e-5
    )
    whole = kgen.metrics.importance_weighted_bound(
        model, binary[:7], 20, batch_size=3, verbose=0
    )
    np.testing.assert_allclose(whole, numpy(model.log_prob(binary[:7], 20)), rtol=1e-5)


def test_samples_follow_the_model():
    """Frequencies of all 16 images against the integrated p(x), by chi-square."""
    model = tiny()
    drawn = model.sample(20_000, seed=4).reshape(-1, 4) @ [8, 4, 2, 1]
    expected = np.exp(grid_log_prob(model, all_images()))
    counts = np.bincount(drawn, minlength=16)
    assert stats.chisquare(counts, expected / expected.sum() * len(drawn)).pvalue > 1e-3


def test_expected_samples_are_the_means_of_the_samples_own_latents():
    model = tiny(levels=4)
    expected = model.sample_expected(5, seed=1)
    seeds = ops.convert_to_tensor(kgen.random.image_seeds(1, 5))
    z = kgen.random.normals(seeds, 2)
    np.testing.assert_allclose(expected, numpy(model.decode(z)), rtol=1e-5)


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_one_step_is_a_finite_difference_step(beta):
    """SGD(1) moves each weight by minus the derivative of mean(-recon - beta KL)."""
    model, x = tiny(beta=beta), all_images()
    epsilon = np.random.default_rng(5).normal(size=(16, 2))
    fixed_noise(model, epsilon)

    def loss():
        return float(np.mean(numpy(model._terms(x, None, epsilon)["loss"])))

    before = [numpy(v).copy() for v in model.trainable_variables]
    differences = []
    for v, value in zip(model.trainable_variables, before, strict=True):
        at = (0,) * value.ndim
        h, pair = 1e-2, []
        for sign in (1, -1):
            moved = value.copy()
            moved[at] += sign * h
            v.assign(moved)
            pair.append(loss())
        v.assign(value)
        differences.append((pair[0] - pair[1]) / (2 * h))
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(x, batch_size=16, shuffle=False, verbose=0)
    for v, value, slope in zip(
        model.trainable_variables, before, differences, strict=True
    ):
        at = (0,) * value.ndim
        assert value[at] - numpy(v)[at] == pytest.approx(slope, abs=2e-3)


class ThroughComputeLoss(VAE):
    """The oracle: Keras' own step, its loss from `compute_loss`."""

    train_step = keras.Model.train_step

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        return ops.mean(self._terms(x, None, training=training)["loss"])


def test_a_step_agrees_with_training_through_compute_loss(binary):
    results = []
    for cls in (VAE, ThroughComputeLoss):
        keras.utils.set_random_seed(3)
        model = cls((8, 8, 1), latent_dim=3, hidden_units=(16,))
        fixed_noise(model, np.random.default_rng(0).normal(size=(32, 3)))
        model.compile(keras.optimizers.Adam(1e-2))
        model.fit(binary[:64], batch_size=32, shuffle=False, verbose=0)
        results.append([numpy(v) for v in model.trainable_variables])
    for ours, oracle in zip(*results, strict=True):
        np.testing.assert_allclose(ours, oracle, atol=1e-6)


def test_sample_weights_weigh_images(binary):
    """Weight 0 leaves an image out; weight 2 counts it twice: sum(w l) / B, as Keras
    weighs. The metrics are weighted means."""
    results = []
    for x, weight in (
        (binary[:4], np.array([2.0, 0.0, 1.0, 1.0], "float32")),
        (binary[[0, 0, 2, 3]], None),
    ):
        keras.utils.set_random_seed(3)
        model = VAE((8, 8, 1), latent_dim=2, hidden_units=(8,))
        fixed_noise(model, np.zeros((4, 2)))
        model.compile(keras.optimizers.SGD(0.01))
        logs = model.fit(x, sample_weight=weight, shuffle=False, verbose=0).history
        results.append(([numpy(v) for v in model.trainable_variables], logs["kl_nats"]))
    for ours, oracle in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(ours, oracle, atol=1e-6)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)


def test_regularizers_of_own_networks_are_minimised(binary):
    encoder = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(4, kernel_regularizer=keras.regularizers.L2(1000.0)),
        ]
    )
    model = VAE((8, 8, 1), latent_dim=2, encoder=encoder)
    model.compile(keras.optimizers.SGD(1e-4))
    before = np.square(numpy(encoder.layers[-1].kernel)).sum()
    model.fit(binary, epochs=3, verbose=0)
    assert np.square(numpy(encoder.layers[-1].kernel)).sum() < 0.1 * before


def test_labels_condition_density_and_samples():
    model = tiny(num_classes=3)
    x = all_images()
    logs = []
    for k in range(3):
        labels = np.full(16, k)
        logs.append(grid_log_prob(model, x, labels))
        assert np.exp(logs[k]).sum() == pytest.approx(1.0, abs=1e-4)
        _, error = unbiased(model, x, logs[k], labels)
        bound = numpy(model.log_prob(x, 5000, labels=labels))
        assert np.all(np.abs(bound - logs[k]) < 10 * error + 1e-3)
        drawn = model.sample(8000, seed=k, labels=k).reshape(-1, 4) @ [8, 4, 2, 1]
        counts = np.bincount(drawn, minlength=16)
        expected = np.exp(logs[k]) / np.exp(logs[k]).sum() * len(drawn)
        assert stats.chisquare(counts, expected).pvalue > 1e-3
    assert np.abs(logs[0] - logs[1]).max() > 0.1
    assert np.abs(logs[1] - logs[2]).max() > 0.1


def test_interpolation_ends_at_the_reconstructions(digits):
    model = VAE((8, 8, 1), 17, latent_dim=3, hidden_units=(8,))
    path = numpy(model.interpolate(digits[:2], digits[2:4], 5))
    assert path.shape == (2, 5, 8, 8, 1)
    close(path[:, 0], model.reconstruct(digits[:2]), rtol=1e-4)
    close(path[:, -1], model.reconstruct(digits[2:4]), rtol=1e-4)
    mean = 0.5 * (
        numpy(model.encode(digits[:2])[0]) + numpy(model.encode(digits[2:4])[0])
    )
    close(path[:, 2], model.decode(mean), rtol=1e-4)


@pytest.mark.parametrize("shape", [(28, 28, 1), (7, 5, 1), (9, 12, 3), (1, 6, 1)])
@pytest.mark.parametrize("kind", ["dense", "convolutional", "both"])
def test_networks_for_any_shape(shape, kind, rng):
    sizes = {
        "dense": {"hidden_units": (8, 6)},
        "convolutional": {"filters": (4, 8)},
        "both": {"filters": (4,), "hidden_units": (8,)},
    }[kind]
    model = VAE(shape, 5, latent_dim=3, num_classes=2, **sizes)
    x, y = rng.integers(0, 5, (3, *shape)), np.array([0, 1, 1])
    assert model.reconstruct(x, y).shape == (3, *shape)
    assert model.sample(2, seed=0).shape == (2, *shape)
    assert np.all(np.isfinite(numpy(model.elbo(x, y))))
    # every weight takes part: no gradient of a trained step is exactly zero
    before = [numpy(v).copy() for v in model.trainable_variables]
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(x, y, verbose=0)
    moved = [
        np.any(numpy(v) != b)
        for v, b in zip(model.trainable_variables, before, strict=True)
    ]
    assert all(moved)


@pytest.mark.parametrize(
    "likelihood", ["categorical", "discretized_logistic", "logistic_mixture"]
)
def test_training_raises_the_bound_on_real_digits(digits, likelihood):
    model = VAE((8, 8, 1), 17, latent_dim=4, hidden_units=(64,), likelihood=likelihood)
    model.compile(keras.optimizers.Adam(3e-3))
    first = model.evaluate(digits[:64], verbose=0)["bits_per_dim"]
    model.fit(digits[64:], epochs=20, batch_size=32, verbose=0)
    last = model.evaluate(digits[:64], verbose=0)["bits_per_dim"]
    assert last < first - 0.7


def test_a_latent_that_overflowed_would_not_be_nan(binary):
    model = VAE((8, 8, 1), latent_dim=2, hidden_units=(4,))
    model.encoder.layers[-1].bias.assign([0.0, 0.0, 1e6, -1e6])
    assert np.all(np.isfinite(numpy(model.elbo(binary[:4]))))


def test_wrong_networks_and_arguments_are_told():
    narrow = keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)]
    )
    with pytest.raises(ValueError, match=r"must give \(None, 4\).*got \(None, 3\)"):
        VAE((8, 8, 1), latent_dim=2, encoder=narrow)
    with pytest.raises(ValueError, match="hidden_units must be a tuple"):
        VAE((8, 8, 1), hidden_units=16)
    for label_blind, shape in ((None, (9, 9, 1)), (10, (8, 8, 1))):
        other = keras.Sequential(
            [layers.Input(shape), layers.Flatten(), layers.Dense(4)]
        )
        with pytest.raises(ValueError):
            VAE((8, 8, 1), num_classes=label_blind, latent_dim=2, encoder=other)
    with pytest.raises(ValueError, match="latent_dim must be positive"):
        VAE((8, 8, 1), latent_dim=0)
    with pytest.raises(ValueError, match=r"expected \(batch, 2\)"):
        VAE((8, 8, 1), latent_dim=2).decode(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="num_samples must be positive"):
        VAE((8, 8, 1), latent_dim=2).log_prob(np.zeros((3, 8, 8, 1), "uint8"), 0)
