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

import tiny_gan  # noqa: E402
from keras import ops  # noqa: E402

from kgen.models import VAE, DiagonalBiLSTM, GatedPixelCNN  # noqa: E402

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
    model = tiny_gan.compiled(keras.optimizers.Adam(1e-2), penalty=0.1)
    # no noise, no batch statistics: each is a function of the local batch
    model.make = lambda n, training=True: ops.cast(
        model.generator(ops.ones((n, 4)) * 0.5, training=False), "float32"
    )
    score = model.score
    model.score = lambda x, training=False: score(x, training=False)

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
