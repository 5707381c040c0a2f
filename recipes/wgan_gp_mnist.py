"""WGAN-GP on MNIST: a critic held to slope one by a penalty, from three seeds.

python recipes/wgan_gp_mnist.py --backend tensorflow
"""

from adversarial import finish, seeds_of
from common import arguments, load

args = arguments(
    __doc__, "wgan_gp_mnist", data="mnist", epochs=5, batch_size=64, width=16, seeds=3
)

import keras

import kgen

splits = load(args)


def game():
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        loss="wasserstein",
        architecture="infogan",
        width=args.width,
        discriminator_steps=3,
        ema=0.995,
    )
    model.compile(keras.optimizers.Adam(5e-4, beta_1=0.5, beta_2=0.9))
    return model


games, seconds = seeds_of(args, game, splits)
finish(args, splits, games, seconds)
