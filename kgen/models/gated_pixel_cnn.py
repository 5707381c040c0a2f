"""Gated PixelCNN.

    A. van den Oord, N. Kalchbrenner, O. Vinyals, L. Espeholt, A. Graves,
        K. Kavukcuoglu. Conditional Image Generation with PixelCNN Decoders. NIPS 2016,
        arXiv:1606.05328

Two stacks of convolutions. The vertical one sees all rows above the pixel, the
horizontal one the pixel's own row to its left and, at each layer, the vertical one: no
earlier pixel is out of sight, as a triangle to the right is for PixelCNN. Each layer
ends in a gate,

    y = tanh(W_f * x + V_f^T h) . sigmoid(W_g * x + V_g^T h)                 (2), (4)

with h the one-hot label, if there is one (* is a convolution, . elementwise).

    vertical v    --(k/2+1) x k, to 2F-----+------------------gate--> v
                                           1x1
    horizontal h  --1 x (k/2+1), to 2F-----+--gate--1x1---(+ h)-----> h

Shapes: B batch, (H, W, C) image, F filters, K classes, P likelihood parameters a pixel.

Differences from the paper:
  1. The vertical stack starts with the rows above the pixel only, which spares each
     layer the shift of the vertical stack's output one row down.
  2. Head: 1x1 to `head_filters`, ReLU, 1x1 to the likelihood's parameters.
  3. The channels of a pixel follow one another by masks in the horizontal stack and the
     head; the vertical stack, which sees other rows alone, needs none.
"""

import keras
from keras import layers, ops

from kgen import backend
from kgen.checks import multiples, odd, positive
from kgen.layers import ShiftedConv2D
from kgen.layers.incremental import Pointwise, flat
from kgen.models.autoregressive import Autoregressive
from kgen.models.incremental import by_pixel, push


@keras.saving.register_keras_serializable(package="kgen")
class GatedBlock(layers.Layer):
    """One layer of both stacks (figure 2 of the paper).

    Call with v, h (B, H, W, F or, in the first block, C) and the one-hot label (B, K)
    or None; returns the next v, h (B, H, W, F).

    Args:
        filters: F.
        kernel_size: k, odd.
        channels: C of the image.
        num_classes: K, or None.
        first: whether v and h are the image itself: mask A, no residual, and the
            vertical window ends above the pixel's row.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        channels=1,
        first=False,
        num_classes=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.kernel_size = filters, kernel_size
        self.channels, self.first = channels, first
        self.num_classes = num_classes
        r = kernel_size // 2
        masked = {"channels": channels, "dtype": self.dtype_policy}
        dtype = {"dtype": self.dtype_policy}
        self.vertical = ShiftedConv2D(
            2 * filters, (-r, -1 if first else 0), (-r, r), name="vertical", **dtype
        )
        self_seen = not first or channels > 1
        self.horizontal = ShiftedConv2D(
            2 * filters,
            (0, 0),
            (-r, 0 if self_seen else -1),
            mask="A" if first else "B",
            parts=2,
            name="horizontal",
            **masked,
        )
        self.link = ShiftedConv2D(
            2 * filters, (0, 0), (0, 0), use_bias=False, name="link", **dtype
        )
        self.out = ShiftedConv2D(
            filters, (0, 0), (0, 0), mask="B", name="out", **masked
        )
        if num_classes:
            options = {"use_bias": False, "name": "label"}
            self.label = layers.Dense(4 * filters, **options, **dtype)

    def build(self, v_shape, h_shape, label_shape=None):
        self.vertical.build(v_shape)
        self.horizontal.build(h_shape)
        self.link.build((*v_shape[:-1], 2 * self.filters))
        self.out.build((*v_shape[:-1], self.filters))
        if self.num_classes:
            self.label.build((None, self.num_classes))
        self.built = True

    def call(self, v, h, label=None):
        v = self.vertical(v)  # (B, H, W, 2F)
        gates = self.horizontal(h) + self.link(v)  # (B, H, W, 2F)
        if label is not None:
            v_bias, h_bias = ops.split(self.label(label)[:, None, None], 2, axis=-1)
            v, gates = v + v_bias, gates + h_bias  # (B, H, W, 2F)
        out = self.out(gate(gates))  # (B, H, W, F)
        return gate(v), out if self.first else h + out

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "channels": self.channels,
            "first": self.first,
            "num_classes": self.num_classes,
        }


@backend.fused
def gate(x):
    """tanh of the first half of the features times sigmoid of the second (eq. 2)."""
    f, g = ops.split(x, 2, axis=-1)
    return ops.tanh(f) * ops.sigmoid(g)


class _IncrementalBlock:
    """A block that goes from row to row and, within one, from pixel to pixel."""

    def __init__(self, block, label):
        self.first, self.dtype = block.first, block.compute_dtype
        self.rows, self.columns = block.vertical.rows, block.vertical.columns
        self.inputs = block.vertical.kernel.shape[2]
        vertical = block.vertical
        self.vertical = vertical.effective_kernel(), vertical.effective_bias()
        self.horizontal = block.horizontal.effective_kernel()[0]
        self.link = block.link.effective_kernel()
        self.out = Pointwise(block.out)
        self.bias_h, self.label_v = block.horizontal.effective_bias(), 0.0
        if label is not None:
            v_bias, h_bias = ops.split(block.label(label)[:, None, None], 2, axis=-1)
            self.label_v, self.bias_h = v_bias, self.bias_h + h_bias

    def no_rows(self, B, W):
        """The inputs of the vertical convolution above the current row."""
        return ops.zeros((B, -self.rows[0], W, self.inputs), self.dtype)

    def no_left(self, B):
        """The inputs of the horizontal convolution to the left."""
        return ops.zeros((B, -self.columns[0], self.inputs), self.dtype)

    def begin_row(self, v, cache):
        """v (B, 1, W, F) -> the next layer's; what the row adds to the horizontal
        stack's gates (B, W, 2F); and the cache."""
        window = cache if self.first else ops.concatenate([cache, v], axis=1)
        kernel, bias = self.vertical
        pads = ((0, 0), (-self.columns[0], self.columns[1]))
        v = backend.convolution(window, kernel, pads, bias)  # (B, 1, W, 2F)
        gates = backend.convolution(v, self.link, ((0, 0), (0, 0))) + self.bias_h
        cache = cache if self.first else window[:, 1:]
        return gate(v + self.label_v), gates[:, 0], cache

    def pixel(self, window, above):
        """The horizontal stack at a pixel, from its own window (B, n, F): (B, F)."""
        n = min(window.shape[1], self.horizontal.shape[0])
        gates = flat(window[:, :n], self.horizontal) + above  # (B, 2F)
        return self.out(gate(gates))


@keras.saving.register_keras_serializable(package="kgen")
class GatedPixelCNN(Autoregressive):
    """Gated PixelCNN; see the module for the figure.

    Args:
        image_shape, levels, num_classes, likelihood: see Autoregressive.
        filters: F; with C channels, a multiple of C.
        num_blocks: blocks after the first, which has the larger kernel.
        kernel_size: k of the blocks, odd.
        first_kernel_size: k of the first block.
        head_filters: features between the head's two 1x1 layers; by default F.

    Example:
        model = kgen.models.GatedPixelCNN((28, 28, 1), filters=32, num_blocks=7)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=20)
    """

    config_names = (
        "filters", "num_blocks", "kernel_size", "first_kernel_size",
        "head_filters",
    )  # fmt: skip

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        filters=32,
        num_blocks=7,
        kernel_size=3,
        first_kernel_size=7,
        head_filters=None,
        likelihood=None,
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, likelihood, **kwargs)
        H, W, C = self.image_shape
        head_filters = filters if head_filters is None else head_filters
        multiples(C, filters=filters, head_filters=head_filters)
        positive(num_blocks=num_blocks)
        odd(kernel_size=kernel_size)
        odd(3, first_kernel_size=first_kernel_size)
        self.filters, self.num_blocks = filters, num_blocks
        self.kernel_size, self.first_kernel_size = kernel_size, first_kernel_size
        self.head_filters = head_filters
        self.blocks, shape = [], (None, H, W, C)
        for i in range(1 + num_blocks):
            size = kernel_size if i else first_kernel_size
            block = GatedBlock(
                filters, size, C, not i, num_classes, dtype=self.dtype_policy
            )
            block.build(shape, shape)
            self.blocks.append(block)
            shape = (None, H, W, filters)
        self.head = [
            ShiftedConv2D(
                width, (0, 0), (0, 0), "B", channels=C, dtype=self.dtype_policy
            )
            for width in (head_filters, self.num_outputs)
        ]
        for layer in self.head:
            layer.build(shape)
            shape = (None, H, W, head_filters)
        self.built = True

    def params(self, x, labels=None, training=False):
        label = None if labels is None else self.one_hot(labels)  # (B, K)
        v = h = self.scale(x)  # (B, H, W, C)
        for block in self.blocks:
            v, h = block(v, h, label)  # (B, H, W, F) each
        for layer in self.head:
            h = layer(ops.relu(h))  # (B, H, W, head_filters), then (B, H, W, P)
        return h

    def incremental(self, label):
        return _Incremental(self, label)


class _Incremental:
    """The network for the sampler: see kgen/models/incremental.py."""

    extra = 0

    def __init__(self, model, label):
        self.width, self.scale = model.image_shape[1], model.scale
        self.reach = model.first_kernel_size // 2
        self.blocks = [_IncrementalBlock(block, label) for block in model.blocks]
        self.head = [Pointwise(layer) for layer in model.head]

    def start_rows(self, B):
        return [block.no_rows(B, self.width) for block in self.blocks]

    def begin_row(self, rows):
        v, above, after = None, [], []
        for block, cache in zip(self.blocks, rows, strict=True):
            v, gates, cache = block.begin_row(v, cache)
            above.append(by_pixel(gates))  # (W, B, 2F)
            after.append(cache)
        return after, above

    def start_left(self, rows):
        B = ops.shape(rows[0])[0]
        return {i: block.no_left(B) for i, block in enumerate(self.blocks[1:])}

    def pixel(self, left, above, window):
        h = self.blocks[0].pixel(window, above[0])  # (B, F)
        for i, (block, gates) in enumerate(
            zip(self.blocks[1:], above[1:], strict=True)
        ):
            h = h + block.pixel(left.window(i, h), gates)  # of (B, k/2 + 1, F)
        for layer in self.head:
            h = layer(ops.relu(h))
        return h, ()

    def end_row(self, rows, x, kept):
        del kept  # the vertical stack makes its own
        return [push(rows[0], self.scale(x)[:, None]), *rows[1:]]
