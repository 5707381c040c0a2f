"""Two devices end where one does on the same global batches, noise and an epoch's
smaller last batch included: TensorFlow's MirroredStrategy and
MultiWorkerMirroredStrategy, JAX's DataParallel in one process and in two, PyTorch's
processes. All on virtual devices and 127.0.0.1."""

import os
import subprocess
import sys
import tempfile

import distributed_child
import numpy as np
import pytest
import zoo

import kgen
from kgen import backend
from kgen.batching import Share
from kgen.data import Batches

# PyTorch alone reduces each network's gradients itself, and compiles nothing.
SOME = ("vae", "gan") if backend.name == "torch" else ("vae",)
OTHERS = tuple(n for n in ("vae", "gan", "gated", "diagonal") if n not in SOME)
PROCESSES = {"torch": {"devices": 2}}.get(backend.name, {"devices": 1, "workers": 2})


def run(folder, engine, names):
    """The child, in as many processes as the engine has."""
    environment = os.environ | {"KERAS_BACKEND": backend.name, "OMP_NUM_THREADS": "1"}
    ports, children, errors = zoo.free_ports(2), [], tempfile.TemporaryFile("w+")
    with errors:
        for rank in range(PROCESSES[engine]):
            arguments = map(str, [folder, engine, rank, *ports, *names])
            command = [sys.executable, distributed_child.__file__, *arguments]
            children.append(subprocess.Popen(command, stderr=errors, env=environment))
        try:
            codes = [child.wait(timeout=500) for child in children]
        finally:
            for child in children:
                child.kill()
        errors.seek(0)
        assert not any(codes), errors.read()[-6000:]


RUNS = [(engine, names) for engine in PROCESSES for names in (SOME, OTHERS)]


@pytest.mark.parametrize(
    "engine,names",
    [RUNS[0], *(pytest.param(*run, marks=pytest.mark.exhaustive) for run in RUNS[1:])],
)
def test_two_devices_end_where_one_does(engine, names, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    run(two, engine, names)
    for name in names:
        distributed_child.train(name, one)
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
