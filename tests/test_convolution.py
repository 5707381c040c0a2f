"""The seam's convolution and fused loops: values, first and second derivatives."""

import keras
import numpy as np
import pytest
from keras import ops

from kgen import backend
from kgen.models import GatedPixelCNN, GenerativeModel


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


def tensor(x):
    return ops.convert_to_tensor(x, "float32")


def direct(x, kernel, pads, bias):
    """The sum over taps, in float64, from the definition."""
    (top, bottom), (left, right) = pads
    _, H, W, _ = x.shape
    rows, columns = kernel.shape[:2]
    height, width = H + top + bottom - rows + 1, W + left + right - columns + 1
    y = np.zeros((x.shape[0], height, width, kernel.shape[3])) + bias
    for i in range(height):
        for j in range(width):
            for r in range(rows):
                for c in range(columns):
                    row, column = i + r - top, j + c - left
                    if 0 <= row < H and 0 <= column < W:
                        y[:, i, j] += x[:, row, column] @ kernel[r, c]
    return y


# (rows, columns) of the kernel, pads; features are drawn apart. Negative pads crop:
# the first layer's windows end above or before the pixel.
WINDOWS = {
    "1x1": ((1, 1), ((0, 0), (0, 0))),
    "2x3, above and to both sides": ((2, 3), ((1, 0), (1, 1))),
    "1x2, to the left": ((1, 2), ((0, 0), (1, 0))),
    "3x7, ends above": ((3, 7), ((3, -1), (3, 3))),
    "1x3, ends before": ((1, 3), ((0, 0), (3, -1))),
    "2x2, ends well before": ((2, 2), ((3, -2), (3, -2))),
    "3x2, ends above the map": ((3, 2), ((7, -5), (1, 0))),
}


def drawn(rng, window, inputs):
    (rows, columns), pads = WINDOWS[window]
    x = rng.normal(size=(2, 5, 6, inputs)).astype("float32")
    kernel = rng.normal(size=(rows, columns, inputs, 3)).astype("float32")
    return x, kernel, pads, rng.normal(size=3).astype("float32")


def differentiator():
    """(fn, x) -> d sum(fn(x)) / dx: a model's, whose state the seam carries along."""
    model = GenerativeModel((1, 1, 1), 2)
    model.compile("sgd")
    return model.input_gradient


def gradient(fn, x):
    return numpy(differentiator()(fn, tensor(x)))


@pytest.mark.parametrize("inputs", [1, 9])  # JAX has another way from eight on
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution_is_the_sum_over_taps(window, inputs, rng):
    x, kernel, pads, bias = drawn(rng, window, inputs)
    expected, args = direct(x, kernel, pads, bias), (tensor(x), tensor(kernel))

    def product(x, kernel, bias):
        return backend.convolution(x, kernel, pads, bias)

    model = GenerativeModel((1, 1, 1), 2)
    for fn in (product, backend.compiled(model, product)):  # fused, and not
        y = fn(*args, tensor(bias))
        assert y.shape == expected.shape
        np.testing.assert_allclose(numpy(y), expected, atol=1e-5)
    variable = keras.Variable(kernel)
    y = backend.convolution(tensor(x), ops.convert_to_tensor(variable), pads)
    np.testing.assert_allclose(numpy(y), direct(x, kernel, pads, 0.0), atol=1e-5)


@pytest.mark.parametrize("inputs", [1, 9])
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution_has_its_derivatives(window, inputs, rng):
    """It is linear in each argument: d sum(w y) / dx, applied to any direction u, is
    sum(w y(u))."""
    x, kernel, pads, bias = drawn(rng, window, inputs)
    w = rng.normal(size=direct(x, kernel, pads, bias).shape)

    def weighted(*args):
        return backend.convolution(*args[:2], pads, *args[2:]) * tensor(w)

    k, b = tensor(kernel), tensor(bias)
    dx = gradient(lambda x: weighted(x, k, b), x)
    d_kernel = gradient(lambda k: weighted(tensor(x), k, b), kernel)
    d_bias = gradient(lambda b: weighted(tensor(x), k, b), bias)
    u, v = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(
        np.sum(dx * u), np.sum(w * direct(u, kernel, pads, 0.0)), **close
    )
    np.testing.assert_allclose(
        np.sum(d_kernel * v), np.sum(w * direct(x, v, pads, 0.0)), **close
    )
    np.testing.assert_allclose(d_bias, w.sum((0, 1, 2)), **close)


@pytest.mark.parametrize("window", WINDOWS)
def test_convolution_has_second_derivatives(window, rng):
    """As a gradient penalty needs them. With y = conv(x, k), L = |d sum(y^2)/dx|^2,
    dL/dk by central differences of the float64 sum."""
    x, kernel, pads, _ = drawn(rng, window, 9)
    x, direction = x[:1], rng.normal(size=kernel.shape)
    inner = differentiator()

    def penalty(k):
        k = tensor(k)
        g = inner(lambda x: ops.square(backend.convolution(x, k, pads)), tensor(x))
        return ops.sum(ops.square(g))

    def exact(k):
        y = direct(x, k, pads, 0.0)
        dx = np.zeros(x.shape)
        for index in np.ndindex(x.shape):  # y is linear in x
            unit = np.zeros(x.shape)
            unit[index] = 1
            dx[index] = np.sum(2 * y * direct(unit, k, pads, 0.0))
        return np.sum(dx**2)

    slope = np.sum(gradient(penalty, kernel) * direction)
    h = 1e-4
    expected = exact(kernel + h * direction) - exact(kernel - h * direction)
    np.testing.assert_allclose(slope, expected / (2 * h), rtol=1e-3)


@backend.fused
def product(a, b):
    """Of two tensors, the second twice as wide."""
    f, g = ops.split(b, 2, axis=-1)
    return ops.tanh(a) * f * ops.sigmoid(g)


@keras.saving.register_keras_serializable(package="tests")
class Fused(GenerativeModel):
    """Descends sum(x . product(w[:, :2], w[:, 2:])) over w (3, 6)."""

    def __init__(self, **kwargs):
        super().__init__((3, 2, 1), 256, **kwargs)
        self.w = self.add_weight(shape=(3, 6), initializer="zeros", name="w")
        self.built = True

    @backend.step
    def train_step(self, data):
        x, _, _ = self.unpack(data)
        x = ops.cast(x[..., 0], "float32")  # (B, 3, 2)

        def loss():
            w = ops.tile(self.w[None], (ops.shape(x)[0], 1, 1))
            terms = x * product(w[..., :2], w[..., 2:])  # (B, 3, 2)
            return ops.sum(terms), ops.sum(terms, (1, 2))

        self.minimize(loss)
        return self.get_metrics_result()


@pytest.mark.parametrize("eager", [False, True])
def test_fused_functions_have_their_gradients_in_training(eager, rng):
    w = rng.normal(size=(3, 6)).astype("float32")
    x = rng.integers(0, 9, (5, 3, 2, 1)).astype("uint8")
    model = Fused()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=eager)
    model.w.assign(w)
    model.fit(x, batch_size=4, shuffle=False, verbose=0)  # a batch of 4, one of 1

    def slope(w, x):
        a, f, g = np.split(w.astype("float64"), 3, axis=1)
        t, s, x = np.tanh(a), 1 / (1 + np.exp(-g)), x[..., 0].sum(0)
        return np.concatenate(
            [x * f * s * (1 - t * t), x * t * s, x * t * f * s * (1 - s)], 1
        )

    for batch in (x[:4], x[4:]):
        w = w - 0.1 * slope(w, batch)
    np.testing.assert_allclose(numpy(model.w), w, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(backend.name != "tensorflow", reason="XLA within TensorFlow")
def test_fused_functions_are_compiled_in_training_and_nowhere_else(tmp_path, binary):
    model = GatedPixelCNN((8, 8, 1), filters=4, num_blocks=1, first_kernel_size=3)
    model.compile("sgd")
    model.fit(binary[:8], batch_size=8, verbose=0)

    def compiled(graph):
        functions = graph.as_graph_def().library.function
        return [f for f in functions if f.attr["_XlaMustCompile"].b]

    import tensorflow as tf

    iterator = iter(tf.data.Dataset.from_tensors(binary[:8]))
    training = tf.function(lambda: model.train_step(next(iterator)))
    density = tf.function(lambda: model.log_prob(binary[:8]))
    assert len(compiled(training.get_concrete_function().graph)) > 0
    assert len(compiled(density.get_concrete_function().graph)) == 0
