"""Drawing from what has been computed: the sampler of convolutional and recurrent
families, whose work per pixel does not depend on the size of the image.

Two scans, over rows and, within each, over pixels. A row starts with what follows from
the rows above, for all its pixels at once; a pixel then needs its left neighbours only.
A family gives its network as an object with the methods below, over its own caches
(nests of tensors), with `reach`, r of the window, and `extra`, how many columns on the
right of the image, of zeros, it goes on to:

    rows = start_rows(B)                  of the rows above; at first there are none
    rows, above = begin_row(rows)         above: per pixel, (W, B, ...)
    left = start_left(rows)               of the pixels to the left; at first none
    left, params, kept = pixel(left, above_j, window)
                                          params (B, P); kept: per pixel, (B, ...)
    rows = end_row(rows, x, kept)         with the row as drawn (B, W, C), and all its
                                          `kept` (W, B, ...)

`window` (B, r + 1, C) holds the scaled values of the pixel's r left neighbours and its
own, of which the network sees the earlier channels.

Shapes: B batch, (H, W, C) image, P likelihood parameters a pixel.
"""

from keras import ops

from kgen import backend
from kgen.layers.weight_norm import concat_elu


def filled(model, network, x, u, known_rows, temperature=1.0):
    """As `Autoregressive.fill`, with a network that goes from pixel to pixel."""
    H = model.image_shape[0]
    known_rows = ops.reshape(ops.cast(known_rows, "int32"), (-1, 1))  # (1 or B, 1)

    def one_row(rows, given):
        i, x_row, u_row = given  # (1,), (W, B, C) twice
        known = ops.less(i[0], known_rows)  # (1 or B, 1)
        x_row, rows = _drawn(model, network, rows, x_row, u_row, known, temperature)
        return rows, x_row

    given = (
        ops.arange(H, dtype="int32")[:, None],
        ops.transpose(ops.cast(x, "int32"), (1, 2, 0, 3)),  # (H, W, B, C)
        ops.transpose(u, (1, 2, 0, 3)),
    )
    start = network.start_rows(ops.shape(u)[0])
    _, x = backend.scan(one_row, start, given)  # (H, W, B, C)
    return ops.transpose(x, (2, 0, 1, 3))


def _drawn(model, network, rows, x_row, u_row, known, temperature):
    """A row (W, B, C), that of x where it is known, and the caches after it."""
    _, W, C = model.image_shape
    channels = ops.arange(C, dtype="int32")
    unknown = ops.logical_not(known)
    rows, above = network.begin_row(rows)

    def one_pixel(state, given):
        left, window = state
        above_j, x_j, u_j, here = given  # (B, ...), (B, C) twice, ()
        x_j = ops.where(known, x_j, 0)
        # Either each channel sees those before it, or the likelihood couples them.
        for c in range(C if model.channels_in_turn else 1):
            own = here * model.scale(x_j)  # (B, C)
            near = ops.concatenate([window, own[:, None]], axis=1)  # (B, r + 1, C)
            after, params, kept = network.pixel(left, above_j, near)
            drawn = model.likelihood.draw(
                params[:, None, None], u_j[:, None, None], temperature
            )
            turn = unknown  # (1 or B, C or 1)
            if model.channels_in_turn:
                turn = ops.logical_and(ops.equal(channels, c), unknown)
            x_j = ops.where(turn, ops.cast(drawn[:, 0, 0], "int32"), x_j)
        # `after` and `kept` have not seen the last channel, which mask A hides anyway.
        return (after, pushed(window, here * model.scale(x_j)[:, None])), (x_j, kept)

    def padded(x, value=0):
        return ops.pad(x, [[0, network.extra], [0, 0], [0, 0]], constant_values=value)

    on_map = ops.arange(W + network.extra) < W
    here = ops.cast(on_map, model.compute_dtype)  # (W + extra,)
    window = ops.zeros((ops.shape(u_row)[1], network.reach, C), model.compute_dtype)
    state = (network.start_left(rows), window)
    given = (above, padded(x_row), padded(u_row, 0.5), here)
    _, (x_row, kept) = backend.scan(one_pixel, state, given)
    x_row = x_row[:W]
    return x_row, network.end_row(rows, by_pixel(x_row), kept)


def pushed(cache, new):
    """A cache (B, n, ...) of the last n, after `new` (B, 1, ...)."""
    return ops.concatenate([cache, new], axis=1)[:, 1:]


def by_pixel(x):
    """(B, W, ...) as a scan over pixels takes it, (W, B, ...), or back."""
    return ops.swapaxes(x, 0, 1)


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
        self.kernel = ops.cast(layer.effective_kernel(), dtype)
        self.b = ops.cast(layer.b, dtype)

    def row(self, above, row):
        """For a whole row, of windows with a column to the right: (B, 1, w, F)."""
        window = ops.concatenate([above, row], axis=1)  # (B, 2, w, F)
        return backend.convolution(window, self.kernel, ((0, 0), (1, 1)), self.b)

    def above(self, row):
        """What the row above (B, w, F) gives to each pixel: (B, w, G)."""
        pads = ((0, 0), (1, 0))
        return backend.convolution(row[:, None], self.kernel[:1], pads, self.b)[:, 0]

    def pixel(self, left, x, above):
        return left @ self.kernel[1, 0] + x @ self.kernel[1, 1] + above  # (B, G)

    def point(self, x):
        """Of one tap: of pixels (B, F), or of a row (B, 1, w, F)."""
        if len(x.shape) == 2:
            return x @ self.kernel[0, 0] + self.b
        return backend.convolution(x, self.kernel, ((0, 0), (0, 0)), self.b)


class CausalResnet:
    """A GatedResnet, of u by rows or of ul by pixels."""

    def __init__(self, block, label):
        self.conv = CausalWeightNorm(block.conv)
        self.gates = CausalWeightNorm(block.gates)
        self.link = CausalWeightNorm(block.link) if block.link is not None else None
        of_label = 0.0 if label is None else block.label(label)
        self.label = of_label + ops.zeros((1, 1), block.compute_dtype)  # (B, 2F) or 0

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
        """Of ul, from the inputs and the inner features of the row above."""
        x, h = cache  # (B, w, F) each
        return [self.conv.above(concat_elu(x)), self.gates.above(concat_elu(h))]

    def pixel(self, x, left, above, aux=None):
        """x (B, F) -> the same, what the right neighbour and the next row need."""
        c = concat_elu(x)
        h = self.conv.pixel(left[0], c, above[0])  # (B, F)
        if aux is not None:
            h = h + self.link.point(concat_elu(aux))
        c_h = concat_elu(h)
        gates = self.gates.pixel(left[1], c_h, above[1]) + self.label  # (B, 2F)
        return _gated_sum(x, gates), [c, c_h], [x, h]
