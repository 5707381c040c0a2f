"""PixelCNN on statically binarised MNIST: exact log p(x).

    python recipes/pixel_cnn_binarized_mnist.py --backend tensorflow

Reproduces: PixelCNN of van den Oord, Kalchbrenner and Kavukcuoglu, "Pixel Recurrent
    Neural Networks", ICML 2016, arXiv:1601.06759, table 4.
Data: binarized_mnist (Larochelle and Murray 2011): 50,000 train, 10,000 validation,
    10,000 test; tfds loads it by name. Validation chooses the epoch, test is read once.
Published: 81.30 nats.
Ours: 87.25 nats, 0.1606 bits/dim (validation 87.77); seed 0, TensorFlow,
    41,441 parameters, 9 minutes of training on two cores, shared with
    other work; recipes/results/pixel_cnn_binarized_mnist/metrics.json.

Differences from the paper:
  1. 8 residual blocks with h = 16, of 5x5 kernels in place of 3x3: so few blocks of
     3x3 do not see the border of the image from its middle.
  2. Adam with a warm-up to 1e-3 and a cosine schedule, batches of 16, 4 epochs; the
     paper has RMSProp.
"""

from common import arguments, cosine, finish, fit, load_binary

args = arguments(
    __doc__,
    "pixel_cnn_binarized_mnist",
    data="binarized_mnist",
    epochs=4,
    batch_size=16,
    filters=16,
    blocks=8,
    kernel_size=5,
)

import keras

import kgen

keras.utils.set_random_seed(args.seed)
splits = load_binary(args)
model = kgen.models.PixelCNN(
    splits.image_shape,
    filters=args.filters,
    num_blocks=args.blocks,
    kernel_size=args.kernel_size,
    head_filters=32,
)
model.compile(keras.optimizers.Adam(cosine(args, splits, 1e-3)))
seconds = fit(args, model, splits, every=max(1, args.epochs // 2), samples=16)
finish(args, model, splits, seconds)
