"""Run by test_distributed: trains four models on one device, or on two, over the same
global batches, and writes their weights and metrics.

    python distributed_child.py folder none|devices|workers [rank port]

`devices`: two devices of one process (TensorFlow, JAX) or a process each (PyTorch).
`workers`: two processes with TensorFlow's strategy of several workers, or JAX's.
"""

import json
import os
import sys
from pathlib import Path

folder, how, *rest = sys.argv[1:]
backend = os.environ["KERAS_BACKEND"]
rank, port = map(int, rest or (0, 0))
if how == "workers" and backend == "tensorflow":
    workers = [f"127.0.0.1:{port + i}" for i in range(2)]
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}}
    )
if how != "none" and backend == "torch":  # what torchrun sets
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import ops  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import kgen  # noqa: E402

if how == "workers" and backend == "jax":
    for name, value in {
        "JOB_ADDRESSES": f"127.0.0.1:{port}",
        "NUM_PROCESSES": "2",
        "PROCESS_ID": str(rank),
    }.items():
        os.environ[f"KERAS_DISTRIBUTION_{name}"] = value
if how != "none":
    one_each = how == "workers"
    kgen.distribute.use("cpu" if one_each else "cpu:2")

SHAPE, LEVELS = (8, 8, 1), 17
x = load_digits().images[:142].astype("uint8")[..., None]
MODELS = {
    "gated": lambda: kgen.models.GatedPixelCNN(SHAPE, LEVELS, filters=8, num_blocks=1),
    "diagonal": lambda: kgen.models.DiagonalBiLSTM(
        SHAPE, LEVELS, units=4, num_layers=1
    ),
    "vae": lambda: kgen.models.VAE(SHAPE, LEVELS, latent_dim=3, hidden_units=(8,)),
    # All that a step has, but what is of a device's own images: batch statistics and
    # Dropout.
    "gan": lambda: kgen.models.GAN(
        SHAPE,
        LEVELS,
        latent_dim=3,
        width=4,
        architecture="infogan",
        loss="wasserstein",
        gradient_penalty=1.0,
        spectral_norm=True,
        ema=0.5,
        generator=keras.Sequential(
            [
                keras.layers.Input((3,)),
                keras.layers.Dense(64, activation="sigmoid"),
                keras.layers.Reshape(SHAPE),
            ]
        ),
    ),
}


def weights(model):
    return [ops.convert_to_numpy(v) for v in model.weights]


for kind, make in MODELS.items():
    keras.utils.set_random_seed(0)
    model = make()
    keras.utils.set_random_seed(rank)  # processes differ, but for what they share
    # Adam would blow rounding up where a gradient of the many nats is next to 0
    exact = kind in ("gated", "diagonal")
    gentle = keras.optimizers.Adam(1e-2, epsilon=1e-2)
    model.compile(keras.optimizers.SGD(2e-4) if exact else gentle)
    # 32, 32, 32, 32 and 13 images: a half has 7, the other 6, but where JAX divides
    n = 140 if backend == "jax" else 141
    train = kgen.data.Batches(x[:n], batch_size=32, seed=1)
    out = Path(folder)
    logs = model.fit(
        train,
        validation_data=kgen.data.Batches(x[: n - 90], batch_size=32, shuffle=False),
        epochs=2,
        verbose=0,
        callbacks=[
            kgen.callbacks.SampleGrid(out / f"{kind}_{rank}", n=4, every=2),
            kgen.callbacks.BackupAndRestore(out / f"{kind}_backup"),
        ],
    ).history
    model.save_weights(out / f"{kind}_{rank}.weights.h5")
    if kgen.distribute.process()[0] == 0:
        logs = {f"log_{k}": np.array(v) for k, v in logs.items()}
        np.savez(out / f"{kind}.npz", *weights(model), **logs)
