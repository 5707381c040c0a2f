"""A spectrally normalised GAN with the hinge loss on MNIST.

    python recipes/sngan_mnist.py --backend tensorflow

After: Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative
    Adversarial Networks", ICLR 2018, arXiv:1802.05957, which has no MNIST.
Data: mnist, 256 levels: 54,000 train, 6,000 validation, 10,000 test. The last epoch's
    weights are taken; 10,000 samples are measured against the test images, once.
Published: none by these features (kgen.metrics.mnist_features; they are no FID's).
Ours: mnist_frechet_distance 11.73, the training images' own 1.20; kernel distance
    14.6 with a standard error of 1.0 (1.9); precision 0.53 (0.85), recall 0.76 (0.87).
    Seed 0, TensorFlow, 817 s on one busy core; recipes/results/sngan_mnist/metrics.json
    (whose `parameters` count the average too).

Differences from the paper:
  1. DCGAN's networks of 32 filters; 6 epochs in batches of 64.
  2. Adam(2e-4, 0.5) and one step of D for each of G; the paper tries six such settings,
     with up to 5 steps of D.
  3. Samples are of an average of G's weights (0.999). The recorded run had this decay
     from the first step on; now it rises to it, see `ema` of kgen.models.GAN.
"""

from adversarial import finish, train_seeds
from common import arguments, load

args = arguments(
    __doc__, "sngan_mnist", data="mnist", epochs=6, batch_size=64, width=32, seeds=1
)

import keras

import kgen

splits = load(args)


def build():
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        architecture="dcgan",
        width=args.width,
        loss="hinge",
        spectral_norm=True,
        ema=0.999,
    )
    model.compile(keras.optimizers.Adam(args.lr or 2e-4, beta_1=0.5))
    return model


models, seconds = train_seeds(args, build, splits)
finish(args, splits, models, seconds)
