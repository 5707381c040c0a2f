"""A spectrally normalized GAN with the hinge loss on MNIST.

    python recipes/sngan_mnist.py --backend tensorflow

After: Miyato, Kataoka, Koyama, Yoshida, "Spectral Normalization for Generative
    Adversarial Networks", ICLR 2018, arXiv:1802.05957, which has no MNIST.
Data: mnist, 256 levels. The last epoch's weights are taken.
Published: none by these features (kgen.metrics.mnist_features; they are no FID's).
Recorded run: its parameters count the average of G's weights too. That average had its
    decay from the first step on; now the decay rises to it, see `ema` of
    kgen.models.GAN.

Differences from the paper:
  1. DCGAN's networks, narrower.
  2. Adam and one step of D for each of G; the paper tries six settings, with up to 5
     steps of D.
  3. Samples are of an average of G's weights.
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
        loss="hinge",
        spectral_norm=True,
        ema=0.999,
    )
    return model, keras.optimizers.Adam(args.lr, beta_1=0.5)


if __name__ == "__main__":
    run(__doc__, build, "mnist", epochs=6, batch_size=64, lr=2e-4, width=32, seeds=1)
