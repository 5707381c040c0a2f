"""Run by test_gan: the second half of a training run, in a new process.

python resume_child.py model.keras state.npz
"""

import sys

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from kgen.data import Batches
from kgen.layers import SpectralNorm
from kgen.models import GAN

EPOCHS, HALF = 4, 2
CASES = {
    "all": {"ema": 0.9, "discriminator_steps": 2, "gradient_penalty": 1.0},
    "dcgan": {"ema": 0.9, "num_classes": 10},
    "critic": {"architecture": "infogan", "loss": "wasserstein", "ema": 0.9},
    "spectral": {"spectral_norm": True, "loss": "hinge", "r1_penalty": 0.1},
    "mlp": {"architecture": "mlp", "loss": "minimax"},  # dropout
}


def new(case):
    keras.utils.set_random_seed(4)
    arguments = CASES[case]
    if case == "all":  # what layers can keep: seeds, power iterations, statistics
        network = [layers.Input((8, 8, 1)), layers.Flatten()]
        network += [SpectralNorm(layers.Dense(8, use_bias=False))]
        network += [layers.BatchNormalization(), layers.Dropout(0.3, seed=1)]
        network = keras.Sequential([*network, layers.Dense(1)])
        arguments = arguments | {"discriminator": network}
    model = GAN((8, 8, 1), 17, latent_dim=3, width=10, **arguments)
    model.compile(
        generator_optimizer=keras.optimizers.Adam(1e-3, beta_1=0.5),
        discriminator_optimizer=keras.optimizers.RMSprop(1e-3),
    )
    return model


def train(model, first, last):
    digits = load_digits()
    x, y = digits.images[:96].astype("uint8")[..., None], digits.target[:96]
    data = Batches(x, y.astype("int32"), batch_size=32, seed=3)
    model.fit(data, initial_epoch=first, epochs=last, verbose=0)


def state(model):
    """Weights, moments, seeds, all that training continues from; and samples."""
    variables = model.variables + model.optimizer.variables
    arrays = [keras.ops.convert_to_numpy(v) for v in variables]
    return [*arrays, model.sample(8, seed=0), model.sample(8)]


if __name__ == "__main__":
    if keras.backend.backend() == "torch":  # as in the tests: sums depend on it
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(99)  # another process has other global seeds
    model = keras.models.load_model(sys.argv[1])
    train(model, HALF, EPOCHS)
    np.savez(sys.argv[2], *state(model))
