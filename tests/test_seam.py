"""The seam: what bites when one `train_step` serves three backends, each with a test.

The numbers are those of the list of known traps: scopes and purged state (1), several
optimizers (2, in test_optimizers), replicas (3, in test_distributed), loss scaling (4),
averages (5), donated state (6), compile switches (7), GPUs taken to feed data (8, in
test_data), seeds (9), public names and import order (10, in test_packaging), unreached
variables (11), the `compute_loss` oracle (12, in test_vae).
"""

import keras
import numpy as np
import pytest
from keras import layers, ops
from tiny_gan import compiled, weights

import kgen
from kgen import backend
from kgen.data import Batches
from kgen.models import VAE, GenerativeModel


def numpy(x):
    return ops.convert_to_numpy(x)


@keras.saving.register_keras_serializable(package="tests")
class Quadratic(GenerativeModel):
    """Minimises `factor * |w - target|^2 / 2` on `used` of its two weights."""

    def __init__(self, used=(True, True), factor=1.0, **kwargs):
        super().__init__((1, 1, 1), 256, **kwargs)
        self.used, self.factor = list(used), factor
        self.w = [
            self.add_weight(
                shape=(2,), initializer="zeros", name=f"w{i}", dtype="float32"
            )
            for i in range(2)
        ]
        self.norm = layers.BatchNormalization(momentum=0.5)
        self.norm.build((None, 1))
        self.loss_seen = keras.metrics.Mean("seen")
        self.built = True

    @backend.step
    def train_step(self, data):
        x, _, _ = self.unpack(data)

        def loss():
            inside = ops.cast(ops.reshape(x, (-1, 1)), "float32")
            self.norm(inside, training=True)
            keras.random.normal((1,), seed=self.seed_generator)
            self.loss_seen.update_state(7.0)
            terms = [
                ops.sum(ops.square(w - 1.0)) * 0.5 * self.factor
                for w, used in zip(self.w, self.used, strict=True)
                if used
            ]
            return sum(terms), ops.cast(inside[:, 0], "float32")

        value, per_image = self.minimize(loss)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(value)
        assert per_image.shape[0] == x.shape[0]
        return self.get_metrics_result()

    def call(self, x):
        return x


def adam(gradients, learning_rate=0.1):
    """Adam by the paper's equations (Kingma and Ba 2015, algorithm 1), from w = 0."""
    w = m = v = 0.0
    for t, g in enumerate(gradients(), 1):
        g = g(w)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= learning_rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return w


IMAGES = np.arange(12, dtype="uint8").reshape(12, 1, 1, 1)


def test_trap_1_what_the_loss_changes_inside_a_step_comes_out():
    """Batch normalisation, seeds, metrics: updated inside `minimize`, under `fit`."""
    model = Quadratic()
    model.compile(keras.optimizers.SGD(0.1))
    seed = numpy(model.seed_generator.state).copy()
    logs = model.fit(IMAGES, batch_size=4, shuffle=False, verbose=0).history
    mean = 0.0
    for batch in IMAGES.reshape(3, 4):
        mean = 0.5 * mean + 0.5 * batch.mean()
    assert numpy(model.norm.moving_mean)[0] == pytest.approx(mean, rel=1e-6)
    assert numpy(model.seed_generator.state)[1] == seed[1] + 3
    assert logs["seen"] == [7.0]
    # three steps of w <- w - 0.1 (w - 1), losses before each
    w = 1 - 0.9 ** np.arange(4)
    np.testing.assert_allclose(numpy(model.w[0]), w[3], rtol=1e-6)
    assert logs["loss"][0] == pytest.approx(np.mean(2 * (w[:3] - 1) ** 2), rel=1e-5)


def test_trap_1_input_gradients_inside_a_loss():
    """A gradient penalty: nested scopes, dropout's seeds and second derivatives."""
    model = compiled(keras.optimizers.Adam(1e-2))
    x = np.random.default_rng(0).integers(0, 17, (24, 8, 8, 1))
    seeds = [s for s in model._seed_states() if numpy(s).shape == (2,)]
    before = [numpy(s).copy() for s in seeds]
    model.fit(x, batch_size=8, verbose=0)
    assert all(np.any(numpy(s) != b) for s, b in zip(seeds, before, strict=True))
    moving = model.generator.layers[1].moving_variance
    assert np.all(np.abs(numpy(moving) - 1) > 1e-4)


def test_input_gradient_is_a_derivative_and_has_one():
    """f = sum(a x^3): df/dx = 3 a x^2, and d(sum of its squares)/da = 18 a x^4."""
    model = Quadratic(used=(True, False))
    model.compile(keras.optimizers.SGD(1.0))
    x = ops.convert_to_tensor([[1.0, -2.0], [0.5, 3.0]], "float32")
    model.w[0].assign([2.0, -1.0])

    def f(x):
        return ops.sum(model.w[0] * x**3, axis=-1)

    a, values = np.array([2.0, -1.0]), numpy(x)
    gradient = numpy(ops.stop_gradient(model.input_gradient(f, x)))
    np.testing.assert_allclose(gradient, 3 * a * values**2, rtol=1e-5)

    class Penalised(Quadratic):
        @backend.step
        def train_step(self, data):
            x, _, _ = self.unpack(data)
            x = ops.reshape(ops.cast(x, "float32"), (-1, 2))

            def loss():
                g = self.input_gradient(lambda x: ops.sum(self.w[0] * x**3, axis=-1), x)
                return ops.sum(ops.square(g)), x

            self.minimize(loss)
            return self.get_metrics_result()

    model = Penalised(used=(True, False))
    model.compile(keras.optimizers.SGD(1e-3))
    model.w[0].assign(a)
    model.fit(
        np.array([1, 2, 2, 1], "uint8").reshape(4, 1, 1, 1), shuffle=False, verbose=0
    )
    expected = a - 1e-3 * 18 * a * np.array([1 + 16, 16 + 1])
    np.testing.assert_allclose(numpy(model.w[0]), expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-7])
def test_trap_4_the_loss_is_scaled_before_differentiating(factor):
    """In float16 a gradient of 1e-7 times 1e-2 is zero, unless the loss is scaled."""
    keras.config.set_dtype_policy("mixed_float16")

    class Half(Quadratic):
        @backend.step
        def train_step(self, data):
            x, _, _ = self.unpack(data)

            def loss():
                small = ops.cast(self.w[0], "float16") * 1e-2
                return ops.sum(ops.cast(small, "float32")) * self.factor, x

            value, _ = self.minimize(loss)
            self.loss_seen.update_state(value)
            return self.get_metrics_result()

    model = Half(factor=factor)
    model.compile(keras.optimizers.SGD(1e9))
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    model.w[0].assign([3.0, 3.0])
    logs = model.fit(IMAGES[:4], verbose=0).history
    np.testing.assert_allclose(numpy(model.w[0]), 3.0 - 1e9 * 1e-2 * factor, rtol=2e-2)
    assert logs["seen"][0] == pytest.approx(6e-2 * factor, rel=2e-2)  # unscaled


def test_trap_4_overflow_is_skipped_not_learned_from(binary):
    """Too large a scale: steps are skipped, and it halves until they are finite."""
    keras.config.set_dtype_policy("mixed_float16")
    model = VAE((8, 8, 1), latent_dim=2, hidden_units=(16,))
    model.compile(keras.optimizers.Adam(1e-2))
    before = weights(model)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.dynamic_scale.assign(2.0**40)
    model.fit(binary[:32], verbose=0)
    for w, b in zip(weights(model), before, strict=True):
        np.testing.assert_array_equal(w, b)
    assert float(model.optimizer.dynamic_scale) == 2.0**39
    model.fit(binary, epochs=4, verbose=0)
    assert all(np.all(np.isfinite(w)) for w in weights(model))
    assert any(np.any(w != b) for w, b in zip(weights(model), before, strict=True))


def test_trap_5_uneven_batches_average_exactly(digits):
    """`evaluate` over batches of 100, 100, 100 and 20 is the mean over the images."""
    model = VAE((8, 8, 1), 17, latent_dim=3, hidden_units=(8,))
    model.compile("adam")
    exact = numpy(ops.stop_gradient(model.elbo(digits))).mean()
    uneven = model.evaluate(digits, batch_size=100, verbose=0)
    assert set(uneven) == {
        "loss", "elbo_nats", "reconstruction_nats", "kl_nats", "bits_per_dim"
    }  # fmt: skip
    assert uneven["elbo_nats"] == pytest.approx(exact, rel=1e-5)
    assert uneven["bits_per_dim"] == pytest.approx(-exact / (64 * np.log(2)), rel=1e-5)
    # last batch alone differs, so a report of the last batch would be noticed
    last = model.evaluate(digits[300:], verbose=0)["elbo_nats"]
    assert abs(last - exact) > 1e-2
    logs = model.fit(digits, validation_data=digits, batch_size=100, verbose=0).history
    again = model.evaluate(digits, verbose=0)["elbo_nats"]
    assert logs["val_elbo_nats"][-1] == pytest.approx(again, rel=1e-5)


def test_trap_6_models_can_be_used_between_and_during_steps(digits, tmp_path):
    """On JAX the state is donated to each step: no old value may be held on to."""
    model = VAE((8, 8, 1), 17, latent_dim=3, hidden_units=(8,))
    model.compile("adam")
    first = model.sample(3, seed=1)
    seen = []

    class Draw(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(self.model.sample(3, seed=1))
            seen.append(numpy(self.model.decode(np.zeros((1, 3)))))

    grid = kgen.callbacks.SampleGrid(tmp_path, n=4, verbose=0)
    model.fit(digits, epochs=3, verbose=0, callbacks=[Draw(), grid])
    assert len(list(tmp_path.glob("samples_epoch_00*.png"))) == 3
    after = numpy(ops.stop_gradient(model.decode(np.zeros((1, 3)))))
    np.testing.assert_allclose(seen[-1], after, rtol=1e-6)
    assert np.any(seen[1] != seen[-1]) and first.shape == (3, 8, 8, 1)
    model.fit(digits, verbose=0)
    assert np.all(np.isfinite(model.predict(digits[:5], verbose=0)))


def test_trap_7_compile_switches(digits, tmp_path):
    name = backend.name
    model = VAE((8, 8, 1), 17, latent_dim=2, hidden_units=(4,))
    model.compile("adam")
    assert model.jit_compile is (name == "jax")
    model.save(tmp_path / "auto.keras")
    # what "auto" became on this backend is not forced on the one that loads
    assert model.get_compile_config()["jit_compile"] == "auto"
    loaded = keras.models.load_model(tmp_path / "auto.keras")
    assert loaded.compiled and loaded.jit_compile is (name == "jax")
    model.compile("adam", steps_per_execution=2)
    if name == "torch":
        with pytest.raises(ValueError, match="steps_per_execution"):
            model.fit(digits, verbose=0)
    else:
        logs = model.fit(digits, batch_size=32, epochs=2, verbose=0).history
        assert np.all(np.isfinite(logs["loss"]))


@pytest.mark.parametrize("switch", [{"jit_compile": False}, {"run_eagerly": True}])
def test_a_step_is_the_same_eager_or_compiled(binary, switch):
    results = []
    for kwargs in ({}, switch):
        keras.utils.set_random_seed(2)
        model = VAE((8, 8, 1), latent_dim=2, hidden_units=(8,))
        model.compile(keras.optimizers.Adam(1e-2), **kwargs)
        model.fit(binary[:64], shuffle=False, verbose=0)
        results.append(weights(model))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_trap_9_seed_generators_are_saved_and_restored(digits, tmp_path):
    """Keras leaves them out of weight files; kgen keeps them, dropout's included."""
    model = compiled()
    model.fit(digits, verbose=0)
    states = [numpy(s).copy() for s in model._seed_states()]
    assert len(states) >= 2 and any(s[1] > 0 for s in states)
    model.save_weights(tmp_path / "m.weights.h5")
    other = compiled()
    other.load_weights(tmp_path / "m.weights.h5")
    for state, expected in zip(other._seed_states(), states, strict=True):
        np.testing.assert_array_equal(numpy(state), expected)


def test_trap_11_unreached_variables_get_zero_gradients():
    """Adam's momentum goes on moving a variable that the second step does not reach:
    a missing gradient would leave it where it was."""
    model = Quadratic(used=(True, True))
    model.compile(keras.optimizers.Adam(0.1))
    model.fit(IMAGES[:4], verbose=0)
    model.used = [False, True]
    model.make_train_function(force=True)
    model.fit(IMAGES[:4], verbose=0)
    reached = adam(lambda: [lambda w: w - 1.0] * 2)
    unreached = adam(lambda: [lambda w: w - 1.0, lambda w: 0.0])
    np.testing.assert_allclose(numpy(model.w[1]), reached, rtol=1e-4)
    np.testing.assert_allclose(numpy(model.w[0]), unreached, rtol=1e-4)
    assert abs(unreached - adam(lambda: [lambda w: w - 1.0])) > 1e-2


def test_minimize_changes_only_the_network_it_is_given(digits):
    model = compiled()
    before = weights(model)

    def only_generator(data):
        x, _, _ = model.unpack(data)
        n = x.shape[0]

        def loss():
            per_image = ops.softplus(-model.score(model.make(n)))
            return ops.mean(per_image), per_image

        _, g = model.minimize(loss, "generator")
        return model.tracked({"loss": g, "d_loss": g, "g_loss": g})

    step = backend.step(lambda self, data: only_generator(data))
    model.train_step = step.__get__(model)
    model.fit(digits[:32], verbose=0)
    trainable = {id(v) for v in model.generator.trainable_variables}
    for v, b in zip(model.weights, before, strict=True):
        changed = np.any(numpy(v) != b)
        if v.trainable:
            assert changed == (id(v) in trainable), v.path


def test_compiled_functions_follow_the_weights(digits):
    """A compiled function reads the variables when called: they are no constants."""
    model = VAE((8, 8, 1), 17, latent_dim=2, hidden_units=(4,))
    mean = backend.compiled(model, lambda x: model._posterior(x, None)[0])
    x = ops.convert_to_tensor(digits[:2])
    first = numpy(mean(x)).copy()
    model.encoder.layers[-1].bias.assign([5.0, 5.0, 0.0, 0.0])
    np.testing.assert_allclose(numpy(mean(x)), first + 5.0, rtol=1e-5)


def test_batches_are_fed_in_their_order_and_tune_nothing(digits, digit_labels):
    """TensorFlow 2.21 waits for a sleeping tuner at the end of an epoch."""
    data = Batches(digits[:50], digit_labels[:50], batch_size=16, seed=2)
    fed = backend.fed(data)
    assert len(fed) == len(data) == 4
    if backend.name == "tensorflow":
        assert fed.options().autotune.enabled is False
        for epoch in (0, 3):
            data.set_epoch(epoch)
            batches = [data[i] for i in range(4)]
            for ours, (x, y) in zip(batches, fed.as_numpy_iterator(), strict=True):
                np.testing.assert_array_equal(ours[0], x)
                np.testing.assert_array_equal(ours[1], y)
    else:
        assert fed is data
