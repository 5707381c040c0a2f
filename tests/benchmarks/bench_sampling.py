"""Times the samplers of the exact families: cached, as `sample` runs them; naive, a
whole pass of the network for each dimension; and one parallel `log_prob` pass of the
same batch, which a sampler is to be compared with.

    python tests/benchmarks/bench_sampling.py          (or `make bench`)

Random weights, binary grey images; the first call of each, which compiles, is left out.
Writes results/sampling.md.
"""

import json
import math
import os
import statistics
import subprocess
import sys

from side_by_side import BACKENDS, milliseconds, name, where, write

MODELS = {
    "FVBN": {},
    "NADE": {"units": 300},
    "MADE": {"hidden_units": (500,)},
    "PixelCNN": {"filters": 16, "num_blocks": 7},
    "GatedPixelCNN": {"filters": 32, "num_blocks": 7},
    "RowLSTM": {"units": 16, "num_layers": 7},
    "DiagonalBiLSTM": {"units": 16, "num_layers": 7},
    "PixelCNNPlusPlus": {"filters": 24, "num_blocks": 1},
}
BATCHES, SIZES = (1, 16, 64, 256), (14, 28, 56)
GROWTH = 16  # the batch at which the size changes
DENSE = ("FVBN", "NADE", "MADE")  # whose work grows with the square of the pixels


def measure(kind):
    """Prints [what, size, batch, seconds] in JSON, in this process."""
    import numpy as np
    from keras import ops

    import kgen
    from kgen import backend, random
    from kgen.models.autoregressive import naively_filled

    def report(model, what, batch, repeats=3):
        seeds = random.image_seeds(0, batch)
        x = np.zeros((batch, *model.image_shape), "uint8")
        naive = backend.compiled(
            model,
            lambda s: naively_filled(model, x, model._uniforms(s), 0),
        )
        work = {
            "cached": lambda: ops.convert_to_numpy(model._draw(seeds)),
            "pass": lambda: ops.convert_to_numpy(model.log_prob(x)),
            "naive": lambda: ops.convert_to_numpy(naive(seeds)),
        }[what]
        size = model.image_shape[0]
        print(
            json.dumps([what, size, batch, milliseconds(work, repeats) / 1000]),
            flush=True,
        )

    for size in SIZES[: 1 if kind in DENSE else None]:
        size = 28 if kind in DENSE else size
        model = getattr(kgen.models, kind)((size, size, 1), **MODELS[kind])
        for batch in BATCHES if size == 28 else (GROWTH,):
            report(model, "cached", batch)
            report(model, "pass", batch)
        if size == 28:
            report(model, "naive", 1, repeats=1)


def collected():
    """{(backend, kind): {(what, size, batch): seconds}}"""
    results = {}
    for backend in BACKENDS:
        for kind in MODELS:
            done = subprocess.run(
                [sys.executable, __file__, kind],
                env=os.environ | {"KERAS_BACKEND": backend},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            results[backend, kind] = {tuple(line[:3]): line[3] for line in lines}
            print(backend, kind, results[backend, kind], flush=True)
    return results


def exponent(found):
    """p of the cached sampler's time ~ pixels ** p, by least squares."""
    pixels = [math.log(size**2) for size in SIZES]
    times = [math.log(found["cached", size, GROWTH]) for size in SIZES]
    return statistics.linear_regression(pixels, times).slope


def main():
    rows = []
    for (backend, kind), found in collected().items():
        cells = [
            f"{found['cached', 28, b]:.3f} "
            f"({found['cached', 28, b] / found['pass', 28, b]:.1f})"
            for b in BATCHES
        ]
        faster = found["naive", 28, 1] / found["cached", 28, 1]
        growth = "" if kind in DENSE else f"{exponent(found):.2f}"
        rows.append(
            f"| {name(backend)} | {kind} | {' | '.join(cells)} | {faster:.0f} | "
            f"{growth} |"
        )
    write(
        "sampling.md",
        [
            "# Drawing 28x28 binary images",
            "",
            "Seconds for a batch, and in brackets how many parallel `log_prob` passes "
            "of the same batch that is; times faster than the naive sampler at "
            "batch 1; and the exponent of the time in the number of pixels, from "
            f"{SIZES[0]}x{SIZES[0]} to {SIZES[-1]}x{SIZES[-1]} at batch {GROWTH}. "
            + "; ".join(f"{k} {v}" for k, v in MODELS.items() if v)
            + ".",
            where(),
            "",
            "| | model | 1 | 16 | 64 | 256 | x naive | exponent |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
