"""WGAN-GP on MNIST: a critic held to slope one by a penalty, from three seeds.

    python recipes/wgan_gp_mnist.py --backend tensorflow

After: Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved Training of
    Wasserstein GANs", NIPS 2017, arXiv:1704.00028.
Data: mnist, 256 levels: 54,000 train, 6,000 validation, 10,000 test. The last epoch's
    weights are taken; 10,000 samples are measured against the test images, once.
Published: none by these features (kgen.metrics.mnist_features; they are no FID's).
Ours: mnist_frechet_distance 10.20, 13.98 and 18.34 (seeds 0, 1, 2; mean 14.2, standard
    deviation 4.1), the training images' own 1.20; kernel distance 18.4 +- 7.6 (1.92),
    precision 0.55 (0.85), recall 0.59 (0.87). TensorFlow, 11 minutes a seed on one busy
    core; recipes/results/wgan_gp_mnist/metrics.json.

Differences from the paper:
  1. The networks of Lucic et al. 2018 (arXiv:1711.10337) with a quarter of their units.
  2. 3 critic steps for each of G, on the same images; the paper has 5, on others.
  3. Adam(5e-4, 0.5, 0.9) in place of 1e-4; 5 epochs in batches of 64, in place of
     200,000 steps of 50 in the authors' code for MNIST.
  4. Samples are of an average of G's weights (0.995). The recorded run had this decay
     from the first step on; now it rises to it, see `ema` of kgen.models.GAN.
"""

from adversarial import finish, train_seeds
from common import arguments, load

args = arguments(
    __doc__, "wgan_gp_mnist", data="mnist", epochs=5, batch_size=64, width=16, seeds=3
)

import keras

import kgen

splits = load(args)


def build():
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        loss="wasserstein",
        architecture="infogan",
        width=args.width,
        discriminator_steps=3,
        ema=0.995,
    )
    model.compile(keras.optimizers.Adam(args.lr or 5e-4, beta_1=0.5, beta_2=0.9))
    return model


models, seconds = train_seeds(args, build, splits)
finish(args, splits, models, seconds)
