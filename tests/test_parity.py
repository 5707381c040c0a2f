"""The same weights, data and noise give the same step, densities, bounds and samples
on each backend: TensorFlow and JAX are compared with PyTorch. What a SavedModel answers
too, test_export compares with TensorFlow. The other backend runs in a process:

python test_parity.py outputs.npz name...
"""

import functools
import importlib.util
import sys

import keras
import numpy as np
import pytest
import zoo
from zoo import numpy, tensor

from kgen import backend

SOME = ("vae", "gan", "nade", "gated", "diagonal")
OTHERS = tuple(name for name in zoo.EXACT if name not in SOME)
PAIRS = {  # (the other backend, models): by default, further ones
    "tensorflow": ([("torch", SOME)], [("torch", OTHERS), ("jax", SOME + OTHERS)]),
    "jax": ([("torch", SOME)], [("torch", OTHERS)]),
    "torch": ([], [("tensorflow", SOME + OTHERS)]),
}


CONSTRUCTOR = {
    "pp": {"dropout": 0.0},
    "vae": {"hidden_units": (16, 12)},
    "gan": {"loss": "hinge", "r1_penalty": 1.0},
}


@functools.cache
def results(name):
    """What must not depend on the backend: {name: array}. Weights, images and noise
    come from NumPy's generator: the same in each process."""
    return {f"{name}_{k}": numpy(v) for k, v in outputs(name).items()}


def outputs(name):
    shape, levels, classes = (6, 5, 1), 3, 2
    if name in ("vae", "gan"):
        shape, levels, classes = (8, 8, 1), 17, None
    arguments = CONSTRUCTOR.get(name, {})
    model = zoo.tiny(name, shape, levels, classes, scale=0.7, **arguments)
    rng, labels = np.random.default_rng(1), np.arange(32) % 2
    x = rng.integers(0, levels, (32, *shape)).astype("uint8")
    noise, data = tensor(rng.normal(size=(32, 3))), zoo.inputs(model, x, labels)
    if name == "gan":
        model.average.set_weights(model.generator.get_weights())
    out = {"sample": model.sample(32, seed=11)}
    if name == "vae":
        out |= {"elbo": model.elbo(x), "log_prob": model.log_prob(x, 20)}
        out["expected"] = model.sample_expected(8, seed=11)
        model.sampling.noise = lambda shape: noise
    elif name == "gan":
        out["discriminate"] = model.discriminate(x)
        model.compile("sgd")  # the noise of an evaluation is a function of images
        out |= {k: np.array(v) for k, v in model.evaluate(x, verbose=0).items()}
        model.prior.draw = lambda n, seed: noise
    else:
        out["log_prob"] = model.log_prob(*data)
    if name == "pp":  # the data-dependent initialization has a test of its own
        model.initialized.assign(True)
    return out | step(model, *data)


def step(model, *data):
    """The logs, and the change of the weights: free of the size of the weights."""
    before = zoo.weights(model)
    model.compile(keras.optimizers.SGD(0.01))
    logs = model.fit(*data, batch_size=32, shuffle=False, verbose=0).history
    after = zip(zoo.weights(model), before, strict=True)
    floats = [v - w for v, w in after if np.issubdtype(w.dtype, np.floating)]
    steps = {f"step{i}": change for i, change in enumerate(floats)}
    return {f"log_{k}": np.array(v) for k, v in logs.items()} | steps


@pytest.mark.parametrize("other, names", zoo.cases(*PAIRS[backend.name]))
def test_step_and_samples_agree_with_another_backend(other, names, tmp_path):
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"{other} is not installed: pip install 'kgen[all]'")
    path = tmp_path / "outputs.npz"
    zoo.run_python(__file__, path, *names, KERAS_BACKEND=other)
    here = {k: v for name in names for k, v in results(name).items()}
    there = np.load(path)
    assert here.keys() == set(there.files)
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


if __name__ == "__main__":
    path, *names = sys.argv[1:]
    np.savez(path, **{k: v for name in names for k, v in results(name).items()})
