"""Convolutions that see a shifted window: rows above and pixels to the left.

A causal convolution is often written as a square kernel times a mask, which multiplies
by zeros for nearly half of the time. Here the kernel has the taps that are used, and
the map is padded so that they fall on the right pixels (PixelCNN++ calls this
down-shifted and down-right-shifted). A mask is left for single taps: the pixel itself
where channels R, G, B follow one another, and the rest of the pixel's own row where a
kernel spans it and the rows above.

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

    def call(self, x):
        bias = self.effective_bias() if self.use_bias else None
        kernel = self.effective_kernel()
        return convolve(x, kernel, self.rows, self.columns, bias)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

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
