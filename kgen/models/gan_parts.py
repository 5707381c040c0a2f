"""What a GAN needs beside its networks and losses: the prior, checks of its arguments,
clipped weights, an averaged generator.

Shapes: B batch, L latents, K classes.
"""

import keras
from keras import ops

from kgen import random
from kgen.checks import boolean, fraction, not_negative, one_of
from kgen.models.own_networks import symbolic_output


class Prior:
    """p(z) of latents (B, L): "normal", N(0, I), or "uniform", on [-1, 1]^L."""

    def __init__(self, name, latent_dim):
        one_of("prior", name, ("normal", "uniform"))
        self.name, self.latent_dim = name, latent_dim

    def draw(self, n, seed):
        """n of them, from a Keras seed generator."""
        L = self.latent_dim
        if self.name == "normal":
            return random.of_batch(lambda n: keras.random.normal((n, L), seed=seed), n)
        draw = keras.random.uniform
        return random.of_batch(lambda n: draw((n, L), -1.0, 1.0, seed=seed), n)

    def of(self, seeds):
        """One for each seed, int32 (B, 2), and from nothing else."""
        if self.name == "normal":
            return random.normals(seeds, self.latent_dim, stream=1)
        return 2.0 * random.uniforms(seeds, self.latent_dim, 1) - 1.0


def check_settings(model, generator, discriminator):
    """Raises a ValueError on arguments of a GAN that cannot be. Returns the names of
    the networks that are the user's own."""
    not_negative(gradient_penalty=model.gradient_penalty, r1_penalty=model.r1_penalty)
    boolean(spectral_norm=model.spectral_norm, gradient_norms=model.gradient_norms)
    if model.ema is not None:
        fraction(ema=model.ema)
    if model.weight_clip is not None and not 0.0 < model.weight_clip < float("inf"):
        raise ValueError(
            f"weight_clip must be positive, or None; got {model.weight_clip!r}."
        )
    if model.spectral_norm and discriminator is not None:
        raise ValueError(
            "spectral_norm is of the discriminators that kgen builds: in your own, "
            "wrap the layers in kgen.layers.SpectralNorm, and leave spectral_norm out."
        )
    own = {"generator": generator, "discriminator": discriminator}
    return [name for name, network in own.items() if network is not None]


@keras.saving.register_keras_serializable(package="kgen")
class Clip(keras.constraints.Constraint):
    """Weights clipped to [-limit, limit]."""

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, w):
        return ops.clip(w, -self.limit, self.limit)

    def get_config(self):
        return {"limit": self.limit}


def limit(network, c):
    """Has optimizers clip the network's weights to [-c, c] after each step."""
    for v in network.trainable_variables:
        if v.constraint is not None and not isinstance(v.constraint, Clip):
            raise ValueError(
                f"weight_clip would take the place of the constraint of {v.path}: "
                "leave out one of the two."
            )
        v.constraint = Clip(c)


def frozen_copy(network, source, num_classes):
    """A network of the same layers and weights, which nothing trains."""
    copy = type(network).from_config(network.get_config())
    symbolic_output(copy, source, num_classes)  # builds subclassed models
    copy.set_weights(network.get_weights())
    copy.trainable = False
    return copy


def warm_up_decay(decay, steps):
    """min(decay, (1 + t) / (10 + t)) after t steps, a scalar of the backend: the decay
    of TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`. So an
    average soon leaves the weights that it began with: of a decay of 0.999, after 100
    steps they have a share of 2e-12, where the plain average keeps 0.90."""
    t = ops.cast(steps, "float32")
    return ops.minimum(decay, (1.0 + t) / (10.0 + t))


def follow(average, network, m):
    """Moves the weights of a copy to m times themselves + (1 - m) times network's."""
    for v, w in zip(average.weights, network.weights, strict=True):
        v.assign(m * v + (1.0 - m) * w)
