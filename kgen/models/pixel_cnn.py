"""PixelCNN.

    A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu. Pixel Recurrent Neural Networks.
        ICML 2016, arXiv:1601.06759 (section 3.4: masks; section 3.5: PixelCNN;
        figure 5: the residual block; table 1: the whole)

Convolutions whose kernels see earlier pixels only: mask A, without the pixel itself, in
the first layer, mask B after it; channels R, G, B of a pixel follow one another. So
one parallel pass gives every factor of p(x) = prod_i p(x_i | x_<i).

    image --7x7 mask A, 2h--> [ReLU 1x1 to h, ReLU 3x3 to h, ReLU 1x1 to 2h, +] x N
          --ReLU 1x1--> head_filters --ReLU 1x1--> likelihood's parameters  (mask B)

A stack of square windows does not see a triangle above and to the right of the pixel:
the blind spot, which Gated PixelCNN was made to remove.

Shapes: B batch, (H, W, C) image, h filters, K classes, P likelihood parameters a pixel.

Differences from the paper:
  1. Class-conditional models add a learnt vector of the class to the first layer and to
     each residual block's inner features.
  2. Any optimizer; the paper's is RMSProp.
"""

import keras
from keras import layers, ops

from kgen.checks import multiples, odd, positive
from kgen.layers import ShiftedConv2D
from kgen.layers.incremental import Causal, Pointwise
from kgen.models.autoregressive import Autoregressive
from kgen.models.incremental import by_pixel, push


@keras.saving.register_keras_serializable(package="kgen")
class PixelCNN(Autoregressive):
    """PixelCNN; see the module for the picture.

    Args:
        image_shape, levels, num_classes, likelihood: see Autoregressive.
        filters: h; maps between blocks have 2h features. With C channels, a multiple
            of C.
        num_blocks: residual blocks.
        kernel_size: of the blocks, odd.
        first_kernel_size: of the first layer.
        head_filters: features between the head's two 1x1 layers: 32 in the paper for
            MNIST, 1024 for CIFAR-10; by default h.

    Example:
        model = kgen.models.PixelCNN((28, 28, 1), filters=16, num_blocks=7)
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
        filters=16,
        num_blocks=7,
        kernel_size=3,
        first_kernel_size=7,
        head_filters=None,
        likelihood=None,
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, likelihood, **kwargs)
        head_filters = filters if head_filters is None else head_filters
        C = self.image_shape[-1]
        multiples(C, filters=filters, head_filters=head_filters)
        positive(num_blocks=num_blocks)
        odd(kernel_size=kernel_size)
        odd(3, first_kernel_size=first_kernel_size)
        self.filters, self.num_blocks = filters, num_blocks
        self.kernel_size, self.first_kernel_size = kernel_size, first_kernel_size
        self.head_filters = head_filters
        self.first = self._causal(2 * filters, first_kernel_size, C, mask="A")
        self.blocks = [
            [
                self._causal(filters, 1, 2 * filters),
                self._causal(filters, kernel_size, filters),
                self._causal(2 * filters, 1, filters),
            ]
            for _ in range(num_blocks)
        ]
        self.head = [
            self._causal(head_filters, 1, 2 * filters),
            self._causal(self.num_outputs, 1, head_filters),
        ]
        self.label_layers = []
        if num_classes:
            for width in (2 * filters, *[filters] * num_blocks):
                dense = layers.Dense(width, use_bias=False, dtype=self.dtype_policy)
                dense.build((None, num_classes))
                self.label_layers.append(dense)
        self.built = True

    def _causal(self, filters, kernel_size, inputs, mask="B"):
        """The upper half of a masked kernel: what is below the pixel's row is zero."""
        H, W, C = self.image_shape
        r = kernel_size // 2
        layer = ShiftedConv2D(
            filters, (-r, 0), (-r, r), mask, channels=C, dtype=self.dtype_policy
        )
        layer.build((None, H, W, inputs))
        return layer

    def params(self, x, labels=None, training=False):
        label_biases = [0.0] * (1 + self.num_blocks)
        if labels is not None:
            label = self.one_hot(labels)[:, None, None]  # (B, 1, 1, K)
            label_biases = [dense(label) for dense in self.label_layers]
        h = self.first(self.scale(x)) + label_biases[0]  # (B, H, W, 2h)
        for (down, conv, up), bias in zip(self.blocks, label_biases[1:], strict=True):
            inner = down(ops.relu(h))  # (B, H, W, h)
            inner = conv(ops.relu(inner)) + bias  # (B, H, W, h)
            h = h + up(ops.relu(inner))  # (B, H, W, 2h)
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
        more = [None] * (1 + model.num_blocks)
        if label is not None:
            more = [dense(label) for dense in model.label_layers]
        convs = [model.first, *(conv for _, conv, _ in model.blocks)]
        self.convs = [Causal(conv, m) for conv, m in zip(convs, more, strict=True)]
        self.around = [(Pointwise(down), Pointwise(up)) for down, _, up in model.blocks]
        self.head = [Pointwise(layer) for layer in model.head]

    def start_rows(self, B):
        return [conv.no_rows(B, self.width) for conv in self.convs]

    def begin_row(self, rows):
        pairs = zip(self.convs, rows, strict=True)
        return rows, [by_pixel(conv.above(cache)) for conv, cache in pairs]

    def start_left(self, rows):
        B = ops.shape(rows[0])[0]
        return {i: conv.no_left(B) for i, conv in enumerate(self.convs[1:])}

    def pixel(self, left, above, window):
        h = self.convs[0].pixel(window, above[0])  # (B, 2h)
        kept = []
        blocks = zip(self.convs[1:], self.around, above[1:], strict=True)
        for i, (conv, (down, up), context) in enumerate(blocks):
            inner = ops.relu(down(ops.relu(h)))  # (B, h)
            near = left.window(i, inner)  # (B, k/2 + 1, h)
            h = h + up(ops.relu(conv.pixel(near, context)))
            kept.append(inner)
        for layer in self.head:
            h = layer(ops.relu(h))
        return h, kept

    def end_row(self, rows, x, kept):
        new = [self.scale(x), *[by_pixel(k) for k in kept]]  # (B, W, ...)
        return [push(r, n[:, None]) for r, n in zip(rows, new, strict=True)]
