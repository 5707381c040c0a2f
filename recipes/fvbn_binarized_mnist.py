"""Fully visible belief network on statically binarized MNIST: exact log p(x).

    python recipes/fvbn_binarized_mnist.py --backend tensorflow

Reproduces: the fully visible sigmoid belief network (Neal 1992; Frey 1998).
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: about 97.45 nats, as later work cites it; we have not seen the source.
Recorded run: an earlier run, at 1e-3 without weight decay, had read test as well; the
    change was selected on validation.

Differences from the paper:
  1. AdamW with a warm-up, a cosine schedule and weight decay.
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.FVBN(splits.image_shape)
    return model, keras.optimizers.AdamW(cosine(args, splits), weight_decay=0.01)


if __name__ == "__main__":
    run(__doc__, build, "binarized_mnist", epochs=20, batch_size=100, lr=1e-2)
