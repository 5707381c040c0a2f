"""PixelRNN: Row LSTM and Diagonal BiLSTM.

    A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu. Pixel Recurrent Neural Networks.
        ICML 2016, arXiv:1601.06759 (section 3.1: Row LSTM; section 3.2: Diagonal
        BiLSTM; 3.3, 3.4: residual connections, masks; table 1: the whole)

Networks of two-dimensional LSTMs, whose state carries earlier pixels of any distance.

    image --7x7 mask A, 2h--> [LSTM of h, 1x1 to 2h, +] x N
          --ReLU 1x1--> head_filters --ReLU 1x1--> likelihood's parameters  (mask B)

The layers are in kgen/layers/pixel_lstm.py. Row LSTM sees a triangle above the pixel,
which each layer widens by a pixel on the left; the two directions of Diagonal BiLSTM
together see every earlier pixel.

Shapes: B batch, (H, W, C) image, h units, K classes, P likelihood parameters a pixel.

Differences from the paper:
  1. Diagonal BiLSTM's maps have one more column on the right, where the image is zero.
     What stands there has seen the row's last pixel, and the left-going state takes it
     to the next row; without it, that row sees this pixel only near its own end.
  2. Forget gates start with a bias of 1.
  3. Class-conditional models add a learnt vector of the class to the first layer and to
     each layer's gates.
  4. With `skip_connections`, each layer's h goes through its own 1x1 to 2h into the
     head's input; the paper has them for its deep models, without details.
  5. Any optimizer; the paper's is RMSProp.
"""

import keras
from keras import layers, ops

from kgen.checks import boolean, multiples, odd, positive
from kgen.layers import DiagonalBiLSTMLayer, RowLSTMLayer, ShiftedConv2D
from kgen.models.autoregressive import Autoregressive


class _PixelRNN(Autoregressive):
    """What both models have; see the module for the picture."""

    layer_class = None

    config_names = (
        "units", "num_layers", "first_kernel_size", "head_filters",
        "skip_connections",
    )  # fmt: skip

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        units=16,
        num_layers=7,
        first_kernel_size=7,
        head_filters=None,
        skip_connections=False,
        likelihood=None,
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, likelihood, **kwargs)
        H, W, C = self.image_shape
        head_filters = 2 * units if head_filters is None else head_filters
        positive(num_layers=num_layers)
        multiples(C, units=units, head_filters=head_filters)
        odd(3, first_kernel_size=first_kernel_size)
        self.units, self.num_layers = units, num_layers
        self.first_kernel_size, self.head_filters = first_kernel_size, head_filters
        boolean(skip_connections=skip_connections)
        self.skip_connections = skip_connections
        r = first_kernel_size // 2
        self.first = self._causal(2 * units, C, (-r, 0), (-r, r), mask="A")
        self.scans = []
        for _ in range(num_layers):
            scan = self.layer_class(units, C, dtype=self.dtype_policy)
            scan.build((None, H, W, 2 * units))
            self.scans.append(scan)
        self.ups = [self._causal(2 * units, units) for _ in self.scans]
        self.skips = [
            self._causal(2 * units, units) for _ in self.scans if skip_connections
        ]
        self.head = [
            self._causal(head_filters, 2 * units),
            self._causal(self.num_outputs, head_filters),
        ]
        self.label_layers = []
        if num_classes:
            gate_widths = [s.directions * 4 * units for s in self.scans]
            for width in (2 * units, *gate_widths):
                dense = layers.Dense(width, use_bias=False, dtype=self.dtype_policy)
                dense.build((None, num_classes))
                self.label_layers.append(dense)
        self.built = True

    def _causal(self, filters, inputs, rows=(0, 0), columns=(0, 0), mask="B"):
        H, W, C = self.image_shape
        layer = ShiftedConv2D(
            filters, rows, columns, mask, channels=C, dtype=self.dtype_policy
        )
        layer.build((None, H, W, inputs))
        return layer

    def label_biases(self, label):
        if label is None:
            return [None] * (1 + self.num_layers)
        return [dense(label) for dense in self.label_layers]

    def network(self, x, from_above, biases, apply):
        x = apply(self.first, x, biases[0])  # (B, H, W or W + 1, 2h)
        skipped = 0.0
        for i, (scan, up) in enumerate(zip(self.scans, self.ups, strict=True)):
            h = apply(scan, x, biases[1 + i])  # (B, H, W, h)
            x = x + apply(up, h)  # (B, H, W, 2h)
            if self.skip_connections:
                skipped = skipped + apply(self.skips[i], h)  # (B, H, W, 2h)
        x = x + skipped
        for layer in self.head:
            x = apply(layer, ops.relu(x))  # (B, H, W, head_filters), (B, H, W, P)
        return x


@keras.saving.register_keras_serializable(package="kgen")
class RowLSTM(_PixelRNN):
    """PixelRNN with Row LSTM layers; see the module for the picture.

    Args:
        image_shape, levels, num_classes, likelihood: see Autoregressive.
        units: h, of a layer's state in each direction; maps between layers have 2h
            features. With C channels, a multiple of C.
        num_layers: N.
        first_kernel_size: of the first layer, odd.
        head_filters: features between the head's two 1x1 layers: 32 in the paper for
            MNIST, 1024 for CIFAR-10; by default 2h.
        skip_connections: whether each layer also feeds the head.

    Example:
        model = kgen.models.RowLSTM((28, 28, 1), units=32, num_layers=3)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=5)
    """

    layer_class = RowLSTMLayer


@keras.saving.register_keras_serializable(package="kgen")
class DiagonalBiLSTM(_PixelRNN):
    """PixelRNN with Diagonal BiLSTM layers; see the module for the picture.

    Args:
        image_shape, levels, num_classes, likelihood: see Autoregressive.
        units: h, of a layer's state in each direction; maps between layers have 2h
            features. With C channels, a multiple of C.
        num_layers: N.
        first_kernel_size: of the first layer, odd.
        head_filters: features between the head's two 1x1 layers: 32 in the paper for
            MNIST, 1024 for CIFAR-10; by default 2h.
        skip_connections: whether each layer also feeds the head.

    Example:
        model = kgen.models.DiagonalBiLSTM((28, 28, 1), units=16, num_layers=7)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=5)
    """

    layer_class, extra_columns, whole_rows = DiagonalBiLSTMLayer, 1, False
