"""One `train_step` on three backends: what a step must carry, change and leave alone.

Several optimizers are in test_optimizers.py, loss scaling in test_precision.py, Keras'
own step as the oracle, eager or compiled, in test_stock.py.
"""

import keras
import numpy as np
import pytest
import zoo
from keras import layers, ops
from zoo import numpy, tensor

import kgen
from kgen import backend
from kgen.data import Batches
from kgen.models import GAN, GenerativeModel

BYTES = np.arange(12, dtype="uint8").reshape(12, 1, 1, 1)


class Quadratic(GenerativeModel):
    """Minimizes |w - 1|^2 / 2 of those of its two weights that are `used`."""

    def __init__(self, **kwargs):
        super().__init__((1, 1, 1), 256, **kwargs)
        self.used = (True, True)
        self.w = [self.add_weight(shape=(2,), name=f"w{i}") for i in range(2)]
        for w in self.w:
            w.assign([0.0, 0.0])
        self.norm = layers.BatchNormalization(momentum=0.5)
        self.norm.build((None, 1))
        self.seen = keras.metrics.Mean("seen")
        self.built = True

    def terms(self, x):
        """A scalar, and a value of each image; changes state of every kind."""
        self.norm(x, training=True)
        keras.random.normal((1,), seed=self.seed_generator)
        self.seen.update_state(7.0)
        pairs = zip(self.w, self.used, strict=True)
        return sum(ops.sum((w - 1.0) ** 2) / 2 for w, used in pairs if used), x[:, 0]

    @backend.step
    def train_step(self, data):
        x = ops.cast(ops.reshape(self.unpack(data)[0], (-1, 1)), "float32")
        value, per_image = self.minimize(lambda: self.terms(x))
        assert per_image.shape[0] == x.shape[0]
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(value)
        return self.get_metrics_result()

    def call(self, x):
        return x


def small_gan(kind=GAN):
    """Batch normalization, dropout with a seed, a gradient penalty, two optimizers."""
    generator = [layers.Input((4,)), layers.Dense(8), layers.BatchNormalization()]
    generator += [layers.ReLU(), layers.Dense(64, "sigmoid"), layers.Reshape(zoo.SHAPE)]
    discriminator = [layers.Input(zoo.SHAPE), layers.Flatten(), layers.Dense(8, "tanh")]
    discriminator += [layers.Dropout(0.1, seed=1), layers.Dense(1)]
    model = kind(
        zoo.SHAPE,
        zoo.LEVELS,
        latent_dim=4,
        gradient_penalty=1.0,
        generator=keras.Sequential(generator),
        discriminator=keras.Sequential(discriminator),
    )
    model.compile(keras.optimizers.Adam(1e-2))
    return model


# State


def test_state_that_the_loss_changes_outlives_the_step():
    """Moving statistics, seeds and metrics, updated inside `minimize` under `fit`."""
    model = Quadratic()
    model.compile(keras.optimizers.SGD(0.1))
    seed = numpy(model.seed_generator.state).copy()
    logs = model.fit(BYTES, batch_size=4, shuffle=False, verbose=0).history
    mean = 0.0
    for batch in BYTES.reshape(3, 4):
        mean = 0.5 * mean + 0.5 * batch.mean()
    assert numpy(model.norm.moving_mean)[0] == pytest.approx(mean, rel=1e-6)
    assert numpy(model.seed_generator.state)[1] == seed[1] + 3
    assert logs["seen"] == [7.0]
    # three steps of w <- w - 0.1 (w - 1), losses before each
    w = 1 - 0.9 ** np.arange(4)
    np.testing.assert_allclose(numpy(model.w[0]), w[3], rtol=1e-6)
    assert logs["loss"][0] == pytest.approx(np.mean(2 * (w[:3] - 1) ** 2), rel=1e-5)


def test_penalties_keep_state_and_files_keep_seeds(digits, tmp_path):
    """A gradient of a gradient through dropout; Keras' weight files have no seeds."""
    model = small_gan()
    seeds = [s for s in model._seed_states() if numpy(s).shape == (2,)]
    before = [numpy(s).copy() for s in seeds]
    model.fit(digits[:24], batch_size=8, verbose=0)
    assert len(seeds) >= 2
    assert all(np.any(numpy(s) != b) for s, b in zip(seeds, before, strict=True))
    moving = model.generator.layers[1].moving_variance
    assert np.all(np.abs(numpy(moving) - 1) > 1e-4)
    model.save_weights(tmp_path / "m.weights.h5")
    other = small_gan()
    other.load_weights(tmp_path / "m.weights.h5")
    zoo.assert_same(other._seed_states(), model._seed_states())
    zoo.assert_same(other, model)


def test_models_can_be_used_during_and_after_fit(digits, tmp_path):
    """On JAX each step takes the state over: callbacks must not read old values. And
    metrics are means over images, also of uneven batches: 100, 100, 100 and 20."""
    model, seen = zoo.new("vae"), []
    model.compile("adam")

    class Sample(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            assert self.model.sample(4, seed=1).shape == (4, 8, 8, 1)
            seen.append(numpy(self.model.decode(np.zeros((1, 3)))))

    grid = kgen.callbacks.SampleGrid(tmp_path, n=4, verbose=0)
    sizes = {"batch_size": 100, "verbose": 0}
    logs = model.fit(
        digits[:300],
        validation_data=digits,
        epochs=2,
        callbacks=[Sample(), grid],
        **sizes,
    ).history
    assert len(list(tmp_path.glob("samples_epoch_00*.png"))) == 2
    after = numpy(model.decode(np.zeros((1, 3))))
    np.testing.assert_allclose(seen[1], after, rtol=1e-6)
    assert np.any(seen[0] != seen[1])
    assert np.all(np.isfinite(model.predict(digits[:20], verbose=0)))

    exact = numpy(model.elbo(digits))
    scores = model.evaluate(digits, **sizes)
    names = {"loss", "elbo_nats", "reconstruction_nats", "kl_nats", "bits_per_dim"}
    assert set(scores) == names
    assert scores["elbo_nats"] == pytest.approx(exact.mean(), rel=1e-5)
    bits = -exact.mean() / (64 * np.log(2))
    assert scores["bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    assert logs["val_elbo_nats"][-1] == pytest.approx(exact.mean(), rel=1e-5)
    # the last batch differs, so a report of the last batch would be noticed
    assert abs(exact[300:].mean() - exact.mean()) > 1e-2
    model.fit(digits[:300], **sizes)  # and training goes on


def test_compiled_functions_follow_the_weights(digits):
    """They read the variables when called: as constants they would be out of date."""
    model = zoo.new("vae")
    encode = backend.compiled(model, lambda x: model.encoder(model.scale(x)))
    first = numpy(encode(digits[:2])).copy()
    bias = model.encoder.layers[-1].bias
    bias.assign(bias + 5.0)
    np.testing.assert_allclose(numpy(encode(digits[:2])), first + 5.0, rtol=1e-5)


# Gradients


def test_input_gradient_is_a_derivative_and_has_one():
    """f = sum(a x^3): df/dx = 3 a x^2, and d(sum of its squares)/da = 18 a x^4."""

    class Penalized(Quadratic):
        def cube(self, x):
            return ops.sum(self.w[0] * x**3, axis=-1)

        def terms(self, x):
            x = ops.reshape(x, (-1, 2))
            gradient = self.input_gradient(self.cube, x)
            return ops.sum(gradient**2) + 0.0 * ops.sum(self.w[1]), x

        @backend.step
        def train_step(self, data):
            x = ops.cast(self.unpack(data)[0], "float32")
            self.minimize(lambda: self.terms(x))
            return self.get_metrics_result()

    model, a = Penalized(), np.array([2.0, -1.0])
    model.compile(keras.optimizers.SGD(1e-3))
    model.w[0].assign(a)
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradient = numpy(model.input_gradient(model.cube, tensor(x)))
    np.testing.assert_allclose(gradient, 3 * a * x**2, rtol=1e-5)
    x = np.array([1, 2, 2, 1], "uint8")
    model.fit(x.reshape(4, 1, 1, 1), shuffle=False, verbose=0)
    expected = a - 1e-3 * 18 * a * np.array([1 + 16, 16 + 1])
    np.testing.assert_allclose(numpy(model.w[0]), expected, rtol=1e-5)


def adam(*gradients, learning_rate=0.1):
    """Adam by the paper's equations (Kingma and Ba 2015, algorithm 1), from w = 0."""
    w = m = v = 0.0
    for t, gradient in enumerate(gradients, 1):
        g = gradient(w)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return w


def test_variables_that_the_loss_misses_get_zero_gradients():
    """Adam's momentum goes on moving a variable that the second step does not reach:
    without a gradient it would stay where it was."""
    model = Quadratic()
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(BYTES[:4], verbose=0)
    model.used = (False, True)
    model.make_train_function(force=True)
    model.fit(BYTES[:4], verbose=0)
    missed = adam(lambda w: w - 1.0, lambda w: 0.0)
    reached = adam(lambda w: w - 1.0, lambda w: w - 1.0)
    np.testing.assert_allclose(numpy(model.w[0]), missed, rtol=1e-4)
    np.testing.assert_allclose(numpy(model.w[1]), reached, rtol=1e-4)
    assert abs(missed - adam(lambda w: w - 1.0)) > 1e-2


def test_minimize_changes_only_the_given_network(digits):
    class GeneratorAlone(GAN):
        @backend.step
        def train_step(self, data):
            def loss():
                z = keras.random.normal((8, 4), seed=self.seed_generator)
                logits = self.discriminator(self.make(z, training=True), training=True)
                return ops.mean(logits), logits

            self.minimize(loss, "generator")
            return self.get_metrics_result()

    model = small_gan(GeneratorAlone)
    before = zoo.weights(model)
    model.fit(digits[:8], verbose=0)
    trained = {v.path for v in model.generator.trainable_variables}
    assert len(trained) == 6
    for v, b in zip(model.weights, before, strict=True):
        if v.trainable:
            assert np.any(numpy(v) != b) == (v.path in trained), v.path


# Compilation and data


def test_jit_compile_auto_is_resolved_by_each_backend(tmp_path):
    """Saved as "auto": the choice of this backend is not forced on another one."""
    model = zoo.new("vae")
    model.compile("adam")
    assert model.jit_compile is (backend.name == "jax")
    assert model.get_compile_config()["jit_compile"] == "auto"
    model.save(tmp_path / "auto.keras")
    loaded = keras.models.load_model(tmp_path / "auto.keras")
    assert loaded.compiled and loaded.jit_compile is (backend.name == "jax")


def test_batches_keep_their_order_and_tune_nothing(digits, digit_labels):
    """TensorFlow 2.21 waits for a sleeping tuner at the end of an epoch."""
    data = Batches(digits[:50], digit_labels[:50], batch_size=16, seed=2)
    fed = backend.fed(data)
    assert len(fed) == len(data) == 4
    if backend.name != "tensorflow":
        assert fed is data
        return
    assert fed.options().autotune.enabled is False
    for epoch in (0, 3):
        data.set_epoch(epoch)
        batches = [data[i] for i in range(4)]
        for ours, (x, y) in zip(batches, fed.as_numpy_iterator(), strict=True):
            np.testing.assert_array_equal(ours[0], x)
            np.testing.assert_array_equal(ours[1], y)
