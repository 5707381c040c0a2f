"""A one-layer VAE on statically binarised MNIST.

python recipes/vae_binarized_mnist.py --backend jax
"""

from common import arguments, finish, fit, load

args = arguments(
    __doc__, "vae_binarized_mnist", data="binarized_mnist", epochs=150, batch_size=100
)

import keras

import kgen

keras.utils.set_random_seed(args.seed)
splits = load(args)
model = kgen.models.VAE(
    splits.image_shape, latent_dim=50, hidden_units=(200, 200), activation="tanh"
)
steps = args.epochs * -(-len(splits.train) // args.batch_size)
model.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps))
)
seconds = fit(args, model, splits, every=max(1, args.epochs // 10))
finish(args, model, splits, seconds, num_samples=5000)
