"""One backend per process: KERAS_BACKEND decides (`make test` runs all three)."""

import atexit
import contextlib
import os
import shutil
import tempfile

import numpy as np
import pytest
from sklearn.datasets import load_digits

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


def pytest_configure(config):
    """Imports the backend, in the processes that run tests."""
    if getattr(config.option, "numprocesses", None):  # of pytest-xdist: it starts those
        return
    with contextlib.suppress(ImportError):
        import torch  # before TensorFlow: the other way round may segfault

        # Tiny tensors: threads that wait for one another cost more.
        torch.set_num_threads(1)
    import keras  # noqa: F401


@pytest.fixture(autouse=True)
def seeded():
    import keras

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
