"""Times cases interleaved, each measurement in a process of its own, several times, so
that a machine whose speed drifts does so for all. The ratio to the baseline is the
median of the ratios of each turn."""

import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


def take_turns(script, cases, repeats):
    """{case: [number, one a turn]}, as `python script case` prints them. A case whose
    first word is the name of a backend runs with KERAS_BACKEND set to it."""
    numbers = {case: [] for case in cases}
    for turn in range(repeats):
        for case in cases:
            backend = case.split()[0]
            given = {"KERAS_BACKEND": backend} if backend in BACKENDS else {}
            done = subprocess.run(
                [sys.executable, script, case],
                env=os.environ | given,
                stdout=subprocess.PIPE,
                check=True,
            )
            numbers[case].append(float(done.stdout.split()[-1]))
            print(f"{turn + 1}/{repeats} {case}: {numbers[case][-1]:.2f}", flush=True)
    return numbers


def milliseconds(work, rounds):
    """The median of `rounds` calls, after one to warm up and compile."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def step_milliseconds(epoch):
    """The median time of a step of `epoch(tick)`, which calls `tick` after each, in the
    second epoch; its first step is left out, as it waits for the data set to start."""
    epoch(lambda: None)  # compiles
    ends = []
    epoch(lambda: ends.append(time.perf_counter()))
    return 1000 * statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))


def fit_epoch(model, x, batch_size):
    """`epoch(tick)` of a compiled model."""
    import keras

    def epoch(tick):
        each = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: tick()
        )
        model.fit(x, batch_size=batch_size, verbose=0, callbacks=[each])

    return epoch


def ratio(numbers, case, baseline):
    pairs = zip(numbers[case], numbers[baseline], strict=True)
    return statistics.median(a / b for a, b in pairs)


def name(case):
    return f"kgen on {case}" if case in BACKENDS else case


def where():
    """Machine, versions and date, for the head of a table."""
    packages = ", ".join(f"{p} {version(p)}" for p in ("keras", *BACKENDS))
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU; Python "
        f"{platform.python_version()}, {packages}; {datetime.now(UTC).date()}. "
        "`make bench`"
    )


def write(file, lines):
    """Writes results/`file`, and prints it."""
    text = "\n".join([*lines, ""])
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / file).write_text(text)
    print(text)
