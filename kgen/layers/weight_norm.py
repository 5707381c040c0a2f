"""Weight-normalised shifted convolutions, at one resolution or between two.

    T. Salimans, D. P. Kingma. Weight Normalization: A Simple Reparameterization to
        Accelerate Training of Deep Neural Networks. NIPS 2016, arXiv:1602.07868

    kernel = g v / ||v||, for each output feature                                   (2)

At first g and b follow from one batch: with t the output at g = 1, b = 0, each feature
of y = g t + b is given mean 0 and standard deviation s over that batch's positions,

    g = s / std[t],   b = -s mean[t] / std[t].                                 (5), (6)

Shapes: B batch, H, W map, h = ceil(H / 2), w = ceil(W / 2), F input features.
"""

import keras
from keras import layers, ops

from kgen.layers.causal_conv import convolve

# Below this a feature counts as constant, as those of the rows above are in an image
# of one row: it is centred, and its rounding errors are not blown up.
_LEAST_VARIANCE = 1e-6


def downsample(x, kernel):
    """A convolution of stride 2: output (i, j) sees the inputs 2i-1 .. 2i and, by the
    kernel's width, the columns 2j-1 .. 2j or 2j-1 .. 2j+1: (B, h, w, filters).

    As products of matrices: XLA is slow at strided convolutions on CPUs.
    """
    _, H, W, F = x.shape
    h, w = -(-H // 2), -(-W // 2)
    x = x[:, : 2 * h - 1]
    x = ops.pad(x, [[0, 0], [1, 0], [1, 2 * w + 1 - W], [0, 0]])
    x = ops.reshape(x, (-1, h, 2, w + 1, 2 * F))  # in pairs of rows and of columns
    y = 0.0
    for row in range(2):
        pairs, taps = x[:, :, row], kernel[row]  # (B, h, w + 1, 2F), (2 or 3, F, -)
        y = y + ops.matmul(pairs[:, :, :w], ops.reshape(taps[:2], (2 * F, -1)))
        if taps.shape[0] == 3:
            y = y + ops.matmul(pairs[:, :, 1:, :F], taps[2])
    return y


def upsample(x, kernel, size):
    """A transposed convolution of stride 2, cropped: input (i, j) feeds the outputs 2i
    .. 2i+1 and, by the kernel's width, the columns 2j .. 2j+1 or 2j-1 .. 2j+1:
    (B, h, w, F) -> (B, *size, filters).

    As products of matrices: XLA is slow at transposed convolutions on CPUs.
    """
    _, h, w, F = x.shape
    H, W = size

    def feed(x, taps):
        """(B, h, w, 2, columns, filters): what each input feeds."""
        taps = ops.transpose(taps, (2, 0, 1, 3))  # (F, 2, columns, filters)
        y = ops.matmul(x, ops.reshape(taps, (F, -1)))
        return ops.reshape(y, (-1, h, w, *taps.shape[1:]))

    y = feed(x, kernel[:, -2:])  # (B, h, w, 2, 2, filters)
    if kernel.shape[1] == 3:  # column 2j+1 is also 2(j+1)-1
        right = ops.pad(x[:, :, 1:], [[0, 0], [0, 0], [0, 1], [0, 0]])
        more = feed(right, kernel[:, :1])  # (B, h, w, 2, 1, filters)
        y = y + ops.pad(more, [[0, 0]] * 4 + [[1, 0], [0, 0]])
    y = ops.transpose(y, (0, 1, 3, 2, 4, 5))  # (B, h, 2, w, 2, filters)
    return ops.reshape(y, (-1, 2 * h, 2 * w, y.shape[-1]))[:, :H, :W]


@keras.saving.register_keras_serializable(package="kgen")
class WeightNormConv2D(layers.Layer):
    """A weight-normalised convolution of a shifted window, with bias.

    (B, H, W, F) -> (B, H, W, filters); halving (B, h, w, filters), doubling from
    (B, h, w, F). Norms are taken in float32, whatever the policy.

    Args:
        filters: number of output features.
        rows, columns: first and last offset of the window: of the inputs that an output
            sees (2i + rows if halving), or of the outputs 2i + rows that an input
            feeds, if doubling.
        resample: None; "halve", with rows (-1, 0) and columns (-1, 0) or (-1, 1); or
            "double", with rows (0, 1) and columns (0, 1) or (-1, 1).
        size: (H, W) of the output, for "double".
        init_scale: s, the standard deviation that initialisation gives to outputs.

    Called with `collect`, a function, it takes g and b from the batch (eqs. 5, 6), uses
    them, and reports them by `collect(layer, g, b)`; its variables stay as they are.
    """

    def __init__(
        self,
        filters,
        rows=(0, 0),
        columns=(0, 0),
        resample=None,
        size=None,
        init_scale=1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.rows, self.columns = filters, tuple(rows), tuple(columns)
        self.resample, self.size, self.init_scale = resample, size, init_scale
        window = {"halve": (-1, 0), "double": (0, 1), None: self.rows}.get(resample)
        if self.rows != window or (resample and self.columns not in (window, (-1, 1))):
            raise ValueError(
                f"resample={resample!r} over rows {rows} and columns {columns}: "
                "expected None; 'halve' of rows (-1, 0), columns (-1, 0) or (-1, 1); "
                "or 'double' of rows (0, 1), columns (0, 1) or (-1, 1)."
            )

    def build(self, input_shape):
        taps = [last - first + 1 for first, last in (self.rows, self.columns)]
        features = {"shape": (self.filters,), "autocast": False}
        self.v = self.add_weight(
            shape=(*taps, input_shape[-1], self.filters),
            initializer=keras.initializers.RandomNormal(stddev=0.05),
            autocast=False,
            name="v",
        )
        scale = keras.initializers.Constant(self.init_scale)
        self.g = self.add_weight(initializer=scale, name="g", **features)
        self.b = self.add_weight(initializer="zeros", name="b", **features)
        self.built = True

    def effective_kernel(self):
        """g v / ||v||: float32 (rows, columns, F, filters)."""
        return self._direction() * self.g

    def _direction(self):
        squared = ops.sum(ops.square(self.v), axis=(0, 1, 2))  # (filters,)
        return self.v * ops.rsqrt(ops.maximum(squared, 1e-12))

    def _apply(self, x, kernel, bias=None):
        kernel = ops.cast(kernel, self.compute_dtype)
        if self.resample is None:
            return convolve(x, kernel, self.rows, self.columns, bias)
        if self.resample == "halve":
            y = downsample(x, kernel)
        else:
            y = upsample(x, kernel, self.size)
        return y if bias is None else y + bias

    def call(self, x, collect=None):
        if collect is None:
            b = ops.cast(self.b, self.compute_dtype)
            return self._apply(x, self.effective_kernel(), b)  # (B, H, W, filters)
        t = ops.cast(self._apply(x, self._direction()), "float32")
        mean = ops.mean(t, axis=(0, 1, 2))  # (filters,)
        variance = ops.mean(ops.square(t - mean), axis=(0, 1, 2))
        varies = variance > _LEAST_VARIANCE
        g = self.init_scale * ops.where(
            varies, ops.rsqrt(ops.where(varies, variance, 1.0)), 1.0
        )
        collect(self, g, -mean * g)
        return ops.cast((t - mean) * g, self.compute_dtype)

    def compute_output_shape(self, input_shape, collect=None):
        B, H, W, _ = input_shape
        if self.resample == "halve":
            H, W = (n if n is None else -(-n // 2) for n in (H, W))
        return (B, *(self.size or (H, W)), self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "rows": self.rows,
            "columns": self.columns,
            "resample": self.resample,
            "size": self.size,
            "init_scale": self.init_scale,
        }


def concat_elu(x):
    """ELU of x and of -x: (..., F) -> (..., 2F)."""
    return ops.elu(ops.concatenate([x, -x], axis=-1))


@keras.saving.register_keras_serializable(package="kgen")
class GatedResnet(layers.Layer):
    """A block of one stream; PixelCNN++ (arXiv:1701.05517, section 2).

        x --cELU--conv to F--(+)--cELU--dropout--conv to 2F--(+)--a . sigma(b)--(+)
          aux --cELU--1x1 to F^                      label V h^                  ^x

    with cELU(x) = ELU([x, -x]) and a, b the halves of the features.

    Call with x (B, H, W, F), the features `aux` (B, H, W, aux_filters) of the other
    stream and of the short cut, and the one-hot label (B, K), each or None; returns
    (B, H, W, F). `collect` is passed to the convolutions.

    Args:
        filters: F.
        rows, columns: the window; see WeightNormConv2D.
        aux_filters: features of `aux`, 0 for none.
        num_classes: K, or None.
        dropout: rate.
        seed: int, of the dropout.
    """

    def __init__(
        self,
        filters,
        rows,
        columns,
        aux_filters=0,
        num_classes=None,
        dropout=0.0,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters, self.rows, self.columns = filters, rows, columns
        self.aux_filters, self.num_classes = aux_filters, num_classes
        self.rate, self.seed = dropout, seed
        dtype = {"dtype": self.dtype_policy}
        self.conv = WeightNormConv2D(filters, rows, columns, name="conv", **dtype)
        self.gates = WeightNormConv2D(
            2 * filters, rows, columns, init_scale=0.1, name="gates", **dtype
        )
        for layer in (self.conv, self.gates):
            layer.build((None, None, None, 2 * filters))
        self.link = self.label = None
        if aux_filters:
            self.link = WeightNormConv2D(filters, name="link", **dtype)
            self.link.build((None, None, None, 2 * aux_filters))
        if num_classes:
            self.label = layers.Dense(
                2 * filters, use_bias=False, name="label", **dtype
            )
            self.label.build((None, num_classes))
        # Without a seed of its own Keras' Dropout is not repeatable on PyTorch.
        self.dropout = layers.Dropout(dropout, seed=seed, **dtype)
        self.built = True

    def call(self, x, aux=None, label=None, training=False, collect=None):
        h = self.conv(concat_elu(x), collect=collect)  # (B, H, W, F)
        if aux is not None:
            h = h + self.link(concat_elu(aux), collect=collect)
        h = self.dropout(concat_elu(h), training=training)  # (B, H, W, 2F)
        h = self.gates(h, collect=collect)  # (B, H, W, 2F)
        if label is not None:
            h = h + self.label(label)[:, None, None]
        a, b = ops.split(h, 2, axis=-1)
        return x + a * ops.sigmoid(b)

    @property
    def convolutions(self):
        every = (self.conv, self.link, self.gates)
        return [layer for layer in every if layer is not None]

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "rows": self.rows,
            "columns": self.columns,
            "aux_filters": self.aux_filters,
            "num_classes": self.num_classes,
            "dropout": self.rate,
            "seed": self.seed,
        }
