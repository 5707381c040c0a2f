"""GANs: losses against float64 formulas, D against its optimum in closed form, what a
step changes and leaves, penalties against central differences, all modes of a toy."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import resume_child
from families import SHAPE, gan
from keras import layers, ops
from scipy import stats

import kgen
from kgen import backend
from kgen.models import GAN
from kgen.models.gan_losses import gradient_penalty, loss_of, norms, r1_penalty

LOSSES = ("minimax", "non_saturating", "least_squares", "hinge", "wasserstein")
LOGITS = np.array([-12.0, -3.0, -1.01, -0.4, 0.3, 0.99, 2.0, 9.0])


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


def log_sigmoid(t):
    return -np.logaddexp(0.0, -t)


def sigmoid(t):
    return 1.0 / (1.0 + np.exp(-t))


# What D descends of real and of generated images, and what G descends, as published.
FORMULAS = {
    "minimax": (
        lambda r: -log_sigmoid(r),
        lambda g: -log_sigmoid(-g),
        lambda g: log_sigmoid(-g),
    ),
    "non_saturating": (
        lambda r: -log_sigmoid(r),
        lambda g: -log_sigmoid(-g),
        lambda g: -log_sigmoid(g),
    ),
    "least_squares": (
        lambda r: (r - 1) ** 2 / 2,
        lambda g: g**2 / 2,
        lambda g: (g - 1) ** 2 / 2,
    ),
    "hinge": (
        lambda r: np.maximum(0, 1 - r),
        lambda g: np.maximum(0, 1 + g),
        lambda g: -g,
    ),
    "wasserstein": (lambda r: -r, lambda g: g, lambda g: -g),
}


def tiny(**kwargs):
    return GAN(SHAPE, 17, **{"latent_dim": 3, "width": 4} | kwargs)


def derivative(fn, at):
    """d sum(fn) / d at, by the backend."""
    at = ops.convert_to_tensor(np.asarray(at, "float32"))
    return numpy(backend.input_gradient(tiny(), fn, at))


def central(fn, at, h=1e-6):
    return (fn(at + h) - fn(at - h)) / (2 * h)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_the_published_ones(name):
    kind, (of_real, of_generated, of_g) = loss_of(name), FORMULAS[name]
    r, g = LOGITS, LOGITS[::-1].copy()
    tensors = [ops.convert_to_tensor(a.astype("float32")) for a in (r, g)]
    d_loss, g_loss = kind.discriminator(*tensors), kind.generator(tensors[1])
    np.testing.assert_allclose(numpy(d_loss), of_real(r) + of_generated(g), 1e-5, 1e-6)
    np.testing.assert_allclose(numpy(g_loss), of_g(g), 1e-5, 1e-6)
    for ours, formula in (
        (lambda t: kind.discriminator(t, tensors[1]), of_real),
        (lambda t: kind.discriminator(tensors[0], t), of_generated),
        (kind.generator, of_g),
    ):
        expected = central(formula, r)
        np.testing.assert_allclose(derivative(ours, r), expected, 1e-4, 1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_overflows(name):
    kind, far = loss_of(name), np.array([-1e4, 1e4], "float32")
    for ours in (
        kind.generator,
        lambda t: kind.discriminator(t, t),
        lambda t: kind.discriminator(-t, t),
    ):
        assert np.all(np.isfinite(numpy(ours(ops.convert_to_tensor(far)))))
        assert np.all(np.isfinite(derivative(ours, far)))


def test_minimax_saturates_where_non_saturating_does_not(digits):
    """Gradients by the images G makes: their ratio is sigma(D) / (1 - sigma(D)), so a
    sure D leaves the first nothing."""
    model = tiny(spectral_norm=True)
    x = ops.cast(digits[:20], "float32") / 16.0
    logits = numpy(model._logits(x))
    gradients = {}
    for shift in (-12.0, 0.0, 3.0):
        for name in ("minimax", "non_saturating"):
            gradients[name] = derivative(
                lambda x, name=name, shift=shift: loss_of(name).generator(
                    model._logits(x) + shift
                ),
                x,
            ).reshape(20, -1)
        odds = np.exp(logits.astype("float64") + shift)[:, None]
        ratio = odds * gradients["non_saturating"]
        scale = np.abs(ratio).max()
        assert scale > 0
        np.testing.assert_allclose(gradients["minimax"], ratio, 1e-3, 1e-4 * scale)
        sizes = [np.abs(gradients[k]).max() for k in ("minimax", "non_saturating")]
        if shift == -12.0:  # D is sure
            assert sizes[0] < 1e-4 * sizes[1]


# A toy whose optimal discriminator is known: images of one pixel with 16 values.
# G(z) = (z + 1)^2 / 4, z ~ U(-1, 1), so that P(G(z) < t) = sqrt(t).


@keras.saving.register_keras_serializable(package="tests")
class Parabola(layers.Layer):
    def call(self, z):
        return ops.reshape(ops.square(z + 1.0) / 4.0, (-1, 1, 1, 1))


@keras.saving.register_keras_serializable(package="tests")
class Table(layers.Layer):
    """A number for each of 16 grey levels: any function of them."""

    def build(self, shape):
        self.table = self.add_weight(shape=(16, 1), initializer="zeros", name="table")

    def call(self, x):
        level = ops.cast(ops.round(15.0 * x[:, 0, 0, 0]), "int32")
        return ops.matmul(ops.one_hot(level, 16), self.table)


def table_game(loss):
    generator = keras.Sequential([layers.Input((1,)), Parabola()])
    discriminator = keras.Sequential([layers.Input((1, 1, 1)), Table()])
    return GAN(
        (1, 1, 1),
        16,
        latent_dim=1,
        prior="uniform",
        loss=loss,
        generator=generator,
        discriminator=discriminator,
    )


@pytest.mark.parametrize("loss", ["minimax", "least_squares"])
def test_the_best_discriminator_is_the_one_of_the_proof(loss):
    """Goodfellow et al., proposition 1: D* = p_data / (p_data + p_g); with 0 and 1 as
    targets least squares have the same optimum."""
    model = table_game(loss)
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 300, 16)
    x = np.repeat(np.arange(16), counts).astype("uint8").reshape(-1, 1, 1, 1)
    p_data = counts / counts.sum()
    edges = np.clip((np.arange(17) - 0.5) / 15.0, 0.0, 1.0)
    p_g = np.diff(np.sqrt(edges))
    rate = keras.optimizers.schedules.CosineDecay(0.1, 600)
    model.compile(keras.optimizers.Adam(rate))
    many = np.tile(x, (600, 1, 1, 1))
    model.fit(many, batch_size=len(x), shuffle=False, verbose=0)
    D = numpy(model.discriminate(np.arange(16, dtype="uint8").reshape(-1, 1, 1, 1)))
    D = sigmoid(D) if loss == "minimax" else D
    np.testing.assert_allclose(D, p_data / (p_data + p_g), atol=0.04)


# Eight Gaussians on a circle, each image a pixel of two channels.

CENTRES = 127.5 + 90.0 * np.array(
    [(np.cos(a), np.sin(a)) for a in 2 * np.pi * np.arange(8) / 8]
)


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


def test_the_game_finds_all_modes():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    points = CENTRES[rng.integers(0, 8, 12800)] + rng.normal(0, 5.0, (12800, 2))
    x = np.rint(points).astype("uint8").reshape(-1, 1, 1, 2)
    model = GAN(
        (1, 1, 2),
        256,
        latent_dim=4,
        r1_penalty=0.02,
        ema=0.99,
        generator=mlp((4,), 2, (1, 1, 2), activation="sigmoid"),
        discriminator=mlp((1, 1, 2), 1, (1,)),
    )
    model.compile(keras.optimizers.Adam(2e-3, beta_1=0.0, beta_2=0.9))
    model.fit(x, batch_size=256, epochs=25, verbose=0)
    drawn = model.sample(2000, seed=0, verbose=0).reshape(-1, 2).astype("float32")
    distance = np.linalg.norm(drawn[:, None] - CENTRES, axis=-1)  # (N, 8)
    near = distance.min(axis=1) < 4 * 5.0
    counts = np.bincount(distance.argmin(axis=1)[near], minlength=8)
    assert near.mean() > 0.6 and counts.min() > 2000 / 8 / 4


# What a step changes


class Only(GAN):
    """A GAN of which one network takes its step alone."""

    network = "discriminator"

    @backend.step
    def train_step(self, data):
        x, labels, weight = self.unpack(data)
        real = self._real(x)
        if self.network == "discriminator":
            terms = self._train_discriminator(real, labels, weight)
        else:
            terms = self._train_generator(ops.shape(real)[0], labels, weight)
        zeros = {
            f"{n}_loss": 0.0 * real[:, 0, 0, 0] for n in ("generator", "discriminator")
        }
        return self._logged(zeros | terms, weight)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_step_changes_its_own_network_and_its_moments_alone(network, digits):
    model = Only(SHAPE, 17, latent_dim=3, width=4, loss="least_squares")
    model.network = network
    model.compile("adam")
    members = model.optimizer.members
    other = ({"generator", "discriminator"} - {network}).pop()

    def state(name):
        of = getattr(model, name).trainable_variables + members[name].variables
        return [np.array(numpy(v)) for v in of]

    before = {name: state(name) for name in members}
    model.fit(digits[:64], batch_size=32, verbose=0)
    for a, b in zip(before[other], state(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(
        np.any(a != b)
        for a, b, v in zip(
            before[network],
            state(network),
            getattr(model, network).trainable_variables + members[network].variables,
            strict=True,
        )
        if "learning_rate" not in v.path
    )


def constant_generator(value):
    """G(z) = value at every pixel, through a bias that is trained."""
    bias = keras.initializers.Constant(np.log(value / (1 - value)))
    dense = layers.Dense(
        64, activation="sigmoid", kernel_initializer="zeros", bias_initializer=bias
    )
    return keras.Sequential([layers.Input((3,)), dense, layers.Reshape(SHAPE)])


def test_batch_statistics_are_of_each_pass_alone(digits):
    """D sees real images, then generated ones, and in G's step generated ones."""
    norm = layers.BatchNormalization(momentum=0.9)
    discriminator = keras.Sequential(
        [layers.Input(SHAPE), layers.Flatten(), norm, layers.Dense(1)]
    )
    model = tiny(generator=constant_generator(0.3), discriminator=discriminator)
    model.compile(keras.optimizers.SGD(0.0))
    x = digits[:32]
    model.fit(x, batch_size=32, verbose=0)
    real = x.reshape(32, -1) / 16.0
    mean, variance = np.zeros(64), np.ones(64)
    for batch in (real, np.full((32, 64), 0.3), np.full((32, 64), 0.3)):
        mean = 0.9 * mean + 0.1 * batch.mean(0)
        variance = 0.9 * variance + 0.1 * batch.var(0)
    np.testing.assert_allclose(numpy(norm.moving_mean), mean, atol=1e-5)
    np.testing.assert_allclose(numpy(norm.moving_variance), variance, atol=1e-4)


def test_z_is_drawn_anew_for_each_step(digits):
    model = tiny(discriminator_steps=2)
    drawn, draw = [], model.prior.draw
    model.prior.draw = lambda n, seed: drawn.append(draw(n, seed)) or drawn[-1]
    model.compile("adam", run_eagerly=True)
    model.fit(digits[:8], batch_size=8, verbose=0)
    assert len(drawn) == 3
    if backend.name != "jax":  # where they are tracers
        z = np.stack([numpy(d) for d in drawn]).reshape(3, -1)
        assert np.all(np.abs(np.corrcoef(z) - np.eye(3)) < 0.9)
        assert len({row.tobytes() for row in z}) == 3


# Penalties


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


@pytest.mark.parametrize("kind", ["gradient_penalty", "r1_penalty"])
def test_penalties_against_central_differences(kind, rng):
    """Value, and gradient by D's weights through the gradient by images. Real and
    generated images are the same, so all between them are, and the losses cancel."""
    V, v = rng.normal(0, 0.3, (64, 5)), rng.normal(0, 1, (5, 1))
    options = {"gradient_penalty": 0.0, "r1_penalty": 0.0} | {kind: 3.0}
    model = tiny(
        loss="wasserstein",
        generator=constant_generator(0.25),
        discriminator=two_layers(V, v),
        **options,
    )
    model.compile(
        generator_optimizer=keras.optimizers.SGD(0.0),
        discriminator_optimizer=keras.optimizers.SGD(0.01),
    )
    x = np.full((4, *SHAPE), 4, "uint8")  # 4 / 16

    def penalty(weights):
        V, v = weights[:320].reshape(64, 5), weights[320:]
        slope = 1 - np.tanh(V.T @ np.full(64, 0.25)) ** 2
        size = np.linalg.norm(V @ (slope * v))
        return 3.0 * ((size - 1) ** 2 if kind == "gradient_penalty" else size**2 / 2)

    at = np.concatenate([V.ravel(), v.ravel()])
    steps = np.eye(325) * 1e-6
    expected = np.array([(penalty(at + s) - penalty(at - s)) / 2e-6 for s in steps])
    model.fit(x, batch_size=4, verbose=0)
    after = [numpy(w).ravel() for w in model.discriminator.trainable_variables]
    found = (at - np.concatenate(after)) / 0.01
    scale = np.abs(expected).max()
    assert scale > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-3 * scale)


def test_the_gradient_penalty_is_finite_where_the_gradient_is_zero(digits):
    """keras-io#910: the derivative of the norm at zero."""
    model = tiny(
        loss="wasserstein",
        generator=constant_generator(0.5),
        discriminator=two_layers(np.zeros((64, 5)), np.zeros((5, 1))),
    )
    assert model.gradient_penalty == 10.0
    model.compile(keras.optimizers.SGD(0.01))
    model.fit(digits[:32], epochs=2, verbose=0)
    assert all(np.all(np.isfinite(numpy(w))) for w in model.weights)
    zero = ops.zeros((2, *SHAPE))
    np.testing.assert_array_equal(numpy(gradient_penalty(zero)), np.ones(2))
    second = derivative(lambda g: gradient_penalty(g), np.zeros((2, *SHAPE)))
    np.testing.assert_array_equal(second, np.zeros((2, *SHAPE)))


def test_norms_and_penalties_of_a_gradient(rng):
    g = rng.normal(size=(6, *SHAPE)).astype("float32")
    size = np.linalg.norm(g.reshape(6, -1), axis=1)
    tensor = ops.convert_to_tensor(g)
    np.testing.assert_allclose(numpy(norms(tensor)), size, rtol=1e-5)
    np.testing.assert_allclose(numpy(gradient_penalty(tensor)), (size - 1) ** 2, 1e-5)
    np.testing.assert_allclose(numpy(r1_penalty(tensor)), size**2 / 2, rtol=1e-5)


def test_the_line_between_real_and_generated_is_walked_by_each_image_for_itself():
    """D(x) = sum x^2 / 2 has gradient x: with real 1 and generated 0 its norm is 8 a,
    so the mean penalty is E (8 a - 1)^2, a ~ U(0, 1), and not that of one a a batch."""

    @keras.saving.register_keras_serializable(package="tests")
    class Square(layers.Layer):
        def call(self, x):
            return ops.sum(ops.square(x), axis=(1, 2, 3))[:, None] / 2.0

    model = tiny(
        loss="wasserstein",
        gradient_penalty=1.0,
        generator=constant_generator(1e-9),
        discriminator=keras.Sequential([layers.Input(SHAPE), Square()]),
    )
    seen = []

    real = np.full((5000, *SHAPE), 16, "uint8")
    model.input_gradient = lambda fn, x: seen.append(x) or x  # D's, in closed form
    objective = model.objective
    model.objective = lambda t, weight=None: seen.append(t) or objective(t, weight)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    if backend.name == "jax":
        pytest.skip("values inside a step cannot be looked at on JAX")
    model.fit(real, batch_size=5000, verbose=0)
    a = numpy(seen[0])[:, 0, 0, 0]
    assert np.ptp(numpy(seen[0]).reshape(5000, -1), axis=1).max() < 1e-6
    assert abs(np.sort(a) - np.linspace(0, 1, 5000)).max() < 0.03  # Kolmogorov
    penalty = numpy(seen[1]) - (-32.0)  # D(0) - D(1), less that
    np.testing.assert_allclose(penalty, (8 * a - 1) ** 2, rtol=1e-3, atol=1e-3)


RESUMED = {
    "dcgan": {"width": 4, "ema": 0.9, "num_classes": 10},
    "critic": {
        "architecture": "infogan",
        "width": 4,
        "loss": "wasserstein",
        "discriminator_steps": 2,
        "ema": 0.9,
    },
    "spectral": {"width": 4, "spectral_norm": True, "loss": "hinge", "r1_penalty": 0.1},
    "mlp": {"architecture": "mlp", "width": 10, "loss": "minimax"},  # dropout
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_saved_game_goes_on_bit_for_bit_in_a_new_process(case, tmp_path):
    def new():
        keras.utils.set_random_seed(4)
        model = GAN(SHAPE, 17, latent_dim=3, **RESUMED[case])
        model.compile(
            generator_optimizer=keras.optimizers.Adam(1e-3, beta_1=0.5),
            discriminator_optimizer=keras.optimizers.RMSprop(1e-3),
        )
        return model

    whole = new()
    resume_child.train(whole, 0, resume_child.EPOCHS)
    half = new()
    resume_child.train(half, 0, resume_child.HALF)
    half.save(tmp_path / "half.keras")
    child = [sys.executable, resume_child.__file__, "half.keras", "state.npz"]
    done = subprocess.run(child, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(tmp_path / "state.npz") as resumed:
        expected = resume_child.state(whole)
        assert len(resumed.files) == len(expected)
        for name, value in zip(resumed.files, expected, strict=True):
            np.testing.assert_array_equal(resumed[name], value)


# What the constructor promises


def test_clipped_weights_stay_within_the_limit(digits):
    model = tiny(loss="wasserstein", weight_clip=0.02)
    assert model.gradient_penalty == 0.0
    model.compile(keras.optimizers.RMSprop(1e-2))
    model.fit(digits[:64], batch_size=32, verbose=0)
    largest = [np.abs(numpy(v)).max() for v in model.discriminator.trainable_variables]
    assert max(largest) == np.float32(0.02)
    others = [np.abs(numpy(v)).max() for v in model.generator.trainable_variables]
    assert max(others) > 0.02


def test_the_average_follows_the_generator_and_is_what_is_drawn(digits):
    model = tiny(ema=0.75)
    model.compile("adam")
    average = [numpy(v) for v in model.generator.weights]
    for _ in range(3):
        model.fit(digits[:16], batch_size=16, verbose=0)
        now = [numpy(v) for v in model.generator.weights]
        average = [0.75 * a + 0.25 * b for a, b in zip(average, now, strict=True)]
    for v, a in zip(model.average.weights, average, strict=True):
        np.testing.assert_allclose(numpy(v), a, rtol=1e-5, atol=1e-6)
    drawn, z = model.sample(8, seed=0), np.ones((2, 3), "float32")
    made = numpy(model.generate(z))
    for v in model.generator.weights:
        v.assign(v + 1.0)
    np.testing.assert_array_equal(model.sample(8, seed=0), drawn)
    np.testing.assert_array_equal(numpy(model.generate(z)), made)


def test_gradient_norms_are_those_of_the_step(digits):
    model = tiny(gradient_norms=True)
    rates = {"generator": 0.1, "discriminator": 0.01}
    model.compile(
        **{f"{k}_optimizer": keras.optimizers.SGD(r) for k, r in rates.items()}
    )
    before = {
        k: [numpy(v) for v in getattr(model, k).trainable_variables] for k in rates
    }
    logs = model.fit(digits[:32], batch_size=32, verbose=0).history
    for name, rate in rates.items():
        after = [numpy(v) for v in getattr(model, name).trainable_variables]
        moved = sum(
            np.sum((a - b) ** 2) for a, b in zip(before[name], after, strict=True)
        )
        expected = np.sqrt(moved) / rate
        assert logs[f"{name}_gradient_norm"][0] == pytest.approx(expected, rel=1e-3)
    scores = model.evaluate(digits[:32], verbose=0)
    assert not [k for k in scores if "norm" in k] and "generator_loss" in scores


def test_evaluation_is_a_function_of_the_images(digits):
    model = gan(width=4)
    for v in model.discriminator.trainable_variables:
        v.assign(30.0 * v)
    model.compile("adam")
    whole = model.evaluate(digits[:90], batch_size=90, verbose=0)
    parts = model.evaluate(digits[:90], batch_size=40, verbose=0)
    assert whole == pytest.approx(parts, rel=1e-4)
    logits = numpy(model.discriminate(digits[:90]))
    z = model.prior.of(kgen.random.image_keys(ops.convert_to_tensor(digits[:90])))
    made = numpy(model._logits(model.make(z)))
    assert np.std(made) > 0.05  # which z it is makes a difference
    expected = np.mean(-log_sigmoid(logits) - log_sigmoid(-made))
    assert whole["discriminator_loss"] == pytest.approx(expected, rel=1e-4)
    assert whole["generator_loss"] == pytest.approx(np.mean(-log_sigmoid(made)), 1e-4)
    assert whole["accuracy_real"] == pytest.approx(np.mean(logits > 0), abs=1e-6)
    assert whole["accuracy_generated"] == pytest.approx(np.mean(made <= 0), abs=1e-6)


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_latents_are_of_the_prior_in_training_and_in_use(prior):
    model = tiny(prior=prior, latent_dim=5)
    seeds = ops.convert_to_tensor(kgen.random.image_seeds(1, 4000))
    drawn = model.prior.draw(4000, keras.random.SeedGenerator(3))
    cdf = {"normal": stats.norm.cdf, "uniform": stats.uniform(-1, 2).cdf}[prior]
    for z in (numpy(drawn), numpy(model.prior.of(seeds))):
        assert z.shape == (4000, 5)
        assert stats.kstest(z.ravel(), cdf).pvalue > 1e-3
        off_diagonal = np.corrcoef(z.T) - np.eye(5)
        assert np.abs(off_diagonal).max() < 0.1


@pytest.mark.parametrize("architecture", ["mlp", "dcgan", "infogan"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (5, 7, 3), (1, 1, 2), (32, 32, 3)])
def test_architectures_fit_any_image(architecture, shape):
    for options in ({}, {"spectral_norm": True, "num_classes": 3}):
        model = GAN(shape, architecture=architecture, width=5, latent_dim=2, **options)
        labels = [0, 2] if model.num_classes else None
        assert model.generate(np.zeros((2, 2)), labels).shape == (2, *shape)
        x = np.zeros((2, *shape), "uint8")
        y = None if labels is None else np.array(labels)
        assert numpy(model.discriminate(x, y)).shape == (2,)


def test_infogan_networks_are_the_published_ones():
    """Lucic et al.'s, of 28x28x1 from 64 latents: G 64-1024-6272, 4x4 to 64, to 1."""
    model = GAN((28, 28, 1), architecture="infogan", latent_dim=64)
    dense = [(64, 1024), (1024, 7 * 7 * 128)]
    maps = [(4, 4, 64, 128), (4, 4, 1, 64)]
    kernels = [v.shape for v in model.generator.trainable_variables if len(v.shape) > 1]
    assert [tuple(k) for k in kernels] == dense + maps
    of_d = [
        v.shape for v in model.discriminator.trainable_variables if len(v.shape) > 1
    ]
    expected = [(4, 4, 1, 64), (4, 4, 64, 128), (7 * 7 * 128, 1024), (1024, 1)]
    assert [tuple(k) for k in of_d] == expected


@pytest.mark.parametrize("options", [{"r1_penalty": 1.0}, {"gradient_penalty": 1.0}])
def test_penalties_are_of_each_image_alone(options, digits):
    """So D has no batch statistics: another image changes no one's gradient."""
    model = tiny(**options)
    x = digits[:6].astype("float32") / 16.0
    others = np.concatenate([x[:1], 1.0 - x[1:]])

    def gradient(x):
        return derivative(lambda x: model._logits(x, training=True), x)

    np.testing.assert_allclose(gradient(x)[0], gradient(others)[0], atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A generator that builds its weights when it is first called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(64, activation="sigmoid")

    def call(self, z):
        return ops.reshape(self.dense(z), (-1, *SHAPE))


def test_networks_of_ones_own_and_all_that_is_around_them(digits, tmp_path):
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
    model = tiny(generator=Subclassed(), discriminator=critic, ema=0.5, weight_clip=0.1)
    model.compile("adam")
    model.fit(digits[:32], verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(model.sample(4, seed=1), again.sample(4, seed=1))
    for m in (model, again):
        m.fit(digits[:32], shuffle=False, verbose=0)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), atol=1e-6)
    clipped = [np.abs(numpy(v)).max() for v in again.discriminator.trainable_variables]
    assert max(clipped) <= np.float32(0.1)


def test_compiling_again(digits):
    """With the optimizer that is there, also wrapped for float16; after a thaw."""
    model = tiny(ema=0.5, dtype="mixed_float16")
    model.compile("adam")
    model.compile(model.optimizer)
    model.trainable = False
    model.trainable = True
    model.compile("sgd")
    model.fit(digits[:16], verbose=0)
    assert not model.average.trainable_variables


def test_labels_of_generate(digits):
    model = tiny(num_classes=10)
    z = np.zeros((2, 3), "float32")
    one = numpy(model.generate(z, 3))
    np.testing.assert_array_equal(one, numpy(model.generate(z, np.array([3, 3]))))
    with pytest.raises(ValueError, match="labels: expected one or 2, got 3"):
        model.generate(z, [1, 2, 3])
    for wrong in (None, 10):
        with pytest.raises(ValueError, match="labels"):
            model.generate(z, wrong)


def test_a_nan_gradient_is_told_as_one(digits):
    model = tiny(gradient_norms=True)
    model.discriminator.trainable_variables[0].assign(
        np.nan * numpy(model.discriminator.trainable_variables[0])
    )
    model.compile("adam")
    quiet = [keras.callbacks.TerminateOnNaN()]
    logs = model.fit(digits[:16], verbose=0, callbacks=quiet).history
    assert np.isnan(logs["generator_gradient_norm"][0])


def test_labels_reach_both_networks(digits):
    model = tiny(num_classes=10, architecture="mlp", width=10)
    z = np.repeat(np.random.default_rng(0).normal(size=(1, 3)), 2, 0)
    a, b = numpy(model.generate(z, [0, 1]))
    assert np.abs(a - b).max() > 0
    c, d = numpy(model.discriminate(np.repeat(digits[:1], 2, 0), np.array([0, 1])))
    assert c != d


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("jit", [False, True])
def test_half_precision(policy, jit, digits):
    if jit and backend.name == "torch":
        pytest.skip("works by torch.compile, which takes a minute")
    model = tiny(
        loss="hinge", r1_penalty=0.1, spectral_norm=True, ema=0.5, dtype=policy,
        gradient_norms=True,
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit)
    logs = model.fit(digits[:128], batch_size=32, epochs=2, verbose=0).history
    assert all(np.all(np.isfinite(v)) for v in logs.values())
    assert logs["generator_gradient_norm"][-1] < 1e3  # the loss's scale is taken out
    assert numpy(model.discriminate(digits[:3])).dtype == "float32"


WRONG = {
    "loss": ({"loss": "bce"}, "loss must be one of 'minimax', .*; got 'bce'"),
    "prior": ({"prior": "cauchy"}, "prior must be one of 'normal', 'uniform'"),
    "architecture": ({"architecture": "vgg"}, "architecture must be one of 'mlp'"),
    "penalty": ({"gradient_penalty": -1.0}, "gradient_penalty must be .* not negative"),
    "nan": ({"r1_penalty": float("nan")}, "r1_penalty must be .* not negative"),
    "clip": ({"weight_clip": -0.1}, "weight_clip must be positive, or None"),
    "ema": ({"ema": 1.0}, r"ema must be in 0\.\.1, and below 1; got 1.0"),
    "steps": ({"discriminator_steps": 0}, "discriminator_steps"),
    "latents": ({"latent_dim": 0}, "latent_dim"),
    "width": ({"architecture": "mlp", "width": 12}, "width must be a multiple of 5"),
    "zero clip": ({"weight_clip": 0.0}, "weight_clip must be positive, or None"),
    "name": ({"generator": "dcgan"}, "generator must be a Keras model; got 'dcgan'"),
    "inputs": (
        {"generator": mlp((4,), 64, SHAPE)},
        r"must take \(None, 3\); it failed",
    ),
    "own spectral": (
        {"spectral_norm": True, "discriminator": mlp(SHAPE, 1, (1,))},
        "wrap the layers in kgen.layers.SpectralNorm",
    ),
    "constraint": (
        {
            "weight_clip": 0.1,
            "discriminator": mlp(SHAPE, 1, (1,), kernel_constraint="non_neg"),
        },
        "take the place of the constraint",
    ),
    "activity": (
        {"discriminator": mlp(SHAPE, 1, (1,), activity_regularizer="l2")},
        "activity_regularizer of layer",
    ),
    "generator": (
        {"generator": mlp((3,), 5, (5,))},
        r"generator must give \(None, 8, 8, 1\); got \(None, 5\)",
    ),
    "discriminator": (
        {"discriminator": mlp(SHAPE, 2, (2,))},
        r"discriminator must give \(None, 1\); got \(None, 2\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_told(case):
    arguments, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        tiny(**arguments)


def test_wrong_latents_and_optimizers_are_told(digits):
    model = tiny()
    with pytest.raises(ValueError, match=r"z: expected \(batch, 3\); got shape \(2, 4"):
        model.generate(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="either optimizer= .* got both"):
        model.compile("adam", generator_optimizer="sgd")
    with pytest.raises(ValueError, match="integer images"):
        model.discriminate(digits / 16.0)


def test_an_optimizer_each(digits):
    model = tiny()
    model.compile(generator_optimizer="sgd", discriminator_optimizer="adam")
    members = model.optimizer.members
    assert isinstance(members["generator"], keras.optimizers.SGD)
    assert isinstance(members["discriminator"], keras.optimizers.Adam)
    model.compile()
    for member in model.optimizer.optimizers:
        assert isinstance(member, keras.optimizers.Adam) and member.beta_1 == 0.5
