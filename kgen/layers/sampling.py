"""Layers of the latent-variable families."""

import keras
from keras import ops

from kgen import random


@keras.saving.register_keras_serializable(package="kgen")
class Sampling(keras.layers.Layer):
    """z = mean + exp(log_var / 2) * epsilon, epsilon ~ N(0, I): the reparameterisation
    (Kingma and Welling 2014, section 2.4), so that gradients reach mean and log_var.

    Call with `[mean, log_var]`, each (B, L); returns z, float32 (B, L), whatever the
    policy. The noise comes from the layer's own seed generator, or from `epsilon`.
    """

    def __init__(self, seed=None, **kwargs):
        # Float32 under any policy: a half-precision layer would cast its inputs first.
        super().__init__(**kwargs | {"dtype": "float32"})
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def noise(self, shape):
        n, *rest = shape
        seed = self.seed_generator
        draw = keras.random.normal
        return random.of_batch(
            lambda n: draw((n, *rest), dtype="float32", seed=seed), n
        )

    def call(self, inputs, epsilon=None):
        mean, log_var = inputs  # (B, L) each
        if epsilon is None:
            epsilon = self.noise(ops.shape(mean))
        return mean + ops.exp(0.5 * log_var) * epsilon  # (B, L)

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return super().get_config() | {"seed": self.seed}


@keras.saving.register_keras_serializable(package="kgen")
class Crop(keras.layers.Layer):
    """Keeps the upper left `size` = (H, W) of a map: strides had rounded it up."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = tuple(size)

    def call(self, x):
        return x[:, : self.size[0], : self.size[1]]

    def get_config(self):
        return super().get_config() | {"size": self.size}
