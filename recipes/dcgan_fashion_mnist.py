"""DCGAN on Fashion-MNIST.

    python recipes/dcgan_fashion_mnist.py --backend tensorflow

After: Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks", ICLR 2016, arXiv:1511.06434.
Data: fashion_mnist, 256 levels: 54,000 train, 6,000 validation, 10,000 test. The last
    epoch's weights are taken; 10,000 samples are measured against the test images,
    once, by features of MNIST's classifier, which know no garments: compare with the
    floor.
Published: none by these features.
Ours: mnist_frechet_distance 2.27, the training images' own 0.20; kernel distance 3.6
    (0.0), precision 0.74 (0.86), recall 0.70 (0.86). Seed 0, TensorFlow, two cores, 6
    minutes; recipes/results/dcgan_fashion_mnist/metrics.json.

Differences from the paper:
  1. Widths of 32, 64, 128 for 28x28 images; in 0..1, of a sigmoid.
  2. 6 epochs in batches of 64, in place of 128; samples are of an average of G's
     weights (0.999). The recorded run had this decay from the first step on; now it
     rises to it, see `ema` of kgen.models.GAN.
"""

from adversarial import finish, train_seeds
from common import arguments, load

args = arguments(
    __doc__,
    "dcgan_fashion_mnist",
    data="fashion_mnist",
    epochs=6,
    batch_size=64,
    width=32,
    seeds=1,
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
        ema=0.999,
    )
    model.compile(keras.optimizers.Adam(args.lr or 2e-4, beta_1=0.5))
    return model


models, seconds = train_seeds(args, build, splits)
finish(args, splits, models, seconds)
