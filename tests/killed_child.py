"""Run by test_resume: trains three models, one after the other, with backups; to be
killed at any moment and started again. A line is printed for each batch.

    python killed_child.py folder epoch|batches
"""

import sys
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits

import kgen

EPOCHS, BATCHES, SHAPE = 4, 5, (8, 8, 1)
x = load_digits().images[: 32 * BATCHES].astype("uint8")[..., None]
slower = keras.optimizers.schedules.CosineDecay(1e-2, EPOCHS * BATCHES)


def pixel_cnn():
    """Dynamic binarisation, a schedule, averaged weights, gradients of two batches."""
    model = kgen.models.PixelCNN(SHAPE, filters=4, num_blocks=1)
    rule = keras.optimizers.Adam(slower, use_ema=True, gradient_accumulation_steps=2)
    model.compile(rule)
    data = kgen.data.Batches(x, batch_size=32, binarize=True, source_levels=17, seed=3)
    return model, data


def vae():
    model = kgen.models.VAE(SHAPE, 17, latent_dim=3, hidden_units=(8,))
    model.compile(keras.optimizers.Adam(slower, clipnorm=100.0, weight_decay=1e-3))
    return model, kgen.data.Batches(x, batch_size=32, seed=4)


def gan():
    """Two optimizers, Dropout, noise of the step and an average of the generator."""
    model = kgen.models.GAN(
        SHAPE, 17, latent_dim=3, architecture="mlp", width=10, ema=0.9
    )
    model.compile(keras.optimizers.Adam(slower, beta_1=0.5))
    return model, kgen.data.Batches(x, batch_size=32, seed=5)


class Lines(keras.callbacks.Callback):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def on_train_batch_end(self, batch, logs=None):
        print(self.name, flush=True)
        time.sleep(0.02)  # so that whoever kills it has the time to


def state(model, logs):
    variables = model.variables + model.optimizer.variables
    arrays = {f"v{i}": ops.convert_to_numpy(v) for i, v in enumerate(variables)}
    drawn = {"sample": model.sample(8, seed=0), "next_sample": model.sample(8)}
    return arrays | drawn | {k: np.array(v[-1]) for k, v in logs.items()}


def main(folder, save_freq):
    if keras.backend.backend() == "torch":  # sums depend on it
        import torch

        torch.set_num_threads(1)
    for make in (pixel_cnn, vae, gan):
        done = folder / f"{make.__name__}.npz"
        if done.exists():
            continue
        keras.utils.set_random_seed(1)
        model, data = make()
        backup = kgen.callbacks.BackupAndRestore(
            folder / make.__name__, save_freq, delete_checkpoint=False
        )
        logs = model.fit(
            data, epochs=EPOCHS, verbose=0, callbacks=[backup, Lines(make.__name__)]
        ).history
        with kgen.files.atomic(done) as path:
            np.savez(path, **state(model, logs))


if __name__ == "__main__":
    main(Path(sys.argv[1]), 2 if sys.argv[2] == "batches" else "epoch")
