"""Drawing from what has been computed: the sampler of convolutional and recurrent
families, whose work per pixel does not depend on the size of the image.

A scan over rows. A row starts with what follows from the rows above, for all its pixels
at once; a pixel then needs its left neighbours only. The pixels are drawn by a scan of
their own, or at once, by rounds: see `_Row`. All of it goes through the composition of
layers that the parallel pass goes through,

    from_above = model.vertical(x, biases, apply)
    params = model.network(x, from_above, biases, apply)

with another `apply(layer, x, bias)`: that of the parallel pass calls the layer with the
whole map; here it takes a step of the layer over its cache. What layers keep in caches
is in kgen/layers/causal_conv.py.

PixelCNN++, whose layers work at several resolutions, brings a class of its own in place
of `CachedNetwork`, with the same methods.

Shapes: B batch, (H, W, C) image, P likelihood parameters a pixel.
"""

import functools

import keras
from keras import ops

from kgen import backend

# Images of a batch up to which rows are drawn at once, on CPUs. Rounds go on until the
# last image of a batch has its row; tests/benchmarks/bench_rows.py measures both ways.
_LARGEST = {"tensorflow": 8, "jax": 2, "torch": 64}


def sample_rows(model, network, x, u, known_rows, temperature=1.0, whole_rows=None):
    """As `Autoregressive.fill`, with a network as `CachedNetwork` is.

    `whole_rows`: whether all pixels of a row are drawn at once, by rounds; by default
    where that was measured to be faster.
    """
    all_drawn = isinstance(known_rows, int) and known_rows == 0
    known_rows = ops.reshape(ops.cast(known_rows, "int32"), (-1, 1, 1))
    if whole_rows is None:  # a bool; in TensorFlow's graph, for all batches, a tensor
        whole_rows = model.whole_rows and ops.shape(u)[0] <= _LARGEST[backend.name]

    def one_row(carried, given):
        rows, guess = carried
        i, x_row, u_row = given  # (1,), (B, W, C) twice
        rows, above = network.begin_row(rows)
        known = None if all_drawn else ops.less(i[0], known_rows)  # (1 or B, 1, 1)
        guess = guess if all_drawn else ops.where(known, x_row, guess)
        row = _Row(model, network, temperature, network.start_left(rows), known)
        given = above, guess, x_row, u_row

        at_once = functools.partial(row.draw_at_once, *given)
        pixel_by_pixel = functools.partial(row.draw_pixels, *given)
        whole = whole_rows
        if known is not None and whole is not True:  # one round, if known in all images
            whole = ops.logical_or(whole, ops.all(known))
        if isinstance(whole, bool):
            x_row, seen = at_once() if whole else pixel_by_pixel()
        else:
            x_row, seen = ops.cond(whole, at_once, pixel_by_pixel)
        return (network.end_row(rows, x_row, seen), x_row), x_row

    x = ops.swapaxes(ops.cast(x, "int32"), 0, 1)  # (H, B, W, C)
    i = ops.arange(model.image_shape[0], dtype="int32")[:, None]
    given = i, x, ops.swapaxes(u, 0, 1)
    start = network.start_rows(), ops.zeros_like(x[0])  # a guess is the row above
    _, x = backend.scan(one_row, start, given)  # (H, B, W, C)
    return ops.swapaxes(x, 0, 1)


class _Row:
    """A row that is drawn. Its methods take, of each pixel (B, W, ...), what the rows
    above give to it, a guess of its values, these where they are known, and uniforms.
    They return the row (B, W, C), and what the next row needs.
    """

    def __init__(self, model, network, temperature, left, known):
        """`left`: what its first pixel is given. `known` (1 or B, 1, 1): in which
        images it is known; None for none of them."""
        self.model, self.network, self.temperature = model, network, temperature
        self.left, self.known = left, known
        self.columns = model.image_shape[1] + model.extra_columns
        # Channels follow one another, unless the likelihood couples them
        self.turns = model.image_shape[2] if model.channels_in_turn else 1

    def _pad(self, x, value=0):
        """(B, W, C) with the extra columns, zero in the image."""
        more = [0, self.columns - x.shape[1]]
        if not more[1]:
            return x
        return ops.pad(x, [[0, 0], more, [0, 0]], constant_values=value)

    def draw_at_once(self, above, guess, x, u):
        """The pixels' distributions follow from a guess of them; drawn from these, by
        their own uniforms, they are the next guess. After t rounds the first t
        dimensions are right, so a guess that does not change, and that of the last
        round, are the pixels as drawn one after another (Song et al. 2021,
        arXiv:2002.03629; Wiggers and Hoogeboom 2020, arXiv:2002.09928)."""
        model, W = self.model, self.model.image_shape[1]

        def scale(x):
            return self._pad(model.scale(x))  # (B, W + extra, C)

        def one_round(guess):
            params, after = self.network.step(self.left, above, scale(guess))
            params = params[:, None, :W]  # an image of one row
            drawn = model.likelihood.draw(params, u[:, None], self.temperature)[:, 0]
            drawn = ops.cast(drawn, "int32")
            drawn = drawn if self.known is None else ops.where(self.known, x, drawn)
            return drawn, after

        def changes(t, guess, drawn, *_):
            different = ops.any(ops.not_equal(guess, drawn))
            return ops.logical_and(t < self.columns * self.turns, different)

        def next_round(t, guess, drawn, *_):
            new, after = one_round(drawn)
            return t + 1, drawn, new, *keras.tree.flatten(after)

        drawn, after = one_round(guess)
        state = ops.ones((), "int32"), guess, drawn, *keras.tree.flatten(after)
        _, _, drawn, *flat = ops.while_loop(changes, next_round, state)
        after = keras.tree.pack_sequence_as(after, flat)
        _, seen = self.network.see(self.left, above, scale(drawn), after)
        return drawn, seen

    def draw_pixels(self, above, guess, x, u):
        """One after another."""
        del guess
        model, W = self.model, self.model.image_shape[1]
        known = None if self.known is None else self.known[:, 0]  # (1 or B, 1)

        def one_pixel(left, given):
            above, x, u, on_map = given  # (B, ...), (B, C) twice, ()

            def scale(x):
                return on_map * model.scale(x)

            drawn = ops.zeros_like(x) if known is None else ops.where(known, x, 0)
            for _ in range(self.turns):  # each makes one more channel right
                params, after = self.network.step(left, above, scale(drawn))
                params, u_here = params[:, None, None], u[:, None, None]
                drawn = model.likelihood.draw(params, u_here, self.temperature)
                drawn = ops.cast(drawn[:, 0, 0], "int32")
                drawn = drawn if known is None else ops.where(known, x, drawn)
            left, seen = self.network.see(left, above, scale(drawn), after)
            return left, (drawn, seen)

        def swap(t):
            return ops.swapaxes(t, 0, 1)  # (B, W, ...) <-> (W, B, ...)

        given = keras.tree.map_structure(swap, (above, self._pad(x), self._pad(u, 0.5)))
        on_map = ops.cast(ops.arange(self.columns) < W, model.compute_dtype)
        _, drawn = backend.scan(one_pixel, self.left, (*given, on_map))
        x, seen = keras.tree.map_structure(swap, drawn)
        return x[:, :W], seen


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

    def step(self, left, above, x):
        """Of a pixel x (B, C), or of a row (B, W, C): the parameters (B, P) or
        (B, W, P); and what is carried to the next pixel, and what `end_row` needs."""
        from_above, above = above
        steps = _Steps(self.layers.caches_with(above=above, left=left))
        params = self.model.network(x, from_above, self.biases, steps.pixels)
        return params, (steps.each("left"), steps.each("seen"))

    def see(self, left, above, x, after):
        """What `step` returned beside parameters, for other values x of the pixels that
        give the same parameters: the layers of the image itself see these."""
        caches = self.layers.caches_with(above=above[1], left=left)
        lefts, seens = map(list, after)
        for i in self.layers.of_image:
            _, cache = self.layers.layers[i].step(x, caches[i])
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
    """`apply` as a step of each layer over its cache: `row`, or `pixels` of one."""

    def __init__(self, caches):
        self.caches, self.after = caches, []

    def row(self, layer, x, bias=None):
        del bias  # in the cache
        y, after = layer.step_row(x, self.caches[len(self.after)])
        self.after.append(after)
        return y

    def pixels(self, layer, x, bias=None):
        del bias
        y, after = layer.step(x, self.caches[len(self.after)])
        self.after.append(after)
        return y

    def each(self, name):
        return [cache[name] for cache in self.after]
