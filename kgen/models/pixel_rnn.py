"""PixelRNN: Row LSTM and Diagonal BiLSTM.

    A. van den Oord, N. Kalchbrenner, K. Kavukcuoglu. Pixel Recurrent Neural Networks.
        ICML 2016, arXiv:1601.06759 (section 3.1: Row LSTM; section 3.2: Diagonal
        BiLSTM; 3.3, 3.4: residual connections, masks; table 1: the whole)

Networks of two-dimensional LSTMs, whose state carries earlier pixels of any distance.

    image --7x7 mask A, 2h--> [LSTM of h, 1x1 to 2h, +] x N
          --ReLU 1x1--> head_filters --ReLU 1x1--> likelihood's parameters  (mask B)

A layer's input-to-state part is one convolution of the whole map; its state-to-state
part is scanned, * being a convolution and . the elementwise product:

    [o, f, i, g] = [sigma, sigma, sigma, tanh](K_ss * h_before + K_is * x)
    c = f . c_before + i . g,   h = o . tanh(c)                                      (3)

Row LSTM: "before" is the row above, K_ss has 3 taps of it, K_is those of the pixel and
its left neighbour: a row a step, H steps. State reaches one pixel further to either
side a row, so the context is a triangle above the pixel.

Diagonal BiLSTM: K_ss has two taps, the states above and to the left; c_before is that
to the left. Skewed, row i moved i to the right, both are in the column before, so that
a step does a diagonal, and there are H + W - 1. A second LSTM does the same from the
right; its output is moved one row down, as it has seen pixels to the right of its own,
and the two are added. Together they see every earlier pixel.

Shapes: B batch, (H, W, C) image, h units, K classes, P likelihood parameters a pixel,
T = H + W - 1 diagonals.

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

from kgen import backend
from kgen.checks import multiples, odd, positive
from kgen.layers import ShiftedConv2D
from kgen.models.autoregressive import Autoregressive


def lstm(from_input, from_state, c):
    """Eq. 3 from the two parts of the sums (..., 4h) and the state c (..., h): the next
    h and c."""
    o, f, i, g = ops.split(from_input + from_state, 4, axis=-1)  # (..., h) each
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def skewed(x):
    """Row i of x (n, H, W, F) moved i to the right, with zeros: (n, H, T, F)."""
    _, H, W, F = x.shape
    x = ops.pad(x, [[0, 0], [0, 0], [0, H], [0, 0]])  # (n, H, W + H, F)
    x = ops.reshape(x, (-1, H * (W + H), F))[:, :-H]
    return ops.reshape(x, (-1, H, W + H - 1, F))


def unskewed(x, W):
    """Back: (n, H, T, F) -> (n, H, W, F)."""
    _, H, T, F = x.shape
    x = ops.pad(ops.reshape(x, (-1, H * T, F)), [[0, 0], [0, H], [0, 0]])
    return ops.reshape(x, (-1, H, T + 1, F))[:, :, :W]


def inside(H, W):
    """Which of the skewed positions are pixels: 1 or 0, (T, 1, 1, H, 1)."""
    on_map = ops.reshape(skewed(ops.ones((1, H, W, 1))), (H, -1))  # (H, T)
    return ops.reshape(ops.transpose(on_map), (-1, 1, 1, H, 1))


class _Scan(layers.Layer):
    """What both layers have: K_is as `from_input`, K_ss as `from_state`.

    Args:
        units: h.
        channels: C of the image.
    """

    directions, taps, columns = 1, 3, (-1, 0)

    def __init__(self, units, channels=1, **kwargs):
        super().__init__(**kwargs)
        self.units, self.channels = units, channels
        self.from_input = ShiftedConv2D(
            self.directions * 4 * units,
            (0, 0),
            self.columns,
            mask="B",
            channels=channels,
            parts=self.directions * 4,
            name="from_input",
            dtype=self.dtype_policy,
        )

    def build(self, x_shape, label_shape=None):
        h = self.units
        self.from_input.build(x_shape)
        forget = ops.one_hot(
            ops.repeat(ops.array([0, 1, 0, 0] * self.directions), h), 2
        )
        self.from_input.bias.assign(forget[:, 1])
        self.from_state = [
            self.add_weight(shape=(self.taps * h, 4 * h), name=f"from_state_{i}")
            for i in range(self.directions)
        ]
        self.built = True

    def get_config(self):
        own = {"units": self.units, "channels": self.channels}
        return super().get_config() | own


@keras.saving.register_keras_serializable(package="kgen")
class RowLSTMLayer(_Scan):
    """(B, H, W, F) -> h (B, H, W, h); `of_label` (B, 1, 1, 4h) adds to the gates."""

    def call(self, x, of_label=None):
        _, _, W, _ = x.shape
        x = ops.transpose(x, (1, 0, 2, 3))  # (H, B, W, F)
        gates = self.from_input(x)  # (H, B, W, 4h); the rows of any image are alike
        if of_label is not None:
            gates = gates + ops.transpose(of_label, (1, 0, 2, 3))
        kernel = ops.convert_to_tensor(self.from_state[0])  # (3h, 4h)

        def row(state, gates):
            h, c = state  # (B, W, h) each
            h = ops.pad(h, [[0, 0], [1, 1], [0, 0]])  # (B, W + 2, h)
            near = ops.concatenate([h[:, :-2], h[:, 1:-1], h[:, 2:]], axis=-1)
            near = ops.reshape(near, (-1, 3 * self.units))  # (B W, 3h)
            sums = ops.reshape(near @ kernel, (-1, W, 4 * self.units))
            h, c = lstm(gates, sums, c)
            return (h, c), h

        zeros = ops.zeros_like(gates[0, ..., : self.units])  # (B, W, h)
        _, h = backend.scan(row, (zeros, zeros), gates)  # (H, B, W, h)
        return ops.transpose(h, (1, 0, 2, 3))


@keras.saving.register_keras_serializable(package="kgen")
class DiagonalBiLSTMLayer(_Scan):
    """(B, H, W, F) -> the sum of both directions' h (B, H, W, h); `of_label`
    (B, 1, 1, 8h) is added to the gates."""

    directions, taps, columns = 2, 2, (0, 0)

    def _constant(self, of_label):
        """What is added to the gates at every pixel: (2, B or 1, 1, 4h)."""
        b = ops.reshape(self.from_input.bias, (1, 1, 1, -1))
        b = b if of_label is None else b + of_label  # (B or 1, 1, 1, 8h)
        b = ops.reshape(b, (-1, 2, 1, 4 * self.units))
        return ops.transpose(b, (1, 0, 2, 3))

    def call(self, x, of_label=None):
        _, H, W, F = x.shape
        h, T = self.units, H + W - 1
        x = ops.concatenate([x, ops.flip(x, axis=2)], axis=0)  # (2 B, H, W, F)
        x = ops.transpose(skewed(x), (2, 0, 1, 3))  # (T, 2 B, H, F)
        kernel = ops.reshape(self.from_input.effective_kernel(), (F, 2, 4 * h))
        kernel = ops.transpose(kernel, (1, 0, 2))  # (2, F, 4h)
        gates = ops.reshape(x, (T, 2, -1, F)) @ kernel  # (T, 2, B H, 4h)
        # Outside of the map gates are zero, and so h and c are: as left of its edge.
        gates = ops.reshape(gates, (T, 2, -1, H, 4 * h))
        gates = gates + inside(H, W) * self._constant(of_label)  # (T, 2, B, H, 4h)
        gates = ops.reshape(gates, (T, -1, H, 4 * h))  # (T, 2 B, H, 4h)
        # 1.0 *: TensorFlow does not stack variables
        kernel = ops.stack([1.0 * k for k in self.from_state])  # (2, 2h, 4h)

        def diagonal(state, gates):
            state_h, c = state  # (2 B, H, h) each
            above = ops.pad(ops.split(state_h, [H - 1], 1)[0], [[0, 0], [1, 0], [0, 0]])
            near = ops.concatenate([above, state_h], axis=-1)  # (2 B, H, 2h)
            sums = ops.reshape(near, (2, -1, 2 * h)) @ kernel  # (2, B H, 4h)
            state_h, c = lstm(gates, ops.reshape(sums, (-1, H, 4 * h)), c)
            return (state_h, c), state_h

        zeros = ops.zeros_like(gates[0, ..., :h])  # (2 B, H, h)
        _, out = backend.scan(diagonal, (zeros, zeros), gates)  # (T, 2 B, H, h)
        out = unskewed(ops.transpose(out, (1, 2, 0, 3)), W)  # (2 B, H, W, h)
        right, left = ops.split(ops.reshape(out, (2, -1, H, W, h)), 2)
        left = ops.flip(left[0], axis=2)[:, :-1]  # (B, H - 1, W, h)
        return right[0] + ops.pad(left, [[0, 0], [1, 0], [0, 0], [0, 0]])


class _PixelRNN(Autoregressive):
    """What both models have; see the module for the picture."""

    layer_class, extra_columns = None, 0

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
        self.of_label = []
        if num_classes:
            of_gates = [s.directions * 4 * units for s in self.scans]
            for width in (2 * units, *of_gates):
                dense = layers.Dense(width, use_bias=False, dtype=self.dtype_policy)
                dense.build((None, num_classes))
                self.of_label.append(dense)
        self.built = True

    def _causal(self, filters, inputs, rows=(0, 0), columns=(0, 0), mask="B"):
        H, W, C = self.image_shape
        layer = ShiftedConv2D(
            filters, rows, columns, mask, channels=C, dtype=self.dtype_policy
        )
        layer.build((None, H, W, inputs))
        return layer

    def params(self, x, labels=None, training=False):
        of_label = [None] * (1 + self.num_layers)
        if labels is not None:
            label = self.one_hot(labels)[:, None, None]  # (B, 1, 1, K)
            of_label = [dense(label) for dense in self.of_label]
        W = self.image_shape[1]
        x = ops.pad(self.scale(x), [[0, 0], [0, 0], [0, self.extra_columns], [0, 0]])
        x = self.first(x)  # (B, H, W or W + 1, 2h)
        if labels is not None:
            x = x + of_label[0]
        skipped = 0.0
        for i, (scan, up) in enumerate(zip(self.scans, self.ups, strict=True)):
            h = scan(x, of_label[1 + i])  # (B, H, W, h)
            x = x + up(h)  # (B, H, W, 2h)
            if self.skip_connections:
                skipped = skipped + self.skips[i](h)  # (B, H, W, 2h)
        x = (x + skipped)[:, :, :W]
        for layer in self.head:
            x = layer(ops.relu(x))  # (B, H, W, head_filters), then (B, H, W, P)
        return x

    def get_config(self):
        return super().get_config() | {
            "units": self.units,
            "num_layers": self.num_layers,
            "first_kernel_size": self.first_kernel_size,
            "head_filters": self.head_filters,
            "skip_connections": self.skip_connections,
        }


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

    layer_class, extra_columns = DiagonalBiLSTMLayer, 1
