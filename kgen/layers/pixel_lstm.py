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
from kgen.layers.causal_conv import ShiftedConv2D


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


def _gate_bias(layer, bias):
    """The layer's own and a label's (B, .): (1 or B, 1, directions 4h)."""
    own = layer.from_input.effective_bias()[None, None]
    return own if bias is None else own + bias[:, None]


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

    def build(self, x_shape, bias_shape=None):
        h = self.units
        self.from_input.build(x_shape)
        open_forget = np.repeat([0.0, 1.0, 0.0, 0.0] * self.directions, h)
        self.from_input.bias.assign(open_forget)
        self.from_state = [
            self.add_weight(shape=(self.taps * h, 4 * h), name=f"from_state_{i}")
            for i in range(self.directions)
        ]
        self.built = True

    def compute_output_shape(self, x_shape, bias_shape=None):
        return (*x_shape[:-1], self.units)

    def get_config(self):
        own = {"units": self.units, "channels": self.channels}
        return super().get_config() | own


@keras.saving.register_keras_serializable(package="kgen")
class RowLSTMLayer(_Scan):
    """(B, H, W, F) -> h (B, H, W, h); `bias` (B, 4h), of a label, adds to the gates."""

    def call(self, x, bias=None):
        _, _, W, _ = x.shape
        x = ops.transpose(x, (1, 0, 2, 3))  # (H, B, W, F)
        gates = self.from_input(x)  # (H, B, W, 4h); the rows of any image are alike
        if bias is not None:
            gates = gates + bias[:, None]
        kernel = ops.convert_to_tensor(self.from_state[0])  # (3h, 4h)

        def row(state, gates):
            h, c = state  # (B, W, h) each
            sums = ops.reshape(shifts(h) @ kernel, (-1, W, 4 * self.units))
            h, c = lstm(gates, sums, c)
            return (h, c), h

        zeros = ops.zeros_like(gates[0, ..., : self.units])  # (B, W, h)
        _, h = backend.scan(row, (zeros, zeros), gates)  # (H, B, W, h)
        return ops.transpose(h, (1, 0, 2, 3))

    # Sampling; see kgen/layers/causal_conv.py

    def start(self, B, W, bias=None):
        kernel = self.from_input.effective_kernel()  # (1, 2, F, 4h)
        F, h, dtype = kernel.shape[2], self.units, self.compute_dtype
        weights = {
            "from_input": ops.reshape(kernel, (2 * F, 4 * h)),
            "from_state": ops.cast(self.from_state[0], dtype),  # (3h, 4h)
            "bias": _gate_bias(self, bias),
        }
        states = (ops.zeros((B, W, h), dtype),) * 2  # h and c
        return {"weights": weights, "rows": states, "left": ops.zeros((B, F), dtype)}

    def above(self, cache):
        """The state's part of the gates (B, W, 4h), and c (B, W, h)."""
        weights, (h, c) = cache["weights"], cache["rows"]
        sums = shifts(h) @ weights["from_state"]  # (B W, 4h)
        sums = ops.reshape(sums, (-1, h.shape[1], 4 * self.units))
        return sums + weights["bias"], c

    def step(self, x, cache):
        """(B, F) or (B, W, F) -> h, (B, h) or (B, W, h)."""
        (sums, c), before = cache["above"], cache["left"]  # the left neighbour's x
        if len(x.shape) == 3:
            before = ops.pad(x[:, :-1], [[0, 0], [1, 0], [0, 0]])
        near = ops.concatenate([before, x], axis=-1)  # (B, 2F) or (B, W, 2F)
        h, c = lstm(ops.dot(near, cache["weights"]["from_input"]), sums, c)
        return h, {"left": x, "seen": (h, c)}

    def end_row(self, cache):
        return cache["seen"]


@keras.saving.register_keras_serializable(package="kgen")
class DiagonalBiLSTMLayer(_Scan):
    """(B, H, W, F) -> the sum of both directions' h (B, H, W, h); `bias` (B, 8h), of a
    label, is added to the gates."""

    directions, taps, columns = 2, 2, (0, 0)

    def call(self, x, bias=None):
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
        bias = ops.reshape(_gate_bias(self, bias), (-1, 2, 1, 4 * h))
        bias = ops.transpose(bias, (1, 0, 2, 3))  # (2, B or 1, 1, 4h)
        gates = gates + on_map * bias  # (T, 2, B, H, 4h)
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

    # Sampling; see kgen/layers/causal_conv.py. The state that goes right is carried
    # from pixel to pixel; the one that goes left is scanned when its row is complete.

    def start(self, B, W, bias=None):
        h, dtype = self.units, self.compute_dtype
        kernel = self.from_input.effective_kernel()[0, 0]  # (F, 8h)
        from_state = [ops.cast(k, dtype) for k in self.from_state]  # (2h, 4h)
        weights = {
            "from_input": ops.split(kernel, 2, axis=-1),  # of each direction, as below
            "bias": ops.split(_gate_bias(self, bias), 2, axis=-1),
            "above": [k[:h] for k in from_state],  # (h, 4h)
            "before": [k[h:] for k in from_state],
        }
        rows = (ops.zeros((B, W, h), dtype),) * 2  # h of both directions
        return {"weights": weights, "rows": rows, "left": self._no_state(B)}

    def _no_state(self, B):
        """h and c beside the map: (B, h) each."""
        return (ops.zeros((B, self.units), self.compute_dtype),) * 2

    def _from_above(self, cache, direction):
        """What the row above adds to the gates of a direction: (B, W, 4h)."""
        weights, h = cache["weights"], cache["rows"][direction]
        sums = ops.reshape(h, (-1, self.units)) @ weights["above"][direction]
        sums = ops.reshape(sums, (-1, h.shape[1], 4 * self.units))
        return sums + weights["bias"][direction]

    def above(self, cache):
        return self._from_above(cache, 0), cache["rows"][1]

    def step(self, x, cache):
        """(B, F) or (B, W, F) -> the sum of both h, (B, h) or (B, W, h)."""
        weights, (sums, leftward) = cache["weights"], cache["above"]

        def one_pixel(state, gates):
            h, c = state
            state = lstm(gates, h @ weights["before"][0], c)
            return state, state[0]

        gates = ops.dot(x, weights["from_input"][0]) + sums  # (B, 4h) or (B, W, 4h)
        if len(x.shape) == 3:
            gates = ops.swapaxes(gates, 0, 1)
            left, h = backend.scan(one_pixel, cache["left"], gates)  # (W, B, h)
            h = ops.swapaxes(h, 0, 1)
        else:
            left, h = one_pixel(cache["left"], gates)
        return h + leftward, {"left": left, "seen": (h, x)}

    def end_row(self, cache):
        """The row's own pass from right to left."""
        weights, (h, x) = cache["weights"], cache["seen"]  # (B, W, h), (B, W, F)
        sums = self._from_above(cache, 1)  # (B, W, 4h)
        sums = ops.swapaxes(sums + ops.dot(x, weights["from_input"][1]), 0, 1)

        def one_pixel(state, sums):
            state = lstm(sums, state[0] @ weights["before"][1], state[1])
            return state, state[0]

        start = self._no_state(ops.shape(h)[0])
        _, left = backend.scan(one_pixel, start, ops.flip(sums, axis=0))
        return h, ops.swapaxes(ops.flip(left, axis=0), 0, 1)
