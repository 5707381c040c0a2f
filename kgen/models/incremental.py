"""Drawing from what has been computed: the sampler of convolutional and recurrent
families, whose work per pixel does not depend on the size of the image.

Two scans, over rows and, within each, over pixels. A row starts with what follows from
the rows above, for all its pixels at once; a pixel then needs its left neighbours only.
A family gives its network as an object with the methods below, over its own caches
(nests of tensors), with `reach`, r of the window, and `extra`, how many columns on the
right of the image, of zeros, it goes on to:

    rows = start_rows(B)                  of the rows above; at first there are none
    rows, above = begin_row(rows)         above: per pixel, (W, B, ...)
    caches = start_left(rows)             of the pixels to the left, by name; at first
                                          there are none
    params, kept = pixel(left, above_j, window)
                                          params (B, P); kept: per pixel, (B, ...)
    rows = end_row(rows, x, kept)         with the row as drawn (B, W, C), and all its
                                          `kept` (W, B, ...)

`window` (B, r + 1, C) holds the scaled values of the pixel's r left neighbours and its
own, of which the network sees the earlier channels. What a layer takes from the pixels
to the left it asks of `left`: a `Left`, where they are drawn one after another, or a
`LeftInRow`, where a row is known in all images and its pixels are taken at once.

Shapes: B batch, (H, W, C) image, P likelihood parameters a pixel.
"""

import keras
import numpy as np
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
            x_row, kept = drawn()
        else:
            x_row, kept = ops.cond(ops.all(known), given_whole, drawn)
        return network.end_row(rows, by_pixel(x_row), kept), x_row

    given = (
        ops.arange(H, dtype="int32")[:, None],
        ops.transpose(ops.cast(x, "int32"), (1, 2, 0, 3)),  # (H, W, B, C)
        ops.transpose(u, (1, 2, 0, 3)),
    )
    start = network.start_rows(ops.shape(u)[0])
    _, x = backend.scan(one_row, start, given)  # (H, W, B, C)
    return ops.transpose(x, (2, 0, 1, 3))


def _known(model, network, rows, above, x_row):
    """What the pixels of a row that is known (W, B, C) keep, all at once."""
    W, B = x_row.shape[0] + network.extra, ops.shape(x_row)[1]
    x = ops.pad(model.scale(x_row), [[0, network.extra], [0, 0], [0, 0]])
    left = LeftInRow(network.start_left(rows), W, B)
    windows = in_row(x, network.reach)  # (W, B, r + 1, C)
    _, kept = network.pixel(left, fold(above), fold(windows))
    return unfold(kept, W)


def _drawn(model, network, rows, above, x_row, u_row, known, temperature):
    """A row (W, B, C), that of x where it is known, and what its pixels keep."""
    _, W, C = model.image_shape
    channels = ops.arange(C, dtype="int32")
    unknown = ops.logical_not(known)

    def one_pixel(state, given):
        caches, window = state
        above_j, x_j, u_j, here = given  # (B, ...), (B, C) twice, ()
        x_j = ops.where(known, x_j, 0)
        # Either each channel sees those before it, or the likelihood couples them.
        for c in range(C if model.channels_in_turn else 1):
            own = here * model.scale(x_j)  # (B, C)
            near = ops.concatenate([window, own[:, None]], axis=1)  # (B, r + 1, C)
            left = Left(caches)
            params, kept = network.pixel(left, above_j, near)
            drawn = model.likelihood.draw(
                params[:, None, None], u_j[:, None, None], temperature
            )
            turn = unknown  # (1 or B, C or 1)
            if model.channels_in_turn:
                turn = ops.logical_and(ops.equal(channels, c), unknown)
            x_j = ops.where(turn, ops.cast(drawn[:, 0, 0], "int32"), x_j)
        # `left` and `kept` have not seen the last channel, which mask A hides anyway.
        return (left.after, push(window, here * model.scale(x_j)[:, None])), (
            x_j,
            kept,
        )

    def pad(x, value=0):
        return ops.pad(x, [[0, network.extra], [0, 0], [0, 0]], constant_values=value)

    on_map = ops.arange(W + network.extra) < W
    here = ops.cast(on_map, model.compute_dtype)  # (W + extra,)
    window = ops.zeros((ops.shape(u_row)[1], network.reach, C), model.compute_dtype)
    state = (network.start_left(rows), window)
    given = (above, pad(x_row), pad(u_row, 0.5), here)
    _, (x_row, kept) = backend.scan(one_pixel, state, given)
    return x_row[:W], kept


class Left:
    """What a pixel's layers take from the pixels to its left, from caches by name.
    `after` are the caches that its right neighbour finds. At a coarser resolution a
    feature is due at every `step`-th column, and what is not due changes no cache."""

    def __init__(self, caches):
        self.caches, self.after = caches, {}

    def window(self, name, x):
        """The inputs (B, r + 1, F) of a layer, of which x (B, F) is the last."""
        near = ops.concatenate([self.caches[name], x[:, None]], axis=1)
        self.after[name] = near[:, 1:]
        return near

    def neighbour(self, name, x, step=1, due=True):
        """x (B, F) as it was `step` columns to the left."""
        before = self.caches[name]
        self.after[name] = x if due is True else ops.where(due, x, before)
        return before

    def held(self, name, x, step, due):
        """x (B, F) as it was where it was last due, here or to the left."""
        del step
        self.after[name] = ops.where(due, x, self.caches[name])
        return self.after[name]

    def carry(self, name, fn, x):
        """state = fn(state, x), the recurrence over the columns."""
        self.after[name] = fn(self.caches[name], x)
        return self.after[name]

    def constant(self, name):
        self.after[name] = self.caches[name]
        return self.caches[name]

    def column(self, name):
        """j of the pixel: ()."""
        self.after[name] = self.caches[name] + 1
        return self.caches[name]


class LeftInRow:
    """The same for all W pixels of a row at once, (W B, F), from the caches of an
    edge."""

    def __init__(self, caches, width, B):
        self.caches, self.width, self.B = caches, width, B

    def window(self, name, x):
        r = self.caches[name].shape[1]
        return fold(in_row(unfold(x, self.width), r))

    def neighbour(self, name, x, step=1, due=True):
        del name, due
        return fold(in_row(unfold(x, self.width), step)[:, :, 0])

    def held(self, name, x, step, due):
        del name, due
        columns = np.arange(self.width) // step * step
        return fold(ops.take(unfold(x, self.width), columns, axis=0))

    def carry(self, name, fn, x):
        def twice(state, x):
            state = fn(state, x)
            return state, state

        x = unfold(x, self.width)
        return fold(backend.scan(twice, self.caches[name], x)[1])

    def constant(self, name):
        return self.caches[name]

    def column(self, name):
        """j of each pixel: (W B, 1)."""
        del name
        j = ops.arange(self.width, dtype="int32")[:, None]
        return ops.reshape(j + ops.zeros((1, self.B), "int32"), (-1, 1))


def in_row(x, r):
    """Each pixel's r left neighbours, zeros beyond the edge, and itself: (W, B, F) ->
    (W, B, r + 1, F)."""
    W = x.shape[0]
    x = ops.pad(x, [[r, 0], [0, 0], [0, 0]])
    return ops.stack([x[k : k + W] for k in range(r + 1)], axis=2)


def fold(x):
    """(W, B, ...) -> (W B, ...), in nests."""
    return keras.tree.map_structure(lambda t: ops.reshape(t, (-1, *t.shape[2:])), x)


def unfold(x, width):
    return keras.tree.map_structure(
        lambda t: ops.reshape(t, (width, -1, *t.shape[1:])), x
    )


def push(cache, new):
    """A cache (B, n, ...) of the last n, after `new` (B, 1, ...)."""
    return ops.concatenate([cache, new], axis=1)[:, 1:]


def by_pixel(x):
    """(B, W, ...) as a scan over pixels takes it, (W, B, ...), or back."""
    return ops.swapaxes(x, 0, 1)
