"""Run by test_parity: one step, densities and samples from given weights and noise.

python parity_child.py inputs.npz outputs.npz
"""

import sys

import keras
import numpy as np
from exact import TINY, numpy, tiny
from keras import ops

import kgen


def results(inputs):
    """What must not depend on the backend: {name: array}."""
    return (
        vae(inputs)
        | gan()
        | {
            f"{name}_{key}": value
            for name in TINY
            for key, value in exact(name).items()
        }
    )


def exact(name):
    """The weights come from NumPy's generator: the same in each process."""
    smooth = {"dropout": 0.0} if name == "pp" else {}
    model = tiny(name, (6, 5, 1), 3, num_classes=2, scale=0.7, **smooth)
    if name == "pp":  # the data-dependent initialisation has a test of its own
        model.initialized.assign(True)
    x = np.random.default_rng(1).integers(0, 3, (16, 6, 5, 1)).astype("uint8")
    labels = np.arange(16) % 2
    before = [numpy(v) for v in model.weights]
    out = {
        "log_prob": numpy(model.log_prob(x, labels)),
        "logits": numpy(model.logits(x, labels)),
        "sample": model.sample(50, seed=11),
        "sample_completed": model.complete(x, 3, 11, labels),
    }
    model.compile(keras.optimizers.SGD(0.01))
    logs = model.fit(x, labels, batch_size=16, shuffle=False, verbose=0).history
    out |= {f"log_{k}": np.array(v) for k, v in logs.items()}
    for i, (v, w) in enumerate(zip(model.weights, before, strict=True)):
        if np.issubdtype(w.dtype, np.floating):
            out[f"step{i}"] = numpy(v) - w
    return out


def vae(inputs):
    model = kgen.models.VAE((8, 8, 1), 17, latent_dim=4, hidden_units=(16, 12))
    weights = [inputs[f"w{i}"] for i in range(len(model.weights))]
    model.set_weights(weights)
    x = inputs["images"]
    out = {
        "elbo": model.elbo(x),
        "log_prob": model.log_prob(x, 20),
        "mean": model.encode(x)[0],
        "reconstruct": model.reconstruct(x),
        "sample": model.sample(50, seed=11),
        "expected": model.sample_expected(8, seed=11),
    }
    out = {k: ops.convert_to_numpy(v) for k, v in out.items()}
    epsilon = ops.convert_to_tensor(inputs["epsilon"])
    model.sampling.noise = lambda shape: epsilon
    model.compile(keras.optimizers.SGD(0.01))
    logs = model.fit(x, batch_size=len(x), shuffle=False, verbose=0).history
    out |= {f"log_{k}": np.array(v) for k, v in logs.items()}
    # the step itself, free of the size of the weights
    for i, (v, w) in enumerate(zip(model.weights, weights, strict=True)):
        out[f"step{i}"] = ops.convert_to_numpy(v) - w
    return out


def gan():
    """A step of each network, of evaluation the noise that is a function of images."""
    model = kgen.models.GAN(
        (8, 8, 1), 17, latent_dim=4, width=4, loss="hinge", r1_penalty=1.0, ema=0.9
    )
    rng = np.random.default_rng(3)
    for v in model.trainable_variables:
        v.assign(rng.normal(0, 0.2, v.shape))
    model.average.set_weights(model.generator.get_weights())
    x = rng.integers(0, 17, (32, 8, 8, 1)).astype("uint8")
    z = rng.normal(size=(32, 4)).astype("float32")
    before = [numpy(v) for v in model.weights]
    out = {
        "gan_sample": model.sample(50, seed=11),
        "gan_generate": numpy(model.generate(z)),
        "gan_discriminate": numpy(model.discriminate(x)),
    }
    model.compile(keras.optimizers.SGD(0.01))
    out |= {f"gan_{k}": v for k, v in model.evaluate(x, verbose=0).items()}
    model.prior.draw = lambda n, seed: ops.convert_to_tensor(z)
    logs = model.fit(x, batch_size=32, shuffle=False, verbose=0).history
    out |= {f"gan_log_{k}": np.array(v) for k, v in logs.items()}
    for i, (v, w) in enumerate(zip(model.weights, before, strict=True)):
        out[f"gan_step{i}"] = numpy(v) - w
    return out


if __name__ == "__main__":
    with np.load(sys.argv[1]) as inputs:
        np.savez(sys.argv[2], **results(inputs))
