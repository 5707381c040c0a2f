"""Run by test_gan: the second half of a training, in a process of its own.

python resume_child.py model.keras state.npz
"""

import sys

import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits

from kgen.data import Batches

EPOCHS, HALF = 4, 2


def train(model, first, last):
    x = load_digits().images[:192].astype("uint8")[..., None]
    y = load_digits().target[:192].astype("int32")
    data = Batches(x, y, batch_size=32, seed=3)
    model.fit(data, initial_epoch=first, epochs=last, verbose=0)


def state(model):
    """Weights, moments, seeds: all that training goes on from; and what is drawn."""
    variables = model.variables + model.optimizer.variables
    arrays = [ops.convert_to_numpy(v) for v in variables]
    return [*arrays, model.sample(8, seed=0), model.sample(8)]


if __name__ == "__main__":
    if keras.backend.backend() == "torch":  # as in the tests: sums depend on it
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(99)  # another process has other global seeds
    model = keras.models.load_model(sys.argv[1])
    train(model, HALF, EPOCHS)
    np.savez(sys.argv[2], *state(model))
