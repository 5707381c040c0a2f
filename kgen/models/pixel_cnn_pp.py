"""PixelCNN++.

    T. Salimans, A. Karpathy, X. Chen, D. P. Kingma. PixelCNN++: Improving the PixelCNN
        with Discretized Logistic Mixture Likelihood and Other Modifications. ICLR 2017,
        arXiv:1701.05517 (figure 2: the network; section 2.2: channels by the
        likelihood)

A stream u sees the rows above a pixel, a stream ul also the pixel's own row to its
left, and takes u in at every block. Streams are halved twice and doubled again, with
short cuts from the blocks on the way down to those on the way up (R resolutions of N
blocks; in the paper three of five):

    H x W      first -> N blocks ------------------------------> N + 1 blocks -> head
                           | halve                          ^ double
    H/2 x W/2          N blocks -------------------> N + 1 blocks
                           | halve                 ^ double
    H/4 x W/4          N blocks -----------> N blocks

All parameters of a pixel follow from earlier pixels; the likelihood couples channels
(eq. 3). Convolutions are weight-normalised; the first batch sets scales and biases.

Halved maps carry even rows to the rows after them: of an odd row itself, and partly of
the one above, the network sees 4 N + 2 columns only (R = 1: 4 N + 1 on all rows).

Shapes: B batch, (H, W, C) image, F filters, K classes, P likelihood parameters a pixel.

Differences from the paper and its code (github.com/openai/pixel-cnn):
  1. Any image size: halving rounds up, doubling crops.
  2. The network is initialised with dropout off, so by the batch alone.
  3. Two levels of one channel have a Bernoulli likelihood.
"""

import itertools

import keras
import numpy as np
from keras import ops

from kgen import backend
from kgen.checks import fraction, positive, sizes
from kgen.layers import GatedResnet, WeightNormConv2D
from kgen.likelihoods import LogisticMixture
from kgen.models.autoregressive import Autoregressive
from kgen.models.pixel_cnn_pp_cached import CachedPixelCNNPlusPlus
from kgen.tensor_checks import check_data

# First and last offsets of the windows (rows, columns) of both streams
ABOVE = {"rows": (-1, 0), "columns": (-1, 1)}
ABOVE_LEFT = {"rows": (-1, 0), "columns": (-1, 0)}


@keras.saving.register_keras_serializable(package="kgen")
class PixelCNNPlusPlus(Autoregressive):
    """PixelCNN++; see the module for the figure.

    The first `fit` of a fresh model starts with `initialize`, from up to 256 of its
    images: at even distances of an array or a torch DataLoader's data set, the first
    ones of a PyDataset or tf.data (where that takes an iterator of its own, so one that
    reshuffles goes on from its second order). Generators, which cannot be looked into
    without taking from them, are left alone: call `initialize` yourself.

    Args:
        image_shape, levels, num_classes: see GenerativeModel.
        filters: F; 160 in the paper for CIFAR-10.
        num_blocks: N of each resolution; 5 in the paper's code.
        num_resolutions: R; by default as many, up to 3, as leave the smallest map at
            least 2 on its longer side.
        num_mixtures: components of a "logistic_mixture".
        dropout: rate inside the blocks, when training.
        likelihood: see Autoregressive; by default Bernoulli for two levels and one
            channel, else a mixture of logistics. Only the mixture couples the channels
            of a pixel; under others they are independent, given earlier pixels.

    Example, with the paper's average of weights for all that is not a training step
    (BackupAndRestore, if used, must come before SwapEMAWeights):
        model = kgen.models.PixelCNNPlusPlus((28, 28, 1), filters=24, num_blocks=2)
        model.compile(keras.optimizers.Adam(1e-3, use_ema=True, ema_momentum=0.9995))
        average = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        model.fit(images, validation_data=held_out, epochs=20, callbacks=[average])
    """

    channels_in_turn = False

    config_names = (
        "filters", "num_blocks", "num_resolutions", "num_mixtures", "dropout",
    )  # fmt: skip

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        filters=32,
        num_blocks=2,
        num_resolutions=None,
        num_mixtures=10,
        dropout=0.5,
        likelihood=None,
        **kwargs,
    ):
        if likelihood is None:
            one_bit = levels == 2 and sizes("image_shape", image_shape)[-1:] == (1,)
            likelihood = "bernoulli" if one_bit else LogisticMixture.name
        positive(filters=filters, num_blocks=num_blocks, num_mixtures=num_mixtures)
        super().__init__(
            image_shape, levels, num_classes, likelihood, num_mixtures, **kwargs
        )
        self.num_mixtures = num_mixtures
        fraction(dropout=dropout)
        self.filters, self.num_blocks, self.dropout = filters, num_blocks, dropout
        self._set_maps(num_resolutions)
        self._build_network()
        self.initialized = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False,
            name="initialized",
        )  # fmt: skip
        self._first_scales = backend.compile_function(self, self._collect_scales)
        self.built = True

    def _set_maps(self, num_resolutions):
        maps = [self.image_shape[:2]]
        while max(maps[-1]) > 1:
            maps.append(tuple(-(-n // 2) for n in maps[-1]))
        if num_resolutions is None:
            num_resolutions = max(1, min(3, len(maps) - 1))
        if not 1 <= num_resolutions <= len(maps):
            raise ValueError(
                f"num_resolutions must be in 1..{len(maps)} for images of "
                f"{self.image_shape[:2]}; got {num_resolutions!r}."
            )
        self.num_resolutions = num_resolutions
        self.maps = maps[:num_resolutions]

    def _build_network(self):
        F, N, R = self.filters, self.num_blocks, self.num_resolutions
        seeds = itertools.count(1)
        inputs = self.image_shape[-1] + 1
        dtype = {"dtype": self.dtype_policy}

        def conv(inputs, filters, **kwargs):
            layer = WeightNormConv2D(filters, **kwargs, **dtype)
            layer.build((None, None, None, inputs))
            return layer

        def blocks(*aux):
            """Of u and ul, with so many features of other streams."""
            common = {"num_classes": self.num_classes, "dropout": self.dropout} | dtype
            return [
                GatedResnet(F, **window, aux_filters=a, seed=next(seeds), **common)
                for window, a in zip((ABOVE, ABOVE_LEFT), aux, strict=True)
            ]

        self.first = [
            conv(inputs, F, rows=rows, columns=columns)
            for rows, columns in (
                ((-2, -1), (-1, 1)),
                ((-1, -1), (-1, 1)),
                ((-1, 0), (-1, -1)),
            )
        ]
        self.down = [[blocks(0, F) for _ in range(N)] for _ in range(R)]
        self.halve = [
            [conv(F, F, **window, resample="halve") for window in (ABOVE, ABOVE_LEFT)]
            for _ in range(R - 1)
        ]
        self.up = [[blocks(F, 2 * F) for _ in range(N + (r > 0))] for r in range(R)]
        self.doubling = [
            [
                conv(F, F, rows=(0, 1), columns=columns, resample="double", size=size)
                for columns in ((-1, 1), (0, 1))
            ]
            for size in reversed(self.maps[:-1])
        ]
        self.head = conv(F, self.num_outputs)

    def params(self, x, labels=None, training=False):
        return self._network(x, labels, training)

    def _network(self, x, labels=None, training=False, collect=None):
        label = None if labels is None else self.one_hot(labels)  # (B, K)
        options = {"label": label, "training": training, "collect": collect}
        x = 2.0 * self.scale(x) - 1.0
        x = ops.concatenate([x, ops.ones_like(x[..., :1])], axis=-1)  # (B, H, W, C + 1)
        u, above, left = [conv(x, collect=collect) for conv in self.first]
        ul = above + left  # (B, H, W, F)
        passed = [(u, ul)]
        for r, blocks in enumerate(self.down):
            if r:
                block_u, block_ul = self.halve[r - 1]
                u, ul = block_u(u, collect=collect), block_ul(ul, collect=collect)
                passed.append((u, ul))  # (B, h, w, F) each
            for block_u, block_ul in blocks:
                u = block_u(u, **options)
                ul = block_ul(ul, u, **options)
                passed.append((u, ul))
        u, ul = passed.pop()
        for r, blocks in enumerate(self.up):
            if r:
                block_u, block_ul = self.doubling[r - 1]
                u, ul = block_u(u, collect=collect), block_ul(ul, collect=collect)
            for block_u, block_ul in blocks:
                short_u, short_ul = passed.pop()
                u = block_u(u, short_u, **options)
                ul = block_ul(ul, ops.concatenate([u, short_ul], axis=-1), **options)
        return self.head(ops.elu(ul), collect=collect)  # (B, H, W, P)

    def cached_network(self, label, B):
        return CachedPixelCNNPlusPlus(self, label, B)

    # Initialisation

    def convolutions(self):
        """All weight-normalised convolutions, each with `v`, `g` and `b`."""
        return [
            conv
            for layer in self.layers
            for conv in getattr(layer, "convolutions", [layer])
        ]

    def _collect_scales(self, x, labels=None):
        new = {}

        def collect(conv, g, b):
            new[id(conv)] = (g, b)

        self._network(x, labels, collect=collect)
        return [new[id(conv)] for conv in self.convolutions()]

    def initialize(self, x, labels=None):
        """Sets the scale g and the bias b of every convolution so that its outputs have
        mean 0 and standard deviation 1 (0.1 before the gates) over these images.

        Args:
            x: integers (B, H, W, C), a few hundred.
            labels: integers (B,), for conditional models.
        """
        new = self._first_scales(*self.prepare_inputs(x, labels))
        for conv, (g, b) in zip(self.convolutions(), new, strict=True):
            conv.g.assign(g)
            conv.b.assign(b)
        self.initialized.assign(1)

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `GenerativeModel.fit`; a fresh model is initialised first. Fresh is one
        that was neither trained, initialised, nor given the weights of one that was."""
        trained = self.compiled and int(ops.convert_to_numpy(self.optimizer.iterations))
        if not trained and not int(ops.convert_to_numpy(self.initialized)):
            check_data(self, x, y)
            first = first_images(x, y)
            if first is not None:
                self.initialize(*first)
        self.initialized.assign(1)
        return super().fit(x, y, *args, **kwargs)


def first_images(x, y=None, most=256):
    """(images, labels or None), at most so many, of what `fit` takes; None of what can
    be read only once. Data sets keep their order, a torch DataLoader also its
    generator; arrays and its data set are read at even distances."""
    if hasattr(x, "shape"):
        thin = _evenly(len(x), most)
        arrays = (x,) if y is None else (x, y)
        batches = [tuple(_rows(a, thin) for a in arrays)]
    elif isinstance(x, keras.utils.PyDataset):
        batches = (x[i] for i in range(len(x)))
    elif hasattr(x, "as_numpy_iterator"):  # tf.data
        batches = x.take(most).as_numpy_iterator()
    elif hasattr(x, "collate_fn") and hasattr(x.dataset, "__len__"):
        chosen = _evenly(len(x.dataset), most)
        batches = [x.collate_fn([x.dataset[int(i)] for i in chosen])]
    else:
        return None
    images, labels, count = [], [], 0
    for batch in batches:
        batch = tuple(batch) if isinstance(batch, (tuple, list)) else batch
        some, their, _ = keras.utils.unpack_x_y_sample_weight(batch)
        images.append(ops.convert_to_numpy(some))
        labels += [] if their is None else [ops.convert_to_numpy(their)]
        count += len(images[-1])
        if count >= most:
            break
    labels = np.concatenate(labels)[:most] if labels else None
    return np.concatenate(images)[:most], labels


def _rows(a, chosen):
    """a[chosen] of an array or a tensor; TensorFlow's take no lists of indices."""
    return a[chosen] if isinstance(a, np.ndarray) else ops.take(a, chosen, axis=0)


def _evenly(n, most):
    """At most so many indices, from the first to the last of n."""
    return np.linspace(0, n - 1, min(n, most)).astype("int64")
