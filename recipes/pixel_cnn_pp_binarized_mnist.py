"""PixelCNN++ on statically binarised MNIST: exact log p(x).

    python recipes/pixel_cnn_pp_binarized_mnist.py --backend tensorflow

Reproduces: the model of Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the
    PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications", ICLR
    2017, arXiv:1701.05517, whose authors give no MNIST number.
Data: binarized_mnist (Larochelle and Murray 2011): 50,000 train, 10,000 validation,
    10,000 test; tfds loads it by name. Validation chooses the epoch, test is read once.
Published: nothing known to us for this data.
Ours: 83.24 nats, 0.1532 bits/dim (validation 83.73); seed 0, TensorFlow,
    244,755 parameters, 20 minutes of training on two cores, shared with
    other work; recipes/results/pixel_cnn_pp_binarized_mnist/metrics.json.

Differences from the paper:
  1. 16 filters and 2 blocks a resolution in place of 160 and 5, no dropout; Bernoulli
     pixels, as there are two levels.
  2. Adam with a warm-up to 2e-3 and a cosine schedule, batches of 32, 1 epoch; weights
     averaged with momentum 0.995 (paper: 0.9995, over days of training).
"""

from common import arguments, cosine, finish, fit, load_binary

args = arguments(
    __doc__,
    "pixel_cnn_pp_binarized_mnist",
    data="binarized_mnist",
    epochs=1,
    batch_size=32,
    filters=16,
    blocks=2,
)

import keras

import kgen

keras.utils.set_random_seed(args.seed)
splits = load_binary(args)
model = kgen.models.PixelCNNPlusPlus(
    splits.image_shape,
    filters=args.filters,
    num_blocks=args.blocks,
    dropout=0.0,
)
rate = cosine(args, splits, 2e-3)
model.compile(keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.995))
seconds = fit(args, model, splits, every=args.epochs, samples=16, averaged=True)
finish(args, model, splits, seconds, samples=36)
