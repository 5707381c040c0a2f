"""The same weights, data and noise give the same step, densities, bounds and samples
on each backend: TensorFlow and JAX are compared with PyTorch."""

import importlib.util

import numpy as np
import parity_child
import pytest
import zoo

import kgen

SOME = ("vae", "gan", "nade", "gated", "diagonal")
OTHERS = tuple(name for name in zoo.EXACT if name not in SOME)
PAIRS = {  # (the other backend, models, whether by default)
    "tensorflow": [("torch", SOME, 1), ("torch", OTHERS, 0), ("jax", SOME + OTHERS, 0)],
    "jax": [("torch", SOME, 1), ("torch", OTHERS, 0)],
    "torch": [("tensorflow", SOME + OTHERS, 0)],
}[kgen.backend.name]


@pytest.mark.parametrize(
    "other,names",
    [
        pytest.param(*pair, marks=[] if default else pytest.mark.exhaustive)
        for *pair, default in PAIRS
    ],
)
def test_step_and_samples_agree_with_another_backend(other, names, tmp_path):
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"{other} is not installed: pip install 'kgen[all]'")
    path = tmp_path / "outputs.npz"
    zoo.run_python(parity_child.__file__, path, *names, KERAS_BACKEND=other)
    here = {k: v for name in names for k, v in parity_child.results(name).items()}
    with np.load(path) as loaded:
        there = {k: loaded[k] for k in loaded.files}
    assert here.keys() == there.keys()
    for name, value in here.items():
        if "sample" in name:  # integers: equal but for ties within rounding
            assert np.mean(there[name] != value) < 1e-3, name
        elif "_step" in name:
            model = name.split("_step")[0] + "_step"
            size = max(np.abs(v).max() for k, v in here.items() if k.startswith(model))
            assert size > 1e-3  # it is a step, and what differs is small beside it
            close = min(1e-5, 1e-3 * size)
            np.testing.assert_allclose(value, there[name], 1e-7, close, err_msg=name)
        else:
            np.testing.assert_allclose(value, there[name], 1e-5, 2e-6, err_msg=name)
