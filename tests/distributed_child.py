"""Run by test_distributed: trains models on two devices; `train` on one or on two.

    python distributed_child.py folder devices|workers rank port port model...

`devices`: two devices of one process (TensorFlow, JAX) or a process each (PyTorch).
`workers`: two processes with TensorFlow's strategy of several workers, or JAX's.
"""

import json
import os
import sys
from pathlib import Path


def join(engine, rank, port, other):
    """The environment that the backend's launcher sets."""
    backend = os.environ["KERAS_BACKEND"]
    if backend == "torch":  # as torchrun does
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    elif engine == "workers" and backend == "tensorflow":
        cluster = {"worker": [f"127.0.0.1:{p}" for p in (port, other)]}
        task = {"type": "worker", "index": rank}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    elif engine == "workers":
        os.environ["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = f"127.0.0.1:{port}"
        os.environ["KERAS_DISTRIBUTION_NUM_PROCESSES"] = "2"
        os.environ["KERAS_DISTRIBUTION_PROCESS_ID"] = str(rank)


if __name__ == "__main__":
    folder, engine, *numbers = sys.argv[1:6]
    rank, port, other = map(int, numbers)
    join(engine, rank, port, other)

import keras  # noqa: E402
import numpy as np  # noqa: E402
import zoo  # noqa: E402
from keras import layers  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import kgen  # noqa: E402
from kgen.callbacks import BackupAndRestore, SampleGrid  # noqa: E402

X = load_digits().images[:142].astype("uint8")[..., None]


def gan():
    """All that a step has, but what is of a device's part of the batch: batch
    statistics and Dropout."""
    generator = [layers.Input((3,)), layers.Dense(64, activation="sigmoid")]
    generator = keras.Sequential([*generator, layers.Reshape(zoo.SHAPE)])
    network = {"architecture": "infogan", "width": 4, "spectral_norm": True}
    network |= {"generator": generator, "latent_dim": 3, "ema": 0.5}
    loss = {"loss": "wasserstein", "gradient_penalty": 1.0}
    return kgen.models.GAN(zoo.SHAPE, zoo.LEVELS, **network, **loss)


def compiled(name, rank):
    keras.utils.set_random_seed(0)
    model = gan() if name == "gan" else zoo.new(name, num_classes=None)
    keras.utils.set_random_seed(rank)  # processes differ, but for what they share
    # Adam would blow rounding up where a gradient of the many nats is next to 0
    gentle = keras.optimizers.Adam(1e-2, epsilon=1e-2)
    model.compile(keras.optimizers.SGD(2e-4) if name in zoo.EXACT else gentle)
    return model


def fit(model, folder, rank, epochs):
    # 32, 32, 32, 32 and 13 images: a half has 7, the other 6, but where JAX divides
    n = 140 if kgen.backend.name == "jax" else 141
    held = kgen.data.Batches(X[: n - 90], batch_size=32, shuffle=False)
    grid = SampleGrid(f"{folder}_{rank}", n=4, every=2)
    keep = BackupAndRestore(f"{folder}_backup", delete_checkpoint=False)
    options = {"epochs": epochs, "verbose": 0, "callbacks": [grid, keep]}
    data = kgen.data.Batches(X[:n], batch_size=32, seed=1)
    return model.fit(data, validation_data=held, **options).history


def train(name, folder, rank=0, engine=None):
    """Weights and metrics go to <folder>/<name>.npz, by the first process."""
    model, out = compiled(name, rank), Path(folder)
    if name == "vae" and engine:  # interrupted and resumed
        fit(model, out / name, rank, 1)
        model = compiled(name, rank)
    logs = {k: v[-1] for k, v in fit(model, out / name, rank, 2).items()}
    if name == "vae":  # arrays, of a size that cannot be divided
        options = {"batch_size": 20, "verbose": 0}
        logs |= model.evaluate(X[:51], **options)
        if engine != "workers":  # TensorFlow's take images alone
            options["sample_weight"] = np.float32(np.arange(51) >= 20)  # 0 at first
            scores = model.evaluate(X[:51], **options)
            logs |= {f"weighted_{k}": v for k, v in scores.items()}
    model.save_weights(out / f"{name}_{rank}.weights.h5")
    if kgen.distribute.process()[0] == 0:
        logs = {f"log_{k}": np.array(v) for k, v in logs.items()}
        np.savez(out / f"{name}.npz", *zoo.weights(model), **logs)


if __name__ == "__main__":
    kgen.distribute.use("cpu" if engine == "workers" else "cpu:2")
    for name in sys.argv[6:]:
        train(name, folder, rank, engine)
