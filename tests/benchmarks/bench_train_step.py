"""Times a training step of the one-layer VAE (784-200-200-50, batch 100) through `fit`
on each backend, beside the same network and step in plain PyTorch on the same machine.

    python tests/benchmarks/bench_train_step.py          (or `make bench`)

Each measurement is one epoch to warm up and compile, then ROUNDS epochs of STEPS steps,
of which the median counts. Writes results/train_step.md.
"""

import statistics
import sys

from side_by_side import BACKENDS, milliseconds, name, ratio, take_turns, where, write

BATCH, STEPS, ROUNDS, REPEATS = 100, 200, 5, 3
BASELINE = "plain PyTorch"


def images():
    import numpy as np

    rng = np.random.default_rng(0)
    return (rng.random((STEPS * BATCH, 28, 28, 1)) < 0.13).astype("uint8")


def kgen_epoch():
    """A function that trains for one epoch of STEPS steps."""
    import keras

    import kgen

    model = kgen.models.VAE((28, 28, 1), latent_dim=50, activation="tanh")
    model.compile(keras.optimizers.Adam(1e-3))
    x = images()
    return lambda: model.fit(x, batch_size=BATCH, verbose=0)


def plain_torch_epoch():
    """The same, as one would write it in PyTorch without a library."""
    import torch
    from torch import nn

    def mlp(*sizes):
        layers = []
        for a, b in zip(sizes[:-2], sizes[1:-1], strict=True):
            layers += [nn.Linear(a, b), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))

    encoder, decoder = mlp(784, 200, 200, 100), mlp(50, 200, 200, 784)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)
    data = torch.utils.data.TensorDataset(torch.tensor(images()).flatten(1).float())
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True)

    def epoch():
        total = 0.0
        for (x,) in loader:
            mean, log_var = encoder(x).chunk(2, -1)
            z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
            bce = nn.functional.binary_cross_entropy_with_logits
            reconstruction = bce(decoder(z), x, reduction="sum") / BATCH
            kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum() / BATCH
            optimizer.zero_grad()
            (reconstruction + kl).backward()
            optimizer.step()
            total += (reconstruction + kl).item()  # the mean that `fit` reports

    return epoch


def measure(what):
    """Milliseconds a step, in this process."""
    epoch = plain_torch_epoch() if what == BASELINE else kgen_epoch()
    return milliseconds(epoch, ROUNDS) / STEPS


def main():
    times = take_turns(__file__, (BASELINE, *BACKENDS), REPEATS)
    rows = [
        f"| {name(what)} | {statistics.median(values):.2f} | "
        f"{min(values):.2f}-{max(values):.2f} | {ratio(times, what, BASELINE):.2f} |"
        for what, values in times.items()
    ]
    write(
        "train_step.md",
        [
            "# A training step of the one-layer VAE",
            "",
            f"784-200-200-50, batch {BATCH}, `fit`; the ratio is to plain PyTorch.",
            where(),
            "",
            "| | ms/step, median | range | ratio |",
            "|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
    else:
        main()
