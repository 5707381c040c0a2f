"""One backend per process: KERAS_BACKEND decides (`make test` runs all three)."""

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Tiny models: compiling them takes longer than running them ever would.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

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
    backend = keras.backend.backend()
    config.pluginmanager.register(features.Recorder(backend), "features")


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
