"""One backend per process: KERAS_BACKEND decides (`make test` runs all three)."""

import atexit
import contextlib
import os
import shutil
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tiny models: compiling them takes longer than running them ever would.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests make the same model, and child processes too: XLA compiles it once.
    programs = tempfile.mkdtemp(prefix="kgen-xla-")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

with contextlib.suppress(ImportError):
    import torch  # before TensorFlow: the other way round may segfault

    torch.set_num_threads(
        1
    )  # tiny tensors: threads that wait for one another cost more

import features
import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits


def pytest_configure(config):
    config.addinivalue_line("markers", "feature(name): a cell of the README's table")
    once = "once: the same on every backend; runs with PyTorch, whose suite is quickest"
    config.addinivalue_line("markers", once)
    backend = keras.backend.backend()
    config.pluginmanager.register(features.Recorder(backend), "features")


def pytest_collection_modifyitems(items):
    if keras.backend.backend() != "torch":
        skip = pytest.mark.skip(reason="the same on every backend: tested with PyTorch")
        for item in items:
            if item.get_closest_marker("once"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(scope="session")
def digits():
    """Real images: 320 8x8 digits of 17 levels, uint8 (320, 8, 8, 1)."""
    return load_digits().images[:320].astype("uint8")[..., None]


@pytest.fixture(scope="session")
def digit_labels():
    return load_digits().target[:320]


@pytest.fixture(scope="session")
def binary(digits):
    return (digits > 7).astype("uint8")


@pytest.fixture
def rng():
    return np.random.default_rng(0)
