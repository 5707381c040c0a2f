"""PixelRNN, Row LSTM, on statically binarised MNIST: exact log p(x).

    python recipes/row_lstm_binarized_mnist.py --backend tensorflow
    python recipes/row_lstm_binarized_mnist.py --layers 7 --units 16 --epochs 100

The second command is the paper's size of network for MNIST (it names 7 layers of 16 and
1 layer of 32, for the Diagonal BiLSTM), days of work for two cores.

Reproduces: Row LSTM of van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent
    Neural Networks", ICML 2016, arXiv:1601.06759, table 4.
Data: binarized_mnist (Larochelle and Murray 2011): 50,000 train, 10,000 validation,
    10,000 test; tfds loads it by name. Validation chooses the epoch, test is read once.
Published: 80.54 nats.
Ours: 85.27 nats, 0.1569 bits/dim (validation 85.74); seed 0, TensorFlow,
    65,793 parameters, 17 minutes of training on two cores, shared with
    other work; recipes/results/row_lstm_binarized_mnist/metrics.json.

Differences from the paper:
  1. 2 layers of 32; forget gates start with a bias of 1.
  2. Adam with a warm-up to 2e-3 and a cosine schedule, gradients clipped at norm 1,
     batches of 16, 3 epochs; the paper has RMSProp.
"""

from common import arguments, cosine, finish, fit, load_binary

args = arguments(
    __doc__,
    "row_lstm_binarized_mnist",
    data="binarized_mnist",
    epochs=3,
    batch_size=16,
    units=32,
    layers=2,
)

import keras

import kgen

keras.utils.set_random_seed(args.seed)
splits = load_binary(args)
model = kgen.models.RowLSTM(
    splits.image_shape, units=args.units, num_layers=args.layers, head_filters=32
)
rate = cosine(args, splits, 2e-3)
model.compile(keras.optimizers.Adam(rate, clipnorm=1.0))
seconds = fit(args, model, splits, every=args.epochs, samples=16)
finish(args, model, splits, seconds, samples=36)
