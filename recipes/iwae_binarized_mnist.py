"""A one-layer IWAE on statically binarised MNIST: the bound on log p(x), k = 5000.

    python recipes/iwae_binarized_mnist.py --backend jax

Reproduces: the IWAE of one stochastic layer of Burda, Grosse and Salakhutdinov,
    "Importance Weighted Autoencoders", ICLR 2016, arXiv:1509.00519, app. D, table 3.
Data: binarized_mnist (Larochelle and Murray 2011): 50,000 train, 10,000 validation,
    10,000 test; tfds loads it by name. Validation chooses the epoch, test is read once.
Published: 87.63 nats (trained with k = 5), 87.10 (k = 50), both estimated with 5000
    samples over the whole test set.
Ours: 88.58 nats (k = 5; same estimate), the bound of k = 5 itself 92.20; seed 0, JAX,
    21 minutes of training on two cores, shared with other work;
    recipes/results/iwae_binarized_mnist/metrics.json.

Differences from the paper:
  1. Adam with a warm-up to 1e-3 and a cosine schedule, batches of 50, 250 epochs; the
     paper has 3280 epochs in eight stages from 1e-3 to 1e-4, batches of 20, an epsilon
     of 1e-4.
  2. The epoch is chosen by the validation bound of k = 5.
  3. The output's bias starts at 0, not at the logit of the mean pixel.
"""

from common import arguments, cosine, finish, fit, load_binary

args = arguments(
    __doc__,
    "iwae_binarized_mnist",
    data="binarized_mnist",
    epochs=250,
    batch_size=50,
    num_samples=5,
)

import keras

import kgen

keras.utils.set_random_seed(args.seed)
splits = load_binary(args)
model = kgen.models.IWAE(
    splits.image_shape,
    latent_dim=50,
    num_samples=args.num_samples,
    hidden_units=(200, 200),
    activation="tanh",
)
model.compile(keras.optimizers.Adam(cosine(args, splits, 1e-3)))
seconds = fit(args, model, splits, every=max(1, args.epochs // 10))
finish(args, model, splits, seconds, num_samples=5000)
