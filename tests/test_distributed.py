"""Trap 3: data parallelism. Two devices end where one does on the same global batches,
an epoch's uneven rest and all noise included: TensorFlow's MirroredStrategy and
MultiWorkerMirroredStrategy, JAX's DataParallel in one process and in two, PyTorch's
processes with the seam's all-reduce. All on virtual devices and 127.0.0.1."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kgen
from kgen import backend

CHILD = Path(__file__).with_name("distributed_child.py")


def run(folder, how, processes=1):
    """Runs the child in so many processes at once."""
    folder.mkdir()
    ports = free_ports(2)
    errors = [Path(f"{folder}_errors_{rank}") for rank in range(processes)]
    started = []
    for rank in range(processes):
        with errors[rank].open("w") as file:
            child = subprocess.Popen(
                [sys.executable, CHILD, folder, how, str(rank), *ports],
                stderr=file,
                env=os.environ
                | {"KERAS_BACKEND": backend.name, "OMP_NUM_THREADS": "1"},
            )
        started.append(child)
    try:
        codes = [child.wait(timeout=500) for child in started]
    finally:
        for child in started:
            child.kill()
    assert not any(codes), "\n".join(file.read_text()[-3000:] for file in errors)
    return folder


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return run(tmp_path_factory.mktemp("distributed") / "one", "none")


ENGINES = {
    "tensorflow": {"devices": 1, "workers": 2},
    "jax": {"devices": 1, "workers": 2},
    "torch": {"devices": 2},
}[backend.name]


@pytest.fixture(scope="module", params=ENGINES)
def two(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed") / request.param
    return run(folder, request.param, ENGINES[request.param])


@pytest.mark.parametrize("kind", ["gated", "diagonal", "vae", "gan"])
@pytest.mark.feature("devices")
def test_two_devices_end_where_one_does(kind, one, two):
    with np.load(one / f"{kind}.npz") as a, np.load(two / f"{kind}.npz") as b:
        missing = [name for name in a.files if name not in b.files]
        assert all("weighted" in name for name in missing)
        assert any("log_val" in name for name in b.files)
        for name in b.files:  # metrics are those of all images
            size = np.abs(a[name]).max() if name.startswith("log") else 1.0
            assert np.all(np.isfinite(a[name])) and size > 0
            np.testing.assert_allclose(a[name], b[name], atol=1e-5 * max(size, 1.0))


def test_the_first_process_alone_writes(two):
    for path in two.iterdir():
        assert not path.stem.endswith("_1") and not path.name.startswith(".writing")
    assert {p.name for p in two.glob("*.weights.h5")} == {
        f"{kind}_0.weights.h5" for kind in ("gated", "diagonal", "vae", "gan")
    }
    assert len(list(two.glob("*_0/samples_epoch_002.png"))) == 4


@pytest.mark.parametrize(
    "devices,words",
    [
        ("tpu", "devices must be 'cpu'"),
        ("gpu:two", "devices must be 'cpu'"),
        (0, "at least one"),
    ],
)
def test_wrong_devices_are_told(devices, words):
    with pytest.raises(ValueError, match=words):
        kgen.distribute.use(devices)


def test_a_missing_gpu_is_told():
    if "GPU" in backend.device():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match="(GPU|gpu)"):
        kgen.distribute.use("gpu")


def test_parts_of_a_batch_are_the_batch(digits, digit_labels):
    from kgen.batching import Share

    data = kgen.data.Batches(digits[:100], digit_labels[:100], batch_size=32, seed=2)
    parts = [Share(data, i, 3) for i in range(3)]
    for k in range(len(data)):
        for column in (0, 1):
            whole = np.concatenate([part[k][column] for part in parts])
            np.testing.assert_array_equal(whole, data[k][column])
    sizes = [len(part[0][0]) for part in parts]
    assert sizes == [11, 11, 10] and len(parts[0]) == len(data)
    with pytest.raises(ValueError, match="4 images for 5 processes"):
        Share(data, 0, 5)[3]


def test_a_rest_can_be_left_out(digits):
    data = kgen.data.Batches(digits[:100], batch_size=32, drop_remainder=True)
    assert len(data) == 3 and all(len(data[i]) == 32 for i in range(3))
    with pytest.raises(ValueError, match="leaves no batch of 20 images"):
        kgen.data.Batches(digits[:20], batch_size=32, drop_remainder=True)
