"""One tiny model of each family, for the tests that all of them must pass."""

import keras
import numpy as np
from keras import layers

from kgen.models import (
    FVBN,
    GAN,
    IWAE,
    MADE,
    NADE,
    VAE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
)

SHAPE, LEVELS, CLASSES = (8, 8, 1), 17, 10


@keras.saving.register_keras_serializable(package="tests")
class Center(layers.Layer):
    """A user's own layer: other processes know it by importing this module."""

    def call(self, x):
        return 2.0 * x - 1.0


def own_networks():
    encoder = keras.Sequential(
        [
            layers.Input(SHAPE),
            Center(),
            layers.Conv2D(4, 3, 2),
            layers.Flatten(),
            layers.Dense(6),
        ]
    )
    decoder = keras.Sequential(
        [layers.Input((3,)), layers.Dense(64 * 2), layers.Reshape((8, 8, 2))]
    )
    return VAE(SHAPE, LEVELS, latent_dim=3, encoder=encoder, decoder=decoder)


def gan(**kwargs):
    """With larger weights: a new generator's images are all the same grey."""
    model = GAN(SHAPE, LEVELS, latent_dim=3, **kwargs)
    for v in model.generator.trainable_variables:
        if len(v.shape) > 1:
            v.assign(15.0 * v)
    if model.ema is not None:
        model.average.set_weights(model.generator.get_weights())
    return model


def conditional():
    return VAE(SHAPE, LEVELS, CLASSES, latent_dim=3, hidden_units=(8,))


FAMILIES = {
    "vae": lambda: VAE(SHAPE, LEVELS, latent_dim=3, hidden_units=(8,), beta=2.0),
    "vae-conv": lambda: VAE(
        SHAPE, LEVELS, latent_dim=3, filters=(4,), likelihood="categorical"
    ),
    "vae-conditional": conditional,
    "vae-own-networks": own_networks,
    "iwae": lambda: IWAE(
        SHAPE,
        LEVELS,
        latent_dim=(3, 2),
        num_samples=3,
        hidden_units=(8,),
        upper_units=(4,),
    ),
    "gan": lambda: gan(width=4, ema=0.9, gradient_norms=True),
    "gan-critic": lambda: gan(
        num_classes=CLASSES,
        architecture="mlp",
        width=10,
        loss="wasserstein",
        discriminator_steps=2,
    ),
    "fvbn": lambda: FVBN(SHAPE, LEVELS, likelihood="discretized_logistic"),
    "nade": lambda: NADE(SHAPE, LEVELS, units=6),
    "made": lambda: MADE(SHAPE, LEVELS, hidden_units=(12,), num_masks=2),
    "pixel-cnn": lambda: PixelCNN(SHAPE, LEVELS, filters=4, num_blocks=1),
    "gated": lambda: GatedPixelCNN(SHAPE, LEVELS, CLASSES, filters=4, num_blocks=1),
    "row-lstm": lambda: RowLSTM(SHAPE, LEVELS, units=4, num_layers=1),
    "diagonal": lambda: DiagonalBiLSTM(SHAPE, LEVELS, CLASSES, units=3, num_layers=1),
    "pp": lambda: PixelCNNPlusPlus(
        SHAPE, LEVELS, filters=4, num_blocks=1, num_resolutions=1, num_mixtures=2
    ),
}
GANS = ("gan", "gan-critic")
EXACT = ("fvbn", "nade", "made", "pixel-cnn", "gated", "row-lstm", "diagonal", "pp")


def arguments(model, digits, labels):
    """What `fit` takes for this model: (images,) or (images, labels)."""
    return (digits,) if model.num_classes is None else (digits, np.asarray(labels))
