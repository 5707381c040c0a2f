"""PixelCNN on statically binarized MNIST: exact log p(x).

    python recipes/pixel_cnn_binarized_mnist.py --backend tensorflow

Reproduces: PixelCNN of van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent
    Neural Networks", ICML 2016, arXiv:1601.06759, table 4.
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: 81.30 nats.

Differences from the paper:
  1. Few and narrow residual blocks, of 5x5 kernels in place of 3x3: so few blocks of
     3x3 do not see the border of the image from its middle.
  2. Adam with a warm-up and a cosine schedule; the paper has RMSProp.
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.PixelCNN(
        splits.image_shape,
        filters=args.filters,
        num_blocks=args.blocks,
        kernel_size=args.kernel_size,
        head_filters=32,
    )
    return model, keras.optimizers.Adam(cosine(args, splits))


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "binarized_mnist",
        epochs=4,
        batch_size=16,
        lr=1e-3,
        filters=16,
        blocks=8,
        kernel_size=5,
    )
