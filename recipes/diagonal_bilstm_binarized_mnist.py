"""PixelRNN, Diagonal BiLSTM, on statically binarised MNIST: exact log p(x).

    python recipes/diagonal_bilstm_binarized_mnist.py --backend tensorflow
    python recipes/diagonal_bilstm_binarized_mnist.py --layers 7 --units 16 --epochs 100

The first has the size of the paper's 1-layer network, the second that of its 7-layer
one: days of work for two cores.

Reproduces: Diagonal BiLSTM of van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel
    Recurrent Neural Networks", ICML 2016, arXiv:1601.06759, table 4.
Data: binarized_mnist (Larochelle and Murray 2011): 50,000 train, 10,000 validation,
    10,000 test; tfds loads it by name. Validation chooses the epoch, test is read once.
Published: 80.75 nats for 1 layer of 32, 79.20 for 7 layers of 16.
Ours: 86.37 nats, 0.1589 bits/dim (validation 86.92); seed 0, TensorFlow,
    39,105 parameters, 20 minutes of training on two cores, shared with
    other work; recipes/results/diagonal_bilstm_binarized_mnist/metrics.json.

Differences from the paper:
  1. One more column on the right of the maps, see kgen/models/pixel_rnn.py; forget
     gates start with a bias of 1.
  2. Adam with a warm-up to 2e-3 and a cosine schedule, gradients clipped at norm 1,
     batches of 16, 2 epochs; the paper has RMSProp.
"""

from common import arguments, cosine, finish, fit, load_binary

args = arguments(
    __doc__,
    "diagonal_bilstm_binarized_mnist",
    data="binarized_mnist",
    epochs=2,
    batch_size=16,
    units=32,
    layers=1,
)

import keras

import kgen

keras.utils.set_random_seed(args.seed)
splits = load_binary(args)
model = kgen.models.DiagonalBiLSTM(
    splits.image_shape, units=args.units, num_layers=args.layers, head_filters=32
)
rate = cosine(args, splits, 2e-3)
model.compile(keras.optimizers.Adam(rate, clipnorm=1.0))
seconds = fit(args, model, splits, every=args.epochs, samples=16)
finish(args, model, splits, seconds, samples=36)
