"""Six losses with the same networks, on MNIST or Fashion-MNIST.

    python recipes/gan_losses.py --backend tensorflow
    python recipes/gan_losses.py --backend tensorflow --data fashion_mnist

After: Lucic, Kurach, Michalski, Gelly, Bousquet, "Are GANs Created Equal? A Large-Scale
    Study", NIPS 2018, arXiv:1711.10337: minimax, non-saturating, least squares, WGAN
    (weights clipped) and WGAN-GP with InfoGAN's networks; and the hinge loss with
    spectral normalisation (Miyato et al., ICLR 2018, arXiv:1802.05957).
Data: mnist or fashion_mnist, 256 levels: 54,000 train, 6,000 validation, 10,000 test.
    The last epoch's weights are taken; 10,000 samples are measured against the test
    images, once, by features of MNIST's classifier (which know no garments: compare
    with the floor).
Published: none by these features (kgen.metrics.mnist_features; they are no FID's).
Ours: Frechet distances, the floor 1.2 on mnist and 0.2 on fashion_mnist; seed 0,
    TensorFlow, 15 minutes a loss on mnist on cores shared with other work; the seconds
    recorded for fashion_mnist, 3 minutes a loss, have a pause of 15 minutes among them;
    recipes/results/gan_losses_mnist, gan_losses_fashion_mnist (metrics.json):

                 minimax  non-saturating  least squares  hinge  WGAN  WGAN-GP
    mnist            9.0             5.0            4.3   16.4  14.2     11.7
    fashion_mnist    3.0             2.4            3.0    5.2   6.7      4.0

Differences from the paper:
  1. A quarter of the networks' units; 3 epochs in place of 20; no search, one seed.
  2. One setting for each loss: Adam(1e-3, 0.5), as small networks for a short time want
     it; for WGAN-GP Adam(1e-3, 0.5, 0.9), for WGAN RMSprop(1e-3) and clipping at 0.03;
     3 steps of a critic, on the same images.
  3. Samples are of an average of G's weights (0.995). The recorded run had this decay
     from the first step on; now it rises to it, see `ema` of kgen.models.GAN.
"""

from adversarial import finish, prepare_runs, train
from common import arguments, load

args = arguments(
    __doc__, "gan_losses_mnist", data="mnist", epochs=3, batch_size=64, width=16
)

import keras

import kgen

adam = {"learning_rate": 1e-3, "beta_1": 0.5}
LOSSES = {
    "minimax": ({}, keras.optimizers.Adam, adam),
    "non_saturating": ({}, keras.optimizers.Adam, adam),
    "least_squares": ({}, keras.optimizers.Adam, adam),
    "hinge": ({"spectral_norm": True}, keras.optimizers.Adam, adam),
    "wgan": (
        {"weight_clip": 0.03, "discriminator_steps": 3},
        keras.optimizers.RMSprop,
        {"learning_rate": 1e-3},
    ),
    "wgan_gp": (
        {"discriminator_steps": 3},
        keras.optimizers.Adam,
        {"learning_rate": 1e-3, "beta_1": 0.5, "beta_2": 0.9},
    ),
}

splits = load(args)
models, seconds = {}, 0.0
prepare_runs(args, LOSSES)
for name, (settings, optimizer, rates) in LOSSES.items():
    keras.utils.set_random_seed(args.seed)
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        loss="wasserstein" if name.startswith("wgan") else name,
        architecture="infogan",
        width=args.width,
        ema=0.995,
        **settings,
    )
    model.compile(optimizer(**rates))
    models[name] = model
    seconds += train(args, splits, name, model)
finish(args, splits, models, seconds, alike=False)
