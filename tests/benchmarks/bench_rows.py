"""Times the cached sampler both ways: pixel by pixel, and rows at once, by rounds.

    python tests/benchmarks/bench_rows.py          (or `make bench`)

Of packaged presets (binary MNIST). Both ways are timed in turn, ROUNDS times; the
median. Steps are passes of the network over a pixel or a row, counted on PyTorch:
images of a batch go in lockstep, so a larger one takes more rounds. Writes
results/rows.md.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from side_by_side import BACKENDS, name, where, write

PRESETS = {
    "PixelCNN": "pixel_cnn_binarized_mnist",
    "GatedPixelCNN": "gated_pixel_cnn_binarized_mnist",
    "RowLSTM": "row_lstm_binarized_mnist",
    "PixelCNNPlusPlus": "pixel_cnn_pp_binarized_mnist",
}
BATCHES, ROUNDS = (1, 4, 16, 64), 2


def measure(kind):
    """Prints [batch, seconds by pixels, by rows, steps by rows or null] in JSON, in
    this process."""
    from keras import ops

    import kgen
    from kgen import backend, random
    from kgen.models.cached_sampler import sample_rows

    model, steps = getattr(kgen.models, kind).from_preset(PRESETS[kind]), []

    def sampler(whole_rows):
        def draw(seeds):
            network = model.cached_network(None, ops.shape(seeds)[0])
            u, step = model._uniforms(seeds), network.step

            def counted(*args):
                steps.append(1)
                return step(*args)

            network.step = counted
            x = ops.zeros_like(u, "int32")
            return sample_rows(model, network, x, u, 0, whole_rows=whole_rows)

        return backend.compile_function(model, draw)

    samplers = [sampler(False), sampler(True)]
    for batch in BATCHES:
        seeds, seconds = random.image_seeds(0, batch), ([], [])
        for i in range(1 + ROUNDS):  # the first compiles
            for draw, times in zip(samplers, seconds, strict=True):
                steps.clear()
                start = time.perf_counter()
                ops.convert_to_numpy(draw(seeds))
                times.extend([time.perf_counter() - start] * (i > 0))
        count = len(steps) if backend.name == "torch" else None
        print(json.dumps([batch, *map(statistics.median, seconds), count]), flush=True)


def collect(backend, kind):
    """{batch: (seconds by pixels, by rows, steps)}, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, kind],
        env=os.environ | {"KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found = {batch: row for batch, *row in map(json.loads, done.stdout.splitlines())}
    print(backend, kind, found, flush=True)
    return found


def main():
    results = {}
    for kind in PRESETS:
        for backend in BACKENDS[::-1]:  # the first counts steps
            results[backend, kind] = collect(backend, kind)
        report(results)  # whole when it ends


def report(results):
    rows = []
    for (backend, kind), found in results.items():
        cells = [f"{a:.3g} / {b:.3g}" for a, b, _ in found.values()]
        rows.append(f"| {name(backend)} | {kind} | {' | '.join(cells)} |")
        if backend == "torch":
            counts = [f"784 / {steps}" for *_, steps in found.values()]
            rows.append(f"| steps | {kind} | {' | '.join(counts)} |")
    write(
        "rows.md",
        [
            "# Drawing pixel by pixel, and rows at once",
            "",
            "Seconds for a batch of 28x28 binary images, pixel by pixel / rows at "
            "once; and how many steps that takes.",
            where(),
            "",
            f"| | model | {' | '.join(map(str, BATCHES))} |",
            "|---" * (2 + len(BATCHES)) + "|",
            *rows,
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
