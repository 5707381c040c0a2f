"""Six losses with the same networks, on MNIST or Fashion-MNIST.

    python recipes/gan_losses.py --backend tensorflow
    python recipes/gan_losses.py --backend tensorflow --data fashion_mnist

After: Lucic, Kurach, Michalski, Gelly, Bousquet, "Are GANs Created Equal? A Large-Scale
    Study", NIPS 2018, arXiv:1711.10337: minimax, non-saturating, least squares, WGAN
    (weights clipped) and WGAN-GP with InfoGAN's networks; and the hinge loss with
    spectral normalization (Miyato et al., ICLR 2018, arXiv:1802.05957).
Data: mnist or fashion_mnist, 256 levels. The last epoch's weights are taken. The
    features were not trained on garments: compare with the real-data baseline.
Published: none by these features (kgen.metrics.mnist_features; they are no FID's).
Recorded run: the seconds of fashion_mnist include a pause of 15 minutes. The average of
    G's weights had its decay from the first step on; now the decay rises to it, see
    `ema` of kgen.models.GAN.

Differences from the paper:
  1. A quarter of the networks' units; 20 epochs in the paper; no search, one seed.
  2. One setting for each loss, as small networks for a short time want it; steps of a
     critic are on the same images.
  3. Samples are of an average of G's weights.
"""

from adversarial import run

import keras

import kgen

LOSSES = {  # and what the GAN has besides
    "minimax": {},
    "non_saturating": {},
    "least_squares": {},
    "hinge": {"spectral_norm": True},
    "wgan": {"weight_clip": 0.03, "discriminator_steps": 3},
    "wgan_gp": {"discriminator_steps": 3},
}


def build(args, splits, loss):
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        loss="wasserstein" if loss.startswith("wgan") else loss,
        architecture="infogan",
        width=args.width,
        ema=0.995,
        **LOSSES[loss],
    )
    if loss == "wgan":
        return model, keras.optimizers.RMSprop(args.lr)
    beta_2 = 0.9 if loss == "wgan_gp" else 0.999
    return model, keras.optimizers.Adam(args.lr, beta_1=0.5, beta_2=beta_2)


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "mnist",
        losses=LOSSES,
        name="gan_losses_mnist",
        epochs=3,
        batch_size=64,
        lr=1e-3,
        width=16,
    )
