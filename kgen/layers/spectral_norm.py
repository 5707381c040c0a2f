"""Spectral normalisation.

    T. Miyato, T. Kataoka, M. Koyama, Y. Yoshida. Spectral Normalization for Generative
        Adversarial Networks. ICLR 2018, arXiv:1802.05957 (eq. 8, algorithm 1)

Keras' own layer writes the normalised kernel over the kernel, in the forward pass: a
second pass before the gradient is taken, as a discriminator makes, is an error on
PyTorch, and whether the gradient goes through sigma depends on the backend.
"""

import keras
from keras import layers, ops


def _unit(x):
    return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x)), 1e-24))


@keras.saving.register_keras_serializable(package="kgen")
class SpectralNorm(layers.Wrapper):
    """y = layer(x) / sigma + b, sigma the largest singular value of the layer's kernel,
    as a matrix (all else, outputs); so that matrix has that of 1 (a convolution's own
    norm can be up to the root of the number of its taps).

    Its vector u is that of one power iteration more after each training pass; the
    gradient goes through sigma = v^T W u, u and v held.

    Args:
        layer: Dense, Conv1D, Conv2D or Conv3D, channels last, without a bias and an
            activation: the bias is this layer's.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(layer, **kwargs)
        known = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)
        last = getattr(layer, "data_format", "channels_last") == "channels_last"
        if not isinstance(layer, known) or not last:
            raise ValueError(
                "SpectralNorm is for Dense, Conv1D, Conv2D and Conv3D, channels last: "
                f"others' kernels have another order; got {type(layer).__name__}."
            )
        if layer.use_bias or layer.activation is not keras.activations.linear:
            raise ValueError(
                "SpectralNorm adds the bias itself, and an activation comes after it: "
                "give it a layer with use_bias=False and no activation."
            )

    def build(self, input_shape):
        super().build(input_shape)
        outputs = self.layer.kernel.shape[-1]
        self.bias = self.add_weight(shape=(outputs,), initializer="zeros", name="bias")
        self.u = self.add_weight(
            shape=(outputs,),
            initializer=keras.initializers.RandomNormal(),
            trainable=False,
            autocast=False,
            name="u",
        )
        self.built = True

    def sigma(self, u):
        """By a power iteration from u (outputs,): sigma, and the next u."""
        kernel = ops.cast(self.layer.kernel, "float32")
        W = ops.reshape(kernel, (-1, kernel.shape[-1]))  # (n, outputs)
        v = _unit(ops.matmul(ops.stop_gradient(W), u))  # (n,)
        u = _unit(ops.matmul(v, ops.stop_gradient(W)))  # (outputs,)
        return ops.maximum(ops.sum(ops.matmul(v, W) * u), 1e-12), u

    def call(self, x, training=False):
        sigma, u = self.sigma(1.0 * self.u)
        if training:
            self.u.assign(u)
        y = self.layer(x)  # (B, ..., outputs)
        return y / ops.cast(sigma, y.dtype) + ops.cast(self.bias, y.dtype)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)
