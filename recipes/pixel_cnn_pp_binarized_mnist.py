"""PixelCNN++ on statically binarized MNIST: exact log p(x).

    python recipes/pixel_cnn_pp_binarized_mnist.py --backend tensorflow

Reproduces: the model of Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the
    PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications", ICLR
    2017, arXiv:1701.05517, whose authors give no MNIST number.
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: nothing known to us for this data.

Differences from the paper:
  1. A smaller network (the paper has 160 filters and 5 blocks a resolution), no
     dropout; Bernoulli pixels, as there are two levels.
  2. Adam with a warm-up and a cosine schedule, one epoch; weights are averaged over
     fewer steps (the paper's momentum is 0.9995, over days of training).
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.PixelCNNPlusPlus(
        splits.image_shape, filters=args.filters, num_blocks=args.blocks, dropout=0.0
    )
    rate = cosine(args, splits)
    return model, keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.995)


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "binarized_mnist",
        epochs=1,
        batch_size=32,
        lr=2e-3,
        filters=16,
        blocks=2,
        previews=1,
        samples=36,
    )
