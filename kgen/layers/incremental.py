"""Layers of the convolutional families, from row to row and from pixel to pixel: see
kgen/models/incremental.py.

Shapes: B batch, w width of the map, F input features, G outputs.
"""

from keras import ops

from kgen import backend
from kgen.layers.weight_norm import concat_elu


def flat(window, kernel):
    """A window (B, n, F) times the taps of a kernel (n, F, G): (B, G)."""
    n, F, G = kernel.shape
    return ops.reshape(window, (-1, n * F)) @ ops.reshape(kernel, (n * F, G))


class Causal:
    """A ShiftedConv2D of rows -r .. 0 and columns -r .. r or -r .. 0, which goes from
    row to row and, within one, from pixel to pixel. `more` is added to its bias."""

    def __init__(self, layer, more=None):
        kernel = layer.effective_kernel()  # (r + 1, columns, F, G)
        self.reach = -layer.columns[0]
        self.columns, self.dtype = layer.columns, layer.compute_dtype
        self.kernel = kernel[:-1]
        self.own = kernel[-1][: self.reach + 1]  # of the row itself: (r + 1, F, G)
        bias = layer.effective_bias()[None, None]
        self.bias = bias if more is None else bias + more[:, None]  # (1 or B, 1, G)

    def no_rows(self, B, W):
        """Inputs of the rows above: (B, r, W, F)."""
        r, _, F, _ = self.kernel.shape
        return ops.zeros((B, r, W, F), self.dtype)

    def no_left(self, B):
        """Inputs to the left: (B, r, F)."""
        return ops.zeros((B, self.reach, self.own.shape[1]), self.dtype)

    def above(self, rows):
        """What the rows above give to each pixel: (B, W, G)."""
        if not rows.shape[1]:  # a kernel of one row
            B, _, W, _ = ops.shape(rows)
            return ops.zeros((B, W, 1), self.dtype) + self.bias
        pads = ((0, 0), (-self.columns[0], self.columns[1]))
        return backend.convolution(rows, self.kernel, pads)[:, 0] + self.bias

    def pixel(self, near, above):
        """At a pixel with the inputs `near` (B, r + 1, F), its own last: (B, G)."""
        return flat(near, self.own) + above


class Pointwise:
    """A 1x1 convolution, of pixels (B, F)."""

    def __init__(self, layer):
        self.kernel = layer.effective_kernel()[0, 0]
        self.bias = layer.effective_bias()

    def __call__(self, x):
        return x @ self.kernel + self.bias


def _gated_sum(x, h):
    a, b = ops.split(h, 2, axis=-1)
    return x + a * ops.sigmoid(b)


class CausalWeightNorm:
    """A weight-normalised convolution with a window of two rows, the pixel's and that
    above, whose last column is the pixel's, or of one tap."""

    def __init__(self, layer):
        dtype = layer.compute_dtype
        self.kernel = kernel = ops.cast(layer.effective_kernel(), dtype)
        self.b = ops.cast(layer.b, dtype)
        # What `above`, `pixel` and `point` use, sliced here once and not at every pixel
        rows, columns = kernel.shape[:2]
        self.upper = kernel[:1] if rows == 2 and columns < 3 else None
        self.taps = [kernel[-1, k] for k in range(columns)] if columns < 3 else []

    def row(self, above, row):
        """For a whole row, of windows with a column to the right: (B, 1, w, F)."""
        window = ops.concatenate([above, row], axis=1)  # (B, 2, w, F)
        return backend.convolution(window, self.kernel, ((0, 0), (1, 1)), self.b)

    def above(self, row):
        """What the row above (B, w, F) gives to each pixel: (B, w, G)."""
        pads = ((0, 0), (1, 0))
        return backend.convolution(row[:, None], self.upper, pads, self.b)[:, 0]

    def pixel(self, left, x, above):
        return left @ self.taps[0] + x @ self.taps[1] + above  # (B, G)

    def point(self, x):
        """Of one tap: of pixels (B, F), or of a row (B, 1, w, F)."""
        if len(x.shape) == 2:
            return x @ self.taps[0] + self.b
        return backend.convolution(x, self.kernel, ((0, 0), (0, 0)), self.b)


class CausalResnet:
    """A GatedResnet, of u by rows or of ul by pixels."""

    def __init__(self, block, label):
        self.conv = CausalWeightNorm(block.conv)
        self.gates = CausalWeightNorm(block.gates)
        self.link = CausalWeightNorm(block.link) if block.link is not None else None
        label_bias = 0.0 if label is None else block.label(label)
        self.label = label_bias + ops.zeros((1, 1), block.compute_dtype)  # (B, 2F) or 0

    def row(self, u, cache, aux=None):
        """u (B, 1, w, F) -> the same, and the cache of the row."""
        c = concat_elu(u)
        h = self.conv.row(cache[0], c)  # (B, 1, w, F)
        if aux is not None:
            h = h + self.link.point(concat_elu(aux))
        c_h = concat_elu(h)
        gates = self.gates.row(cache[1], c_h) + self.label[:, None, None]
        return _gated_sum(u, gates), [c, c_h]

    def above(self, cache):
        """Of ul, from the inputs and the inner features of the row above; and of the
        label."""
        x, h = cache  # (B, w, F) each
        gates = self.gates.above(concat_elu(h)) + self.label[:, None]
        return [self.conv.above(concat_elu(x)), gates]

    def pixel(self, x, before, above, aux=None):
        """x (B, F) -> the same, and what the next row needs. `before(n, x)` is x, the
        n-th of those that the layer asks for, at the left neighbour."""
        c = concat_elu(x)
        h = self.conv.pixel(before(0, c), c, above[0])  # (B, F)
        if aux is not None:
            h = h + self.link.point(concat_elu(aux))
        c_h = concat_elu(h)
        gates = self.gates.pixel(before(1, c_h), c_h, above[1])  # (B, 2F)
        return _gated_sum(x, gates), [x, h]
