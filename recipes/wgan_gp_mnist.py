"""WGAN-GP on MNIST: a critic held to slope one by a penalty, from several seeds.

    python recipes/wgan_gp_mnist.py --backend tensorflow

After: Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, "Improved Training of
    Wasserstein GANs", NIPS 2017, arXiv:1704.00028.
Data: mnist, 256 levels. The last epoch's weights are taken.
Published: none by these features (kgen.metrics.mnist_features; they are no FID's).
Recorded run: the average of G's weights had its decay from the first step on; now the
    decay rises to it, see `ema` of kgen.models.GAN.

Differences from the paper:
  1. The networks of Lucic et al. 2018 (arXiv:1711.10337) with a quarter of their units.
  2. Fewer critic steps for each of G, on the same images; the paper has 5, on others.
  3. Adam with a higher learning rate than 1e-4 and a shorter training than the 200,000
     steps of 50 images in the authors' code for MNIST.
  4. Samples are of an average of G's weights.
"""

from adversarial import run

import keras

import kgen


def build(args, splits):
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        loss="wasserstein",
        architecture="infogan",
        width=args.width,
        discriminator_steps=3,
        ema=0.995,
    )
    return model, keras.optimizers.Adam(args.lr, beta_1=0.5, beta_2=0.9)


if __name__ == "__main__":
    run(__doc__, build, "mnist", epochs=5, batch_size=64, lr=5e-4, width=16, seeds=3)
