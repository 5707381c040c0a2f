"""Times what the check of values costs in a training step: `fit` of a model, and of the
same without it, interleaved in one process, on each backend.

    python tests/benchmarks/bench_range_checks.py          (or `make bench`)

The ratio is the median over ROUNDS of the ratio of the two epochs of a round, the order
within a round alternating. Writes results/range_checks.md.
"""

import statistics
import sys
import time

from side_by_side import BACKENDS, take_turns, where, write

ROUNDS, REPEATS = 40, 3
MODELS = {  # the name of a class, its arguments, images of a batch, steps of an epoch
    "VAE": ({"latent_dim": 50}, 100, 60),
    "GatedPixelCNN": ({"filters": 32, "num_blocks": 7}, 16, 2),
}


def make(name, checked):
    import keras
    from keras import ops

    import kgen

    model = getattr(kgen.models, name)((28, 28, 1), **MODELS[name][0])
    if not checked:
        model._clip = lambda x, labels: (ops.cast(x, "int32"), labels, ())
        model.out_of_range.update_state = lambda: None
    model.compile(keras.optimizers.Adam(1e-3))
    return model


def measure(name):
    """The time of an epoch with the check over that of one without, in per cent."""
    import numpy as np

    batch, steps = MODELS[name][1:]
    x = np.random.default_rng(0).integers(0, 2, (batch * steps, 28, 28, 1), "uint8")
    models = {checked: make(name, checked) for checked in (True, False)}

    def seconds(model):
        start = time.perf_counter()
        model.fit(x, batch_size=batch, verbose=0)
        return time.perf_counter() - start

    for model in models.values():  # compiles
        seconds(model)
    ratios = []
    for i in range(ROUNDS):
        order = (True, False) if i % 2 else (False, True)
        times = {checked: seconds(models[checked]) for checked in order}
        ratios.append(times[True] / times[False])
    return 100 * statistics.median(ratios)


def main():
    cases = [f"{backend} {name}" for name in MODELS for backend in BACKENDS]
    found = take_turns(__file__, cases, REPEATS)
    rows = []
    for case, values in found.items():
        backend, name = case.split()
        median, least, most = statistics.median(values), min(values), max(values)
        rows.append(f"| {name} | {backend} | {median:.1f} % | {least:.1f}-{most:.1f} |")
    write(
        "range_checks.md",
        [
            "# The check of values in a training step",
            "",
            "The time of `fit` with the check over that without it.",
            where(),
            "",
            "| model | backend | ratio, median | range |",
            "|---|---|---|---|",
            *rows,
        ],
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measure(sys.argv[1].split()[1]))
    else:
        main()
