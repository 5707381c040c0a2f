"""Run by test_distributed: trains a VAE, a GAN of two optimizers, a convolutional or a
scanned exact model on one device, or on two, over the same global batches, and writes
the weights.

    python distributed_child.py vae|gan|gated|diagonal outputs.npz [rank port]
"""

import os
import sys

kind, path, *rest = sys.argv[1:]
backend = os.environ["KERAS_BACKEND"]
two = bool(rest)
if backend == "jax" and two:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

rank, world = 0, 1
scope = None
if two and backend == "jax":
    keras.distribution.set_distribution(keras.distribution.DataParallel())
if two and backend == "tensorflow":
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, logical)
    scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()
    scope.__enter__()
if two and backend == "torch":
    import torch

    rank, world = int(rest[0]), 2
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{rest[1]}", rank=rank, world_size=2
    )

from keras import ops  # noqa: E402

from kgen.models import GAN, VAE, DiagonalBiLSTM, GatedPixelCNN  # noqa: E402

keras.utils.set_random_seed(0)
x = load_digits().images[:128].astype("uint8")[..., None]
if kind == "vae":
    model = VAE((8, 8, 1), 17, latent_dim=3, hidden_units=(8,))
    # noise as a function of the image, so that it does not depend on who computes it
    terms = model._terms
    model._terms = lambda x, labels, epsilon=None, training=False: terms(
        x, labels, model._noise(x), training
    )
    model.compile(keras.optimizers.Adam(1e-2))
elif kind == "gated":
    model = GatedPixelCNN((8, 8, 1), 17, filters=8, num_blocks=1)
    model.compile(keras.optimizers.SGD(2e-4))
elif kind == "diagonal":
    model = DiagonalBiLSTM((8, 8, 1), 17, units=4, num_layers=1)
    model.compile(keras.optimizers.SGD(2e-4))
else:
    # The rest of what a step has: penalties of two orders, spectral norm, an average.
    model = GAN(
        (8, 8, 1),
        17,
        latent_dim=3,
        width=4,
        loss="wasserstein",
        architecture="infogan",
        gradient_penalty=1.0,
        spectral_norm=True,
        ema=0.5,
        # no noise, no batch statistics: each is a function of the local batch
        generator=keras.Sequential(
            [
                keras.layers.Input((3,)),
                keras.layers.Dense(64, activation="sigmoid"),
                keras.layers.Reshape((8, 8, 1)),
            ]
        ),
    )
    model.prior.draw = lambda n, seed: 0.5 * ops.ones((n, 3))
    keras.random.uniform = lambda shape, **kwargs: 0.3 * ops.ones(shape)
    model.compile(keras.optimizers.Adam(1e-2, epsilon=1e-2))

# global batches of 32; process r of w has every w-th image of each
local = x.reshape(4, 32 // world, world, 8, 8, 1)[:, :, rank]
logs = model.fit(
    local.reshape(-1, 8, 8, 1),
    batch_size=32 // world,
    epochs=3,
    shuffle=False,
    verbose=0,
).history
if rank == 0:
    np.savez(
        path,
        *[ops.convert_to_numpy(v) for v in model.weights],
        loss=np.array(logs["loss"]),
    )
if world > 1:  # leave together: who is left alone with open sockets aborts
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
