"""What a user adds without touching kgen: an autoregressive model, a loss of a GAN, a
VAE of another prior."""

import keras
import numpy as np
from keras import ops

from kgen.layers import ShiftedConv2D
from kgen.likelihoods import gaussian_log_prob
from kgen.models import VAE
from kgen.models.autoregressive import Autoregressive


@keras.saving.register_keras_serializable(package="tests")
class TwoLayers(Autoregressive):
    """Two causal convolutions: `network` serves training and the sampler."""

    config_names = ("filters",)

    def __init__(self, image_shape, levels=2, num_classes=None, filters=8, **kwargs):
        super().__init__(image_shape, levels, num_classes, **kwargs)
        self.filters = filters
        above = {"rows": (-1, 0), "columns": (-1, 1), "channels": image_shape[-1]}
        self.first = ShiftedConv2D(filters, mask="A", **above)
        self.last = ShiftedConv2D(self.num_outputs, mask="B", **above)
        self.first.build((None, *image_shape))
        self.last.build((None, *image_shape[:2], filters))
        self.built = True

    def network(self, x, from_above, biases, apply):
        return apply(self.last, ops.relu(apply(self.first, x)))


@keras.saving.register_keras_serializable(package="tests")
class Relativistic:
    """A. Jolicoeur-Martineau. The relativistic discriminator. ICLR 2019."""

    relativistic = True

    def discriminator(self, real, generated):
        return ops.softplus(generated - real)

    def generator(self, generated, real):
        return ops.softplus(real - generated)

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="tests")
class WidePrior(VAE):
    """p(z) = N(0, 4 I); the divergence is estimated by the z at hand."""

    def divergence(self, z, mean, log_var):
        return gaussian_log_prob(z, mean, log_var) - self.log_prior(z)

    def log_prior(self, z):
        return gaussian_log_prob(z, 0.0 * z, 0.0 * z + np.log(4.0))

    def draw_latents(self, seeds):
        return 2.0 * super().draw_latents(seeds)
