"""Times a training step of the one-layer VAE (784-200-200-50, batch 100) through `fit`
on each backend, beside the same network and step in plain PyTorch on the same machine.

    python tests/benchmarks/bench_train_step.py          (or `make bench`)

Each measurement is a process of its own: one epoch to warm up and compile, then ROUNDS
epochs of STEPS steps, of which the median counts. The processes take turns, REPEATS
times, so that a machine whose speed drifts does so for all; the ratio is the median of
the ratios turn by turn. Writes results/train_step.md.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

BATCH, STEPS, ROUNDS, REPEATS = 100, 200, 5, 3
BASELINE = "plain PyTorch"
BACKENDS = ("tensorflow", "jax", "torch")


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
    epoch()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        epoch()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / STEPS


def child(what):
    env = os.environ | ({} if what == BASELINE else {"KERAS_BACKEND": what})
    done = subprocess.run(
        [sys.executable, __file__, what], env=env, stdout=subprocess.PIPE, check=True
    )
    return float(done.stdout)


def main():
    times = {what: [] for what in (BASELINE, *BACKENDS)}
    for turn in range(REPEATS):
        for what in times:
            times[what].append(child(what))
            print(
                f"{turn + 1}/{REPEATS} {what}: {times[what][-1]:.2f} ms/step",
                flush=True,
            )
    rows = []
    for what, values in times.items():
        ratios = [v / b for v, b in zip(values, times[BASELINE], strict=True)]
        name = what if what == BASELINE else f"kgen on {what}"
        rows.append(
            f"| {name} | {statistics.median(values):.2f} | "
            f"{min(values):.2f}-{max(values):.2f} | {statistics.median(ratios):.2f} |"
        )
    from importlib.metadata import version

    packages = ", ".join(f"{p} {version(p)}" for p in ("keras", *BACKENDS))
    text = "\n".join(
        [
            "# A training step of the one-layer VAE",
            "",
            f"784-200-200-50, batch {BATCH}, `fit`; the ratio is to plain PyTorch.",
            f"{platform.machine()}, {os.cpu_count()} cores, no GPU; Python "
            f"{platform.python_version()}, {packages}; {datetime.now(UTC).date()}.",
            "`make bench`",
            "",
            "| | ms/step, median | range | ratio |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "train_step.md").write_text(text)
    print(text)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
    else:
        main()
