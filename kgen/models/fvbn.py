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
            self.of_labels = layers.Dense(units, use_bias=False, **same)
            self.of_labels.build((None, self.num_classes))
        self.built = True

    def params(self, x, labels=None, training=False):
        v = self.scale(ops.reshape(x, (-1, self.num_dims)))  # (B, D)
        degrees = ops.arange(self.num_dims, dtype="int32")
        of_outputs = ops.repeat(degrees, self.params_per_dim)  # (D P,)
        out = self.regression(v, degrees, of_outputs)  # (B, D P), eq. 1
        if labels is not None:
            out = out + self.of_labels(self.one_hot(labels))
        return ops.reshape(out, (-1, *self.image_shape[:2], self.num_outputs))
