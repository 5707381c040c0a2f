"""DCGAN on Fashion-MNIST.

    python recipes/dcgan_fashion_mnist.py --backend tensorflow

After: Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep
    Convolutional Generative Adversarial Networks", ICLR 2016, arXiv:1511.06434.
Data: fashion_mnist, 256 levels. The last epoch's weights are taken. The features were
    not trained on garments: compare with the real-data baseline.
Published: none by these features (kgen.metrics.mnist_features; they are no FID's).
Recorded run: the average of G's weights had its decay from the first step on; now the
    decay rises to it, see `ema` of kgen.models.GAN.

Differences from the paper:
  1. Narrower networks, for 28x28 images; in 0..1, of a sigmoid.
  2. Batches of half the paper's 128; samples are of an average of G's weights.
"""

from adversarial import run

import keras

import kgen


def build(args, splits):
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        architecture="dcgan",
        width=args.width,
        ema=0.999,
    )
    return model, keras.optimizers.Adam(args.lr, beta_1=0.5)


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "fashion_mnist",
        epochs=6,
        batch_size=64,
        lr=2e-4,
        width=32,
        seeds=1,
    )
