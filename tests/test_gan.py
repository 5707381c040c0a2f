"""GANs: losses against float64 formulas, D against its optimum in closed form, what a
step changes and leaves, penalties against central differences, all modes of a toy."""

import functools
import itertools

import keras
import numpy as np
import pytest
import resume_child
import zoo
from keras import layers, ops
from scipy import stats
from zoo import LEVELS, SHAPE, numpy, tensor

import kgen
from kgen import backend
from kgen.models import GAN
from kgen.models.gan_losses import gradient_penalty, loss_of, norms, r1_penalty

exhaustive = pytest.mark.exhaustive
LOGITS = np.array([-1e4, -12.0, -3.0, -1.01, -0.4, 0.3, 0.99, 2.0, 9.0, 1e4])


def gan(kind=GAN, **kwargs):
    """With initial weights, unlike `zoo.new`."""
    return kind(SHAPE, LEVELS, **{"latent_dim": 3, "width": 4} | kwargs)


def copies(variables):
    return [numpy(v).copy() for v in variables]


@functools.cache
def differentiator():
    model = kgen.models.GenerativeModel((1, 1, 1), 2)
    model.compile("sgd")
    return model.input_gradient


def derivative(fn, at):
    """d sum(fn) / d at, by the backend."""
    return numpy(differentiator()(fn, tensor(at)))


# Losses


def log_D(logits):
    return -np.logaddexp(0.0, -logits)


def log_1_minus_D(logits):
    return -np.logaddexp(0.0, logits)


def published(name, r, g):
    """What D minimizes of real and of generated images, and what G minimizes."""
    return {
        "minimax": (-log_D(r), -log_1_minus_D(g), log_1_minus_D(g)),
        "non_saturating": (-log_D(r), -log_1_minus_D(g), -log_D(g)),
        "least_squares": ((r - 1) ** 2 / 2, g**2 / 2, (g - 1) ** 2 / 2),
        "hinge": (np.maximum(0, 1 - r), np.maximum(0, 1 + g), -g),
        "wasserstein": (-r, g, -g),
    }[name]


LOSSES = ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_the_published_ones(name):
    """Without overflow at logits of +-1e4."""
    kind, h = loss_of(name), 1e-6 * np.maximum(1.0, np.abs(LOGITS))
    for r, g in ((LOGITS, LOGITS[::-1]), (LOGITS, LOGITS)):
        real, generated = tensor(r), tensor(g)
        of_real, of_generated, of_g = published(name, r, g)
        found = numpy(kind.discriminator(real, generated))
        np.testing.assert_allclose(found, of_real + of_generated, 1e-5, 1e-6)
        np.testing.assert_allclose(numpy(kind.generator(generated)), of_g, 1e-5, 1e-6)
    higher, lower = (published(name, t, t) for t in (LOGITS + h, LOGITS - h))
    for i, fn in enumerate(
        (
            lambda t: kind.discriminator(t, tensor(LOGITS[::-1])),
            lambda t: kind.discriminator(tensor(LOGITS[::-1]), t),
            kind.generator,
        )
    ):
        expected = (higher[i] - lower[i]) / (2 * h)
        np.testing.assert_allclose(derivative(fn, LOGITS), expected, 1e-4, 1e-6)


def test_minimax_saturates_unlike_non_saturating():
    """Their ratio is sigma / (1 - sigma): a certain D leaves the first nothing."""
    logits = LOGITS[1:-1]
    minimax, other = (
        derivative(loss_of(name).generator, logits)
        for name in ("minimax", "non_saturating")
    )
    np.testing.assert_allclose(minimax, np.exp(logits) * other, rtol=1e-3)
    assert 0 < np.abs(minimax[0]) < 1e-4 * np.abs(other[0])


# A toy whose optimal discriminator is known: images of one pixel with 16 values.
# G(z) = (z + 1)^2 / 4, z ~ U(-1, 1), so that P(G(z) < t) = sqrt(t).


def parabola(z):
    return ops.reshape(ops.square(z + 1.0) / 4.0, (-1, 1, 1, 1))


def one_hot_level(x):
    return ops.one_hot(ops.cast(ops.round(15.0 * x[:, 0, 0, 0]), "int32"), 16)


@pytest.mark.portable
@pytest.mark.parametrize(
    "loss", ["minimax", pytest.param("least_squares", marks=exhaustive)]
)
def test_optimal_discriminator_is_the_one_of_the_proof(loss):
    """Goodfellow et al., proposition 1: D* = p_data / (p_data + p_g); with 0 and 1 as
    targets least squares have the same optimum."""
    table = layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    networks = {
        "generator": keras.Sequential([layers.Input((1,)), layers.Lambda(parabola)]),
        "discriminator": keras.Sequential(
            [layers.Input((1, 1, 1)), layers.Lambda(one_hot_level), table]
        ),
    }
    model = GAN((1, 1, 1), 16, latent_dim=1, prior="uniform", loss=loss, **networks)
    counts = np.random.default_rng(0).integers(20, 300, 16)
    x = np.repeat(np.arange(16), counts).astype("uint8").reshape(-1, 1, 1, 1)
    p_data = counts / counts.sum()
    p_g = np.diff(np.sqrt(np.clip((np.arange(17) - 0.5) / 15.0, 0.0, 1.0)))
    rate = keras.optimizers.schedules.CosineDecay(0.3, 120)
    model.compile(keras.optimizers.Adam(rate))
    x_of_steps = np.tile(x, (120, 1, 1, 1))
    model.fit(x_of_steps, batch_size=len(x), shuffle=False, verbose=0)
    D = numpy(model.discriminate(np.arange(16, dtype="uint8").reshape(-1, 1, 1, 1)))
    D = np.exp(log_D(D)) if loss == "minimax" else D
    np.testing.assert_allclose(D, p_data / (p_data + p_g), atol=0.04)


# Eight Gaussians on a circle, each image a pixel of two channels.

ANGLES = 2 * np.pi * np.arange(8) / 8
CENTERS = 127.5 + 90.0 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)


def mlp(inputs, outputs, shape, units=64, **kwargs):
    return keras.Sequential(
        [
            layers.Input(inputs),
            layers.Flatten(),
            layers.Rescaling(4.0, -2.0 * (len(inputs) > 1)),
            layers.Dense(units, activation="leaky_relu"),
            layers.Dense(units, activation="leaky_relu"),
            layers.Dense(outputs, **kwargs),
            layers.Reshape(shape),
        ]
    )


@pytest.mark.portable
def test_training_finds_all_modes():
    rng, n = np.random.default_rng(0), 500 * 256
    points = CENTERS[rng.integers(0, 8, n)] + rng.normal(0, 5.0, (n, 2))
    x = np.rint(points).astype("uint8").reshape(-1, 1, 1, 2)
    networks = {
        "generator": mlp((4,), 2, (1, 1, 2), activation="sigmoid"),
        "discriminator": mlp((1, 1, 2), 1, (1,)),
    }
    model = GAN((1, 1, 2), latent_dim=4, r1_penalty=0.02, ema=0.98, **networks)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 500)
    model.compile(keras.optimizers.Adam(rate, beta_1=0.0, beta_2=0.9))
    model.fit(x, batch_size=256, verbose=0)
    points = model.sample(2000, seed=0, verbose=0).reshape(-1, 2).astype("float32")
    distance = np.linalg.norm(points[:, None] - CENTERS, axis=-1)  # (N, 8)
    near = distance.min(axis=1) < 4 * 5.0
    counts = np.bincount(distance.argmin(axis=1)[near], minlength=8)
    assert near.mean() > 0.6 and counts.min() > 2000 / 8 / 4


# What a step changes


def constant_generator(value):
    """G(z) = value at every pixel, through a bias that is trained."""
    bias = keras.initializers.Constant(np.log(value / (1 - value)))
    dense = layers.Dense(
        64, activation="sigmoid", kernel_initializer="zeros", bias_initializer=bias
    )
    return keras.Sequential([layers.Input((3,)), dense, layers.Reshape(SHAPE)])


def two_layers(V, v):
    """D(x) = v . tanh(V x), with these weights."""
    fix = keras.initializers.Constant
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Flatten(),
            layers.Dense(5, "tanh", use_bias=False, kernel_initializer=fix(V)),
            layers.Dense(1, use_bias=False, kernel_initializer=fix(v)),
        ]
    )


def normal_weights(rng):
    return rng.normal(0, 0.3, (64, 5)), rng.normal(0, 1, (5, 1))


class OneNetwork(GAN):
    """A GAN of which one network alone is trained."""

    network = "discriminator"

    @backend.step
    def train_step(self, data):
        x, labels, weight = self.unpack(data)
        real = self._real(x)
        if self.network == "discriminator":
            terms = self._train_discriminator(real, labels, weight)
        else:
            terms = self._train_generator(ops.shape(real)[0], labels, weight)
        names = ("generator_loss", "discriminator_loss")
        zeros = {name: 0.0 * real[:, 0, 0, 0] for name in names}
        return self._logged(zeros | terms, weight)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_step_changes_one_network_and_its_moments(network, digits, rng):
    networks = constant_generator(0.3), two_layers(*normal_weights(rng))
    model = gan(OneNetwork, generator=networks[0], discriminator=networks[1])
    model.network = network
    model.compile("adam")
    variables = {
        name: getattr(model, name).trainable_variables + member.variables
        for name, member in model.optimizer.members.items()
    }
    before = {name: copies(vs) for name, vs in variables.items()}
    model.fit(digits[:32], batch_size=32, verbose=0)
    for name, vs in variables.items():
        for v, old in zip(vs, before[name], strict=True):
            changed = np.any(numpy(v) != old)
            if name != network or "learning_rate" not in v.path:
                assert changed == (name == network), v.path


def test_batch_statistics_are_of_each_pass(digits):
    """D has passes over real images and over generated ones, and in G's step one over
    generated ones."""
    norm = layers.BatchNormalization(momentum=0.9)
    discriminator = keras.Sequential(
        [layers.Input(SHAPE), layers.Flatten(), norm, layers.Dense(1)]
    )
    model = gan(generator=constant_generator(0.3), discriminator=discriminator)
    model.compile(keras.optimizers.SGD(0.0))
    x = digits[:32]
    model.fit(x, batch_size=32, verbose=0)
    mean, variance = np.zeros(64), np.ones(64)
    generated = np.full((32, 64), 0.3)
    for batch in (x.reshape(32, -1) / 16.0, generated, generated):
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        variance = 0.9 * variance + 0.1 * batch.var(0)
    np.testing.assert_allclose(numpy(norm.moving_mean), mean, atol=1e-5)
    np.testing.assert_allclose(numpy(norm.moving_variance), variance, atol=1e-4)


@pytest.mark.portable
def test_average_follows_generator_and_norms_are_reported(digits):
    model = zoo.new("gan", ema=0.75)
    rates = {"generator": 0.1, "discriminator": 0.01}
    model.compile(
        **{f"{k}_optimizer": keras.optimizers.SGD(r) for k, r in rates.items()}
    )
    average = copies(model.generator.weights)
    fresh = gan(ema=0.75)
    zoo.assert_same(fresh.average, fresh.generator)
    for _ in range(2):
        before = {k: copies(getattr(model, k).trainable_variables) for k in rates}
        logs = model.fit(digits[:32], batch_size=32, verbose=0).history
        for name, rate in rates.items():
            after = copies(getattr(model, name).trainable_variables)
            pairs = zip(before[name], after, strict=True)
            norm = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in pairs)) / rate
            assert logs[f"{name}_gradient_norm"][0] == pytest.approx(norm, rel=1e-3)
        pairs = zip(average, copies(model.generator.weights), strict=True)
        average = [0.75 * a + 0.25 * b for a, b in pairs]
    for v, a in zip(model.average.weights, average, strict=True):
        np.testing.assert_allclose(numpy(v), a, rtol=1e-5, atol=1e-6)
    z = numpy(model.prior.of(tensor(kgen.random.image_seeds(0, 2), "int32")))
    sampled, generated = model.sample(2, seed=0), numpy(model.generate(z))
    np.testing.assert_array_equal(sampled, np.rint(generated))
    for v in model.generator.weights:
        v.assign(v + 1.0)
    np.testing.assert_array_equal(model.sample(2, seed=0), sampled)
    np.testing.assert_array_equal(numpy(model.generate(z)), generated)


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


class ScaledSquare(layers.Layer):
    """s sum(x^2) / 2, with s = 1 at first."""

    def build(self, shape):
        self.s = self.add_weight(shape=(), initializer="ones", name="s")

    def call(self, x):
        return self.s * ops.sum(ops.square(x), axis=(1, 2, 3))[:, None] / 2.0


def test_each_image_has_noise_and_penalty_anew():
    """D(x) = s sum(x^2) / 2 has gradient s x. With real 1 and generated 0, that between
    them is a, its norm 8 a s, and the penalty E (8 a s - 1)^2 with a ~ U(0, 1) of each
    image. z is sampled anew for each step, the last of which is G's."""
    n = 2000
    z, x = Recorder((3, n, 3)), Recorder((7, n, *SHAPE))
    model = gan(
        loss="wasserstein",
        gradient_penalty=1.0,
        discriminator_steps=2,
        gradient_norms=True,
        generator=keras.Sequential([z, *constant_generator(1e-9).layers]),
        discriminator=keras.Sequential([x, ScaledSquare()]),
    )
    model.compile(keras.optimizers.SGD(0.0))
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
    assert logs["discriminator_gradient_norm"][0] == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("kind", ["gradient_penalty", "r1_penalty"])
def test_penalties_agree_with_central_differences(kind, rng):
    """Value, and gradient by D's weights through the gradient by images. For the
    gradient penalty generated images equal the real ones, and so all between them."""
    V, v = normal_weights(rng)
    real, made = 0.25, 0.25 if kind == "gradient_penalty" else 0.6
    model = gan(
        loss="wasserstein",
        generator=constant_generator(made),
        discriminator=two_layers(V, v),
        **{"gradient_penalty": 0.0, "r1_penalty": 0.0} | {kind: 3.0},
    )
    model.compile(
        generator_optimizer=keras.optimizers.SGD(0.0),
        discriminator_optimizer=keras.optimizers.SGD(0.01),
    )

    def objective(weights):
        V, v = weights[:320].reshape(64, 5), weights[320:]
        at_real, at_made = (np.tanh(V.T @ np.full(64, x)) for x in (real, made))
        size = np.linalg.norm(V @ ((1 - at_real**2) * v))
        penalty = (size - 1) ** 2 if kind == "gradient_penalty" else size**2 / 2
        return 3.0 * penalty + (at_made - at_real) @ v

    at = np.concatenate([V.ravel(), v.ravel()])
    steps = np.eye(325) * 1e-6
    expected = np.array([(objective(at + s) - objective(at - s)) / 2e-6 for s in steps])
    model.fit(np.full((4, *SHAPE), 4, "uint8"), batch_size=4, verbose=0)  # 4 / 16
    after = [w.ravel() for w in copies(model.discriminator.trainable_variables)]
    found = (at - np.concatenate(after)) / 0.01
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-3 * scale)


def test_norms_and_penalties_of_a_gradient(rng):
    """Finite where the gradient is zero, also the derivative (keras-io#910)."""
    g = rng.normal(size=(6, *SHAPE)).astype("float32")
    g[:2] = 0.0
    size = np.linalg.norm(g.reshape(6, -1), axis=1)
    np.testing.assert_allclose(numpy(norms(tensor(g))), size, rtol=1e-5)
    for penalty, expected in (
        (gradient_penalty, (size - 1) ** 2),
        (r1_penalty, size**2 / 2),
    ):
        np.testing.assert_allclose(numpy(penalty(tensor(g))), expected, rtol=1e-5)
    slope = derivative(gradient_penalty, g)
    assert np.all(slope[:2] == 0.0) and np.all(np.isfinite(slope))


@pytest.mark.portable
def test_training_is_finite_where_a_gradient_is_zero(digits):
    model = gan(
        loss="wasserstein",
        generator=constant_generator(0.5),
        discriminator=two_layers(np.zeros((64, 5)), np.zeros((5, 1))),
    )
    assert model.gradient_penalty == 10.0
    model.compile(keras.optimizers.SGD(0.01))
    model.fit(digits[:32], epochs=2, verbose=0)
    assert all(np.all(np.isfinite(w)) for w in zoo.weights(model))


def test_penalties_are_of_each_image_alone(digits):
    """So D has no batch statistics: another image changes no other's gradient."""
    for options in ({}, {"gradient_penalty": 1.0}, {"r1_penalty": 1.0}):
        model = gan(architecture="infogan", **options)
        kinds = [type(layer) for layer in model.discriminator.layers]
        assert (layers.BatchNormalization in kinds) == (not options)

    def slopes(x):
        return model.input_gradient(lambda x: model.discriminator(x, training=True), x)

    slopes = backend.compiled(model, slopes, gradients=True)
    x = digits[:6] / 16.0
    other = np.concatenate([x[:1], 1.0 - x[1:]])
    one, same = (numpy(slopes(tensor(images)))[0] for images in (x, other))
    np.testing.assert_allclose(one, same, atol=1e-6)


# Continued, evaluated, and with networks of all kinds


@pytest.mark.portable
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case == "all" else exhaustive)
        for case in resume_child.CASES
    ],
)
def test_a_saved_gan_continues_exactly_in_a_new_process(case, tmp_path):
    whole = resume_child.new(case)
    resume_child.train(whole, 0, resume_child.EPOCHS)
    half = resume_child.new(case)
    resume_child.train(half, 0, resume_child.HALF)
    half.save(tmp_path / "half.keras")
    zoo.run_python(resume_child.__file__, "half.keras", "state.npz", cwd=tmp_path)
    with np.load(tmp_path / "state.npz") as resumed:
        zoo.assert_same(list(resumed.values()), resume_child.state(whole))


@pytest.mark.portable
def test_evaluation_is_a_function_of_the_images(digits):
    model, x = zoo.new("gan", ema=None), digits[:60]
    for v in model.discriminator.trainable_variables:
        v.assign(30.0 * v)
    model.compile("adam")
    scores = model.evaluate(x, batch_size=40, verbose=0)
    assert not [name for name in scores if "norm" in name]
    real = numpy(model.discriminate(x))

    def score(keys):
        generated = model.make(model.prior.of(keys))
        return model.discriminator(generated)[:, 0]

    keys = kgen.random.image_keys(tensor(x, "int32"))
    generated = numpy(backend.compiled(model, score)(keys))
    assert np.std(generated) > 0.05  # which z it is makes a difference
    discriminator_loss = np.mean(-log_D(real) - log_1_minus_D(generated))
    generator_loss = np.mean(-log_D(generated))
    for name, expected in (
        ("discriminator_loss", discriminator_loss),
        ("generator_loss", generator_loss),
        ("loss", discriminator_loss + generator_loss),
        ("accuracy_real", np.mean(real > 0)),
        ("accuracy_generated", np.mean(generated <= 0)),
    ):
        assert scores[name] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.portable
@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_latents_have_the_prior_in_training_and_sampling(prior):
    prior = gan(architecture="mlp", width=5, prior=prior, latent_dim=5).prior
    cdf = {"normal": stats.norm.cdf, "uniform": stats.uniform(-1, 2).cdf}[prior.name]
    of_seeds = backend.compiled(keras.Sequential(), prior.of)
    seeds = tensor(kgen.random.image_seeds(1, 4000), "int32")
    for z in (prior.draw(4000, keras.random.SeedGenerator(3)), of_seeds(seeds)):
        z = numpy(z)
        assert z.shape == (4000, 5)
        assert stats.kstest(z.ravel(), cdf).pvalue > 1e-3
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
@pytest.mark.parametrize(
    "architecture,shape,options",
    DEFAULT + [pytest.param(*c, marks=exhaustive) for c in ALL if c not in DEFAULT],
)
def test_architectures_fit_any_image(architecture, shape, options):
    model = GAN(shape, architecture=architecture, width=5, latent_dim=2, **options)
    labels = np.array([0, 2]) if model.num_classes else None
    assert model.generate(np.zeros((2, 2)), labels).shape == (2, *shape)
    x = np.zeros((2, *shape), "uint8")
    assert model.discriminate(x, labels).shape == (2,)


@pytest.mark.once
def test_infogan_networks_are_the_published_ones():
    """Lucic et al.'s, of 28x28x1 from 64 latents: G 64-1024-6272, 4x4 to 64, to 1."""
    model = GAN((28, 28, 1), architecture="infogan", latent_dim=64)
    for network, expected in (
        (
            model.generator,
            [(64, 1024), (1024, 7 * 7 * 128), (4, 4, 64, 128), (4, 4, 1, 64)],
        ),
        (
            model.discriminator,
            [(4, 4, 1, 64), (4, 4, 64, 128), (7 * 7 * 128, 1024), (1024, 1)],
        ),
    ):
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
    critic = keras.Sequential(
        [
            layers.Input(SHAPE),
            kgen.layers.SpectralNorm(layers.Conv2D(4, 3, 2, use_bias=False)),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.Dropout(0.1, seed=1),
            layers.Dense(1),
        ]
    )
    networks = {"generator": Subclassed(), "discriminator": critic}
    model = gan(loss="wasserstein", ema=0.5, weight_clip=0.02, **networks)
    assert model.gradient_penalty == 0.0
    model.compile(keras.optimizers.RMSprop(1e-2))
    model.fit(digits[:32], verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model.sample(4, seed=1), loaded.sample(4, seed=1))
    for m in (model, loaded):
        m.fit(digits[:32], shuffle=False, verbose=0)
    zoo.assert_same(model, loaded, atol=1e-6)
    largest = [
        max(np.abs(v).max() for v in copies(network.trainable_variables))
        for network in (loaded.discriminator, loaded.generator)
    ]
    assert largest[0] == np.float32(0.02) < largest[1]


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


@pytest.mark.portable
def test_wrong_latents_labels_and_images_raise(digits):
    model = zoo.shared("gan-critic", SHAPE, LEVELS, zoo.CLASSES)
    z = np.zeros((2, 3), "float32")
    with pytest.raises(ValueError, match="labels: expected one or 2, got 3"):
        model.generate(z, [1, 2, 3])
    for wrong in (None, 10):
        with pytest.raises(ValueError, match="labels"):
            model.generate(z, wrong)
    with pytest.raises(ValueError, match=r"z: expected \(batch, 3\); got shape \(2, 4"):
        model.generate(np.zeros((2, 4)), 0)
    with pytest.raises(ValueError, match="integer images"):
        model.discriminate(digits[:2] / 16.0, np.zeros(2, "int32"))


@pytest.mark.portable
@pytest.mark.parametrize(
    "policy,jit",
    [
        ("mixed_float16", backend.name == "jax"),
        pytest.param("mixed_float16", backend.name != "jax", marks=exhaustive),
        pytest.param("mixed_bfloat16", False, marks=exhaustive),
        pytest.param("mixed_bfloat16", True, marks=exhaustive),
    ],
)
def test_half_precision_and_compiling_again(policy, jit, digits):
    """With the optimizer that is there, also wrapped for float16; after a thaw."""
    if jit and backend.name == "torch":
        pytest.skip("works by torch.compile, which takes a minute")
    model = gan(
        loss="hinge", r1_penalty=0.1, spectral_norm=True, ema=0.5, dtype=policy,
        gradient_norms=True,
    )  # fmt: skip
    model.compile("sgd")
    model.compile(model.optimizer)
    model.trainable = False
    model.trainable = True
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit)
    logs = model.fit(digits[:128], batch_size=32, epochs=2, verbose=0).history
    assert all(np.all(np.isfinite(v)) for v in logs.values())
    assert logs["generator_gradient_norm"][-1] < 1e3  # the loss's scale is taken out
    assert numpy(model.discriminate(digits[:3])).dtype == "float32"
    assert not model.average.trainable_variables


# Arguments


@pytest.mark.portable
def test_wrong_arguments_raise():
    for arguments, message in (
        ({"loss": "bce"}, "loss must be one of 'minimax', .*; got 'bce'"),
        ({"prior": "cauchy"}, "prior must be one of 'normal', 'uniform'"),
        ({"architecture": "vgg"}, "architecture must be one of 'mlp'"),
        ({"gradient_penalty": -1.0}, "gradient_penalty must be .* not negative"),
        ({"r1_penalty": float("nan")}, "r1_penalty must be .* not negative"),
        ({"weight_clip": -0.1}, "weight_clip must be positive, or None"),
        ({"weight_clip": 0.0}, "weight_clip must be positive, or None"),
        ({"ema": 1.0}, r"ema must be in 0\.\.1, and below 1; got 1.0"),
        ({"discriminator_steps": 0}, "discriminator_steps"),
        ({"latent_dim": 0}, "latent_dim"),
        ({"architecture": "mlp", "width": 12}, "width must be a multiple of 5"),
        ({"generator": "dcgan"}, "generator must be a Keras model; got 'dcgan'"),
    ):
        with pytest.raises(ValueError, match=message):
            gan(**arguments)


@pytest.mark.portable
def test_wrong_networks_raise():
    for name, network, message, settings in (
        ("generator", mlp((4,), 64, SHAPE), r"must take \(None, 3\); it failed", {}),
        ("generator", mlp((3,), 5, (5,)), r"give \(None, 8, 8, 1\); got \(None, 5", {}),
        ("discriminator", mlp(SHAPE, 2, (2,)), r"give \(None, 1\); got \(None, 2", {}),
        (
            "discriminator",
            mlp(SHAPE, 1, (1,)),
            "wrap the layers in kgen.layers.SpectralNorm",
            {"spectral_norm": True},
        ),
        (
            "discriminator",
            mlp(SHAPE, 1, (1,), activity_regularizer="l2"),
            "activity_regularizer of layer",
            {},
        ),
        (
            "discriminator",
            mlp(SHAPE, 1, (1,), kernel_constraint="non_neg"),
            "take the place of the constraint",
            {"weight_clip": 0.1},
        ),
    ):
        with pytest.raises(ValueError, match=message):
            gan(**{name: network}, **settings)


@pytest.mark.portable
def test_each_network_has_an_optimizer():
    model = gan(architecture="mlp", width=5)
    model.compile(generator_optimizer="sgd", discriminator_optimizer="adam")
    members = model.optimizer.members
    assert isinstance(members["generator"], keras.optimizers.SGD)
    assert isinstance(members["discriminator"], keras.optimizers.Adam)
    model.compile()
    for member in model.optimizer.optimizers:
        assert isinstance(member, keras.optimizers.Adam) and member.beta_1 == 0.5
    with pytest.raises(ValueError, match="either optimizer= .* got both"):
        model.compile("adam", generator_optimizer="sgd")
