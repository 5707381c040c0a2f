"""The backends' convolution: values, first and second derivatives. That fused functions
have their gradients is in test_stock.py, where a stock model does without them."""

import keras
import numpy as np
import pytest
import zoo
from keras import ops
from zoo import derivative, numpy, tensor

from kgen import backend


def direct(x, kernel, pads, bias=0.0):
    """The sum over taps, in float64, from the definition."""
    (top, bottom), (left, right) = pads
    m = 8  # zeros around the map, more than any window reaches
    x = np.pad(x.astype("float64"), ((0, 0), (m, m), (m, m), (0, 0)))
    x = x[:, m - top : x.shape[1] - m + bottom, m - left : x.shape[2] - m + right]
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], (1, 2))
    return np.einsum("bhwirc,rcio->bhwo", windows, kernel) + bias


# (rows, columns) of the kernel, pads. Negative pads crop: the first layer's windows end
# above or before the pixel.
WINDOWS = {
    "1x1": ((1, 1), ((0, 0), (0, 0))),
    "2x3, above and to both sides": ((2, 3), ((1, 0), (1, 1))),
    "2x2, ends well before": ((2, 2), ((3, -2), (3, -2))),
    "3x2, ends above the map": ((3, 2), ((7, -5), (1, 0))),
}
every_window = pytest.mark.parametrize("size,pads", WINDOWS.values(), ids=WINDOWS)


def arguments(rng, size, inputs):
    """x (2, 5, 6, F), kernel (rows, columns, F, 3), bias (3,)."""
    x = rng.normal(size=(2, 5, 6, inputs)).astype("float32")
    kernel = rng.normal(size=(*size, inputs, 3)).astype("float32")
    return x, kernel, rng.normal(size=3).astype("float32")


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

    for fn in (product, backend.compile_function(keras.Sequential(), product)):
        y = fn(*args)
        assert y.shape == expected.shape
        np.testing.assert_allclose(numpy(y), expected, atol=1e-5)
    variable = ops.convert_to_tensor(keras.Variable(kernel))
    y = backend.convolution(args[0], variable, pads)
    np.testing.assert_allclose(numpy(y), expected - bias, atol=1e-5)

    w = rng.normal(size=expected.shape)
    dx = derivative(lambda x: product(x) * tensor(w), x)
    d_kernel = derivative(lambda kernel: product(kernel=kernel) * tensor(w), kernel)
    d_bias = derivative(lambda bias: product(bias=bias) * tensor(w), bias)
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

        dx = backend.input_gradient(keras.Sequential(), squares, tensor(x))
        return ops.sum(ops.square(dx))

    def exact(k):
        units = np.eye(x.size).reshape(-1, *x.shape[1:])  # y is linear in x
        dx = 2 * np.tensordot(direct(units, k, pads), direct(x, k, pads)[0], 3)
        return np.sum(dx**2)

    slope = np.sum(derivative(penalty, kernel) * direction)
    h = 1e-4
    expected = exact(kernel + h * direction) - exact(kernel - h * direction)
    np.testing.assert_allclose(slope, expected / (2 * h), rtol=1e-3)


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
