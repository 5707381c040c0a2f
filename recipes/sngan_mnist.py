"""A spectrally normalised GAN with the hinge loss on MNIST.

python recipes/sngan_mnist.py --backend tensorflow
"""

from adversarial import finish, seeds_of
from common import arguments, load

args = arguments(
    __doc__, "sngan_mnist", data="mnist", epochs=6, batch_size=64, width=32, seeds=1
)

import keras

import kgen

splits = load(args)


def game():
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        architecture="dcgan",
        width=args.width,
        loss="hinge",
        spectral_norm=True,
        ema=0.999,
    )
    model.compile(keras.optimizers.Adam(2e-4, beta_1=0.5))
    return model


games, seconds = seeds_of(args, game, splits)
finish(args, splits, games, seconds)
