"""A dense layer whose connections follow degrees.

    M. Germain, K. Gregor, I. Murray, H. Larochelle. MADE: Masked Autoencoder for
        Distribution Estimation. ICML 2015, arXiv:1502.03509

A unit of degree m may depend on the dimensions 1..m of the order, and on no others. So
a connection is kept, of hidden units (eq. 12) and of outputs (eq. 13), where

    degree_in <= degree_out      or, strictly,      degree_in < degree_out.

Degrees are vectors, and masks are made of them by comparison where they are used: many
masks of wide layers cost no memory.
"""

import keras
import numpy as np
from keras import ops


def mask_degrees(num_dims, hidden_units, num_masks, ordering="raster", seed=0):
    """The degrees of inputs and hidden layers, for each of M masks.

    Inputs have their places in the order, 1..D. Hidden units have degrees between the
    least of the layer below and D - 1: with one mask spread evenly over 1..D-1, with
    several drawn uniformly.

    Args:
        num_dims: D.
        hidden_units: of each hidden layer.
        num_masks: M; the first masks do not depend on it, from 2 on.
        ordering: "raster", or "random" for an order for each mask.
        seed: int in 0..2**32-1.

    Returns: a list of int32 arrays (M, D), (M, units), ...
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer in 0..2**32-1; got {seed!r}.")
    # NumPy promises the stream of RandomState, not that of default_rng, to stay.
    rng = np.random.RandomState(seed)
    last = max(1, num_dims - 1)
    masks = []
    for _ in range(num_masks):
        inputs = (
            np.arange(num_dims) if ordering == "raster" else rng.permutation(num_dims)
        )
        degrees, least = [inputs + 1], 1
        for units in hidden_units:
            if num_masks == 1:
                drawn = np.round(np.linspace(1, last, units))
            else:
                drawn = rng.randint(least, last + 1, units)
            degrees.append(drawn)
            least = int(drawn.min())
        masks.append(degrees)
    return [np.stack(tables).astype("int32") for tables in zip(*masks, strict=True)]


@keras.saving.register_keras_serializable(package="kgen")
class MaskedDense(keras.layers.Layer):
    """x @ (kernel * mask) + bias: (B, inputs) -> (B, units).

    Called as `layer(x, degrees_in, degrees_out)`, with int32 (inputs,) and (units,).

    Args:
        units: number of outputs.
        strict: whether a unit sees smaller degrees only, as outputs do, or equal ones
            too.
        use_bias: whether to add a bias.
        kernel_initializer: of the kernel (inputs, units).
    """

    def __init__(
        self,
        units,
        strict=False,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units, self.strict, self.use_bias = units, strict, use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape, *_):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
            name="kernel",
        )
        if self.use_bias:
            self.bias = self.add_weight(
                shape=(self.units,), initializer="zeros", name="bias"
            )
        self.built = True

    def call(self, x, degrees_in, degrees_out):
        lower, upper = degrees_in[:, None], degrees_out[None]
        mask = lower < upper if self.strict else lower <= upper  # (inputs, units)
        y = ops.matmul(x, self.kernel * ops.cast(mask, self.compute_dtype))
        return y + self.bias if self.use_bias else y  # (B, units)

    def compute_output_shape(self, input_shape, *_):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return super().get_config() | {
            "units": self.units,
            "strict": self.strict,
            "use_bias": self.use_bias,
            "kernel_initializer": initializer,
        }
