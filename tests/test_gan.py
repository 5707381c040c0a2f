"""GANs: losses against float64 formulas, D against its optimum in closed form, the
penalties against central differences, all modes of a toy. What a step changes and
leaves alone is in test_optimizers.py and test_stock.py."""

import itertools

import keras
import numpy as np
import pytest
import zoo
from keras import layers, ops
from keras.optimizers import SGD, Adam, RMSprop
from scipy import stats
from scipy.special import expit, log_expit
from zoo import LEVELS, SHAPE, cases, derivative, flat, numpy, sequential, tensor

import kgen
from kgen import backend
from kgen.models import GAN
from kgen.models.gan import Prior, warm_up_decay
from kgen.models.gan_losses import (
    GradientPenalty,
    R1Penalty,
    R2Penalty,
    loss_of,
    norms,
)
from kgen.optimizers import Alternating


def gan(**kwargs):
    """With initial weights, unlike `zoo.new`."""
    return GAN(SHAPE, LEVELS, **{"latent_dim": 3, "width": 4} | kwargs)


# Losses

LOGITS = np.array([-1e4, -12.0, -3.0, -1.01, -0.4, 0.3, 0.99, 2.0, 9.0, 1e4])
PUBLISHED = {  # what D minimizes of real and of generated images; what G minimizes
    "minimax": lambda r, g: (-log_expit(r), -log_expit(-g), log_expit(-g)),
    "non_saturating": lambda r, g: (-log_expit(r), -log_expit(-g), -log_expit(g)),
    "least_squares": lambda r, g: ((r - 1) ** 2 / 2, g**2 / 2, (g - 1) ** 2 / 2),
    "hinge": lambda r, g: (np.maximum(0, 1 - r), np.maximum(0, 1 + g), -g),
    "wasserstein": lambda r, g: (-r, g, -g),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_and_gradients_are_the_published_ones(name):
    """Without overflow at logits of +-1e4. The generator's gradient is sigma (minimax)
    or 1 - sigma (non-saturating): a certain D leaves the first nothing."""
    kind, published, r = loss_of(name), PUBLISHED[name], LOGITS
    for g in (LOGITS[::-1], LOGITS):
        of_real, of_generated, of_g = published(r, g)
        found = numpy(kind.discriminator(tensor(r), tensor(g)))
        np.testing.assert_allclose(found, of_real + of_generated, 1e-5, 1e-6)
        np.testing.assert_allclose(numpy(kind.generator(tensor(g))), of_g, 1e-5, 1e-6)
    h, other = 1e-6 * np.maximum(1.0, np.abs(r)), tensor(r[::-1])
    functions = (
        lambda t: kind.discriminator(t, other),
        lambda t: kind.discriminator(other, t),
        kind.generator,
    )
    higher, lower = published(r + h, r + h), published(r - h, r - h)
    for fn, above, below in zip(functions, higher, lower, strict=True):
        slope = (above - below) / (2 * h)
        np.testing.assert_allclose(derivative(fn, r), slope, 1e-4, 1e-6)


@pytest.mark.portable
@pytest.mark.parametrize("loss", cases(["minimax"], ["least_squares"]))
def test_optimal_discriminator_is_the_one_of_the_proof(loss):
    """Goodfellow et al., proposition 1: D* = p_data / (p_data + p_g); with 0 and 1 as
    targets least squares have the same optimum. Images of one pixel with 16 values;
    G(z) = (z + 1)^2 / 4, z ~ U(-1, 1), so that P(G(z) < t) = sqrt(t)."""

    def parabola(z):
        return ops.reshape(ops.square(z + 1.0) / 4.0, (-1, 1, 1, 1))

    def one_hot_level(x):
        return ops.one_hot(ops.cast(ops.round(15.0 * x[:, 0, 0, 0]), "int32"), 16)

    table = layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    networks = {
        "generator": sequential((1,), layers.Lambda(parabola)),
        "discriminator": sequential((1, 1, 1), layers.Lambda(one_hot_level), table),
    }
    model = GAN((1, 1, 1), 16, latent_dim=1, prior="uniform", loss=loss, **networks)
    counts = np.random.default_rng(0).integers(20, 300, 16)
    x = np.repeat(np.arange(16), counts).astype("uint8").reshape(-1, 1, 1, 1)
    p_data = counts / counts.sum()
    p_g = np.diff(np.sqrt(np.clip((np.arange(17) - 0.5) / 15.0, 0.0, 1.0)))
    model.compile(Adam(keras.optimizers.schedules.CosineDecay(0.3, 120)))
    x_of_steps = np.tile(x, (120, 1, 1, 1))
    model.fit(x_of_steps, batch_size=len(x), shuffle=False, verbose=0)
    D = numpy(model.discriminate(np.arange(16, dtype="uint8").reshape(-1, 1, 1, 1)))
    D = expit(D) if loss == "minimax" else D
    np.testing.assert_allclose(D, p_data / (p_data + p_g), atol=0.04)


@pytest.mark.portable
def test_training_finds_all_modes():
    """Eight Gaussians on a circle, each image a pixel of two channels."""
    angles = 2 * np.pi * np.arange(8) / 8
    centers = 127.5 + 90.0 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rng, n = np.random.default_rng(0), 500 * 256
    points = centers[rng.integers(0, 8, n)] + rng.normal(0, 5.0, (n, 2))
    x = np.rint(points).astype("uint8").reshape(-1, 1, 1, 2)
    hidden = [layers.Dense(64, "leaky_relu") for _ in range(4)]
    pixel = layers.Dense(2, "sigmoid"), layers.Reshape((1, 1, 2))
    scaled = layers.Flatten(), layers.Rescaling(4.0, -2.0)
    networks = {
        "generator": sequential((4,), layers.Rescaling(4.0), *hidden[:2], *pixel),
        "discriminator": sequential(x.shape[1:], *scaled, *hidden[2:], layers.Dense(1)),
    }
    model = GAN((1, 1, 2), latent_dim=4, r1_penalty=0.02, ema=0.98, **networks)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 500)
    model.compile(Adam(rate, beta_1=0.0, beta_2=0.9))
    model.fit(x, batch_size=256, verbose=0)
    points = model.sample(2000, seed=0, verbose=0).reshape(-1, 2).astype("float32")
    distance = np.linalg.norm(points[:, None] - centers, axis=-1)  # (N, 8)
    near = distance.min(axis=1) < 4 * 5.0
    counts = np.bincount(distance.argmin(axis=1)[near], minlength=8)
    assert near.mean() > 0.6 and counts.min() > 2000 / 8 / 4


# What a step takes and reports


def constant_generator(value):
    """G(z) = value at every pixel, through a bias that is trained."""
    logit = keras.initializers.Constant(np.log(value / (1 - value)))
    initial = {"kernel_initializer": "zeros", "bias_initializer": logit}
    dense = layers.Dense(64, "sigmoid", **initial)
    return sequential((3,), dense, layers.Reshape(SHAPE))


def two_layers():
    """D(x) = v . tanh(V x)."""
    normal = keras.initializers.RandomNormal(stddev=0.3)
    hidden = layers.Dense(5, "tanh", use_bias=False, kernel_initializer=normal)
    last = layers.Dense(1, use_bias=False)
    return sequential(SHAPE, layers.Flatten(), hidden, last)


@pytest.mark.portable
def test_average_follows_generator_and_norms_are_reported(digits):
    """With the decay 2/11 after the first step, and 0.2 after the second, for 3/12 is
    above it."""
    fresh = gan(ema=0.75)
    zoo.assert_same(fresh.average, fresh.generator)
    model = zoo.new("gan", ema=0.2)
    model.compile(generator_optimizer=SGD(0.1), discriminator_optimizer=SGD(0.01))
    networks = {"generator": 0.1, "discriminator": 0.01}
    average = flat(model.generator.weights)
    for decay in (2 / 11, 0.2):
        before = [flat(getattr(model, k).trainable_variables) for k in networks]
        logs = model.fit(digits[:32], batch_size=32, verbose=0).history
        for (k, rate), old in zip(networks.items(), before, strict=True):
            step = flat(getattr(model, k).trainable_variables) - old
            norm = pytest.approx(np.linalg.norm(step) / rate, rel=1e-3)
            assert logs[f"{k}_gradient_norm"][0] == norm
        average = decay * average + (1 - decay) * flat(model.generator.weights)
    np.testing.assert_allclose(flat(model.average.weights), average, atol=1e-5)
    z = numpy(model.prior.of(tensor(kgen.random.image_seeds(0, 2), "int32")))
    generated = numpy(model.generate(z))
    np.testing.assert_array_equal(model.sample(2, seed=0), np.rint(generated))
    for v in model.generator.weights:
        v.assign(v + 1.0)
    np.testing.assert_array_equal(numpy(model.generate(z)), generated)


@pytest.mark.portable
def test_average_of_few_steps_is_near_the_generator(digits):
    """Ten steps with a decay of 0.999, of which a plain average keeps 99 % of the
    weights that it began with. Steps of D do not count."""
    settings = {"loss": "hinge", "discriminator_steps": 2}
    model = gan(architecture="mlp", width=10, ema=0.999, **settings)
    members = {"discriminator": Adam(1e-2), "generator": Adam(1e-2)}
    model.compile(kgen.optimizers.Alternating(**members))
    first = zoo.weights(model.generator)
    model.fit(digits[:160], batch_size=16, verbose=0)
    last, average = zoo.weights(model.generator), zoo.weights(model.average)

    def distance(a, b):
        return np.sqrt(sum(np.sum((v - w) ** 2) for v, w in zip(a, b, strict=True)))

    assert distance(average, last) < 0.5 * distance(first, last)
    assert int(numpy(model._generator_steps())) == 10
    decays = [float(numpy(warm_up_decay(0.999, t))) for t in (0, 9, 8990, 10**6)]
    assert decays == pytest.approx([0.1, 10 / 19, 0.999, 0.999], rel=1e-6)
    assert decays[2] == decays[3]


# Penalties


class Recorder(layers.Layer):
    """Keeps its last inputs of training: (passes, B, ...)."""

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.seen = self.add_weight(shape=shape, initializer="zeros", trainable=False)

    def call(self, x, training=False):
        if training:
            new = ops.stop_gradient(x)[None]
            self.seen.assign(ops.concatenate([self.seen[1:], new]))
        return x


def test_each_image_has_noise_and_penalty_anew():
    """D(x) = s sum(x^2) / 2, s = 1, has gradient s x. With real 1 and generated 0, that
    between them is a, its norm 8 a s, and the penalty E (8 a s - 1)^2 with a ~ U(0, 1)
    of each image. z is sampled anew for each step, the last of which is G's."""
    n = 2000
    z, x = Recorder((3, n, 3)), Recorder((7, n, *SHAPE))
    half_square = layers.Lambda(lambda x: ops.sum(x**2, axis=(1, 2, 3))[:, None] / 2.0)
    s = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = gan(
        loss="wasserstein",
        gradient_penalty=1.0,
        discriminator_steps=2,
        gradient_norms=True,
        generator=keras.Sequential([z, *constant_generator(1e-9).layers]),
        discriminator=keras.Sequential([x, half_square, s]),
    )
    model.compile(SGD(0.0))
    logs = model.fit(np.full((n, *SHAPE), 16, "uint8"), batch_size=n, verbose=0).history
    seen = numpy(z.seen).reshape(3, -1)
    assert np.all(np.abs(np.corrcoef(seen) - np.eye(3)) < 0.06)
    assert len(np.unique(seen)) > 0.99 * seen.size
    passes = numpy(x.seen).reshape(7, n, -1)
    assert np.ptp(passes, axis=2).max() < 1e-6
    real, generated, first, *_, a, last = passes[:, :, 0]
    np.testing.assert_allclose([real[0], generated[0], last[0]], [1, 0, 0], atol=1e-6)
    for share in (first, a):
        assert abs(np.sort(share) - np.linspace(0, 1, n)).max() < 0.045  # Kolmogorov
    assert abs(np.corrcoef(first, a)[0, 1]) < 0.1
    slope = np.mean(2 * (8 * a - 1) * 8 * a) - 32.0  # of the penalty and D(0) - D(1)
    assert logs["discriminator_gradient_norm"][0] == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("kind", ["gradient_penalty", "r1_penalty", "r2_penalty"])
def test_penalties_agree_with_central_differences(kind):
    """Value, and gradient by D's weights through the gradient by images. For the
    gradient penalty generated images equal the real ones, and so all between them."""
    real, made = 0.25, 0.25 if kind == "gradient_penalty" else 0.6
    D = two_layers()
    networks = {"generator": constant_generator(made), "discriminator": D}
    named = {"gradient_penalty": 0.0, "r1_penalty": 0.0}
    penalties = {"penalties": [R2Penalty(3.0)]} if kind == "r2_penalty" else {kind: 3.0}
    model = gan(loss="wasserstein", **named | penalties, **networks)
    same = GAN.from_config(model.get_config())
    same.set_weights(model.get_weights())
    model, D = same, same.discriminator
    model.compile(generator_optimizer=SGD(0.0), discriminator_optimizer=SGD(0.01))

    def objective(weights):
        V, v = weights[:320].reshape(64, 5), weights[320:]
        at_real, at_made = (np.tanh(V.T @ np.full(64, x)) for x in (real, made))
        there = at_made if kind == "r2_penalty" else at_real
        size = np.linalg.norm(V @ ((1 - there**2) * v))
        penalty = (size - 1) ** 2 if kind == "gradient_penalty" else size**2 / 2
        return 3.0 * penalty + (at_made - at_real) @ v

    at, steps = flat(D.weights), np.eye(325) * 1e-6
    expected = np.array([(objective(at + s) - objective(at - s)) / 2e-6 for s in steps])
    model.fit(np.full((4, *SHAPE), 4, "uint8"), batch_size=4, verbose=0)  # 4 / 16
    scale = np.abs(expected).max()
    assert scale > 0.1
    found = (at - flat(D.weights)) / 0.01
    np.testing.assert_allclose(found, expected, atol=2e-3 * scale)


def test_norms_and_penalties_of_a_gradient(rng):
    """Finite where the gradient is zero, also the derivative (keras-io#910)."""
    g = rng.normal(size=(6, *SHAPE)).astype("float32")
    g[:2] = 0.0
    size = np.linalg.norm(g.reshape(6, -1), axis=1)

    def at(penalty):
        seed = keras.random.SeedGenerator(0)
        return lambda g: penalty(lambda x: g, 0.0 * g, 0.0 * g, seed)

    for fn, expected in (
        (norms, size),
        (at(GradientPenalty(1.0)), (size - 1) ** 2),
        (at(R1Penalty(1.0)), size**2 / 2),
        (at(R2Penalty(3.0)), 3 * size**2 / 2),
    ):
        np.testing.assert_allclose(numpy(fn(tensor(g))), expected, rtol=1e-5)
    slope = derivative(at(GradientPenalty(1.0)), g)
    assert np.all(slope[:2] == 0.0) and np.all(np.isfinite(slope))


def test_penalties_are_of_each_image_alone(digits):
    """So D has no batch statistics: another image changes no other's gradient."""
    own = {"penalties": [R2Penalty(1.0)]}
    for options in ({}, {"gradient_penalty": 1.0}, {"r1_penalty": 1.0}, own):
        D = gan(architecture="infogan", **options).discriminator
        kinds = [type(layer) for layer in D.layers]
        assert (layers.BatchNormalization in kinds) == (not options)
    x = digits[:6] / 16.0
    other = np.concatenate([x[:1], 1.0 - x[1:]])
    one, same = (derivative(lambda x: D(x, training=True), v)[0] for v in (x, other))
    np.testing.assert_allclose(one, same, atol=1e-6)


@pytest.mark.portable
def test_a_critic_that_is_restrained_has_no_gradient_penalty():
    restraints = {}, {"weight_clip": 0.1}, {"spectral_norm": True}, {"r1_penalty": 1.0}
    penalties = [gan(loss="wasserstein", **r).gradient_penalty for r in restraints]
    assert penalties == [10.0, 0.0, 0.0, 0.0]


# Evaluation, networks


@pytest.mark.portable
def test_evaluation_is_a_function_of_the_images(digits):
    model, x = zoo.new("gan", ema=None), digits[:60]
    for v in model.discriminator.trainable_variables:
        v.assign(30.0 * v)
    model.compile("adam")
    real = numpy(model.discriminate(x))

    def score(keys):
        return model.discriminator(model.make(model.prior.of(keys)))[:, 0]

    keys = kgen.random.image_keys(tensor(x, "int32"))
    generated = numpy(backend.compile_function(model, score)(keys))
    assert np.std(generated) > 0.05  # which z it is makes a difference
    discriminator_loss = np.mean(-log_expit(real) - log_expit(-generated))
    generator_loss = np.mean(-log_expit(generated))
    expected = {
        "discriminator_loss": discriminator_loss,
        "generator_loss": generator_loss,
        "loss": discriminator_loss + generator_loss,
        "accuracy_real": np.mean(real > 0),
        "accuracy_generated": np.mean(generated <= 0),
    }
    scores = model.evaluate(x, batch_size=40, verbose=0)
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.portable
@pytest.mark.parametrize(
    "name,distribution", [("normal", stats.norm), ("uniform", stats.uniform(-1, 2))]
)
def test_latents_have_the_prior_in_training_and_sampling(name, distribution):
    prior = Prior(name, 5)
    of_seeds = backend.compile_function(keras.Sequential(), prior.of)
    seeds = tensor(kgen.random.image_seeds(1, 4000), "int32")
    for z in (prior.draw(4000, keras.random.SeedGenerator(3)), of_seeds(seeds)):
        z = numpy(z)
        assert z.shape == (4000, 5)
        assert stats.kstest(z.ravel(), distribution.cdf).pvalue > 1e-3
        assert np.abs(np.corrcoef(z.T) - np.eye(5)).max() < 0.1


SPECTRAL = {"spectral_norm": True, "num_classes": 3}
DEFAULT = [
    ("mlp", (5, 7, 3), SPECTRAL),
    ("dcgan", (5, 7, 3), SPECTRAL),
    ("infogan", (1, 1, 2), {}),
]
SHAPES = ((5, 7, 3), (1, 1, 2), (28, 28, 1), (32, 32, 3))
ALL = itertools.product(("mlp", "dcgan", "infogan"), SHAPES, ({}, SPECTRAL))


@pytest.mark.portable
@pytest.mark.parametrize("architecture, shape, options", cases(DEFAULT, ALL))
def test_architectures_fit_any_image(architecture, shape, options):
    model = GAN(shape, architecture=architecture, width=5, latent_dim=2, **options)
    labels = np.array([0, 2]) if model.num_classes else None
    assert model.generate(np.zeros((2, 2)), labels).shape == (2, *shape)
    assert model.discriminate(np.zeros((2, *shape), "uint8"), labels).shape == (2,)


@pytest.mark.once
def test_infogan_networks_are_the_published_ones():
    """Lucic et al.'s, of 28x28x1 from 64 latents: G 64-1024-6272, 4x4 to 64, to 1."""
    model = GAN((28, 28, 1), architecture="infogan", latent_dim=64)
    sizes = [(64, 1024), (1024, 7 * 7 * 128), (4, 4, 64, 128), (4, 4, 1, 64)]
    other = [(4, 4, 1, 64), (4, 4, 64, 128), (7 * 7 * 128, 1024), (1024, 1)]
    for network, expected in ((model.generator, sizes), (model.discriminator, other)):
        shapes = [tuple(v.shape) for v in network.trainable_variables]
        assert [s for s in shapes if len(s) > 1] == expected


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A generator that builds its weights when it is first called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(64, activation="sigmoid")

    def call(self, z):
        return ops.reshape(self.dense(z), (-1, *SHAPE))


@pytest.mark.portable
def test_user_networks_are_trained_clipped_and_saved(digits, tmp_path):
    """A loaded model continues exactly: seeds, power iterations, statistics, average,
    moments of two optimizers and the order of the data are those of the saved one."""
    critic = sequential(
        SHAPE,
        kgen.layers.SpectralNorm(layers.Conv2D(4, 3, 2, use_bias=False)),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dropout(0.1, seed=1),
        layers.Dense(1),
    )
    settings = {"weight_clip": 0.02, "gradient_penalty": 1.0, "discriminator_steps": 2}
    networks = {"generator": Subclassed(), "discriminator": critic}
    model = gan(loss="wasserstein", ema=0.5, **settings, **networks)
    model.compile(Alternating(generator=Adam(1e-2), discriminator=RMSprop(1e-2)))

    def fit(model, first, last):
        data = kgen.data.Batches(digits[:96], batch_size=32, seed=3)
        model.fit(data, initial_epoch=first, epochs=last, verbose=0)

    fit(model, 0, 1)
    model.save(tmp_path / "m.keras")
    keras.utils.set_random_seed(99)  # a new process has other global seeds
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        fit(m, 1, 3)
    a, b = (flat(m.variables + m.optimizer.variables) for m in (model, loaded))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # TensorFlow's sums differ
    assert np.mean(model.sample(4) != loaded.sample(4)) < 0.02  # ties within rounding
    networks = loaded.discriminator, loaded.generator
    clipped, free = (np.abs(flat(n.trainable_variables)).max() for n in networks)
    assert clipped == np.float32(0.02) < free


@pytest.mark.portable
def test_labels_reach_both_networks(digits):
    model = zoo.shared("gan-critic", SHAPE, LEVELS, zoo.CLASSES)
    z = np.ones((2, 3), "float32")
    a, b = numpy(model.generate(z, [0, 1]))
    assert np.abs(a - b).max() > 0
    c, d = numpy(model.discriminate(np.repeat(digits[:1], 2, 0), np.array([0, 1])))
    assert c != d
    one = numpy(model.generate(z, 3))
    np.testing.assert_array_equal(one, numpy(model.generate(z, np.array([3, 3]))))
    for wrong, words in ((None, "pass labels"), ([1, 2, 3], "expected one or 2, got")):
        with pytest.raises(ValueError, match=words):
            model.generate(z, wrong)


@pytest.mark.portable
@pytest.mark.parametrize("jit", cases([False], [True]))
@pytest.mark.parametrize("policy", cases(["mixed_float16"], ["mixed_bfloat16"]))
def test_half_precision_and_compiling_again(policy, jit, digits):
    """With the optimizer that is there, also wrapped for float16; after a thaw."""
    if jit and backend.name == "torch":
        pytest.skip("works by torch.compile, which takes a minute")
    settings = {"r1_penalty": 0.1, "spectral_norm": True, "gradient_norms": True}
    model = gan(loss="hinge", ema=0.5, dtype=policy, **settings)
    model.compile("sgd")
    model.compile(model.optimizer)
    model.trainable = False
    model.trainable = True
    model.compile(Adam(1e-3), jit_compile=jit)
    logs = model.fit(digits[:128], batch_size=32, epochs=2, verbose=0).history
    assert all(np.all(np.isfinite(v)) for v in logs.values())
    assert logs["generator_gradient_norm"][-1] < 1e3  # the loss's scale is taken out
    assert numpy(model.discriminate(digits[:3])).dtype == "float32"
    assert not model.average.trainable_variables


@pytest.mark.portable
def test_adam_of_dcgan_is_the_default_of_each_network():
    model = gan(architecture="mlp", width=5)
    model.compile()
    for member in model.optimizer.members.values():
        assert isinstance(member, Adam) and member.beta_1 == 0.5
    for words, wrong in (
        ("either optimizer= .* got both", {"optimizer": "adam"}),
        ("generator_optimizer= alone", {}),
    ):
        with pytest.raises(ValueError, match=words):
            model.compile(**wrong, generator_optimizer="sgd")
