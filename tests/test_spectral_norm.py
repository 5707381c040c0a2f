"""Spectral normalisation against singular values, and against central differences."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kgen import backend
from kgen.layers import SpectralNorm


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


def normed(kind, passes=60):
    keras.utils.set_random_seed(1)
    if kind == "dense":
        layer = SpectralNorm(layers.Dense(7, use_bias=False))
        x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    else:
        layer = SpectralNorm(layers.Conv2D(6, 3, 2, "same", use_bias=False))
        x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype("float32")
    for _ in range(passes):
        layer(x, training=True)
    return layer, x


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_kernel_is_divided_by_its_largest_singular_value(kind):
    layer, x = normed(kind)
    layer.bias.assign(np.arange(layer.bias.shape[0]))
    kernel = numpy(layer.layer.kernel)
    largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]))[1][0]
    expected = numpy(layer.layer(x)) / largest + np.arange(kernel.shape[-1])
    np.testing.assert_allclose(numpy(layer(x)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(numpy(layer.layer.kernel), kernel)


def test_the_vector_moves_by_one_iteration_in_training_and_not_otherwise():
    layer, x = normed("dense", passes=0)
    layer.build(x.shape)
    W, u = numpy(layer.layer.kernel), numpy(layer.u)
    layer(x)
    np.testing.assert_array_equal(numpy(layer.u), u)
    v = W @ u / np.linalg.norm(W @ u)
    expected = v @ W / np.linalg.norm(v @ W)
    layer(x, training=True)
    np.testing.assert_allclose(numpy(layer.u), expected, rtol=1e-5, atol=1e-6)
    before = [numpy(w) for w in layer.trainable_weights]
    assert len(before) == 2 and len(layer.non_trainable_weights) == 1
    assert numpy(layer.u).shape == (7,)


@pytest.mark.parametrize("passes", [1, 300])
def test_the_gradient_goes_through_sigma(passes):
    """Against central differences of W x / (v^T W u), v and u held; and where these
    have converged, of W x / sigma(W) with an exact sigma."""
    layer, x = normed("dense", passes)
    vectors, u = [], numpy(layer.u).astype("float64")
    W = numpy(layer.layer.kernel).astype("float64")
    weights = np.random.default_rng(2).normal(size=(4, 7))

    for _ in range(2):  # of the two passes below
        v = W @ u / np.linalg.norm(W @ u)
        u = v @ W / np.linalg.norm(v @ W)
        vectors.append((v, u))

    def objective(W):
        sizes = [v @ W @ u for v, u in vectors]
        if passes > 1:
            sizes = [np.linalg.svd(W)[1][0]]
        return np.mean([np.sum(weights * (x @ W) / size) for size in sizes])

    steps = np.eye(W.size).reshape(-1, *W.shape) * 1e-6
    expected = [(objective(W + s) - objective(W - s)) / 2e-6 for s in steps]

    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layer
            self.built = True

    holder = Holder()
    holder.compile(keras.optimizers.SGD(1.0))
    holder.optimizer.build(holder.trainable_variables)

    def loss():  # two passes before one gradient, as of a discriminator
        w = ops.convert_to_tensor(weights.astype("float32"))
        first = ops.sum(layer(x, training=True) * w)
        second = ops.sum(layer(x, training=True) * w)
        return 0.5 * (first + second), first

    gradients = backend.minimize(holder, loss, holder.trainable_variables)[2]
    found = dict(
        zip([v.path for v in holder.trainable_variables], gradients, strict=True)
    )
    kernel = numpy(found[layer.layer.kernel.path]).ravel()
    np.testing.assert_allclose(kernel, expected, rtol=1e-3, atol=1e-3)


def test_layers_that_add_more_are_told():
    for layer in (layers.Dense(3), layers.Dense(3, "relu", use_bias=False)):
        with pytest.raises(ValueError, match="use_bias=False and no activation"):
            SpectralNorm(layer)


def test_layers_of_other_kernels_are_told():
    for layer in (
        layers.Conv2DTranspose(3, 3, use_bias=False),
        layers.DepthwiseConv2D(3, use_bias=False),
        layers.Embedding(3, 4),
        layers.Conv2D(3, 3, data_format="channels_first", use_bias=False),
    ):
        with pytest.raises(ValueError, match="Conv3D, channels last"):
            SpectralNorm(layer)


def test_a_kernel_of_zeros_gives_zeros():
    layer = SpectralNorm(layers.Dense(3, use_bias=False, kernel_initializer="zeros"))
    assert np.all(numpy(layer(np.ones((2, 4), "float32"), training=True)) == 0.0)


def test_it_is_saved_with_its_vector(tmp_path):
    layer, x = normed("conv", passes=2)
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(numpy(again(x)), numpy(model(x)))
    assert len(again.weights) == 3
