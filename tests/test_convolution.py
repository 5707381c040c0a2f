"""The backends' convolution and fused loops: values, first and second derivatives."""

import functools

import keras
import numpy as np
import pytest
import zoo
from keras import ops
from zoo import numpy, tensor

from kgen import backend
from kgen.models import GenerativeModel


def direct(x, kernel, pads, bias=0.0):
    """The sum over taps, in float64, from the definition."""
    (top, bottom), (left, right) = pads
    B, H, W, F = x.shape
    rows, columns, _, filters = kernel.shape
    height, width = H + top + bottom - rows + 1, W + left + right - columns + 1
    m = 8  # zeros around the map, more than any window reaches
    around = np.zeros((B, H + 2 * m, W + 2 * m, F))
    around[:, m : m + H, m : m + W] = x
    y = np.zeros((B, height, width, filters)) + bias
    for r, c in np.ndindex(rows, columns):
        i, j = m + r - top, m + c - left
        y += around[:, i : i + height, j : j + width] @ kernel[r, c]
    return y


# (rows, columns) of the kernel, pads. Negative pads crop: the first layer's windows end
# above or before the pixel.
WINDOWS = {
    "1x1": ((1, 1), ((0, 0), (0, 0))),
    "2x3, above and to both sides": ((2, 3), ((1, 0), (1, 1))),
    "2x2, ends well before": ((2, 2), ((3, -2), (3, -2))),
    "3x2, ends above the map": ((3, 2), ((7, -5), (1, 0))),
    "1x2, to the left": ((1, 2), ((0, 0), (1, 0))),
    "3x7, ends above": ((3, 7), ((3, -1), (3, 3))),
    "1x3, ends before": ((1, 3), ((0, 0), (3, -1))),
}
every_window = pytest.mark.parametrize(
    "size,pads",
    [
        pytest.param(*window, id=name, marks=pytest.mark.exhaustive if i > 3 else ())
        for i, (name, window) in enumerate(WINDOWS.items())
    ],
)


def arguments(rng, size, inputs):
    """x (2, 5, 6, F), kernel (rows, columns, F, 3), bias (3,)."""
    x = rng.normal(size=(2, 5, 6, inputs)).astype("float32")
    kernel = rng.normal(size=(*size, inputs, 3)).astype("float32")
    return x, kernel, rng.normal(size=3).astype("float32")


@functools.cache
def model():
    """The backends carry a model's state along."""
    model = GenerativeModel((1, 1, 1), 2)
    model.compile("sgd")
    return model


def gradient(fn, x):
    """d sum(fn(x)) / dx, by the backend."""
    differentiated = functools.partial(backend.input_gradient, model(), fn)
    return numpy(backend.compiled(model(), differentiated, gradients=True)(tensor(x)))


@pytest.mark.parametrize("inputs", [1, 9])  # JAX has another way for 8 and more
@every_window
def test_convolution_and_derivatives_are_sums_over_taps(size, pads, inputs, rng):
    """It is linear in each argument: d sum(w y) / dx, applied to any direction u, is
    sum(w y(u))."""
    x, kernel, bias = arguments(rng, size, inputs)
    args = [tensor(a) for a in (x, kernel, bias)]
    expected = direct(x, kernel, pads, bias)

    def product(x=args[0], kernel=args[1], bias=args[2]):
        return backend.convolution(x, kernel, pads, bias)

    for fn in (product, backend.compiled(model(), product)):  # fused, and not
        y = fn(*args)
        assert y.shape == expected.shape
        np.testing.assert_allclose(numpy(y), expected, atol=1e-5)
    variable = ops.convert_to_tensor(keras.Variable(kernel))
    y = backend.convolution(args[0], variable, pads)
    np.testing.assert_allclose(numpy(y), expected - bias, atol=1e-5)

    w = rng.normal(size=expected.shape)
    dx = gradient(lambda x: product(x) * tensor(w), x)
    d_kernel = gradient(lambda kernel: product(kernel=kernel) * tensor(w), kernel)
    d_bias = gradient(lambda bias: product(bias=bias) * tensor(w), bias)
    u, v = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
    for found, expected in (
        (np.sum(dx * u), np.sum(w * direct(u, kernel, pads))),
        (np.sum(d_kernel * v), np.sum(w * direct(x, v, pads))),
        (d_bias, w.sum((0, 1, 2))),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@every_window
def test_convolution_has_second_derivatives(size, pads, rng):
    """As a gradient penalty needs them. With y = conv(x, k), L = |d sum(y^2)/dx|^2,
    dL/dk by central differences of the float64 sum."""
    x, kernel, _ = arguments(rng, size, 9)
    x, direction = x[:1], rng.normal(size=kernel.shape)

    def penalty(k):
        def squares(x):
            return ops.square(backend.convolution(x, k, pads))

        return ops.sum(ops.square(backend.input_gradient(model(), squares, tensor(x))))

    def exact(k):
        units = np.eye(x.size).reshape(-1, *x.shape[1:])  # y is linear in x
        dx = 2 * np.tensordot(direct(units, k, pads), direct(x, k, pads)[0], 3)
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
    """Minimizes sum(x . product(w[:, :2], w[:, 2:])) over w (3, 6)."""

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
def test_fused_functions_have_gradients_in_training(eager, rng):
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
def test_fused_functions_are_compiled_in_training_alone(binary):
    import tensorflow as tf

    model = zoo.new("gated", levels=2, num_classes=None, filters=4, num_blocks=1)
    model.compile("sgd")
    x = tf.constant(binary[:8])

    def compiled(fn):
        graph = tf.function(fn).get_concrete_function().graph
        functions = graph.as_graph_def().library.function
        return sum(f.attr["_XlaMustCompile"].b for f in functions)

    assert compiled(lambda: model.train_step((x,))) > 0
    assert compiled(lambda: model.log_prob(x)) == 0
