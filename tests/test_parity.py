"""The same weights, data and noise give the same step, bounds and samples on each
backend. Each backend's run compares itself to the next one's, all pairs in a circle."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity_child import results

import kgen

NEXT = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}


def test_one_step_agrees_with_another_backend(digits, rng, tmp_path):
    other = NEXT[kgen.backend.name]
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"{other} is not installed: pip install 'kgen[all]'")
    model = kgen.models.VAE((8, 8, 1), 17, latent_dim=4, hidden_units=(16, 12))
    inputs = {
        f"w{i}": rng.normal(0, 0.2, v.shape).astype("float32")
        for i, v in enumerate(model.weights)
    }
    inputs["images"] = digits[:32]
    inputs["epsilon"] = rng.normal(size=(32, 4)).astype("float32")
    np.savez(tmp_path / "inputs.npz", **inputs)
    child = Path(__file__).with_name("parity_child.py")
    done = subprocess.run(
        [sys.executable, child, tmp_path / "inputs.npz", tmp_path / "outputs.npz"],
        env=os.environ | {"KERAS_BACKEND": other},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours = results(inputs)
    with np.load(tmp_path / "outputs.npz") as theirs:
        assert set(theirs.files) == set(ours)
        for name in theirs.files:
            if "sample" in name:  # integers: equal but for ties within rounding
                assert np.mean(theirs[name] != ours[name]) < 1e-3
            elif "step" in name:
                steps = name.rstrip("0123456789")
                of_model = [v for k, v in ours.items() if k.startswith(steps)]
                size = max(np.abs(v).max() for v in of_model)
                assert size > 1e-3  # it is a step, and what differs is small beside it
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3 * size)
            else:
                np.testing.assert_allclose(ours[name], theirs[name], 1e-5, 2e-6)
