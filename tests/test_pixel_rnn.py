"""PixelRNN: the parallel scans against an LSTM that goes from pixel to pixel."""

import numpy as np
import pytest
from scipy.special import expit
from zoo import cases, new, numpy, tiny

pytestmark = pytest.mark.portable


def step(sums, c_before):
    """Eq. 3 of the paper, at one pixel."""
    o, f, i, g = np.split(sums, 4)
    c = expit(f) * c_before + expit(i) * np.tanh(g)
    return expit(o) * np.tanh(c), c


def row_lstm(x, K_is, b, K_ss):
    """x (H, W, F), K_is (2, F, 4h) of the pixel's left neighbor and itself, K_ss
    (3, h, 4h) of the pixels above, from left to right."""
    H, W, _ = x.shape
    x = np.pad(x, ((0, 0), (1, 0), (0, 0)))
    h, c = np.zeros((2, H + 1, W + 2, K_ss.shape[1]))  # zeros around the map
    for i, j in np.ndindex(H, W):
        sums = x[i, j] @ K_is[0] + x[i, j + 1] @ K_is[1] + b
        sums = sums + np.einsum("th,thg->g", h[i, j : j + 3], K_ss)
        h[i + 1, j + 1], c[i + 1, j + 1] = step(sums, c[i, j + 1])
    return h[1:, 1:-1]


def diagonal_lstm(x, K_is, b, K_ss):
    """From left to right; K_ss (2, h, 4h) of the pixel above and of the one before."""
    H, W, _ = x.shape
    h, c = np.zeros((2, H + 1, W + 1, K_ss.shape[1]))
    for i, j in np.ndindex(H, W):
        sums = x[i, j] @ K_is + b + h[i, j + 1] @ K_ss[0] + h[i + 1, j] @ K_ss[1]
        h[i + 1, j + 1], c[i + 1, j + 1] = step(sums, c[i + 1, j])
    return h[1:, 1:]


def weights(layer):
    return numpy(layer.effective_kernel()), numpy(layer.bias)


def scan(name, layer, x, label_bias):
    """The layer from pixel to pixel, on one map (H, W, F)."""
    (K_is, b), part = weights(layer.from_input), 4 * layer.units
    b = b + label_bias
    K_ss = [numpy(k).reshape(-1, layer.units, part) for k in layer.from_state]
    if name == "row-lstm":
        return row_lstm(x, K_is[0], b, K_ss[0])
    out = diagonal_lstm(x, K_is[0, 0, :, :part], b[:part], K_ss[0])
    left = diagonal_lstm(x[:, ::-1], K_is[0, 0, :, part:], b[part:], K_ss[1])
    out[1:] += left[:-1, ::-1]
    return out


SHAPES = [(5, 4, 1), (3, 7, 1), (1, 6, 1), (4, 4, 1), (5, 4, 3), (3, 7, 3), (1, 6, 3)]
SHAPES += [(6, 1, 3), (4, 4, 3)]
FURTHER = [*((shape, True) for shape in SHAPES), ((4, 5, 3), False)]
CASES = cases([((4, 5, 3), True), ((6, 1, 1), True)], FURTHER)


@pytest.mark.parametrize("shape, skip", CASES)
@pytest.mark.parametrize("name", ["row-lstm", "diagonal"])
def test_networks_are_those_of_the_paper(name, shape, skip, rng):
    (H, W, _), r, extra = shape, 1, int(name == "diagonal")
    sizes = {"num_layers": 2, "first_kernel_size": 3, "skip_connections": skip}
    model = tiny(name, shape, 4, 2, **sizes)
    again = type(model).from_config(model.get_config())
    assert len(again.skips) == len(model.skips) == 2 * skip
    x, labels = rng.integers(0, 4, (2, *shape)).astype("uint8"), np.array([1, 0])
    label_biases = [numpy(dense.kernel) for dense in model.label_layers]
    first, bias = weights(model.first)

    def pointwise(layer, x):
        kernel, bias = weights(layer)
        return x @ kernel[0, 0] + bias

    outputs = numpy(model.logits(x, labels))
    for image, label, out in zip(x / 3.0, labels, outputs, strict=True):
        image = np.pad(image, ((r, 0), (r, r + extra), (0, 0)))
        now = np.zeros((H, W + extra, 12)) + bias + label_biases[0][label]
        for i, j in np.ndindex(*now.shape[:2]):
            window = image[i : i + r + 1, j : j + 2 * r + 1]
            now[i, j] += np.einsum("rcf,rcfg->g", window, first)
        skipped = 0.0
        for n, (layer, up) in enumerate(zip(model.scans, model.ups, strict=True)):
            h = scan(name, layer, now, label_biases[1 + n][label])
            now = now + pointwise(up, h)
            if skip:
                skipped = skipped + pointwise(model.skips[n], h)
        now = (now + skipped)[:, :W]
        for layer in model.head:
            now = pointwise(layer, np.maximum(now, 0))
        np.testing.assert_allclose(out, now, atol=1e-5)


@pytest.mark.parametrize("name", ["row-lstm", "diagonal"])
def test_forget_gates_start_open(name):
    model = new(name, (4, 4, 1), 2)
    bias = numpy(model.scans[0].from_input.bias).reshape(-1, 4, 6)
    assert np.all(bias[:, 1] == 1) and np.all(bias[:, [0, 2, 3]] == 0)
