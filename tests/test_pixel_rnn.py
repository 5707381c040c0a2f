"""PixelRNN: the parallel scans against an LSTM that goes from pixel to pixel."""

import numpy as np
import pytest
from scipy.special import expit
from zoo import new, numpy, tensor, tiny

from kgen.layers.pixel_lstm import RowLSTMLayer, skewed, unskewed

pytestmark = pytest.mark.portable

more = pytest.mark.exhaustive


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
    """(effective kernel, bias) in float64."""
    kernel = numpy(layer.effective_kernel()).astype("float64")
    return kernel, numpy(layer.bias).astype("float64")


def scan(layer, x, label_bias):
    """The layer from pixel to pixel, on one map (H, W, F)."""
    K_is, b = weights(layer.from_input)
    b, h = b + label_bias, layer.units
    K_ss = [numpy(k).astype("float64").reshape(-1, h, 4 * h) for k in layer.from_state]
    if isinstance(layer, RowLSTMLayer):
        return row_lstm(x, K_is[0], b, K_ss[0])
    part = 4 * h
    out = diagonal_lstm(x, K_is[0, 0, :, :part], b[:part], K_ss[0])
    left = diagonal_lstm(x[:, ::-1], K_is[0, 0, :, part:], b[part:], K_ss[1])
    out[1:] += left[:-1, ::-1]
    return out


SHAPES = [(5, 4, 1), (3, 7, 1), (1, 6, 1), (4, 4, 1), (5, 4, 3), (3, 7, 3), (1, 6, 3)]
SHAPES += [(6, 1, 3), (4, 4, 3)]
FURTHER = [(shape, True) for shape in SHAPES] + [((4, 5, 3), False)]


@pytest.mark.parametrize(
    "shape, skip",
    [
        ((4, 5, 3), True),
        ((6, 1, 1), True),
        *(pytest.param(*case, marks=more) for case in FURTHER),
    ],
)
@pytest.mark.parametrize("name", ["row-lstm", "diagonal"])
def test_networks_are_those_of_the_paper(name, shape, skip, rng):
    (H, W, _), r = shape, 1
    sizes = {"num_layers": 2, "first_kernel_size": 3, "skip_connections": skip}
    model = tiny(name, shape, 4, 2, **sizes)
    again = type(model).from_config(model.get_config())
    assert len(again.skips) == len(model.skips) == 2 * skip
    x = rng.integers(0, 4, (2, *shape)).astype("uint8")
    labels = np.array([1, 0])
    label_biases = [numpy(dense.kernel).astype("float64") for dense in model.of_label]
    first, bias = weights(model.first)

    def pointwise(layer, x):
        kernel, bias = weights(layer)
        return x @ kernel[0, 0] + bias

    extra = 1 if name == "diagonal" else 0
    for image, label, out in zip(
        x / 3.0, labels, numpy(model.logits(x, labels)), strict=True
    ):
        image = np.pad(image, ((r, 0), (r, r + extra), (0, 0)))
        now = np.zeros((H, W + extra, 12)) + bias + label_biases[0][label]
        for i, j in np.ndindex(*now.shape[:2]):
            window = image[i : i + r + 1, j : j + 2 * r + 1]
            now[i, j] += np.einsum("rcf,rcfg->g", window, first)
        skipped = 0.0
        for n, (layer, up) in enumerate(zip(model.scans, model.ups, strict=True)):
            h = scan(layer, now, label_biases[1 + n][label])
            now = now + pointwise(up, h)
            if skip:
                skipped = skipped + pointwise(model.skips[n], h)
        now = (now + skipped)[:, :W]
        for layer in model.head:
            now = pointwise(layer, np.maximum(now, 0))
        np.testing.assert_allclose(out, now, atol=1e-5)


@pytest.mark.parametrize(
    "H, W",
    [(5, 4), *(pytest.param(*s, marks=more) for s in ((3, 7), (1, 6), (6, 1), (4, 4)))],
)
def test_skewing_moves_row_i_by_i(H, W, rng):
    x = rng.normal(size=(2, H, W, 3)).astype("float32")
    out = numpy(skewed(tensor(x)))
    expected = np.zeros((2, H, H + W - 1, 3))
    for i in range(H):
        expected[:, i, i : i + W] = x[:, i]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(numpy(unskewed(tensor(out), W)), x)


@pytest.mark.parametrize("name", ["row-lstm", "diagonal"])
def test_forget_gates_start_open(name):
    model = new(name, (4, 4, 1), 2)
    bias = numpy(model.scans[0].from_input.bias).reshape(-1, 4, 6)
    assert np.all(bias[:, 1] == 1) and np.all(bias[:, [0, 2, 3]] == 0)
