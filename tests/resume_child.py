"""Run by test_resume, which trains the same models in its own process.

python resume_child.py case folder save_freq     a run with backups, until it is
                                                 killed; prints a line for each batch
"""

import sys
import time

import keras
import zoo
from sklearn.datasets import load_digits

from kgen.callbacks import BackupAndRestore
from kgen.data import Batches
from kgen.models import GAN

EPOCHS = 4
GAN_ARGUMENTS = {"architecture": "mlp", "loss": "minimax", "ema": 0.9}  # dropout
RULES = {  # of models whose run is killed; of two levels: binarized anew in each epoch
    "pixel-cnn": {"use_ema": True, "gradient_accumulation_steps": 2},
    "vae": {"clipnorm": 100.0, "weight_decay": 1e-3},
}


def new(case):
    keras.utils.set_random_seed(4)
    if case in RULES:
        options = {"levels": 2, "num_blocks": 1} if case == "pixel-cnn" else {}
        model = zoo.new(case, **options)
        rate = keras.optimizers.schedules.CosineDecay(1e-2, 20)
        model.compile(keras.optimizers.Adam(rate, **RULES[case]))
        return model
    model = GAN((8, 8, 1), 17, latent_dim=3, width=10, **GAN_ARGUMENTS)
    model.compile(
        generator_optimizer=keras.optimizers.Adam(1e-3, beta_1=0.5),
        discriminator_optimizer=keras.optimizers.RMSprop(1e-3),
    )
    return model


def train(model, batches=3, callbacks=()):
    """The metrics of the last epoch."""
    digits, n = load_digits(), 32 * batches
    x, y = digits.images[:n].astype("uint8")[..., None], digits.target[:n]
    binary = model.levels == 2
    data = Batches(x, y, 32, binarize=binary, source_levels=17, seed=3)
    options = {"epochs": EPOCHS, "callbacks": [*callbacks]}
    return {k: v[-1] for k, v in model.fit(data, verbose=0, **options).history.items()}


def variables(model):
    """Weights, seed generators, moments: all that training continues from."""
    return model.variables + model.optimizer.variables


def values(model):
    return [zoo.numpy(v).copy() for v in variables(model)]


def state(model):
    """Values, and samples."""
    return [*values(model), model.sample(8, seed=0), model.sample(8)]


class Lines(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print("batch", flush=True)
        time.sleep(0.02)  # the time to kill it in


if __name__ == "__main__":
    if keras.backend.backend() == "torch":  # as in the tests: sums depend on it
        import torch

        torch.set_num_threads(1)
    keras.utils.set_random_seed(99)  # another process has other global seeds
    case, folder, save_freq = sys.argv[1:]
    save_freq = save_freq if save_freq == "epoch" else int(save_freq)
    train(
        new(case),
        batches=5,
        callbacks=[BackupAndRestore(folder, save_freq), Lines()],
    )
