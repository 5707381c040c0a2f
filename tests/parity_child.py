"""Run by test_parity: one step, densities and samples from given weights and noise.

python parity_child.py inputs.npz outputs.npz
"""

import sys

import keras
import numpy as np
from keras import ops

import kgen


def results(inputs):
    """What must not depend on the backend: {name: array}."""
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


if __name__ == "__main__":
    with np.load(sys.argv[1]) as inputs:
        np.savez(sys.argv[2], **results(inputs))
