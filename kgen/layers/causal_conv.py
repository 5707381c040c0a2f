"""Convolutions that see a shifted window: rows above and pixels to the left.

A causal convolution is often written as a square kernel times a mask, which multiplies
by zeros for nearly half of the time. Here the kernel has the taps that are used, and
the map is padded so that they fall on the right pixels (PixelCNN++ calls this
down-shifted and down-right-shifted). A mask is left for single taps: the pixel itself
where channels R, G, B follow one another, and the rest of the pixel's own row where a
kernel spans it and the rows above.

A causal layer works in two ways: `call` on the whole map, in training; and for the
sampler (kgen/models/cached_sampler.py) pixel by pixel, over a cache:

    cache = start(B, W, bias)      at the first row
    above = above(cache)           what the rows above add to each pixel of a row
    y, cache = step(x, cache)      at the next pixel of the row, or all of them
    rows = end_row(cache)          what the next row needs

(and Keras' `compute_output_shape`). A layer that sees the rows above alone, and columns
on the right, takes a whole row at a time, by `step_row`.

A cache is a dict of tensors, or nests of them: "weights", the same for all of an image;
"rows", of the rows above; "above", of these for the pixels of the step; "left", of the
pixels to the left, at first zeros; "seen", what `end_row` needs of the step's pixels.
Empty is (). A step takes a pixel, (B, F), or all pixels of a row, (B, W, F), which
have nothing to their left.

Shapes: B batch, H, W map, F features.
"""

import keras
import numpy as np
from keras import ops

from kgen import backend


def convolve(x, kernel, rows, columns, bias=None):
    """The convolution with windows of rows[1] - rows[0] + 1 by columns[1] - columns[0]
    + 1 taps, of which that at (i, j) covers the rows i + rows[0] .. i + rows[1] and
    columns j + columns[0] .. j + columns[1], zero outside: (B, H, W, F) with a kernel
    (rows, columns, F, filters) -> (B, H, W, filters)."""
    pads = ((-rows[0], rows[1]), (-columns[0], columns[1]))
    return backend.convolution(x, kernel, pads, bias)


def causal_mask(kind, rows, columns, inputs, outputs, channels, parts=1):
    """Which taps may be used so that dimensions see earlier ones only.

    Features belong to the image's channels in equal groups, first R's, then G's, then
    B's, in each of `parts` equal parts of the outputs. At the pixel itself, mask A
    joins features to those of earlier channels, mask B also to those of their own
    (van den Oord et al. 2016, PixelRNN, section 3.4).

    Returns: float32 (rows, columns, inputs, outputs) of 0 and 1.
    """
    size = [last - first + 1 for first, last in (rows, columns)]
    mask = np.ones((*size, inputs, outputs), "float32")
    if rows[1] < 0:
        return mask
    here, me = -rows[0], -columns[0]  # the pixel's own row and column in the window
    mask[here + 1 :] = 0
    mask[here, me + 1 :] = 0
    if columns[1] >= 0:
        source = np.arange(inputs) * channels // inputs
        width = outputs // parts
        target = np.arange(outputs) % width * channels // width
        earlier = source[:, None] < target if kind == "A" else source[:, None] <= target
        mask[here, me] = earlier
    return mask


@keras.saving.register_keras_serializable(package="kgen")
class ShiftedConv2D(keras.layers.Layer):
    """A convolution whose window at (i, j) is rows i + rows[0] .. i + rows[1] and
    columns j + columns[0] .. j + columns[1]: (B, H, W, inputs) -> (B, H, W, filters).
    Called with a bias (B, filters), that of a label, it is added to the layer's own.

    Args:
        filters: number of output features.
        rows, columns: first and last offset of the window, such as (-1, 0), (-1, 1).
        mask: None, "A" or "B"; see `causal_mask`.
        channels: of the image, for the mask.
        parts: parts of the outputs, each with features of all channels; a gate has 2.
        use_bias: whether to add a bias.
    """

    def __init__(
        self,
        filters,
        rows,
        columns,
        mask=None,
        channels=1,
        parts=1,
        use_bias=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.rows, self.columns = filters, tuple(rows), tuple(columns)
        self.mask, self.channels, self.parts = mask, channels, parts
        self.use_bias = use_bias

    def build(self, input_shape):
        inputs = input_shape[-1]
        size = [last - first + 1 for first, last in (self.rows, self.columns)]
        self.kernel = self.add_weight(
            shape=(*size, inputs, self.filters), name="kernel"
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.filters,), initializer="zeros", name="bias"
            )
        self._zeros = None
        if self.mask:
            mask = causal_mask(
                self.mask, self.rows, self.columns, inputs, self.filters,
                self.channels, self.parts,
            )  # fmt: skip
            self._zeros = None if mask.all() else mask
        self.built = True

    def effective_kernel(self):
        """The kernel after the mask: (rows, columns, inputs, filters)."""
        kernel = ops.cast(self.kernel, self.compute_dtype)  # also outside of `call`
        if self._zeros is None:
            return kernel
        return kernel * ops.convert_to_tensor(self._zeros, self.compute_dtype)

    def effective_bias(self):
        return ops.cast(self.bias, self.compute_dtype)  # (filters,)

    def call(self, x, bias=None):
        own = self.effective_bias() if self.use_bias else None
        kernel = self.effective_kernel()
        y = convolve(x, kernel, self.rows, self.columns, own)
        return y if bias is None else y + bias[:, None, None]

    def compute_output_shape(self, input_shape, bias_shape=None):
        return (*input_shape[:-1], self.filters)

    # Sampling; see the module

    def start(self, B, W, bias=None):
        kernel = self.effective_kernel()  # (rows, columns, F, filters)
        rows, _, F, _ = kernel.shape
        r = -self.columns[0]
        total = self.effective_bias() if self.use_bias else 0.0
        total = total if bias is None else total + bias  # (filters,) or (B, filters)
        # Taps of the pixel's row: those on its right are masked, if there are any
        of_row = kernel[-1:, : r + 1]
        own = ops.reshape(of_row, (-1, self.filters))
        dtype = self.compute_dtype
        return {
            "weights": {"kernel": kernel, "of_row": of_row, "own": own, "bias": total},
            "rows": ops.zeros((B, rows - 1, W, F), dtype) if rows > 1 else (),
            "left": ops.zeros((B, r * F), dtype) if r else (),
        }

    def above(self, cache):
        """With the bias: (B, W, filters). () for a window of one row."""
        if isinstance(cache["rows"], tuple):
            return ()
        kernel, bias = cache["weights"]["kernel"][:-1], cache["weights"]["bias"]
        pads = ((0, 0), (-self.columns[0], self.columns[1]))
        bias = bias if len(bias.shape) == 1 else bias[:, None]
        return backend.convolution(cache["rows"], kernel, pads)[:, 0] + bias

    def step(self, x, cache):
        """(B, F) or (B, W, F) -> the same with `filters`."""
        weights, left, r = cache["weights"], (), -self.columns[0]
        whole_row = len(x.shape) == 3
        if r and whole_row:
            pads = (0, 0), (r, min(0, self.columns[1]))
            y = backend.convolution(x[:, None], weights["of_row"], pads)[:, 0]
        elif r:
            near = ops.concatenate([cache["left"], x], axis=-1)  # (B, (r + 1) F)
            left = near[:, x.shape[-1] :]
            own = weights["own"]  # (r F, filters) where the pixel itself is not seen
            y = near[:, : own.shape[0]] @ own
        else:
            y = ops.dot(x, weights["own"])
        if self.rows[0] < 0:
            return y + cache["above"], {"left": left, "seen": x}
        bias = weights["bias"]
        labelled = len(np.shape(bias)) == 2
        bias = bias[:, None] if labelled and whole_row else bias
        return y + bias, {"left": left, "seen": ()}

    def end_row(self, cache):
        if isinstance(cache["rows"], tuple):
            return ()
        row = cache["seen"][:, None]  # (B, 1, W, F)
        return ops.concatenate([cache["rows"], row], axis=1)[:, 1:]

    def step_row(self, x, cache):
        """As `call`, from row to row: (B, 1, W, F), the last row of the window, ->
        (B, 1, W, filters). Of the cache it needs "weights" and "rows" alone."""
        weights, rows = cache["weights"], cache["rows"]
        if not isinstance(rows, tuple):
            x = ops.concatenate([rows, x], axis=1)
            rows = x[:, 1:]
        pads = ((0, 0), (-self.columns[0], self.columns[1]))
        y = backend.convolution(x, weights["kernel"], pads)
        bias = weights["bias"]
        labelled = len(np.shape(bias)) == 2
        return y + (bias[:, None, None] if labelled else bias), {"rows": rows}

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "rows": self.rows,
            "columns": self.columns,
            "mask": self.mask,
            "channels": self.channels,
            "parts": self.parts,
            "use_bias": self.use_bias,
        }
