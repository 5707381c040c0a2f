"""PixelRNN, Diagonal BiLSTM, on statically binarized MNIST: exact log p(x).

    python recipes/diagonal_bilstm_binarized_mnist.py --backend tensorflow
    python recipes/diagonal_bilstm_binarized_mnist.py --layers 7 --units 16 --epochs 100

The first has the size of the paper's 1-layer network, the second that of its 7-layer
one: days of work for two cores.

Reproduces: Diagonal BiLSTM of van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel
    Recurrent Neural Networks", ICML 2016, arXiv:1601.06759, table 4.
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: 80.75 nats for 1 layer of 32, 79.20 for 7 layers of 16.

Differences from the paper:
  1. One more column on the right of the maps, see kgen/models/pixel_rnn.py; forget
     gates start with a bias of 1.
  2. Adam with a warm-up and a cosine schedule, clipped gradients; the paper has
     RMSProp.
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.DiagonalBiLSTM(
        splits.image_shape, units=args.units, num_layers=args.layers, head_filters=32
    )
    return model, keras.optimizers.Adam(cosine(args, splits), clipnorm=1.0)


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "binarized_mnist",
        epochs=2,
        batch_size=16,
        lr=2e-3,
        units=32,
        layers=1,
        previews=1,
        samples=36,
    )
