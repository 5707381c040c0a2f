"""LSTMs over maps of pixels: Row LSTM and Diagonal BiLSTM.

    A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu. Pixel Recurrent Neural Networks.
        ICML 2016, arXiv:1601.06759 (sections 3.1, 3.2 and 3.4)

A layer's input-to-state part is one convolution of the whole map; its state-to-state
part is scanned, * being a convolution and . the elementwise product:

    [o, f, i, g] = [sigma, sigma, sigma, tanh](K_ss * h_before + K_is * x)
    c = f . c_before + i . g,   h = o . tanh(c)                                      (3)

Row LSTM: "before" is the row above, K_ss has 3 taps of it, K_is those of the pixel and
its left neighbour: a row a step, H steps. State reaches one pixel further to either
side a row, so the context is a triangle above the pixel.

Diagonal BiLSTM: K_ss has two taps, the states above and to the left; c_before is that
to the left. Skewed, row i moved i to the right, both are in the column before, so that
a step does a diagonal, and there are T = H + W - 1. A second LSTM does the same from
the right; its output is moved one row down, as it has seen pixels to the right of its
own, and the two are added.

Forget gates start with a bias of 1, which the paper does not mention.

Shapes: B batch, H, W map, F input features, h units, T diagonals.
"""

import keras
import numpy as np
from keras import layers, ops

from kgen import backend
from kgen.layers.shifted import ShiftedConv2D


def lstm(from_input, from_state, c):
    """Eq. 3 from the two parts of the sums (..., 4h) and the state c (..., h): the next
    h and c."""
    o, f, i, g = ops.split(from_input + from_state, 4, axis=-1)  # (..., h) each
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def skew(x):
    """Row i of x (n, H, W, F) moved i to the right, with zeros: (n, H, T, F)."""
    _, H, W, F = x.shape
    x = ops.pad(x, [[0, 0], [0, 0], [0, H], [0, 0]])  # (n, H, W + H, F)
    x = ops.reshape(x, (-1, H * (W + H), F))[:, :-H]
    return ops.reshape(x, (-1, H, W + H - 1, F))


def unskew(x, W):
    """Back: (n, H, T, F) -> (n, H, W, F)."""
    _, H, T, F = x.shape
    x = ops.pad(ops.reshape(x, (-1, H * T, F)), [[0, 0], [0, H], [0, 0]])
    return ops.reshape(x, (-1, H, T + 1, F))[:, :, :W]


def inside(H, W):
    """Which of the skewed positions are pixels: 1 or 0, (T, 1, 1, H, 1)."""
    on_map = ops.reshape(skew(ops.ones((1, H, W, 1))), (H, -1))  # (H, T)
    return ops.reshape(ops.transpose(on_map), (-1, 1, 1, H, 1))


def shifts(h):
    """Each pixel's left neighbour, itself and the right one: (B, W, h) -> (B W, 3h)."""
    h_size = h.shape[-1]
    h = ops.pad(h, [[0, 0], [1, 1], [0, 0]])  # (B, W + 2, h)
    near = ops.concatenate([h[:, :-2], h[:, 1:-1], h[:, 2:]], axis=-1)
    return ops.reshape(near, (-1, 3 * h_size))


class _Scan(layers.Layer):
    """What both layers have: K_is as `from_input`, K_ss as `from_state`.

    Args:
        units: h.
        channels: C of the image.
    """

    directions, taps, columns = 1, 3, (-1, 0)

    def __init__(self, units, channels=1, **kwargs):
        super().__init__(**kwargs)
        self.units, self.channels = units, channels
        self.from_input = ShiftedConv2D(
            self.directions * 4 * units,
            (0, 0),
            self.columns,
            mask="B",
            channels=channels,
            parts=self.directions * 4,
            name="from_input",
            dtype=self.dtype_policy,
        )

    def build(self, x_shape, label_bias_shape=None):
        h = self.units
        self.from_input.build(x_shape)
        open_forget = np.repeat([0.0, 1.0, 0.0, 0.0] * self.directions, h)
        self.from_input.bias.assign(open_forget)
        self.from_state = [
            self.add_weight(shape=(self.taps * h, 4 * h), name=f"from_state_{i}")
            for i in range(self.directions)
        ]
        self.built = True

    def incremental(self, label_bias=None):
        """The layer for the sampler, with a label's part (B, directions 4h)."""
        return self.incremental_class(self, label_bias)

    def get_config(self):
        own = {"units": self.units, "channels": self.channels}
        return super().get_config() | own


class _IncrementalRow:
    """A Row LSTM layer for the sampler (kgen/models/incremental.py).

    `above(state)` is what the state of the row above gives to each pixel, `pixel(left,
    name, above_j, x)` the layer at one, its caches in `left` called `name`: its h, and
    what `end_row(state, kept)` makes the next row's state of.
    """

    def __init__(self, layer, label_bias=None):
        self.units, self.dtype = layer.units, layer.compute_dtype
        self.from_input = layer.from_input.effective_kernel()[0]  # (2, F, 4h)
        self.from_state = ops.cast(layer.from_state[0], self.dtype)  # (3h, 4h)
        bias = layer.from_input.effective_bias()[None, None]
        self.bias = bias if label_bias is None else bias + label_bias[:, None]

    def no_rows(self, B, W):
        """h and c of the row above, (B, W, h) each."""
        return (ops.zeros((B, W, self.units), self.dtype),) * 2

    def no_left(self, B):
        """The left neighbour's features: (B, F)."""
        return ops.zeros((B, self.from_input.shape[1]), self.dtype)

    def above(self, state):
        h, c = state
        sums = shifts(h) @ self.from_state  # (B W, 4h)
        return ops.reshape(sums, (-1, h.shape[1], 4 * self.units)) + self.bias, c

    def pixel(self, left, name, above, x):
        sums, c = above
        before = left.neighbour(name, x)  # (B, F)
        gates = before @ self.from_input[0] + x @ self.from_input[1]  # (B, 4h)
        h, c = lstm(gates, sums, c)
        return h, (h, c)

    def end_row(self, state, kept):
        del state
        return tuple(ops.swapaxes(k, 0, 1) for k in kept)


class _IncrementalDiagonal:
    """A Diagonal BiLSTM layer for the sampler. The state that goes right is carried
    from pixel to pixel; the one that goes left is scanned when its row is complete."""

    def __init__(self, layer, label_bias=None):
        h = self.units = layer.units
        self.dtype = layer.compute_dtype
        kernel = layer.from_input.effective_kernel()[0, 0]  # (F, 8h)
        bias = layer.from_input.effective_bias()[None, None]
        bias = (
            bias if label_bias is None else bias + label_bias[:, None]
        )  # (B or 1, 1, 8h)
        self.from_input = kernel[:, : 4 * h], kernel[:, 4 * h :]
        self.bias = bias[..., : 4 * h], bias[..., 4 * h :]
        from_state = [ops.cast(k, self.dtype) for k in layer.from_state]
        self.above_k = [k[:h] for k in from_state]  # (h, 4h) each
        self.before_k = [k[h:] for k in from_state]

    def no_rows(self, B, W):
        """h of the row above, of the state that goes right and that goes left."""
        return (ops.zeros((B, W, self.units), self.dtype),) * 2

    def no_left(self, B):
        """h and c of the left neighbour, (B, h) each."""
        return (ops.zeros((B, self.units), self.dtype),) * 2

    def _above(self, h, which):
        sums = ops.reshape(h, (-1, self.units)) @ self.above_k[which]
        return ops.reshape(sums, (-1, h.shape[1], 4 * self.units)) + self.bias[which]

    def above(self, state):
        right, left = state
        return self._above(right, 0), left

    def pixel(self, left, name, above, x):
        sums, leftward = above

        def one_pixel(state, gates):
            h, c = state
            return lstm(gates, h @ self.before_k[0], c)

        gates = x @ self.from_input[0] + sums  # (B, 4h)
        h, _ = left.carry(name, one_pixel, gates)
        return h + leftward, (h, x)

    def end_row(self, state, kept):
        """The row's own pass from right to left."""
        h, x = kept  # (W, B, h), (W, B, F)
        sums = ops.swapaxes(self._above(state[1], 1), 0, 1)  # (W, B, 4h)
        gates = ops.reshape(x, (-1, x.shape[-1])) @ self.from_input[1]
        sums = sums + ops.reshape(gates, ops.shape(sums))

        def one_pixel(state, sums):
            state_h, c = lstm(sums, state[0] @ self.before_k[1], state[1])
            return (state_h, c), state_h

        start = self.no_left(ops.shape(h)[1])
        _, left = backend.scan(one_pixel, start, ops.flip(sums, axis=0))
        left = ops.flip(left, axis=0)
        return tuple(ops.swapaxes(k, 0, 1) for k in (h, left))


@keras.saving.register_keras_serializable(package="kgen")
class RowLSTMLayer(_Scan):
    """(B, H, W, F) -> h (B, H, W, h); `label_bias` (B, 1, 1, 4h) adds to the gates."""

    incremental_class = _IncrementalRow

    def call(self, x, label_bias=None):
        _, _, W, _ = x.shape
        x = ops.transpose(x, (1, 0, 2, 3))  # (H, B, W, F)
        gates = self.from_input(x)  # (H, B, W, 4h); the rows of any image are alike
        if label_bias is not None:
            gates = gates + ops.transpose(label_bias, (1, 0, 2, 3))
        kernel = ops.convert_to_tensor(self.from_state[0])  # (3h, 4h)

        def row(state, gates):
            h, c = state  # (B, W, h) each
            sums = ops.reshape(shifts(h) @ kernel, (-1, W, 4 * self.units))
            h, c = lstm(gates, sums, c)
            return (h, c), h

        zeros = ops.zeros_like(gates[0, ..., : self.units])  # (B, W, h)
        _, h = backend.scan(row, (zeros, zeros), gates)  # (H, B, W, h)
        return ops.transpose(h, (1, 0, 2, 3))


@keras.saving.register_keras_serializable(package="kgen")
class DiagonalBiLSTMLayer(_Scan):
    """(B, H, W, F) -> the sum of both directions' h (B, H, W, h); `label_bias`
    (B, 1, 1, 8h) is added to the gates."""

    directions, taps, columns = 2, 2, (0, 0)
    incremental_class = _IncrementalDiagonal

    def _constant(self, label_bias):
        """What is added to the gates at every pixel: (2, B or 1, 1, 4h)."""
        b = ops.reshape(self.from_input.bias, (1, 1, 1, -1))
        b = b if label_bias is None else b + label_bias  # (B or 1, 1, 1, 8h)
        b = ops.reshape(b, (-1, 2, 1, 4 * self.units))
        return ops.transpose(b, (1, 0, 2, 3))

    def call(self, x, label_bias=None):
        _, H, W, F = x.shape
        h, T = self.units, H + W - 1
        x = ops.concatenate([x, ops.flip(x, axis=2)], axis=0)  # (2 B, H, W, F)
        x = ops.transpose(skew(x), (2, 0, 1, 3))  # (T, 2 B, H, F)
        kernel = ops.reshape(self.from_input.effective_kernel(), (F, 2, 4 * h))
        kernel = ops.transpose(kernel, (1, 0, 2))  # (2, F, 4h)
        gates = ops.reshape(x, (T, 2, -1, F)) @ kernel  # (T, 2, B H, 4h)
        # Outside of the map gates are zero, and so h and c are: as left of its edge.
        gates = ops.reshape(gates, (T, 2, -1, H, 4 * h))
        on_map = ops.cast(inside(H, W), gates.dtype)  # (T, 1, 1, H, 1)
        gates = gates + on_map * self._constant(label_bias)  # (T, 2, B, H, 4h)
        gates = ops.reshape(gates, (T, -1, H, 4 * h))  # (T, 2 B, H, 4h)
        # 1.0 *: TensorFlow does not stack variables
        kernel = ops.stack([1.0 * k for k in self.from_state])  # (2, 2h, 4h)

        def diagonal(state, gates):
            state_h, c = state  # (2 B, H, h) each
            above = ops.pad(ops.split(state_h, [H - 1], 1)[0], [[0, 0], [1, 0], [0, 0]])
            near = ops.concatenate([above, state_h], axis=-1)  # (2 B, H, 2h)
            sums = ops.reshape(near, (2, -1, 2 * h)) @ kernel  # (2, B H, 4h)
            state_h, c = lstm(gates, ops.reshape(sums, (-1, H, 4 * h)), c)
            return (state_h, c), state_h

        zeros = ops.zeros_like(gates[0, ..., :h])  # (2 B, H, h)
        _, out = backend.scan(diagonal, (zeros, zeros), gates)  # (T, 2 B, H, h)
        out = unskew(ops.transpose(out, (1, 2, 0, 3)), W)  # (2 B, H, W, h)
        right, left = ops.split(ops.reshape(out, (2, -1, H, W, h)), 2)
        left = ops.flip(left[0], axis=2)[:, :-1]  # (B, H - 1, W, h)
        return right[0] + ops.pad(left, [[0, 0], [1, 0], [0, 0], [0, 0]])
