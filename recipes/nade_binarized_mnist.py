"""NADE on statically binarized MNIST: exact log p(x).

    python recipes/nade_binarized_mnist.py --backend tensorflow

Reproduces: Larochelle and Murray, "The Neural Autoregressive Distribution Estimator",
    AISTATS 2011; Uria, Cote, Gregor, Murray and Larochelle, "Neural Autoregressive
    Distribution Estimation", JMLR 2016, arXiv:1605.02226.
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: 88.33 nats (500 units, fixed order).
Recorded run: an earlier setting (300 units, Adam from 1.5e-3, batches of 20, 6 epochs)
    had 92.74 nats on validation, 91.78 on test.

Differences from the paper:
  1. Raster order of the pixels.
  2. AdamW with a warm-up, a cosine schedule and weight decay; the paper has stochastic
     gradient descent.
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.NADE(splits.image_shape, units=args.units)
    return model, keras.optimizers.AdamW(cosine(args, splits), weight_decay=0.05)


if __name__ == "__main__":
    run(__doc__, build, "binarized_mnist", epochs=15, batch_size=50, lr=2e-3, units=500)
