"""NADE: neural autoregressive distribution estimator.

    H. Larochelle, I. Murray. The Neural Autoregressive Distribution Estimator. AISTATS
        2011
    B. Uria, M.-A. Cote, K. Gregor, I. Murray, H. Larochelle. Neural Autoregressive
        Distribution Estimation. JMLR 17, 2016, arXiv:1605.02226

Every dimension, in raster order (row, column, channel), has a hidden layer of its own,
and all of these share one matrix W and one bias c:

    h_d = sigmoid(a_d),   a_d = c + W_{.,<d} x_<d                                  (1)
    parameters_d = b_d + V_d h_d                                                   (2)
    a_1 = c,   a_{d+1} = a_d + W_{.,d} x_d                                         (3)

Section 2 of Uria et al.; with 2 levels sigmoid(parameters_d) is p(x_d = 1 | x_<d). By
(3) an image costs O(D H), not O(D^2 H), to score or to draw.
Unit: nats per image, summed over dimensions.

Scoring has all of x, so (3) need not be a loop over dimensions. They are taken in
blocks: a_d at the start of a block is that of the block before plus one product with
W, and within it a triangular mask of k by k in place of one of D by D.

Shapes: B batch, (H, W, C) image, D = H W C, K classes, U units, k dimensions of a
block, P parameters a dimension.

Differences from the papers:
  1. More than two levels, by the likelihood; the inputs are levels scaled to 0..1.
  2. Labels add to c, and to b_d, a vector for each class.
  3. Adam or what `compile` gets, in place of stochastic gradient descent.
"""

import keras
import numpy as np
from keras import layers, ops

from kgen.checks import positive
from kgen.models.autoregressive import Autoregressive

_BLOCK = 16  # k at most; the triangle costs k products a dimension


@keras.saving.register_keras_serializable(package="kgen")
class NADE(Autoregressive):
    """Neural autoregressive distribution estimator; see the module for equations.

    Args:
        image_shape, levels, num_classes, likelihood: see Autoregressive.
        units: of the hidden layer.
        activation: of the hidden layer.

    Draws in float32; under a half-precision policy, `log_prob` rounds otherwise, so
    samples are those of the float32 weights.

    Metrics, means over images: `loss`, `nll_nats`, `bits_per_dim`.

    Example:
        model = kgen.models.NADE((28, 28, 1), units=500)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=50)
    """

    config_names = ("units", "activation")

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        units=500,
        activation="sigmoid",
        likelihood=None,
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, likelihood, **kwargs)
        positive(units=units)
        self.units = int(units)
        self.activation = activation
        self.activate = keras.activations.get(activation)
        self.params_per_dim = self.num_outputs // self.image_shape[-1]  # P
        self._add_weights()
        self.built = True

    def _add_weights(self):
        D, U, P = self.num_dims, self.units, self.params_per_dim
        # as a dense layer's from U units to all D P outputs
        limit = (6.0 / (U + D * P)) ** 0.5
        uniform = keras.initializers.RandomUniform(-limit, limit)
        zeros = {"initializer": "zeros"}
        self.W = self.add_weight(shape=(D, U), name="W")
        self.c = self.add_weight(shape=(U,), name="c", **zeros)
        self.V = self.add_weight(shape=(D, U, P), initializer=uniform, name="V")
        self.b = self.add_weight(shape=(D, P), name="b", **zeros)
        if self.num_classes is not None:
            no_bias = {"use_bias": False, "dtype": self.dtype_policy}
            self.hidden_label_layer = layers.Dense(U, **no_bias)
            self.output_label_layer = layers.Dense(D * P, **no_bias)
            for layer in (self.hidden_label_layer, self.output_label_layer):
                layer.build((None, self.num_classes))

    def _biases(self, labels):
        """c and b_d, of each label: float32 (1 or B, U) and (1 or B, D, P)."""
        c, b = ops.cast(self.c, "float32")[None], ops.cast(self.b, "float32")[None]
        if labels is None:
            return c, b
        one_hot = self.one_hot(labels)
        label_outputs = ops.cast(self.output_label_layer(one_hot), "float32")
        label_hidden = ops.cast(self.hidden_label_layer(one_hot), "float32")
        return c + label_hidden, b + ops.reshape(label_outputs, (-1, *b.shape[1:]))

    def params(self, x, labels=None, training=False):
        D, U, P = self.num_dims, self.units, self.params_per_dim
        n = -(-D // _BLOCK)  # blocks
        k = -(-D // n)
        more = n * k - D  # dimensions that fill up the last block
        dtype = self.compute_dtype
        c, b = self._biases(labels)
        v = ops.pad(self.scale(ops.reshape(x, (-1, D))), ((0, 0), (0, more)))
        v = ops.transpose(ops.reshape(v, (-1, n, k)), (1, 0, 2))  # (n, B, k)
        W = ops.pad(ops.cast(self.W, dtype), ((0, more), (0, 0)))
        W = ops.reshape(W, (n, k, U))
        V = ops.pad(ops.cast(self.V, dtype), ((0, more), (0, 0), (0, 0)))
        V = ops.reshape(V, (n, k, U, P))

        # eq. 3 from block to block, in float32: half precision cannot add up so many
        steps = ops.cast(ops.matmul(v[:-1], W[:-1]), "float32")  # (n - 1, B, U)
        c = ops.broadcast_to(c, (ops.shape(v)[1], U))[None]
        starts = ops.cumsum(ops.concatenate([c, steps], axis=0), axis=0)  # (n, B, U)
        # eq. 1 within each: row d of the triangle keeps the dimensions before d
        triangle = ops.convert_to_tensor(np.tri(k, k=-1)[:, None], dtype)  # (k, 1, k)
        before = ops.reshape(triangle * v[:, None], (n, -1, k))  # (n, k B, k)
        a = ops.reshape(ops.matmul(before, W), (n, k, -1, U))
        h = self.activate(a + ops.cast(starts, dtype)[:, None])  # (n, k, B, U)
        out = ops.reshape(ops.matmul(h, V), (n * k, -1, P))[:D]  # eq. 2
        out = ops.transpose(out, (1, 0, 2)) + ops.cast(b, dtype)  # (B, D, P)
        return ops.reshape(out, (-1, *self.image_shape[:2], self.num_outputs))

    def fill(self, x, u, known_rows, labels=None, temperature=1.0):
        """As `Autoregressive.fill`, in O(D U) an image: the loop over dimensions
        carries a_d (eq. 3). In float32, whatever the policy."""
        shape = (-1, self.num_dims)
        x, u = ops.reshape(ops.cast(x, "int32"), shape), ops.reshape(u, shape)
        known = ops.reshape(ops.cast(known_rows, "int32"), (-1,))  # (1 or B,)
        known = known * (self.num_dims // self.image_shape[0])
        dims = ops.arange(self.num_dims, dtype="int32")
        W, V = ops.cast(self.W, "float32"), ops.cast(self.V, "float32")
        c, b = self._biases(labels)

        def one_step(d, carry):
            a, x = carry
            h = self.activate(a)  # (B, U)
            params = ops.matmul(h, ops.take(V, d, axis=0)) + ops.take(b, d, axis=1)
            u_d = ops.take(u, d, axis=1)[:, None, None, None]  # an image of one pixel
            drawn = self.likelihood.draw(params[:, None, None], u_d, temperature)
            drawn = drawn[:, 0, 0, 0]
            x_d = ops.where(d < known, ops.take(x, d, axis=1), drawn)  # (B,)
            x = ops.where(ops.equal(dims, d), x_d[:, None], x)
            scaled = ops.cast(self.scale(x_d), "float32")
            return a + scaled[:, None] * ops.take(W, d, axis=0), x

        start = c + ops.zeros_like(u[:, :1])  # (B, U)
        _, x = ops.fori_loop(0, self.num_dims, one_step, (start, x))
        return ops.reshape(x, (-1, *self.image_shape))
