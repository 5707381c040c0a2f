"""Two devices end where one does on the same global batches, noise and an epoch's
smaller last batch included: TensorFlow's MirroredStrategy and
MultiWorkerMirroredStrategy, JAX's DataParallel in one process and in two, PyTorch's
processes. All on virtual devices and 127.0.0.1. They run this file:

    python test_distributed.py folder devices|workers rank model...

`devices`: two devices of one process (TensorFlow, JAX) or a process each (PyTorch).
`workers`: two processes with TensorFlow's strategy of several workers, or JAX's.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo
from keras import layers
from sklearn.datasets import load_digits

import kgen
from kgen import backend
from kgen.batching import Share
from kgen.callbacks import BackupAndRestore, SampleGrid
from kgen.data import Batches

# PyTorch alone reduces each network's gradients itself, and compiles nothing.
SOME = ("vae", "gan") if backend.name == "torch" else ("vae",)
OTHERS = tuple(n for n in ("vae", "gan", "gated", "diagonal") if n not in SOME)
PROCESSES = {"torch": {"devices": 2}}.get(backend.name, {"devices": 1, "workers": 2})
RUNS = [(engine, names) for engine in PROCESSES for names in (SOME, OTHERS)]
X = load_digits().images[:142].astype("uint8")[..., None]


def new(name):
    """The GAN has all that a step has, but what is of a device's part of the batch:
    batch statistics and Dropout."""
    if name != "gan":
        return zoo.new(name, num_classes=None)
    generator = [layers.Input((3,)), layers.Dense(64, activation="sigmoid")]
    generator = keras.Sequential([*generator, layers.Reshape(zoo.SHAPE)])
    network = {"architecture": "infogan", "width": 4, "spectral_norm": True}
    network |= {"generator": generator, "latent_dim": 3, "ema": 0.5}
    loss = {"loss": "wasserstein", "gradient_penalty": 1.0}
    return kgen.models.GAN(zoo.SHAPE, zoo.LEVELS, **network, **loss)


def compiled(name, rank):
    keras.utils.set_random_seed(0)
    model = new(name)
    keras.utils.set_random_seed(rank)  # processes differ, but for what they share
    # Adam would blow rounding up where a gradient of the many nats is next to 0
    gentle = keras.optimizers.Adam(1e-2, epsilon=1e-2)
    model.compile(keras.optimizers.SGD(2e-4) if name in zoo.EXACT else gentle)
    return model


def fit(model, folder, rank, epochs):
    # 32, 32, 32, 32 and 13 images: a half has 7, the other 6, but where JAX divides
    n = 140 if backend.name == "jax" else 141
    held = Batches(X[: n - 90], batch_size=32, shuffle=False)
    grid = SampleGrid(f"{folder}_{rank}", n=4, every=2)
    keep = BackupAndRestore(f"{folder}_backup", delete_checkpoint=False)
    options = {"epochs": epochs, "verbose": 0, "callbacks": [grid, keep]}
    data = Batches(X[:n], batch_size=32, seed=1)
    return model.fit(data, validation_data=held, **options).history


def train(name, out, rank=0, engine=None):
    """Weights and metrics go to <out>/<name>.npz, by the first process."""
    model = compiled(name, rank)
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


def environment(engine, rank, ports):
    """What the backend's launcher sets."""
    host, *_ = hosts = [f"127.0.0.1:{port}" for port in ports]
    if backend.name == "torch":  # as torchrun does
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{ports[0]}"}
        return address | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2"}
    if engine == "devices":
        return {}
    task = {"type": "worker", "index": rank}
    return {
        "TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": task}),
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": host,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        "KERAS_DISTRIBUTION_PROCESS_ID": f"{rank}",
    }


def run(folder, engine, names):
    """This file, in as many processes as the engine has."""
    ports, children = zoo.free_ports(2), []
    always = {"KERAS_BACKEND": backend.name, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as errors:
        for rank in range(PROCESSES[engine]):
            command = [sys.executable, __file__, folder, engine, f"{rank}", *names]
            variables = os.environ | always | environment(engine, rank, ports)
            children.append(subprocess.Popen(command, stderr=errors, env=variables))
        try:
            codes = [child.wait(timeout=500) for child in children]
        finally:
            for child in children:
                child.kill()
        errors.seek(0)
        assert not any(codes), errors.read()[-6000:]


@pytest.mark.parametrize("engine, names", zoo.cases(RUNS[:1], RUNS[1:]))
def test_two_devices_end_where_one_does(engine, names, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    run(two, engine, names)
    for name in names:
        train(name, one)
        with np.load(one / f"{name}.npz") as a, np.load(two / f"{name}.npz") as b:
            missing = [k for k in a.files if k not in b.files]
            assert all("weighted" in k for k in missing)
            assert any("log_val" in k for k in b.files)
            for k in b.files:  # metrics are those of all images
                size = np.abs(a[k]).max() if k.startswith("log") else 1.0
                assert np.all(np.isfinite(a[k])) and size > 0
                np.testing.assert_allclose(a[k], b[k], atol=1e-5 * max(size, 1.0))
    # the first process alone writes
    assert {p.name for p in two.glob("*.h5")} == {f"{k}_0.weights.h5" for k in names}
    assert not [p for p in two.rglob("*") if p.stem.endswith("_1")]
    assert not list(two.rglob(".writing*"))
    assert len(list(two.glob("*_0/samples_epoch_002.png"))) == len(names)


def test_wrong_devices_raise():
    wrong = {"tpu": "devices must be 'cpu'", "gpu:two": "devices must be 'cpu'"}
    wrong |= {0: "at least one"}
    if "GPU" not in backend.device():
        wrong |= {"gpu": "(GPU|gpu)"}
    for devices, words in wrong.items():
        with pytest.raises(ValueError, match=words):
            kgen.distribute.use(devices)


@pytest.mark.once
def test_shares_of_a_batch_make_up_the_batch(digits, digit_labels):
    data = Batches(digits[:100], digit_labels[:100], batch_size=32, seed=2)
    parts = [Share(data, i, 3) for i in range(3)]
    for k in range(len(data)):
        for column in (0, 1):
            whole = np.concatenate([part[k][column] for part in parts])
            np.testing.assert_array_equal(whole, data[k][column])
    sizes = [len(part[0][0]) for part in parts]
    assert sizes == [11, 11, 10] and len(parts[0]) == len(data)
    with pytest.raises(ValueError, match="4 images for 5 processes"):
        Share(data, 0, 5)[3]


if __name__ == "__main__":
    folder, engine, rank, *names = sys.argv[1:]
    kgen.distribute.use("cpu" if engine == "workers" else "cpu:2")
    for name in names:
        train(name, Path(folder), int(rank), engine)
