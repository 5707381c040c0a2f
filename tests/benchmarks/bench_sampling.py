"""Times the samplers of the exact families: cached, as `sample` runs them; naive, a
whole pass of the network for each dimension; and one parallel `log_prob` pass of the
same batch, which a sampler is to be compared with.

    python tests/benchmarks/bench_sampling.py          (or `make bench`)

Random weights, binary grey images; the first call of each, which compiles, is left out.
Memory is the peak of the process above what it held after a first single draw. Last, an
exported Gated PixelCNN is loaded as a server would, and asked for 16 images.
The naive sampler is timed on an image's last row, and that multiplied by the rows, as
each dimension costs it the same; where a row would take over 8 s, not at all.
Writes results/sampling.md and results/sampling.png.
"""

import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
PATIENCE = 8  # seconds for a row of the naive sampler


def measure(kind):
    """Prints [what, size, batch, seconds] in JSON, in this process."""
    import numpy as np
    from keras import ops

    import kgen
    from kgen import backend, random
    from kgen.models.autoregressive import fill_naively

    def report(model, what, batch, work, times=1):
        seconds = times * milliseconds(work, 1 if what == "naive" else 3) / 1000
        print(json.dumps([what, model.image_shape[0], batch, seconds]), flush=True)

    def all_three(model, batch):
        seeds = random.image_seeds(0, batch)
        H, W, _ = model.image_shape
        x = np.zeros((batch, *model.image_shape), "uint8")
        last_row = backend.compile_function(
            model, lambda s: fill_naively(model, x, model._uniforms(s), H - 1)
        )
        start = time.perf_counter()
        numpy, log_prob = ops.convert_to_numpy, model.log_prob
        report(model, "pass", batch, lambda: numpy(log_prob(x)))
        each = (time.perf_counter() - start) / 4
        report(model, "cached", batch, lambda: numpy(model._draw(1.0, seeds)))
        if W * each < PATIENCE:
            report(model, "naive", batch, lambda: numpy(last_row(seeds)), times=H)

    def memory(model):
        """Of drawing 256 images, in MB."""
        model.sample(1, seed=0, verbose=0)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        numpy = ops.convert_to_numpy
        numpy(model._draw(1.0, random.image_seeds(0, 256)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = model.image_shape[0]
        print(json.dumps(["memory", size, 256, (peak - held) / 1024]), flush=True)

    memory(getattr(kgen.models, kind)((28, 28, 1), **MODELS[kind]))
    for size in SIZES[: 1 if kind in DENSE else None]:
        size = 28 if kind in DENSE else size
        model = getattr(kgen.models, kind)((size, size, 1), **MODELS[kind])
        for batch in BATCHES if size == 28 else (GROWTH,):
            all_three(model, batch)


def served():
    """Prints the seconds that a SavedModel's `sample` of 16 images takes."""
    import numpy as np
    import tensorflow as tf

    import kgen

    kind = "GatedPixelCNN"
    model = kgen.models.GatedPixelCNN((28, 28, 1), **MODELS[kind])
    with tempfile.TemporaryDirectory() as folder:
        path = model.export(Path(folder) / "1")
        sample = tf.saved_model.load(str(path)).signatures["sample"]
        seeds = tf.constant(np.arange(16))
        print(milliseconds(lambda: sample(seed=seeds)["images"].numpy(), 3) / 1000)


def collected():
    """{(backend, kind): {(what, size, batch): seconds}}"""
    results = {}
    for backend in BACKENDS:
        for kind in MODELS:
            lines = map(json.loads, output(backend, kind).splitlines())
            results[backend, kind] = {tuple(line[:3]): line[3] for line in lines}
            print(backend, kind, results[backend, kind], flush=True)
    return results


def output(backend, what):
    """What this file prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, what],
        env=os.environ | {"KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


def exponent(found):
    """p of the cached sampler's time ~ pixels ** p, by least squares."""
    pixels = [math.log(size**2) for size in SIZES]
    times = [math.log(found["cached", size, GROWTH]) for size in SIZES]
    return statistics.linear_regression(pixels, times).slope


def row(backend, kind, found):
    cells = []
    for b in BATCHES:
        cached, one = found["cached", 28, b], found["pass", 28, b]
        naive = found.get(("naive", 28, b))
        faster = f"{naive / cached:.0f}x" if naive else "-"
        cells.append(f"{cached:.3g} / {cached / one:.1f} / {faster}")
    growth = "" if kind in DENSE else f"{exponent(found):.2f}"
    cells += [growth, f"{found['memory', 28, 256]:.0f}"]
    return f"| {name(backend)} | {kind} | {' | '.join(cells)} |"


def plot(results):
    """Time against pixels, log-log, a column for each backend."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 5), sharey=True)
    styles = {"naive": ":", "cached": "-", "pass": "--"}
    kinds = [kind for kind in MODELS if kind not in DENSE]
    for backend, axis in zip(BACKENDS, axes, strict=True):
        for i, kind in enumerate(kinds):
            for what, style in styles.items():
                found = results[backend, kind]
                known = [s for s in SIZES if (what, s, GROWTH) in found]
                times = [found[what, s, GROWTH] for s in known]
                pixels = [s * s for s in known]
                label = kind if what == "cached" else None
                axis.loglog(pixels, times, f"C{i}o{style}", ms=3, label=label)
        axis.set_xticks([s * s for s in SIZES], [f"{s}x{s}" for s in SIZES])
        axis.minorticks_off()
        axis.set_title(name(backend))
        axis.set_xlabel("pixels")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"seconds for {GROWTH} images")
    axes[0].legend(title="dotted naive, solid cached, dashed one pass", fontsize=8)
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "results" / "sampling.png", dpi=80)


def main():
    results = collected()
    exported = float(output("tensorflow", "served").split()[-1])
    plot(results)
    rows = [row(*case, found) for case, found in results.items()]
    write(
        "sampling.md",
        [
            "# Drawing 28x28 binary images",
            "",
            "Seconds for a batch of 1, 16, 64, 256 / how many parallel `log_prob` "
            "passes of the same batch that is / times faster than the naive sampler "
            "(its last row timed, times the rows); and the exponent of the time in the "
            f"number of pixels, from {SIZES[0]}x{SIZES[0]} to {SIZES[-1]}x{SIZES[-1]} "
            f"at batch {GROWTH}. "
            + "; ".join(f"{k} {v}" for k, v in MODELS.items() if v)
            + ".",
            where(),
            "",
            "| | model | " + " | ".join(map(str, BATCHES)) + " | exponent | MB |",
            "|---" * (4 + len(BATCHES)) + "|",
            *rows,
            "",
            f"MB: memory for {BATCHES[-1]} images. The SavedModel of Gated PixelCNN "
            f"draws 16 in {exported:.2f} s, in TensorFlow without XLA.",
            "",
            "![Time against pixels](sampling.png)",
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "served":
        served()
    else:
        measure(sys.argv[1])
