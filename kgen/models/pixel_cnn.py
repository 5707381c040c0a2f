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
from kgen.models.autoregressive import Autoregressive


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

    def label_biases(self, label):
        if label is None:
            return [None] * (1 + self.num_blocks)
        return [dense(label) for dense in self.label_layers]

    def network(self, x, from_above, biases, apply):
        h = apply(self.first, x, biases[0])  # (B, H, W, 2h)
        for (down, conv, up), bias in zip(self.blocks, biases[1:], strict=True):
            inner = apply(down, ops.relu(h))  # (B, H, W, h)
            inner = apply(conv, ops.relu(inner), bias)  # (B, H, W, h)
            h = h + apply(up, ops.relu(inner))  # (B, H, W, 2h)
        for layer in self.head:
            h = apply(layer, ops.relu(h))  # (B, H, W, head_filters), (B, H, W, P)
        return h
