"""One `train_step` on three backends: what a step must carry, change and leave alone.
Keras' own step as the oracle is in test_stock.py, two networks are in test_gan.py."""

import keras
import numpy as np
import pytest
import zoo
from keras import ops
from keras.optimizers import SGD, Adam, LossScaleOptimizer
from zoo import numpy, tensor

from kgen import backend
from kgen.data import Batches
from kgen.models import GAN, GenerativeModel


class Quadratic(GenerativeModel):
    """Minimizes |w - 1|^2 / 2 of those of its two weights that are `used`."""

    def __init__(self):
        super().__init__((1, 1, 1), 256)
        self.used = (True, True)
        self.w = [self.add_weight(shape=(2,), initializer="zeros") for _ in range(2)]
        self.seen = keras.metrics.Mean("seen")
        self.built = True

    def loss_of(self, x):
        """A scalar; updates a metric, as a user's layer may."""
        self.seen.update_state(7.0)
        pairs = zip(self.w, self.used, strict=True)
        return sum(ops.sum((w - 1.0) ** 2) / 2 for w, used in pairs if used)

    @backend.step
    def train_step(self, data):
        x = ops.cast(ops.reshape(self.unpack(data)[0], (-1, 1)), "float32")
        value, _ = self.minimize(lambda: (self.loss_of(x), x))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(value)
        return self.get_metrics_result()


def test_penalties_advance_seeds_and_statistics(digits):
    """A gradient of a gradient through dropout. That files keep the seeds is in
    test_journey.py."""
    generator = zoo.new("gan").generator  # batch normalization; the mlp has dropout
    settings = {"architecture": "mlp", "width": 10, "gradient_penalty": 1.0}
    model = GAN(zoo.SHAPE, zoo.LEVELS, latent_dim=3, generator=generator, **settings)
    model.compile(Adam(1e-2))
    seeds = [s for s in model._seed_states() if numpy(s).shape == (2,)]
    before = [numpy(s) for s in seeds]
    model.fit(digits[:24], batch_size=8, verbose=0)
    assert len(seeds) >= 2
    for seed, first in zip(seeds, before, strict=True):
        assert np.any(numpy(seed) != first)
    moving = [v for v in generator.weights if "moving_variance" in v.path]
    assert moving and all(np.all(np.abs(numpy(v) - 1) > 1e-4) for v in moving)


@pytest.mark.parametrize("name", zoo.cases(["vae", "fvbn"], zoo.EXACT))
def test_metrics_are_means_over_images(name, digits):
    """Also of uneven batches: 100, 100, 100 and 20."""
    model = zoo.randomize(zoo.new(name, num_classes=None))
    model.compile("adam")
    sizes = {"batch_size": 100, "verbose": 0}
    logs = model.fit(digits[:300], validation_data=digits, **sizes).history
    exact = numpy(model.elbo(digits) if name == "vae" else model.log_prob(digits))
    # the last batch differs, so a report of the last batch would be noticed
    assert abs(exact[300:].mean() - exact.mean()) > 1e-2
    nats = exact.mean()
    expected = {"nll_nats": -nats, "loss": -nats}
    if name == "vae":  # whose loss has beta
        expected = {"elbo_nats": nats}
    expected["bits_per_dim"] = -nats / (64 * np.log(2))
    scores = model.evaluate(digits, **sizes)
    for metric, value in expected.items():
        for score in (scores[metric], logs[f"val_{metric}"][0]):
            assert score == pytest.approx(value, rel=1e-5)


def test_compiled_functions_follow_the_weights(digits):
    """They read the variables when called: as constants they would be out of date."""
    model = zoo.new("vae")
    encode = backend.compile_function(model, lambda x: model.encoder(model.scale(x)))
    first = numpy(encode(digits[:2]))
    bias = model.encoder.layers[-1].bias
    bias.assign(bias + 5.0)
    np.testing.assert_allclose(numpy(encode(digits[:2])), first + 5.0, rtol=1e-5)


def test_input_gradient_is_a_derivative_and_has_one():
    """f = sum(a x^3): df/dx = 3 a x^2, and d(sum of its squares)/da = 18 a x^4. The
    scale of the loss is taken out of gradients, and of the value that is returned."""

    class Penalized(Quadratic):
        def cube(self, x):
            return ops.sum(self.w[0] * x**3, axis=-1)

        def loss_of(self, x):
            gradient = self.input_gradient(self.cube, ops.reshape(x, (-1, 2)))
            return ops.sum(gradient**2) + 0.0 * ops.sum(self.w[1])

    model, a = Penalized(), np.array([2.0, -1.0])
    model.compile(LossScaleOptimizer(SGD(1e-3), initial_scale=2.0**7))
    model.w[0].assign(a)
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradient = numpy(model.input_gradient(model.cube, tensor(x)))
    np.testing.assert_allclose(gradient, 3 * a * x**2, rtol=1e-5)
    x = np.array([1, 2, 2, 1], "uint8")
    logs = model.fit(x.reshape(4, 1, 1, 1), shuffle=False, verbose=0).history
    x_4 = np.array([1 + 16, 16 + 1])  # the sum of x^4 over the rows of two
    expected = a - 1e-3 * 18 * a * x_4
    np.testing.assert_allclose(numpy(model.w[0]), expected, rtol=1e-5)
    assert logs["loss"][0] == pytest.approx(np.sum(9 * a**2 * x_4), rel=1e-5)


def adam(*used):
    """Where Keras' Adam moves w from 0, by the gradient w - 1 or, if not `used`, 0."""
    w, optimizer = keras.Variable(0.0), Adam(0.1)
    for part in used:
        optimizer.apply([tensor(part * (numpy(w) - 1.0))], [w])
    return numpy(w)


def test_variables_that_the_loss_misses_get_zero_gradients():
    """Adam's momentum goes on moving a variable that the second step does not reach:
    without a gradient it would stay where it was."""
    model, x = Quadratic(), np.zeros((4, 1, 1, 1), "uint8")
    model.compile(Adam(0.1))
    assert model.fit(x, verbose=0).history == {"loss": [2.0], "seen": [7.0]}
    model.used = (False, True)
    model.make_train_function(force=True)
    model.fit(x, verbose=0)
    missed, reached = adam(1, 0), adam(1, 1)
    np.testing.assert_allclose(numpy(model.w[0]), missed, rtol=1e-4)
    np.testing.assert_allclose(numpy(model.w[1]), reached, rtol=1e-4)
    assert abs(missed - adam(1)) > 1e-2


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
    fed = backend.adapt(data)
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
