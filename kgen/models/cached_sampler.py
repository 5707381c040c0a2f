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

A window of a row, a pixel or more, is drawn at once, by rounds: see `_Row`.

PixelCNN++, whose layers work at several resolutions, brings a class of its own in place
of `CachedNetwork`, with the same methods.

Shapes: B batch, (H, W, C) image, w pixels of a step, P likelihood parameters a pixel.
"""

import functools

import keras
from keras import ops

from kgen import backend


def sample_rows(model, network, x, u, known_rows, temperature=1.0, window=None):
    """As `Autoregressive.fill`, in windows of so many pixels, by default as many as
    `choose_window` finds fastest."""
    H, columns = model.image_shape[0], model.image_shape[1] + model.extra_columns
    w = min(window or choose_window(model, u.shape[0]), columns)
    all_drawn = isinstance(known_rows, int) and known_rows == 0
    known_rows = ops.reshape(ops.cast(known_rows, "int32"), (-1, 1, 1))

    def one_row(carried, given):
        rows, guess = carried
        i, x_row, u_row = given  # (1,), (B, W, C) twice
        rows, above = network.begin_row(rows)
        known = None if all_drawn else ops.less(i[0], known_rows)  # (1 or B, 1, 1)
        guess = guess if all_drawn else ops.where(known, x_row, guess)
        row = _Row(model, network, temperature, network.start_left(rows), known)
        given = above, guess, x_row, u_row
        if all_drawn or w == columns:
            x_row, seen = row.draw(given, w)
        else:  # what is known needs no windows
            whole = functools.partial(row.draw, given, columns)
            by_windows = functools.partial(row.draw, given, w)
            x_row, seen = ops.cond(ops.all(known), whole, by_windows)
        return (network.end_row(rows, x_row, seen), x_row), x_row

    x = ops.swapaxes(ops.cast(x, "int32"), 0, 1)  # (H, B, W, C)
    given = ops.arange(H, dtype="int32")[:, None], x, ops.swapaxes(u, 0, 1)
    start = network.start_rows(), ops.zeros_like(x[0])  # a row is as the one above
    _, x = backend.scan(one_row, start, given)  # (H, B, W, C)
    return ops.swapaxes(x, 0, 1)


def choose_window(model, batch):
    """How many pixels are drawn at once: 1, or all of a row."""
    return model.image_shape[1] + model.extra_columns


class _Row:
    """A row that is drawn, from what the rows above give to it."""

    def __init__(self, model, network, temperature, left, known):
        """`left`: at its first pixel. `known` (1 or B, 1, 1): in which images; None:
        in none."""
        self.model, self.network, self.temperature = model, network, temperature
        self.left, self.known = left, known

    def draw(self, given, w):
        """In windows of w pixels: the row (B, W, C), and what the next row needs.

        `given`, for each pixel (B, W, ...): what the rows above give; a guess of the
        row; the row where it is known; the uniforms.
        """
        W = self.model.image_shape[1]
        columns = W + self.model.extra_columns
        windows = -(-columns // w)

        def pad(t):
            """With zeros beyond the map: (B, windows w, ...)."""
            more = windows * w - t.shape[1]
            rest = [[0, 0]] * (len(t.shape) - 2)
            return ops.pad(t, [[0, 0], [0, more], *rest]) if more else t

        given = keras.tree.map_structure(pad, given)
        on_map = ops.cast(ops.arange(windows * w) < W, "int32")[:, None]
        if windows == 1:
            on_map = on_map if columns > W else None  # all of them
            _, (x, seen) = self._draw_window(self.left, given, on_map)
            return x[:, :W], seen

        def by_window(t):
            t = ops.reshape(t, (-1, windows, w, *t.shape[2:]))
            return ops.swapaxes(t, 0, 1)  # (windows, B, w, ...)

        def by_pixel(t):
            t = ops.swapaxes(t, 0, 1)
            return ops.reshape(t, (-1, windows * w, *t.shape[3:]))

        def one_window(left, given):
            return self._draw_window(left, *given)

        given = keras.tree.map_structure(by_window, given)
        given = given, ops.reshape(on_map, (windows, w, 1))
        _, drawn = backend.scan(one_window, self.left, given)
        x, seen = keras.tree.map_structure(by_pixel, drawn)
        return x[:, :W], keras.tree.map_structure(lambda t: t[:, :columns], seen)

    def _draw_window(self, left, given, on_map):
        """What the next window needs; its pixels (B, w, C) and what the next row needs.

        The pixels' distributions follow from a guess of them; drawn from these, by
        their own uniforms, they are the next guess. After t rounds the first t
        dimensions are right, so a guess that does not change, and that of the last
        round, are the pixels as drawn one after another (Song et al. 2021,
        arXiv:2002.03629).

        `on_map` (w, 1): 0 for pixels beyond the map; None where there are none.
        """
        above, guess, x, u = given
        w, C = guess.shape[1:]
        rounds = w * (C if self.model.channels_in_turn else 1)
        above, u = fold(above), fold(u)[:, None, None]  # (B w, 1, 1, C)

        def scale(x):
            x = self.model.scale(x)  # (B, w, C)
            return fold(x if on_map is None else x * ops.cast(on_map, x.dtype))

        def one_round(guess):
            params, after = self.network.pixels(left, above, scale(guess), w)
            params = params[:, None, None]  # an image of one pixel
            drawn = self.model.likelihood.draw(params, u, self.temperature)
            drawn = unfold(ops.cast(drawn[:, 0, 0], "int32"), w)
            drawn = drawn if on_map is None else on_map * drawn
            drawn = drawn if self.known is None else ops.where(self.known, x, drawn)
            return drawn, after

        def next_round(t, guess, drawn, *_):
            new, after = one_round(drawn)
            return t + 1, drawn, new, *keras.tree.flatten(after)

        def changes(t, guess, drawn, *_):
            return ops.logical_and(t < rounds, ops.any(ops.not_equal(guess, drawn)))

        drawn, after = one_round(guess)
        if rounds > 1:
            state = ops.ones((), "int32"), guess, drawn, *keras.tree.flatten(after)
            _, _, drawn, *flat = ops.while_loop(changes, next_round, state)
            after = keras.tree.pack_sequence_as(after, flat)
        left, seen = self.network.see(left, above, scale(drawn), after, w)
        return left, (drawn, unfold(seen, w))


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
        pixel = self.layers.image = self.row_above[:, 0, 0]
        model.network(pixel, from_above, self.biases, self.layers)

    def start_rows(self):
        """What is carried from row to row: the image's row above, and caches."""
        caches = [self.vertical.each("rows"), self.layers.each("rows")]
        return (self.row_above, *caches)

    def begin_row(self, rows):
        """The same, and what each pixel of the row takes of it: (B, W, ...)."""
        row_above, vertical, of_layers = rows
        steps = _Steps(self.vertical.caches_with(rows=vertical))
        from_above = self.model.vertical(row_above, self.biases, steps.row)
        from_above = keras.tree.map_structure(
            lambda t: t[:, 0], from_above
        )  # (B, W, -)
        pairs = zip(
            self.layers.layers, self.layers.caches_with(rows=of_layers), strict=True
        )
        above = [layer.above(cache) for layer, cache in pairs]
        return (row_above, steps.each("rows"), of_layers), (from_above, above)

    def start_left(self, rows):
        """What is carried from pixel to pixel, before the first of a row."""
        del rows
        return self.layers.each("left")

    def pixels(self, left, above, x, width=1):
        """The parameters (B w, P) of pixels x (B w, C); and, of each layer, what is
        carried to the pixel after them and what `end_row` needs."""
        from_above, above = above
        steps = _Steps(self.layers.caches_with(above=above, left=left), width)
        params = self.model.network(x, from_above, self.biases, steps.pixels)
        return params, (steps.each("left"), steps.each("seen"))

    def see(self, left, above, x, after, width=1):
        """What `pixels` returned beside parameters, for other values x of the pixels
        that give the same parameters: the layers of the image itself see these."""
        caches = self.layers.caches_with(above=above[1], left=left)
        lefts, seens = map(list, after)
        for i in self.layers.of_image:
            _, cache = self.layers.layers[i].step(x, caches[i], width)
            lefts[i], seens[i] = cache["left"], cache["seen"]
        return lefts, seens

    def end_row(self, rows, x, seen):
        """What is carried to the next row, with the row x as drawn (B, W, C)."""
        _, vertical, of_layers = rows
        extra = self.model.extra_columns
        x = ops.pad(self.model.scale(x), [[0, 0], [0, extra], [0, 0]])
        caches = self.layers.caches_with(rows=of_layers, seen=seen)
        pairs = zip(self.layers.layers, caches, strict=True)
        of_layers = [layer.end_row(cache) for layer, cache in pairs]
        return x[:, None], vertical, of_layers


class _Start:
    """An `apply` that makes the caches of layers; what it returns is zero."""

    def __init__(self, B, W):
        self.B, self.W = B, W
        self.layers, self.caches = [], []
        self.image, self.of_image = None, []  # indices of layers of the image itself

    def __call__(self, layer, x, bias=None):
        if x is self.image:
            self.of_image.append(len(self.layers))
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

    def __init__(self, caches, width=1):
        self.caches, self.width, self.after = caches, width, []

    def row(self, layer, x, bias=None):
        del bias  # in the cache
        y, after = layer.step_row(x, self.caches[len(self.after)])
        self.after.append(after)
        return y

    def pixels(self, layer, x, bias=None):
        del bias
        y, after = layer.step(x, self.caches[len(self.after)], self.width)
        self.after.append(after)
        return y

    def each(self, name):
        return [cache[name] for cache in self.after]


def fold(x):
    """(B, w, ...) -> (B w, ...), in nests."""
    return keras.tree.map_structure(lambda t: ops.reshape(t, (-1, *t.shape[2:])), x)


def unfold(x, width):
    """(B w, ...) -> (B, w, ...), in nests."""
    return keras.tree.map_structure(
        lambda t: ops.reshape(t, (-1, width, *t.shape[1:])), x
    )
