"""The GAN of 2014 on MNIST, twice: with the minimax loss and the non-saturating one.

    python recipes/gan_mlp_mnist.py --backend jax

After: Goodfellow et al., "Generative Adversarial Nets", NIPS 2014, arXiv:1406.2661.
Data: mnist, 256 levels. The last epoch's weights are taken.
Published: none by these features (kgen.metrics.mnist_features). By the paper's
    section 3, log(1 - D(G(z))) saturates early in training: see gradient_norms.png.
Recorded run: the minimax generator's gradient is an order smaller from step 800 on,
    where D is right on 95 % of the images. Both generators have collapsed to few
    digits, mostly ones.

Differences from the paper:
  1. Adam in place of momentum, and no norm constraint on D's weights.
  2. 100 latents, uniform; a training that is long enough for the plot and not for good
     digits.
"""

import csv
from pathlib import Path

from adversarial import run

import keras
import matplotlib
import numpy as np
from matplotlib import pyplot

import kgen

matplotlib.use("Agg")

LOSSES = "non_saturating", "minimax"
WINDOW = 20  # steps that a point of the plot is the mean of


def build(args, splits, loss):
    model = kgen.models.GAN(
        splits.image_shape,
        splits.levels,
        latent_dim=100,
        loss=loss,
        architecture="mlp",
        width=args.width,
        prior="uniform",
        gradient_norms=True,
    )
    return model, keras.optimizers.Adam(args.lr, beta_1=0.5)


class Steps(keras.callbacks.Callback):
    """What `fit` reports, as means over WINDOW steps in place of the epoch so far: each
    a row of `path`, written at once. A resumed run, also within an epoch, drops the
    rows of steps after its backup, which come again."""

    shown = ("generator_gradient_norm", "accuracy_real", "accuracy_generated")

    def __init__(self, path):
        super().__init__()
        self.path, self.rows = path, []

    def on_train_begin(self, logs=None):
        self.rows = read_steps(self.path, self._step())  # as restored: 0 in a new run
        with kgen.files.atomic(self.path) as unfinished:
            self._append(unfinished, self.rows)

    def on_epoch_begin(self, epoch, logs=None):
        self.first, self.skipped = epoch * self.params["steps"], self._step()
        self.skipped -= self.first

    def on_train_batch_end(self, batch, logs=None):
        batches = self.skipped + batch + 1
        window = min(WINDOW, self.params["steps"])
        if batches % window:
            return
        # logs are means over the epoch so far, rows what was before
        before = [row[1:] for row in self.rows if row[0] > self.first]
        before = window * np.sum(before, axis=0) if before else 0.0
        total = batches * np.array([float(logs[k]) for k in self.shown])
        means = ((total - before) / window).tolist()
        self.rows.append([self.first + batches, *means])
        if kgen.files.writes():
            self._append(self.path, self.rows[-1:])

    def _step(self):
        return int(self.model.optimizer.iterations)

    def _append(self, path, rows):
        with open(path, "a", newline="") as file:
            csv.writer(file).writerows(rows)


def steps_path(args, loss):
    return Path(args.out) / f"{loss}_steps.csv"


def read_steps(path, last=float("inf")):
    """The rows of `Steps` until step `last`; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    # a line that a kill cut off is of a later step, or has no second column
    rows = [row for row in csv.reader(lines) if len(row) > len(Steps.shown)]
    rows = [row for row in rows if int(row[0]) <= last]
    return [[int(row[0]), *map(float, row[1:])] for row in rows]


def plot(args):
    """The generators' gradient norms and D's accuracies over the steps."""
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 7), sharex=True)
    for loss in LOSSES:
        rows = read_steps(steps_path(args, loss))
        if not rows:  # trained before, and the file is gone
            continue
        step, norm, *right = np.array(rows).T
        above.plot(step, norm, label=loss, lw=1)
        below.plot(step, np.mean(right, axis=0), label=loss, lw=1)
    above.set(yscale="log", ylabel="||gradient of G's weights||")
    below.set(xlabel="step", ylabel="D's accuracy, both kinds of images")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    path = Path(args.out) / "gradient_norms.png"
    with kgen.files.atomic(path) as unfinished:
        figure.savefig(unfinished, dpi=100, format="png")
    print(path)


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "mnist",
        losses=LOSSES,
        callbacks=lambda args, loss: [Steps(steps_path(args, loss))],
        plot=plot,
        epochs=10,
        batch_size=100,
        lr=2e-4,
        width=1200,
    )
