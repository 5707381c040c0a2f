"""Trap 3: data parallelism. Two devices end where one does on the same global batches:
TensorFlow's MirroredStrategy (a hand-written mean has to be divided by the replicas),
JAX's DataParallel, two PyTorch processes with the seam's all-reduce."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kgen import backend

CHILD = Path(__file__).with_name("distributed_child.py")


def start(kind, path, *rest):
    return subprocess.Popen(
        [sys.executable, CHILD, kind, path, *rest],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"KERAS_BACKEND": backend.name},
    )


def finish(*children):
    for child in children:
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors[-3000:]


@pytest.mark.parametrize("kind", ["vae", "gan", "gated", "diagonal"])
def test_two_devices_end_where_one_does(kind, tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    finish(start(kind, one))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    ranks = ("0", "1") if backend.name == "torch" else ("0",)
    finish(*[start(kind, two, rank, port) for rank in ranks])
    with np.load(one) as a, np.load(two) as b:
        assert a.files == b.files
        for name in a.files:
            if name == "loss" and backend.name == "torch":
                continue  # each process reports its own images
            tolerance = 1e-5 if name != "loss" else 1e-4 * np.abs(a[name]).max()
            np.testing.assert_allclose(a[name], b[name], atol=tolerance)
