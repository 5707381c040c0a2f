"""PixelCNN++ on Fashion-MNIST at 256 levels: exact log p(x), bits per dimension.

    python recipes/pixel_cnn_pp_fashion_mnist.py --backend tensorflow

Reproduces: the model of Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the
    PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications", ICLR
    2017, arXiv:1701.05517 (CIFAR-10: 2.92 bits/dim).
Data: fashion_mnist (Xiao, Rasul and Vollgraf 2017), its training images split into
    train and validation, which selects the epoch.
Published: nothing known to us for this model and data.

Differences from the paper:
  1. A smaller network (the paper has 160 filters, 5 blocks a resolution and 10
     logistics), no dropout.
  2. Adam with a warm-up and a cosine schedule, one epoch; weights are averaged over
     fewer steps (the paper's momentum is 0.9995, over days of training).
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.PixelCNNPlusPlus(
        splits.image_shape,
        levels=splits.levels,
        filters=16,
        num_blocks=1,
        num_mixtures=5,
        dropout=0.0,
    )
    rate = cosine(args, splits)
    return model, keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.995)


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "fashion_mnist",
        epochs=1,
        batch_size=32,
        lr=2e-3,
        previews=1,
        samples=36,
    )
