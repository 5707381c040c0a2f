"""Spectral normalization against singular values, and against central differences.
That a file keeps its vector is in test_gan.py, with a user's networks."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from zoo import numpy, tensor

from kgen import backend
from kgen.layers import SpectralNorm


def normalized(kind, passes):
    """A layer after so many training passes, and its input."""
    if kind == "dense":
        shape, layer = (4, 5), layers.Dense(7, use_bias=False)
    else:
        shape, layer = (2, 5, 6, 3), layers.Conv2D(6, 3, 2, "same", use_bias=False)
    layer = SpectralNorm(layer)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer.build(shape)
    for _ in range(passes):
        layer(x, training=True)
    return layer, x


def power_iteration(W, u):
    v = W @ u / np.linalg.norm(W @ u)
    return v, v @ W / np.linalg.norm(v @ W)


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_kernel_is_divided_by_largest_singular_value(kind):
    layer, x = normalized(kind, passes=60)
    layer.bias.assign(np.arange(layer.bias.shape[0]))
    kernel = numpy(layer.layer.kernel)
    largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[1][0]
    expected = numpy(layer.layer(x)) / largest + np.arange(kernel.shape[-1])
    np.testing.assert_allclose(numpy(layer(x)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(numpy(layer.layer.kernel), kernel)


def test_a_training_pass_is_one_power_iteration():
    layer, x = normalized("dense", passes=0)
    assert len(layer.trainable_weights) == 2 and len(layer.non_trainable_weights) == 1
    W, u = numpy(layer.layer.kernel), numpy(layer.u)
    assert u.shape == (7,)
    layer(x)
    np.testing.assert_array_equal(numpy(layer.u), u)
    layer(x, training=True)
    expected = power_iteration(W, u)[1]
    np.testing.assert_allclose(numpy(layer.u), expected, rtol=1e-5, atol=1e-6)
    layer.layer.kernel.assign(0.0 * W)
    assert np.all(numpy(layer(x, training=True)) == 0.0)


@pytest.mark.parametrize("passes", [1, 300])
def test_gradient_goes_through_sigma(passes):
    """Against central differences of W x / (v^T W u), v and u held; and where these
    have converged, of W x / sigma(W) with an exact sigma. Two passes before one
    gradient, as of a discriminator."""
    layer, x = normalized("dense", passes)
    W, u = (numpy(v).astype("float64") for v in (layer.layer.kernel, layer.u))
    factors = np.random.default_rng(2).normal(size=(4, 7))
    first, u = power_iteration(W, u)
    vectors = [(first, u), power_iteration(W, u)]

    def objective(W):
        sizes = [v @ W @ u for v, u in vectors]
        if passes > 1:
            sizes = [np.linalg.svd(W)[1][0]]
        return np.mean([np.sum(factors * (x @ W) / size) for size in sizes])

    steps = np.eye(W.size).reshape(-1, *W.shape) * 1e-6
    expected = [(objective(W + s) - objective(W - s)) / 2e-6 for s in steps]

    def loss():
        terms = [ops.sum(layer(x, training=True) * tensor(factors)) for _ in range(2)]
        return 0.5 * (terms[0] + terms[1]), terms[0]

    inputs = keras.Input((5,))
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(1.0))
    model.optimizer.build(model.trainable_variables)
    gradients = backend.minimize(model, loss, model.trainable_variables)[2]
    names = [v.name for v in model.trainable_variables]
    gradient = gradients[names.index("kernel")]
    np.testing.assert_allclose(numpy(gradient).ravel(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.once
def test_wrong_layers_raise():
    linear, order = "use_bias=False and no activation", "Conv3D, channels last"
    for layer, message in (
        (layers.Dense(3), linear),
        (layers.Dense(3, "relu", use_bias=False), linear),
        (layers.Conv2DTranspose(3, 3, use_bias=False), order),
        (layers.DepthwiseConv2D(3, use_bias=False), order),
        (layers.Embedding(3, 4), order),
        (layers.Conv2D(3, 3, data_format="channels_first", use_bias=False), order),
    ):
        with pytest.raises(ValueError, match=message):
            SpectralNorm(layer)
