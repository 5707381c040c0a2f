"""PixelCNN++ on Fashion-MNIST at 256 levels: exact log p(x), bits per dimension.

    python recipes/pixel_cnn_pp_fashion_mnist.py --backend tensorflow

Reproduces: the model of Salimans, Karpathy, Chen and Kingma, "PixelCNN++: Improving the
    PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications", ICLR
    2017, arXiv:1701.05517 (CIFAR-10: 2.92 bits/dim).
Data: fashion_mnist (Xiao, Rasul and Vollgraf 2017), its 60,000 training images cut into
    train and validation, 10,000 test; tfds loads it by name. Validation chooses the
    epoch, test is read once.
Published: nothing known to us for this model and data.
Ours: 3.022 bits/dim, 1642.45 nats (validation 3.005); seed 0, TensorFlow, 145,263
    parameters, 7 minutes of training on two cores, shared with other work;
    recipes/results/pixel_cnn_pp_fashion_mnist/metrics.json.

Differences from the paper:
  1. 16 filters, 1 block a resolution and 5 logistics in place of 160, 5 and 10; no
     dropout.
  2. Adam with a warm-up to 2e-3 and a cosine schedule, batches of 32, 1 epoch; weights
     averaged with momentum 0.995 (paper: 0.9995, over days of training).
"""

from common import arguments, cosine, finish, fit, load

args = arguments(
    __doc__,
    "pixel_cnn_pp_fashion_mnist",
    data="fashion_mnist",
    epochs=1,
    batch_size=32,
)

import keras

import kgen

keras.utils.set_random_seed(args.seed)
splits = load(args)
model = kgen.models.PixelCNNPlusPlus(
    splits.image_shape,
    levels=splits.levels,
    filters=16,
    num_blocks=1,
    num_mixtures=5,
    dropout=0.0,
)
rate = cosine(args, splits, 2e-3)
model.compile(keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.995))
seconds = fit(args, model, splits, every=args.epochs, samples=16, averaged=True)
finish(args, model, splits, seconds, samples=36)
