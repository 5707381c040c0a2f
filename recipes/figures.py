"""A figure for each idea of the three families, from the packaged presets.

    python recipes/figures.py

Writes recipes/results/figures/: chain_rule.png, manifold.png (trains a VAE of two
latents first, four minutes), bounds.png, generator_losses.png. Data: binarized_mnist by
its tfds name; test images are shown, nothing is chosen by them.
"""

import argparse
from pathlib import Path

from backend_flag import add_backend_flag

import keras
import matplotlib
import numpy as np
from keras import ops
from matplotlib import pyplot
from scipy.special import ndtri

import kgen
from kgen.models import gan_losses as losses

matplotlib.use("Agg")


def save(figure, path):
    figure.tight_layout()
    with kgen.files.atomic(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")
    pyplot.close(figure)
    print(path, flush=True)


def plain(axis):
    axis.set(xticks=[], yticks=[])


def chain_rule(path, images):
    """log p(x) = sum_d log p(x_d | x_<d): the nats so far, row by row, and what the
    model draws below the rows that it is given."""
    preset = "gated_pixel_cnn_binarized_mnist"
    model = kgen.models.GenerativeModel.from_preset(preset)
    x = images[:4]
    pixels = model.likelihood.log_prob_map(model.logits(x), ops.convert_to_tensor(x))
    nats = -ops.convert_to_numpy(pixels)  # (4, 28, 28)
    known = [0, 7, 14, 21, 28]
    figure, axes = pyplot.subplots(4, 7, figsize=(13, 7.4))
    for i, row in enumerate(axes):
        row[0].imshow(nats[i], cmap="magma", vmin=0, vmax=3)
        total = nats[i].sum(-1).cumsum()
        row[1].plot(total, range(28))
        row[1].set(ylim=(28, 0), ylabel="row")
        row[1].set_title(f"{total[-1]:.1f} nats in all", fontsize=9)
        for axis, rows in zip(row[2:], known, strict=True):
            drawn = model.complete(x[i : i + 1], rows, seed=i, verbose=0)[0]
            shown = np.where(np.arange(28)[:, None, None] < rows, 0.0, 0.45)
            axis.imshow(drawn * (1.0 - shown), cmap="gray", vmin=0, vmax=1)
            axis.axhline(rows - 0.5, color="tab:orange", lw=1)
            axis.set_title(f"{rows} rows given", fontsize=9)
            plain(axis)
        plain(row[0])
        row[0].set_title("nats of each pixel", fontsize=9)
    axes[-1][1].set_xlabel("nats so far")
    save(figure, path)


def manifold(path, splits, epochs=30, side=20):
    """E[x | z] over a grid of the two latents, at the prior's quantiles, as in Kingma
    and Welling 2014, figure 4."""
    keras.utils.set_random_seed(0)
    model = kgen.models.VAE(splits.image_shape, latent_dim=2, hidden_units=(400, 200))
    model.compile(keras.optimizers.Adam(1e-3))
    model.fit(
        kgen.data.Batches(splits.train, batch_size=100, seed=0),
        epochs=epochs,
        verbose=0,
        callbacks=[kgen.callbacks.Progress(["elbo_nats"], every=10)],
    )
    at = ndtri((np.arange(side) + 0.5) / side)
    z = np.stack(np.meshgrid(at, at[::-1]), -1).reshape(-1, 2).astype("float32")
    expected = ops.convert_to_numpy(model.decode(z))
    kgen.callbacks.save_grid(path, expected, 2, columns=side)
    print(path, flush=True)


def bounds(path, images):
    """The ELBO and the importance-weighted bound L_k of the same VAE against k."""
    model = kgen.models.GenerativeModel.from_preset("vae_binarized_mnist")
    x, most = images[:200], 5000
    means, errors, ks = [], [], [1, 2, 5, 10, 20, 50, 100, 500, most]
    for i, k in enumerate(ks):
        # seeds of its own: on the same samples the order could not fail
        seeds = 1000 * i + np.arange(max(3, 500 // k))
        each = np.stack(
            [ops.convert_to_numpy(model.log_prob(x, k, seed=int(s))) for s in seeds]
        )
        means.append(each.mean())
        errors.append(2 * each.mean(1).std(ddof=1) / len(seeds) ** 0.5)
    figure, axis = pyplot.subplots(figsize=(6.4, 4))
    axis.errorbar(ks, means, errors, marker="o", label="$L_k$")
    elbo = float(ops.mean(model.elbo(x)))
    axis.axhline(elbo, color="gray", ls="--", label="ELBO, one sample an image")
    axis.set(xscale="log", xlabel="k", ylabel="nats, mean of 200 test images")
    axis.set_title("Importance weighting tightens the bound (VAE)")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def generator_losses(path):
    """Generator losses with a minimum, and their derivatives by D's logit. On the left
    D is sure that an image is generated."""
    t = np.linspace(-8, 8, 400).astype("float32")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for loss in (losses.Minimax, losses.NonSaturating):
        value = ops.convert_to_numpy(loss.generator(ops.convert_to_tensor(t)))
        label = loss.name.replace("_", "-")
        left.plot(t, value, label=label)
        right.plot(t, np.abs(np.gradient(value, t)), label=label)
    left.set(xlabel="logit D(G(z))", title="what G minimizes")
    right.set(xlabel="logit D(G(z))", title="size of its derivative by the logit")
    for axis in (left, right):
        axis.axvspan(-8, -2, color="gray", alpha=0.12)
        axis.text(-7.7, 0.45, "early in training", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend()
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_backend_flag(parser)
    parser.add_argument("--out", default="recipes/results/figures")
    out = Path(parser.parse_args().out)
    splits = kgen.data.load("binarized_mnist")
    generator_losses(out / "generator_losses.png")
    chain_rule(out / "chain_rule.png", splits.test)
    bounds(out / "bounds.png", splits.test)
    manifold(out / "manifold.png", splits)


if __name__ == "__main__":
    main()
