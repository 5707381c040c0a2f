"""Run by test_resume: trains a model with backups, until it is killed. Prints a line
for each batch.

    python killed_child.py model folder save_freq
"""

import sys
import time

import keras
from keras import ops
from sklearn.datasets import load_digits

import kgen

EPOCHS, BATCHES, SHAPE = 4, 5, (8, 8, 1)
X = load_digits().images[: 32 * BATCHES].astype("uint8")[..., None]
RATE = keras.optimizers.schedules.CosineDecay(1e-2, EPOCHS * BATCHES)


def pixel_cnn():
    """Binarized anew in each epoch, a schedule, averaged weights, gradients of two
    batches."""
    model = kgen.models.PixelCNN(SHAPE, filters=4, num_blocks=1)
    rule = keras.optimizers.Adam(RATE, use_ema=True, gradient_accumulation_steps=2)
    model.compile(rule)
    return model


def vae():
    model = kgen.models.VAE(SHAPE, 17, latent_dim=3, hidden_units=(8,))
    model.compile(keras.optimizers.Adam(RATE, clipnorm=100.0, weight_decay=1e-3))
    return model


def gan():
    """Two optimizers, Dropout, noise of the step and an average of the generator."""
    network = {"architecture": "mlp", "width": 10}
    model = kgen.models.GAN(SHAPE, 17, latent_dim=3, ema=0.9, **network)
    model.compile(keras.optimizers.Adam(RATE, beta_1=0.5))
    return model


def train(model, *callbacks):
    binary = model.levels == 2
    data = kgen.data.Batches(X, None, 32, binarize=binary, source_levels=17, seed=3)
    logs = model.fit(data, epochs=EPOCHS, verbose=0, callbacks=[*callbacks]).history
    return {k: v[-1] for k, v in logs.items()}


def variables(model):
    """Weights, seed generators, moments: all that training goes on from."""
    return model.variables + model.optimizer.variables


def state(model):
    return [ops.convert_to_numpy(v) for v in variables(model)]


class Lines(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("batch", flush=True)
        time.sleep(0.02)  # the time to kill it in


if __name__ == "__main__":
    name, folder, save_freq = sys.argv[1:]
    if keras.backend.backend() == "torch":  # as in the tests: sums depend on it
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(1)
    model = globals()[name]()
    save_freq = save_freq if save_freq == "epoch" else int(save_freq)
    train(model, kgen.callbacks.BackupAndRestore(folder, save_freq), Lines())
