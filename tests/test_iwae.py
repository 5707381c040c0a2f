"""IWAE's mathematics: the joint of two stochastic layers against an integral over both,
the bound against its weights, its gradient against eq. 14 of the paper, ancestral
samples, and one layer of k = 1 against the VAE."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy import stats
from scipy.special import logsumexp, softmax
from test_vae import all_images, fixed_noise, grid_log_prob, numpy, unbiased

import kgen
from kgen.models import IWAE, VAE


def tiny(latent_dim, num_samples, **kwargs):
    """2x2 pixels, with weights far from zero, and a q that is wide: so that the weights
    have a variance."""
    kwargs = {"hidden_units": (6,), "upper_units": (5,), "activation": "tanh"} | kwargs
    model = IWAE((2, 2, 1), latent_dim=latent_dim, num_samples=num_samples, **kwargs)
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(0, 0.7, v.shape))
    for network in (model.encoder, *model.upper_encoders):
        last, half = network.layers[-1], network.output_shape[-1] // 2
        last.kernel.assign(0.3 * last.kernel)
        last.bias.assign([0.3] * half + [1.0] * half)
    for network in model.upper_decoders:
        network.layers[-1].kernel.assign(0.5 * network.layers[-1].kernel)
    return model


def two_layers_log_prob(model, x, side=9.0, n=241):
    """log p(x) by the trapezoid rule over z_1 and z_2, of one dimension each."""
    axis = np.linspace(-side, side, n)
    step = np.log(axis[1] - axis[0])
    column = ops.convert_to_tensor(axis[:, None], "float32")
    h = numpy(model.upper_decoders[0](column))  # (z_2, mean and log variance of z_1)
    mean, log_var = h[:, 0].astype("float64"), h[:, 1].astype("float64")
    # a narrow p(z_1 | z_2) needs a grid of its own: z_1 = mean + sigma e
    given = mean[:, None] + np.exp(log_var / 2)[:, None] * axis  # (z_2, e)
    params = model._params(ops.convert_to_tensor(given.reshape(-1, 1), "float32"), None)
    prior = stats.norm.logpdf(axis)[:, None] + stats.norm.logpdf(axis) + 2 * step
    out = []
    for image in x:
        image = np.broadcast_to(image, (given.size, *image.shape))
        log_p = model.likelihood.log_prob(params, ops.convert_to_tensor(image))
        out.append(logsumexp(numpy(log_p).reshape(n, n).astype("float64") + prior))
    return np.array(out)


def test_two_layers_weigh_to_the_integral_over_both():
    """E[w] = p(x); probabilities sum to one; the bound rises with k to log p(x)."""
    model, x = tiny((1, 1), 4), all_images()
    exact = two_layers_log_prob(model, x)
    assert np.exp(exact).sum() == pytest.approx(1.0, abs=1e-3)
    weights, error = unbiased(model, x, exact)
    bounds = [
        (logsumexp(weights.reshape(len(x), -1, k), -1) - np.log(k)).mean()
        for k in (1, 4, 1000)
    ]
    assert bounds[0] < bounds[1] - 0.01 and bounds[1] < bounds[2] - 0.01
    assert bounds[2] <= exact.mean() + 5 * error.mean()
    # evaluate reports the bound of k = 4, whose noise is a function of the image
    model.compile("adam")
    scores = model.evaluate(x, verbose=0)
    keys = kgen.random.image_keys(ops.convert_to_tensor(x))
    streams = ops.convert_to_tensor(np.arange(4), "int32")
    own = numpy(model.log_weights(ops.convert_to_tensor(x), keys, streams))
    bound = (logsumexp(own, -1) - np.log(4)).mean()
    assert scores["bound_nats"] == pytest.approx(bound, rel=1e-5)
    assert scores["elbo_nats"] == pytest.approx(own.mean(), rel=1e-5)
    assert scores["bits_per_dim"] == pytest.approx(-bound / 4 / np.log(2), rel=1e-5)
    parts = scores["reconstruction_nats"] + scores["kl_nats"]
    assert parts == pytest.approx(-scores["elbo_nats"], rel=1e-5)


def test_ancestral_samples_follow_the_model():
    model = tiny((1, 1), 2)
    drawn = model.sample(20_000, seed=4).reshape(-1, 4) @ [8, 4, 2, 1]
    expected = np.exp(two_layers_log_prob(model, all_images()))
    counts = np.bincount(drawn, minlength=16)
    assert stats.chisquare(counts, expected / expected.sum() * len(drawn)).pvalue > 1e-3


def test_a_step_weighs_each_sample_by_its_share():
    """Eq. 14: the gradient of L_k is the sum of w_i / sum w times that of log w_i.
    Here each of these by finite differences, and the step by SGD(1)."""
    model, x = tiny((2, 1), 3), all_images()
    epsilon = np.random.default_rng(5).normal(size=(16, 3, 3)).astype("float32")
    fixed_noise(model, epsilon)

    def log_weights():
        both = model._log_terms(x, None, ops.convert_to_tensor(epsilon))
        return sum(map(numpy, both)).astype("float64")  # (16, 3)

    share = softmax(log_weights(), -1)
    before = [numpy(v).copy() for v in model.trainable_variables]
    slopes = []
    for v, value in zip(model.trainable_variables, before, strict=True):
        at, pair = (0,) * value.ndim, []
        for sign in (1, -1):
            moved = value.copy()
            moved[at] += sign * 1e-2
            v.assign(moved)
            pair.append(log_weights())
        v.assign(value)
        each = (pair[0] - pair[1]) / 2e-2  # d log w_i, (16, 3)
        slopes.append(-(share * each).sum(-1).mean())
    model.compile(keras.optimizers.SGD(1.0))
    model.fit(x, batch_size=16, shuffle=False, verbose=0)
    assert max(map(abs, slopes)) > 0.05
    for v, value, slope in zip(model.trainable_variables, before, slopes, strict=True):
        at = (0,) * value.ndim
        assert value[at] - numpy(v)[at] == pytest.approx(slope, abs=2e-3)


def test_one_layer_is_the_vae_with_another_objective():
    """The same weights: the same log weights and samples; and with k = 1 the ELBO."""
    x = ops.convert_to_tensor(all_images())
    ours = tiny(2, 1)
    vae = VAE((2, 2, 1), latent_dim=2, hidden_units=(6,), activation="tanh")
    vae.set_weights(ours.get_weights())
    keys = kgen.random.image_keys(x)
    streams = ops.convert_to_tensor(np.arange(7), "int32")
    np.testing.assert_allclose(
        numpy(ours.log_weights(x, keys, streams)),
        numpy(vae.log_weights(x, keys, streams)),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(ours.sample(9, seed=1), vae.sample(9, seed=1))
    exact = grid_log_prob(ours, all_images())
    unbiased(ours, all_images(), exact)
    terms = ours._terms(x, None)
    np.testing.assert_allclose(
        numpy(terms["bound_nats"]), numpy(terms["elbo_nats"]), rtol=1e-5
    )


def test_labels_condition_the_networks_next_to_the_image(digits, digit_labels):
    model = IWAE((8, 8, 1), 17, 10, latent_dim=(3, 2), num_samples=2, hidden_units=(8,))
    seven, two = (numpy(model.elbo(digits[:4], np.full(4, k))) for k in (7, 2))
    assert np.abs(seven - two).max() > 1e-3
    model.compile("adam")
    model.fit(digits, digit_labels, verbose=0)
    assert model.sample(3, seed=0, labels=[1, 2, 3]).shape == (3, 8, 8, 1)


def test_training_raises_the_bound_on_real_digits(digits):
    model = IWAE((8, 8, 1), 17, latent_dim=(8, 4), num_samples=5, hidden_units=(64,))
    model.compile(keras.optimizers.Adam(3e-3))
    first = model.evaluate(digits[:64], verbose=0)["bits_per_dim"]
    model.fit(digits[64:], epochs=20, batch_size=32, verbose=0)
    scores = model.evaluate(digits[:64], verbose=0)
    assert scores["bits_per_dim"] < first - 0.7
    assert scores["bound_nats"] > scores["elbo_nats"] + 0.1


def test_wrong_arguments_are_told():
    for wrong in ({"latent_dim": ()}, {"beta": 2.0}):
        with pytest.raises(ValueError, match="one latent_dim or more, no beta"):
            IWAE((2, 2, 1), **wrong)
    with pytest.raises(ValueError, match="latent_dim must be a tuple of positive"):
        IWAE((2, 2, 1), latent_dim=(4, 0))
    with pytest.raises(ValueError, match="num_samples must be a positive"):
        IWAE((2, 2, 1), num_samples=0)
