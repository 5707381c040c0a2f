"""Fully visible belief network: logistic autoregression.

    R. M. Neal. Connectionist learning of belief networks. Artificial Intelligence 56,
        1992
    B. J. Frey. Graphical Models for Machine Learning and Digital Communication. MIT
        Press, 1998 ("logistic autoregressive Bayesian network")

Every dimension is a regression on those before it in raster order (row, column,
channel), and nothing is hidden:

    parameters_d = b_d + sum over i < d of U_id x_i,    x in 0..1                  (1)

With 2 levels these are D logistic regressions, sigmoid(parameters_d) = p(x_d = 1 |
x_<d), at one strictly triangular matrix. Unit: nats per image, summed over dimensions.

Shapes: B batch, (H, W, C) image, D = H W C, K classes, P parameters a dimension.

Differences from the papers:
  1. Minibatch gradients in place of Neal's Gibbs sampling (nothing is hidden here) and
     Frey's iteratively reweighted least squares.
  2. More than two levels, by the likelihood; the inputs are levels scaled to 0..1.
  3. Labels add U y: as further inputs, never masked.
"""

import keras
from keras import layers, ops

from kgen.layers import MaskedDense
from kgen.models.autoregressive import Autoregressive


@keras.saving.register_keras_serializable(package="kgen")
class FVBN(Autoregressive):
    """Fully visible belief network; see the module for equations.

    Weights begin at zero, so at the uniform distribution with 2 levels: the negative
    log-likelihood is convex (Bernoulli, categorical), and there is no symmetry to
    break. They are D^2 P: at many levels take "discretized_logistic", whose P is 2.

    Args:
        image_shape, levels, num_classes, likelihood: see Autoregressive.

    Metrics, means over images: `loss`, `nll_nats`, `bits_per_dim`.

    Example:
        model = kgen.models.FVBN((28, 28, 1))
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=20)
    """

    def __init__(
        self, image_shape, levels=2, num_classes=None, likelihood=None, **kwargs
    ):
        super().__init__(image_shape, levels, num_classes, likelihood, **kwargs)
        self.params_per_dim = self.num_outputs // self.image_shape[-1]  # P
        units = self.num_dims * self.params_per_dim  # D P
        same = {"kernel_initializer": "zeros", "dtype": self.dtype_policy}
        self.regression = MaskedDense(units, strict=True, **same)
        self.regression.build((None, self.num_dims))
        if self.num_classes is not None:
            self.label_layer = layers.Dense(units, use_bias=False, **same)
            self.label_layer.build((None, self.num_classes))
        self.built = True

    def params(self, x, labels=None, training=False):
        v = self.scale(ops.reshape(x, (-1, self.num_dims)))  # (B, D)
        degrees = ops.arange(self.num_dims, dtype="int32")
        output_degrees = ops.repeat(degrees, self.params_per_dim)  # (D P,)
        out = self.regression(v, degrees, output_degrees)  # (B, D P), eq. 1
        if labels is not None:
            out = out + self.label_layer(self.one_hot(labels))
        return ops.reshape(out, (-1, *self.image_shape[:2], self.num_outputs))

    def fill(self, x, u, known_rows, labels=None, temperature=1.0):
        """As `Autoregressive.fill`, with one dimension's regression a step, of those
        drawn so far: the others count as zero. In float32."""
        D, P = self.num_dims, self.params_per_dim
        x, u = ops.reshape(ops.cast(x, "int32"), (-1, D)), ops.reshape(u, (-1, D))
        known = ops.reshape(ops.cast(known_rows, "int32"), (-1,))  # (1 or B,)
        known = known * (D // self.image_shape[0])
        dims = ops.arange(D, dtype="int32")
        kernel = ops.reshape(ops.cast(self.regression.kernel, "float32"), (D, D, P))
        kernel = ops.transpose(kernel, (1, 0, 2))  # (D, its inputs, P)
        b = ops.cast(self.regression.bias, "float32")[None]
        if labels is not None:
            b = b + ops.cast(self.label_layer(self.one_hot(labels)), "float32")
        b = ops.reshape(b, (-1, D, P))  # (1 or B, D, P)

        def one_step(d, carry):
            x, v = carry  # (B, D): integers, and what the network sees of them
            params = ops.matmul(v, ops.take(kernel, d, axis=0)) + ops.take(b, d, axis=1)
            u_d = ops.take(u, d, axis=1)[:, None, None, None]  # an image of one pixel
            drawn = self.likelihood.draw(params[:, None, None], u_d, temperature)
            drawn = drawn[:, 0, 0, 0]
            x_d = ops.where(d < known, ops.take(x, d, axis=1), drawn)[:, None]  # (B, 1)
            now = ops.equal(dims, d)
            seen = ops.cast(self.scale(x_d), "float32")
            return ops.where(now, x_d, x), ops.where(now, seen, v)

        x, _ = ops.fori_loop(0, D, one_step, (x, ops.zeros_like(u)))
        return ops.reshape(x, (-1, *self.image_shape))
