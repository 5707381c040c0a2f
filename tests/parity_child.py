"""Run by test_parity: a step, densities and samples from fixed weights and noise. What
a SavedModel answers too, test_export compares with TensorFlow.

python parity_child.py outputs.npz name...
"""

import functools
import sys

import keras
import numpy as np
import zoo
from keras import ops
from zoo import numpy

import kgen

STEPS = {"batch_size": 32, "shuffle": False, "verbose": 0}  # one batch


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
    out = {
        "log_prob": model.log_prob(x, labels),
        "sample": model.sample(16, seed=11),
    }
    return out | step(model, x, labels)


def vae():
    model = kgen.models.VAE((8, 8, 1), 17, latent_dim=4, hidden_units=(16, 12))
    rng = np.random.default_rng(2)
    for v in model.trainable_variables:
        v.assign(rng.normal(0, 0.2, v.shape))
    x = rng.integers(0, 17, (32, 8, 8, 1)).astype("uint8")
    epsilon = rng.normal(size=(32, 4)).astype("float32")
    out = {
        "elbo": model.elbo(x),
        "log_prob": model.log_prob(x, 20),
        "sample": model.sample(32, seed=11),
        "expected": model.sample_expected(8, seed=11),
    }
    model.sampling.noise = lambda shape: ops.convert_to_tensor(epsilon)
    return out | step(model, x)


def gan():
    """A step of each network; the noise of an evaluation is a function of images."""
    arguments = {"width": 4, "loss": "hinge", "r1_penalty": 1.0, "ema": 0.9}
    model = kgen.models.GAN((8, 8, 1), 17, latent_dim=4, **arguments)
    rng = np.random.default_rng(3)
    for v in model.trainable_variables:
        v.assign(rng.normal(0, 0.2, v.shape))
    model.average.set_weights(model.generator.get_weights())
    x = rng.integers(0, 17, (32, 8, 8, 1)).astype("uint8")
    z = rng.normal(size=(32, 4)).astype("float32")
    out = {
        "sample": model.sample(32, seed=11),
        "discriminate": model.discriminate(x),
    }
    model.compile(keras.optimizers.SGD(0.01))
    out |= {k: np.array(v) for k, v in model.evaluate(x, verbose=0).items()}
    model.prior.draw = lambda n, seed: ops.convert_to_tensor(z)
    return out | step(model, x)


def step(model, *data):
    """The logs, and the change of the weights: free of the size of the weights."""
    before = zoo.weights(model)
    model.compile(keras.optimizers.SGD(0.01))
    logs = model.fit(*data, **STEPS).history
    after = zip(zoo.weights(model), before, strict=True)
    floats = [v - w for v, w in after if np.issubdtype(w.dtype, np.floating)]
    steps = {f"step{i}": change for i, change in enumerate(floats)}
    return {f"log_{k}": np.array(v) for k, v in logs.items()} | steps


if __name__ == "__main__":
    path, *names = sys.argv[1:]
    np.savez(path, **{k: v for name in names for k, v in results(name).items()})
