"""Drawing from what has been computed: the sampler of convolutional and recurrent
families, whose work per pixel does not depend on the size of the image.

Two scans, over rows and, within each, over pixels. A row starts with what follows from
the rows above, for all its pixels at once; a pixel then needs its left neighbours only.
Both go through the composition of layers that the parallel pass goes through,

    from_above = model.vertical(x, biases, apply)
    params = model.network(x, from_above, biases, apply)

with another `apply(layer, x, bias)`: that of the parallel pass calls the layer with the
whole map; here it takes a step of the layer over its cache. What layers keep in caches
is in kgen/layers/causal_conv.py.

PixelCNN++, whose layers work at several resolutions, brings a class of its own in place
of `CachedNetwork`, with the same methods.

Shapes: B batch, (H, W, C) image, w pixels of a step, P likelihood parameters a pixel.
"""

import keras
from keras import ops

from kgen import backend


def sample_rows(model, network, x, u, known_rows, temperature=1.0):
    """As `Autoregressive.fill`, with a network that goes from pixel to pixel."""
    H = model.image_shape[0]
    all_drawn = isinstance(known_rows, int) and known_rows == 0
    known_rows = ops.reshape(ops.cast(known_rows, "int32"), (-1, 1))  # (1 or B, 1)

    def one_row(rows, given):
        i, x_row, u_row = given  # (1,), (W, B, C) twice
        known = ops.less(i[0], known_rows)  # (1 or B, 1)
        rows, above = network.begin_row(rows)

        def drawn():
            args = rows, above, x_row, u_row, known, temperature
            return _drawn(model, network, *args)

        def given_whole():
            return x_row, _known(model, network, rows, above, x_row)

        if all_drawn:
            x_row, seen = drawn()
        else:
            x_row, seen = ops.cond(ops.all(known), given_whole, drawn)
        return network.end_row(rows, x_row, seen), x_row

    given = (
        ops.arange(H, dtype="int32")[:, None],
        ops.transpose(ops.cast(x, "int32"), (1, 2, 0, 3)),  # (H, W, B, C)
        ops.transpose(u, (1, 2, 0, 3)),
    )
    _, x = backend.scan(one_row, network.start_rows(), given)  # (H, W, B, C)
    return ops.transpose(x, (2, 0, 1, 3))


def _known(model, network, rows, above, x_row):
    """What the next row needs of a row that is known (W, B, C), its pixels at once."""
    W, extra = x_row.shape[0], model.extra_columns
    x = ops.pad(model.scale(x_row), [[0, extra], [0, 0], [0, 0]])
    _, after = network.pixels(network.start_left(rows), fold(above), fold(x), W + extra)
    return unfold(network.after(after, fold(x))[1], W + extra)


def _drawn(model, network, rows, above, x_row, u_row, known, temperature):
    """A row (W, B, C), that of x where it is known, and what the next row needs."""
    _, W, C = model.image_shape
    extra = model.extra_columns
    channels = ops.arange(C, dtype="int32")
    unknown = ops.logical_not(known)

    def one_pixel(left, given):
        above_j, x_j, u_j, here = given  # (B, ...), (B, C) twice, ()
        x_j = ops.where(known, x_j, 0)
        # Either each channel sees those before it, or the likelihood couples them.
        for c in range(C if model.channels_in_turn else 1):
            params, after = network.pixels(left, above_j, here * model.scale(x_j))
            drawn = model.likelihood.draw(
                params[:, None, None], u_j[:, None, None], temperature
            )
            turn = unknown  # (1 or B, C or 1)
            if model.channels_in_turn:
                turn = ops.logical_and(ops.equal(channels, c), unknown)
            x_j = ops.where(turn, ops.cast(drawn[:, 0, 0], "int32"), x_j)
        left, seen = network.after(after, here * model.scale(x_j))
        return left, (x_j, seen)

    def pad(x, value=0):
        return ops.pad(x, [[0, extra], [0, 0], [0, 0]], constant_values=value)

    on_map = ops.arange(W + extra) < W
    here = ops.cast(on_map, model.compute_dtype)  # (W + extra,)
    given = (above, pad(x_row), pad(u_row, 0.5), here)
    _, (x_row, seen) = backend.scan(one_pixel, network.start_left(rows), given)
    return x_row[:W], seen


class CachedNetwork:
    """The network of a model, from row to row and from pixel to pixel. Its caches are
    lists, of a layer each, in the order in which the network applies them."""

    def __init__(self, model, label, B):
        """`label`: one-hot (B, K), or None."""
        _, W, C = model.image_shape
        W = W + model.extra_columns
        self.model, self.biases = model, model.label_biases(label)
        # Once over zeros, for the layers and their caches
        self.vertical, self.layers = _Start(B, W), _Start(B, W)
        self.row_above = ops.zeros((B, 1, W, C), model.compute_dtype)
        from_above = model.vertical(self.row_above, self.biases, self.vertical)
        from_above = keras.tree.map_structure(lambda t: t[:, 0, 0], from_above)
        model.network(self.row_above[:, 0, 0], from_above, self.biases, self.layers)

    def start_rows(self):
        """What is carried from row to row: the image's row above, and caches."""
        caches = [self.vertical.each("rows"), self.layers.each("rows")]
        return (self.row_above, *caches)

    def begin_row(self, rows):
        """The same, and what each pixel of the row takes of it: (W, B, ...)."""
        row_above, vertical, of_layers = rows
        steps = _Steps(self.vertical.caches_with(rows=vertical))
        from_above = self.model.vertical(row_above, self.biases, steps.row)
        from_above = keras.tree.map_structure(lambda t: t[:, 0], from_above)
        pairs = zip(
            self.layers.layers, self.layers.caches_with(rows=of_layers), strict=True
        )
        above = [layer.above(cache) for layer, cache in pairs]
        above = keras.tree.map_structure(by_pixel, (from_above, above))
        return (row_above, steps.each("rows"), of_layers), above

    def start_left(self, rows):
        """What is carried from pixel to pixel, before the first of a row."""
        del rows
        return self.layers.each("left")

    def pixels(self, left, above, x, width=1):
        """The parameters (w B, P) of pixels x (w B, C), which may miss the channels
        that are not drawn yet; and an argument of `after`."""
        from_above, above = above
        steps = _Steps(self.layers.caches_with(above=above, left=left), width, x)
        return self.model.network(x, from_above, self.biases, steps.pixels), steps

    def after(self, steps, x):
        """What is carried to the next pixel, and what `end_row` needs, now that the
        pixels x (w B, C) are whole: layers of the image itself see them again."""
        for i, layer in steps.of_image.items():
            _, steps.after[i] = layer.step(x, steps.caches[i], steps.width)
        return steps.each("left"), steps.each("seen")

    def end_row(self, rows, x, seen):
        """What is carried to the next row, with the row x as drawn (W, B, C)."""
        _, vertical, of_layers = rows
        extra = self.model.extra_columns
        x = ops.pad(self.model.scale(x), [[0, extra], [0, 0], [0, 0]])
        caches = self.layers.caches_with(rows=of_layers, seen=seen)
        pairs = zip(self.layers.layers, caches, strict=True)
        of_layers = [layer.end_row(cache) for layer, cache in pairs]
        return by_pixel(x)[:, None], vertical, of_layers


class _Start:
    """An `apply` that makes the caches of layers; what it returns is zero."""

    def __init__(self, B, W):
        self.B, self.W = B, W
        self.layers, self.caches = [], []

    def __call__(self, layer, x, bias=None):
        self.layers.append(layer)
        self.caches.append(layer.start(self.B, self.W, bias))
        outputs = layer.compute_output_shape(x.shape)[-1]
        return ops.zeros_like(x[..., :1]) + ops.zeros((outputs,), x.dtype)

    def each(self, name):
        return [cache[name] for cache in self.caches]

    def caches_with(self, **values):
        """The caches, with a list of values for each of the names."""
        caches = self.caches
        for name, of_layers in values.items():
            pairs = zip(caches, of_layers, strict=True)
            caches = [cache | {name: value} for cache, value in pairs]
        return caches


class _Steps:
    """`apply` as a step of each layer over its cache: `row`, or `pixels`, w at once."""

    def __init__(self, caches, width=1, image=None):
        self.caches, self.width, self.image = caches, width, image
        self.after, self.of_image = [], {}

    def row(self, layer, x, bias=None):
        del bias  # in the cache
        y, after = layer.step_row(x, self.caches[len(self.after)])
        self.after.append(after)
        return y

    def pixels(self, layer, x, bias=None):
        del bias
        i = len(self.after)
        if x is self.image:
            self.of_image[i] = layer
        y, after = layer.step(x, self.caches[i], self.width)
        self.after.append(after)
        return y

    def each(self, name):
        return [cache[name] for cache in self.after]


def fold(x):
    """(W, B, ...) -> (W B, ...), in nests."""
    return keras.tree.map_structure(lambda t: ops.reshape(t, (-1, *t.shape[2:])), x)


def unfold(x, width):
    return keras.tree.map_structure(
        lambda t: ops.reshape(t, (width, -1, *t.shape[1:])), x
    )


def by_pixel(x):
    """(B, W, ...) as a scan over pixels takes it, (W, B, ...), or back."""
    return ops.swapaxes(x, 0, 1)
