"""Times the cached samplers by the window that is drawn at once: 1 pixel, 4, 8 or all of
a row, with the rounds that an image's windows take.

    python tests/benchmarks/bench_windows.py          (or `make bench`)

Of packaged presets (binary MNIST). The windows of a batch are timed in turn, ROUNDS
times; the median. Rounds do not depend on the backend: they are counted on PyTorch, over
a whole batch, whose images go in lockstep. Writes results/windows.md.
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
    "DiagonalBiLSTM": "diagonal_bilstm_binarized_mnist",
    "PixelCNNPlusPlus": "pixel_cnn_pp_binarized_mnist",
}
WINDOWS, BATCHES, ROUNDS = (1, 4, 8, 28), (1, 16, 64, 256), 3


def measure(kind):
    """Prints [batch, window, seconds, rounds or null] in JSON, in this process."""
    from keras import ops

    import kgen
    from kgen import backend, random
    from kgen.models.cached_sampler import sample_rows

    model = getattr(kgen.models, kind).from_preset(PRESETS[kind])
    windows = (1, 28) if kind == "PixelCNNPlusPlus" else WINDOWS
    steps = []

    def sampler(window):
        def draw(seeds):
            network, u = model.cached_network(None, len(seeds)), model._uniforms(seeds)
            pixels = network.pixels

            def counted(*args):
                steps.append(1)
                return pixels(*args)

            network.pixels = counted
            x = ops.zeros_like(u, "int32")
            return sample_rows(model, network, x, u, 0, window=window)

        return backend.compile_function(model, draw)

    samplers = {w: sampler(w) for w in windows}
    for batch in BATCHES:
        seeds, seconds, rounds = random.image_seeds(0, batch), {}, {}
        for i in range(1 + ROUNDS):  # the first compiles
            for w, draw in samplers.items():
                steps.clear()
                start = time.perf_counter()
                ops.convert_to_numpy(draw(seeds))
                if i:
                    seconds.setdefault(w, []).append(time.perf_counter() - start)
                rounds[w] = len(steps) if backend.name == "torch" else None
        for w, times in seconds.items():
            print(json.dumps([batch, w, statistics.median(times), rounds[w]]))
        sys.stdout.flush()


def collect(backend, kind):
    """{(batch, window): (seconds, rounds)}, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, kind],
        env=os.environ | {"KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    lines = map(json.loads, done.stdout.splitlines())
    found = {(batch, w): (seconds, rounds) for batch, w, seconds, rounds in lines}
    print(backend, kind, found, flush=True)
    return found


def main():
    results = {(b, k): collect(b, k) for k in PRESETS for b in BACKENDS}
    rows = []
    for (backend, kind), found in results.items():
        for batch in BATCHES:
            cells = []
            for w in WINDOWS:
                seconds = found.get((batch, w), (None,))[0]
                rounds = results["torch", kind].get((batch, w), (0, None))[1]
                cells.append(f"{seconds:.3g} / {rounds}" if seconds else "-")
            rows.append(f"| {name(backend)} | {kind} | {batch} | {' | '.join(cells)} |")
    write(
        "windows.md",
        [
            "# Drawing windows of a row at once",
            "",
            "Seconds for a batch / rounds over the network, by the window.",
            where(),
            "",
            "| | model | batch | 1 pixel | 4 | 8 | a row |",
            "|---" * 7 + "|",
            *rows,
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
