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
from kgen.models.autoregressive import Autoregressive


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

    def label_biases(self, label):
        """Of the gates of both stacks, for each block: (B, 2F) each, or None."""
        if label is None:
            return [(None, None)] * len(self.blocks)
        return [ops.split(block.label(label), 2, axis=-1) for block in self.blocks]

    def vertical(self, x, biases, apply):
        """What the vertical stack adds to the horizontal one's gates, a block each."""
        v, gates = x, []
        for block, (v_bias, h_bias) in zip(self.blocks, biases, strict=True):
            v = apply(block.vertical, v)  # (B, H, W, 2F)
            gates.append(apply(block.link, v, h_bias))  # (B, H, W, 2F)
            v = gate(v if v_bias is None else v + v_bias[:, None, None])
        return gates

    def network(self, x, from_above, biases, apply):
        h = x
        for block, gates in zip(self.blocks, from_above, strict=True):
            gates = apply(block.horizontal, h) + gates  # (B, H, W, 2F)
            out = apply(block.out, gate(gates))  # (B, H, W, F)
            h = out if block.first else h + out
        for layer in self.head:
            h = apply(layer, ops.relu(h))  # (B, H, W, head_filters), (B, H, W, P)
        return h
