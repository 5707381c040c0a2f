"""Times training steps of Row LSTM and Diagonal BiLSTM at 14x14, 28x28 and 56x56
pixels, and takes their memory: both are to grow with the work and no faster, so that a
row of a scan costs the same in images of any size.

    python tests/benchmarks/bench_pixel_rnn.py          (or `make bench`)

Row LSTM scans H rows of W pixels, Diagonal BiLSTM H + W diagonals (of the map and its
one more column) of H pixels, in both directions at once. Memory is what the peak
resident size of the process grows by after the model is built. Writes
results/pixel_rnn_step.md.
"""

import math
import resource
import statistics
import sys

from side_by_side import (
    BACKENDS,
    fit_epoch,
    name,
    step_milliseconds,
    take_turns,
    where,
    write,
)

BATCH, STEPS, REPEATS, UNITS, LAYERS = 8, 8, 1, 16, 1
SIZES = (14, 28, 56)
STEPS_OF_SCAN = {"RowLSTM": lambda n: n, "DiagonalBiLSTM": lambda n: 2 * n}


def measure(backend, kind, size, what):
    """Milliseconds a step or MiB, in this process."""
    del backend  # KERAS_BACKEND sets it
    import keras
    import numpy as np

    import kgen

    size = int(size)
    x = (np.random.default_rng(0).random((STEPS * BATCH, size, size, 1)) < 0.13).astype(
        "uint8"
    )
    given = {"units": UNITS, "num_layers": LAYERS}
    model = getattr(kgen.models, kind)((size, size, 1), **given)
    model.compile(keras.optimizers.Adam(1e-3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    milliseconds = step_milliseconds(fit_epoch(model, x, BATCH))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return milliseconds if what == "ms" else (after - before) / 1024


def exponent(values):
    """p of values ~ size ** (2 p), by least squares: 1 is linear in pixels."""
    logs = [2 * math.log(size) for size in SIZES]
    fit = statistics.linear_regression(logs, [math.log(v) for v in values])
    return fit.slope


def main():
    shapes = [(b, k, n) for b in BACKENDS for k in STEPS_OF_SCAN for n in SIZES]
    times = take_turns(__file__, [f"{b} {k} {n} ms" for b, k, n in shapes], REPEATS)
    memory = take_turns(__file__, [f"{b} {k} {n} MiB" for b, k, n in shapes], 1)
    ms = {s: statistics.median(v) for s, v in zip(shapes, times.values(), strict=True)}
    mib = {s: v[0] for s, v in zip(shapes, memory.values(), strict=True)}
    rows = []
    for (b, k, n), milliseconds in ms.items():
        scan = STEPS_OF_SCAN[k](n)
        rows.append(
            f"| {name(b)} | {k} | {n}x{n} | {milliseconds:.1f} | {scan} | "
            f"{milliseconds / scan:.2f} | {1000 * milliseconds / scan / n:.1f} | "
            f"{mib[b, k, n]:.0f} |"
        )
    fits = [
        f"| {name(b)} | {k} | {exponent([ms[b, k, n] for n in SIZES]):.2f} |"
        for b in BACKENDS
        for k in STEPS_OF_SCAN
    ]
    write(
        "pixel_rnn_step.md",
        [
            "# A training step of PixelRNN at three sizes",
            "",
            f"Binary images, {LAYERS} layer of {UNITS} units, batch {BATCH}, `fit`.",
            where(),
            "",
            "| | model | image | ms/step | steps of the scan | ms each "
            "| us each and row | memory, MiB |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "Exponent of the time in the number of pixels (1 is linear):",
            "",
            "| | model | exponent |",
            "|---|---|---|",
            *fits,
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(*sys.argv[1].split()))
    else:
        main()
