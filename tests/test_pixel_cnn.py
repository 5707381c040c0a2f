"""PixelCNN and Gated PixelCNN: the networks as their papers give them, pixel by pixel
in NumPy."""

import numpy as np
import pytest
from scipy.special import expit
from zoo import cases, numpy, tiny

pytestmark = pytest.mark.portable


def convolve(layer, x):
    """A layer of x (H, W, F): zeros outside, and of the pixel's own row the taps up to
    the last that its mask leaves."""
    (top, bottom), (left, right) = layer.rows, layer.columns
    kernel = numpy(layer.effective_kernel())
    y = np.zeros((*x.shape[:2], layer.filters))
    y += numpy(layer.bias) if layer.use_bias else 0.0
    x = np.pad(x, ((-top, max(bottom, 0)), (-left, max(right, 0)), (0, 0)))
    for i, j in np.ndindex(*y.shape[:2]):
        window = x[i : i + bottom - top + 1, j : j + right - left + 1]
        y[i, j] += np.einsum("rcf,rcfg->g", window, kernel)
    return y


def relu(x):
    return np.maximum(x, 0.0)


def pixel_cnn(model, x, label):
    """Figure 5 and table 1 of van den Oord et al. 2016 (PixelRNN)."""
    biases = [numpy(dense.kernel)[label] for dense in model.label_layers]
    h = convolve(model.first, x) + biases[0]
    for (down, conv, up), bias in zip(model.blocks, biases[1:], strict=True):
        inner = convolve(conv, relu(convolve(down, relu(h)))) + bias
        h = h + convolve(up, relu(inner))
    return h


def gate(x):
    """Eq. 2 of van den Oord et al. 2016 (Gated PixelCNN)."""
    f, g = np.split(x, 2, axis=-1)
    return np.tanh(f) * expit(g)


def gated_pixel_cnn(model, x, label):
    """Its figure 2, with eq. 4 in both stacks."""
    v = h = x
    for i, block in enumerate(model.blocks):
        v_bias, h_bias = np.split(numpy(block.label.kernel)[label], 2)
        v = convolve(block.vertical, v)
        gates = convolve(block.horizontal, h) + convolve(block.link, v) + h_bias
        v = gate(v + v_bias)
        h = (h if i else 0.0) + convolve(block.out, gate(gates))
    return h


PAPERS = {"pixel-cnn": pixel_cnn, "gated": gated_pixel_cnn}


GRAY, COLOR = (4, 5, 1), (4, 5, 3)
CASES = cases(
    [("pixel-cnn", GRAY), ("gated", GRAY)],
    [("pixel-cnn", COLOR), ("gated", COLOR), ("gated", (1, 4, 1))],
)


@pytest.mark.parametrize("name, shape", CASES, ids=str)
def test_networks_are_those_of_the_papers(name, shape, rng):
    model = tiny(name, shape, 4, 2, num_blocks=2, first_kernel_size=5)
    x, labels = rng.integers(0, 4, (2, *shape)).astype("uint8"), np.array([1, 0])
    outputs = numpy(model.logits(x, labels))
    for image, label, out in zip(x / 3.0, labels, outputs, strict=True):
        h = PAPERS[name](model, image, label)
        for layer in model.head:
            h = convolve(layer, relu(h))
        assert np.abs(h).max() > 0.01
        np.testing.assert_allclose(out, h, atol=1e-5)
