"""Gated PixelCNN on statically binarized MNIST: exact log p(x).

    python recipes/gated_pixel_cnn_binarized_mnist.py --backend tensorflow

Reproduces: Gated PixelCNN of van den Oord et al., "Conditional Image Generation with
    PixelCNN Decoders", NIPS 2016, arXiv:1606.05328, whose authors give no MNIST number;
    Gulrajani et al., "PixelVAE", ICLR 2017, arXiv:1611.05013, table 1, do.
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: 80.10 nats (PixelVAE, table 1).
Recorded run: an earlier setting (Adam from 1e-3, 3 epochs) had 85.26 nats on
    validation, 84.76 on test.

Differences from the paper:
  1. A 7x7 first block and few and narrow blocks of 5x5; PixelVAE's has 12 layers of 5x5
     with weight normalization. (Blocks of 3x3 as shallow as this do not see the border
     of the image from its middle, and draw strokes anywhere.)
  2. Adam with a warm-up and a cosine schedule, small batches; PixelVAE's takes 200,000
     steps of 100 images at 1e-3 (--blocks 12 --batch-size 100 --epochs 400 come near).
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.GatedPixelCNN(
        splits.image_shape,
        filters=args.filters,
        num_blocks=args.blocks,
        kernel_size=args.kernel_size,
    )
    return model, keras.optimizers.Adam(cosine(args, splits))


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "binarized_mnist",
        epochs=6,
        batch_size=16,
        lr=2e-3,
        filters=16,
        blocks=8,
        kernel_size=5,
    )
