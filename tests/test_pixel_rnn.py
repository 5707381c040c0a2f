"""PixelRNN: the parallel scans against an LSTM that goes from pixel to pixel."""

import numpy as np
import pytest
from exact import numpy, randomized, sees, tiny
from keras import ops

from kgen.layers.pixel_lstm import (
    DiagonalBiLSTMLayer,
    RowLSTMLayer,
    skewed,
    unskewed,
)
from kgen.models import DiagonalBiLSTM, RowLSTM

SHAPES = [(5, 4), (3, 7), (1, 6), (6, 1), (4, 4)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Pixels:
    """State at every pixel of one image, and zeros around it."""

    def __init__(self, H, W, units):
        self.map = np.zeros((H, W, units))

    def __getitem__(self, at):
        (i, j), (H, W, units) = at, self.map.shape
        return self.map[i, j] if 0 <= i < H and 0 <= j < W else np.zeros(units)


def step(sums, c_before):
    """Eq. 3 of the paper, at one pixel."""
    o, f, i, g = np.split(sums, 4)
    c = sigmoid(f) * c_before + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def row_lstm(x, K_is, b, K_ss):
    """x (H, W, F), K_is (2, F, 4h) of the pixel's left neighbour and itself, K_ss
    (3, h, 4h) of the pixels above, from left to right."""
    H, W, _ = x.shape
    h, c = (Pixels(H, W, K_ss.shape[1]) for _ in range(2))
    for i in range(H):
        for j in range(W):
            sums = x[i, j] @ K_is[1] + b
            if j > 0:
                sums = sums + x[i, j - 1] @ K_is[0]
            for tap in range(3):
                sums = sums + h[i - 1, j + tap - 1] @ K_ss[tap]
            h.map[i, j], c.map[i, j] = step(sums, c[i - 1, j])
    return h.map


def diagonal_lstm(x, K_is, b, K_ss, columns):
    """One direction: `columns` in the order of the walk; K_ss (2, h, 4h) of the pixel
    above and of the one before."""
    H, W, _ = x.shape
    h, c = (Pixels(H, W, K_ss.shape[1]) for _ in range(2))
    back = columns[0] - columns[1] if W > 1 else 1
    for i in range(H):
        for j in columns:
            sums = x[i, j] @ K_is + b + h[i - 1, j] @ K_ss[0] + h[i, j + back] @ K_ss[1]
            h.map[i, j], c.map[i, j] = step(sums, c[i, j + back])
    return h.map


def weights(layer):
    """(effective kernel, bias) in float64."""
    kernel = numpy(layer.effective_kernel()).astype("float64")
    return kernel, numpy(layer.bias).astype("float64")


def scanned(layer, x, of_label):
    """The layer from pixel to pixel, on one map (H, W, F)."""
    K_is, b = weights(layer.from_input)
    b, h = b + of_label, layer.units
    K_ss = [numpy(k).astype("float64").reshape(-1, h, 4 * h) for k in layer.from_state]
    if isinstance(layer, RowLSTMLayer):
        return row_lstm(x, K_is[0], b, K_ss[0])
    W, part = x.shape[1], 4 * h
    out = diagonal_lstm(x, K_is[0, 0, :, :part], b[:part], K_ss[0], list(range(W)))
    left = diagonal_lstm(
        x, K_is[0, 0, :, part:], b[part:], K_ss[1], list(range(W))[::-1]
    )
    out[1:] += left[:-1]
    return out


@pytest.mark.parametrize("H,W", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", [RowLSTMLayer, DiagonalBiLSTMLayer])
def test_layers_are_the_paper_s_from_pixel_to_pixel(kind, H, W, channels, rng):
    layer = kind(6, channels)
    layer.build((None, H, W, 9))
    randomized(layer)
    x = rng.normal(size=(3, H, W, 9)).astype("float32")
    expected = [scanned(layer, image, 0.0) for image in x]
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=1e-5)


@pytest.mark.parametrize("H,W", SHAPES)
def test_skewing_moves_row_i_by_i(H, W, rng):
    x = rng.normal(size=(2, H, W, 3)).astype("float32")
    out = numpy(skewed(ops.convert_to_tensor(x)))
    expected = np.zeros((2, H, H + W - 1, 3))
    for i in range(H):
        expected[:, i, i : i + W] = x[:, i]
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(numpy(unskewed(ops.convert_to_tensor(out), W)), x)


def row_context(H, W, first, num_layers):
    """[pixel, pixel] of the paper's Row LSTM, by following what each part reads: sets
    of image pixels that each map's pixel depends on."""

    def at(i, j):
        return i * W + j

    def inside(i, j):
        return 0 <= i < H and 0 <= j < W

    r = first // 2
    now = np.zeros((H, W, H * W), bool)  # the first layer: mask A of a square
    for i in range(H):
        for j in range(W):
            for di in range(-r, 1):
                for dj in range(-r, r + 1 if di else 0):
                    if inside(i + di, j + dj):
                        now[i, j, at(i + di, j + dj)] = True
    for _ in range(num_layers):
        h = np.zeros_like(now)
        for i in range(H):
            for j in range(W):
                h[i, j] = now[i, j]  # input to state: itself, and to its left
                if j:
                    h[i, j] |= now[i, j - 1]
                for dj in (-1, 0, 1):  # state to state: the row above
                    if inside(i - 1, j + dj):
                        h[i, j] |= h[i - 1, j + dj]
        now = now | h
    return now.reshape(H * W, H * W)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("first", [3, 7])
def test_row_lstm_sees_its_triangle_and_nothing_else(num_layers, first, rng):
    H, W = 4, 10
    model = RowLSTM((H, W, 1), units=24, num_layers=num_layers, first_kernel_size=first)
    seen = sees(randomized(model), rng.integers(0, 2, (16, H, W, 1)))
    expected = row_context(H, W, first, num_layers)
    assert not np.array_equal(expected, np.tri(H * W, k=-1, dtype=bool))
    np.testing.assert_array_equal(seen, expected)


def test_row_lstm_takes_channels_in_turn(rng):
    H, W = 3, 7
    model = RowLSTM((H, W, 3), units=48, num_layers=2, first_kernel_size=3)
    seen = sees(randomized(model), rng.integers(0, 2, (16, H, W, 3)))
    pixels = row_context(H, W, 3, 2)
    expected = np.kron(pixels, np.ones((3, 3), bool))
    expected |= np.kron(np.eye(H * W, dtype=bool), np.tri(3, k=-1, dtype=bool))
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("shape", [(4, 9, 1), (6, 3, 1), (1, 8, 1), (3, 4, 3)], ids=str)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_diagonal_bilstm_sees_every_earlier_pixel_and_no_later_one(
    shape, num_layers, rng
):
    units = 24 * shape[-1]
    model = DiagonalBiLSTM(
        shape, units=units, num_layers=num_layers, first_kernel_size=3
    )
    seen = sees(randomized(model, scale=1.5), rng.integers(0, 2, (16, *shape)))
    np.testing.assert_array_equal(seen, np.tri(len(seen), k=-1, dtype=bool))


@pytest.mark.parametrize("kind", [RowLSTM, DiagonalBiLSTM])
@pytest.mark.parametrize("skip", [False, True])
def test_the_whole_network_is_the_paper_s(kind, skip, rng):
    H, W, C, r = 4, 5, 3, 1
    model = kind(
        (H, W, C), 4, 2, units=6, num_layers=2, first_kernel_size=3,
        skip_connections=skip,
    )  # fmt: skip
    randomized(model)
    x = rng.integers(0, 4, (2, H, W, C)).astype("uint8")
    labels = np.array([1, 0])
    of_label = [numpy(dense.kernel).astype("float64") for dense in model.of_label]
    first, bias = weights(model.first)

    def pointwise(layer, x):
        kernel, bias = weights(layer)
        return x @ kernel[0, 0] + bias

    extra = 1 if kind is DiagonalBiLSTM else 0
    for image, label, out in zip(
        numpy(model.scale(x)), labels, numpy(model.logits(x, labels)), strict=True
    ):
        image = np.pad(image, ((r, 0), (r, r + extra), (0, 0)))
        now = np.zeros((H, W + extra, 12)) + bias + of_label[0][label]
        for i, j in np.ndindex(*now.shape[:2]):
            window = image[i : i + r + 1, j : j + 2 * r + 1]
            now[i, j] += np.einsum("rcf,rcfg->g", window, first)
        skipped = 0.0
        for n, (scan, up) in enumerate(zip(model.scans, model.ups, strict=True)):
            h = scanned(scan, now, of_label[1 + n][label])
            now = now + pointwise(up, h)
            if skip:
                skipped = skipped + pointwise(model.skips[n], h)
        now = (now + skipped)[:, :W]
        for layer in model.head:
            now = pointwise(layer, np.maximum(now, 0))
        np.testing.assert_allclose(out, now, atol=1e-5)


@pytest.mark.parametrize("kind", [RowLSTM, DiagonalBiLSTM])
def test_skip_connections_and_labels_reach_the_output(kind, rng):
    x = rng.integers(0, 4, (5, 4, 3, 3)).astype("uint8")
    labels = np.arange(5) % 2
    given = {"levels": 4, "num_classes": 2, "units": 6, "num_layers": 2}
    plain = randomized(kind((4, 3, 3), **given))
    assert not plain.skips
    model = randomized(kind((4, 3, 3), **given, skip_connections=True))
    before = numpy(model.logits(x, labels))
    other = numpy(model.logits(x, 1 - labels))
    assert np.all(np.abs(before - other).max((1, 2, 3)) > 1e-4)
    for skip in model.skips:
        skip.kernel.assign(skip.kernel * 0)
        after = numpy(model.logits(x, labels))
        assert np.abs(after - before).max() > 1e-4
        before = after
    again = kind.from_config(model.get_config())
    assert len(again.skips) == 2 and again.skip_connections


@pytest.mark.parametrize("kind", [RowLSTM, DiagonalBiLSTM])
def test_forget_gates_start_open(kind):
    model = kind((4, 4, 1), units=6, num_layers=1)
    bias = numpy(model.scans[0].from_input.bias).reshape(-1, 4, 6)
    assert np.all(bias[:, 1] == 1) and np.all(bias[:, [0, 2, 3]] == 0)


@pytest.mark.parametrize("kind", ["row-lstm", "diagonal"])
def test_wrong_sizes_are_told(kind):
    for kwargs, words in (
        ({"units": 4}, "units must be a positive multiple of the image's 3 chann"),
        ({"first_kernel_size": 1}, "must be an odd integer, 3 or more; got 1"),
        ({"num_layers": 0}, "num_layers must be a positive integer; got 0"),
        ({"head_filters": 4}, "head_filters must be a positive multiple"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(kind, (4, 4, 3), 4, **kwargs)
