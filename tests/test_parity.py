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

import kgen

SOME = ("vae", "gan", "nade", "gated", "diagonal")
OTHERS = tuple(name for name in zoo.EXACT if name not in SOME)
PAIRS = {  # (the other backend, models): by default, further ones
    "tensorflow": ([("torch", SOME)], [("torch", OTHERS), ("jax", SOME + OTHERS)]),
    "jax": ([("torch", SOME)], [("torch", OTHERS)]),
    "torch": ([], [("tensorflow", SOME + OTHERS)]),
}


@functools.cache
def results(name):
    """What must not depend on the backend: {name: array}. Weights, images and noise
    come from NumPy's generator: the same in each process."""
    values = {"vae": vae, "gan": gan}.get(name, functools.partial(exact, name))()
    return {f"{name}_{k}": numpy(v) for k, v in values.items()}


def exact(name):
    smooth = {"dropout": 0.0} if name == "pp" else {}
    model = zoo.tiny(name, (6, 5, 1), 3, num_classes=2, scale=0.7, **smooth)
    if name == "pp":  # the data-dependent initialization has a test of its own
        model.initialized.assign(True)
    x = np.random.default_rng(1).integers(0, 3, (16, 6, 5, 1)).astype("uint8")
    labels = np.arange(16) % 2
    out = {"log_prob": model.log_prob(x, labels), "sample": model.sample(16, seed=11)}
    return out | step(model, x, labels)


def randomized(model):
    """The model, 32 images and as many latents."""
    rng = np.random.default_rng(2)
    for v in model.trainable_variables:
        v.assign(rng.normal(0, 0.2, v.shape))
    x = rng.integers(0, 17, (32, 8, 8, 1)).astype("uint8")
    return model, x, tensor(rng.normal(size=(32, 4)))


def vae():
    arguments = {"latent_dim": 4, "hidden_units": (16, 12)}
    model, x, epsilon = randomized(kgen.models.VAE((8, 8, 1), 17, **arguments))
    out = {
        "elbo": model.elbo(x),
        "log_prob": model.log_prob(x, 20),
        "sample": model.sample(32, seed=11),
        "expected": model.sample_expected(8, seed=11),
    }
    model.sampling.noise = lambda shape: epsilon
    return out | step(model, x)


def gan():
    """A step of each network; the noise of an evaluation is a function of images."""
    arguments = {"width": 4, "loss": "hinge", "r1_penalty": 1.0, "ema": 0.9}
    gan = kgen.models.GAN((8, 8, 1), 17, latent_dim=4, **arguments)
    model, x, z = randomized(gan)
    model.average.set_weights(model.generator.get_weights())
    out = {"sample": model.sample(32, seed=11), "discriminate": model.discriminate(x)}
    model.compile(keras.optimizers.SGD(0.01))
    out |= {k: np.array(v) for k, v in model.evaluate(x, verbose=0).items()}
    model.prior.draw = lambda n, seed: z
    return out | step(model, x)


def step(model, *data):
    """The logs, and the change of the weights: free of the size of the weights."""
    before = zoo.weights(model)
    model.compile(keras.optimizers.SGD(0.01))
    logs = model.fit(*data, batch_size=32, shuffle=False, verbose=0).history
    after = zip(zoo.weights(model), before, strict=True)
    floats = [v - w for v, w in after if np.issubdtype(w.dtype, np.floating)]
    steps = {f"step{i}": change for i, change in enumerate(floats)}
    return {f"log_{k}": np.array(v) for k, v in logs.items()} | steps


@pytest.mark.parametrize("other, names", zoo.cases(*PAIRS[kgen.backend.name]))
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
