"""Run by test_distributed: trains four models on one device, or on two, over the same
global batches, and writes their weights and metrics.

    python distributed_child.py folder none|devices|workers rank port port

`devices`: two devices of one process (TensorFlow, JAX) or a process each (PyTorch).
`workers`: two processes with TensorFlow's strategy of several workers, or JAX's.
"""

import json
import os
import sys
from pathlib import Path

folder, how, *rest = sys.argv[1:]
backend = os.environ["KERAS_BACKEND"]
rank, port, other = map(int, rest)
if how == "workers" and backend == "tensorflow":
    workers = [f"127.0.0.1:{p}" for p in (port, other)]
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


def compiled(kind):
    keras.utils.set_random_seed(0)
    model = MODELS[kind]()
    keras.utils.set_random_seed(rank)  # processes differ, but for what they share
    # Adam would blow rounding up where a gradient of the many nats is next to 0
    exact = kind in ("gated", "diagonal")
    gentle = keras.optimizers.Adam(1e-2, epsilon=1e-2)
    model.compile(keras.optimizers.SGD(2e-4) if exact else gentle)
    return model


def fit(model, epochs):
    # 32, 32, 32, 32 and 13 images: a half has 7, the other 6, but where JAX divides
    n = 140 if backend == "jax" else 141
    held = kgen.data.Batches(x[: n - 90], batch_size=32, shuffle=False)
    return model.fit(
        kgen.data.Batches(x[:n], batch_size=32, seed=1),
        validation_data=held,
        epochs=epochs,
        verbose=0,
        callbacks=[
            kgen.callbacks.SampleGrid(out / f"{kind}_{rank}", n=4, every=2),
            kgen.callbacks.BackupAndRestore(
                out / f"{kind}_backup", delete_checkpoint=False
            ),
        ],
    ).history


out = Path(folder)
for kind in MODELS:
    model = compiled(kind)
    if kind == "vae" and how != "none":  # in two parts
        fit(model, 1)
        model = compiled(kind)
    logs = {f"log_{k}": np.array(v[-1]) for k, v in fit(model, 2).items()}
    if kind == "vae":  # arrays, of a size that cannot be divided
        scores = model.evaluate(x[:51], batch_size=20, verbose=0)
        if how != "workers":  # TensorFlow's take images alone
            weight = (np.arange(51) >= 20).astype("float32")  # none of the first batch
            weighted = model.evaluate(
                x[:51], sample_weight=weight, batch_size=20, verbose=0
            )
            scores |= {f"weighted_{k}": v for k, v in weighted.items()}
        logs |= {f"log_{k}": np.array(v) for k, v in scores.items()}
    model.save_weights(out / f"{kind}_{rank}.weights.h5")
    if kgen.distribute.process()[0] == 0:
        np.savez(out / f"{kind}.npz", *weights(model), **logs)
