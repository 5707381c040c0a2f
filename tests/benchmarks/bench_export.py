"""Size of the exported presets, seconds to load them in a process without Keras, as a
server does, and the first answer after that.

    python tests/benchmarks/bench_export.py

writes tests/benchmarks/results/export.md.
"""

import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "export.md"
LOAD = """
import sys, time
sys.modules["keras"] = sys.modules["kgen"] = None
import tensorflow as tf
start = time.perf_counter()
model = tf.saved_model.load(sys.argv[1], tags=["serve"])
loaded = time.perf_counter() - start
seed = tf.constant([7], tf.int64)
for _ in range(2):
    start = time.perf_counter()
    model.signatures["serving_default"](seed=seed)
    loaded = f"{loaded} {time.perf_counter() - start}"
print(loaded)
"""


def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main():
    import kgen

    rows = [
        "| preset | MB | loads in, s | first image, ms | second, ms |",
        "|---" * 5 + "|",
    ]
    for name in kgen.presets.list():
        model = kgen.models.GenerativeModel.from_preset(name)
        with tempfile.TemporaryDirectory() as folder:
            path = model.export(Path(folder) / name / "1")
            command = [sys.executable, "-c", LOAD, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            loaded, first, second = map(float, done.stdout.split())
            size = size_of(path) / 1e6
        cells = f"{size:.2f} | {loaded:.2f} | {1e3 * first:.0f} | {1e3 * second:.0f}"
        rows.append(f"| {name} | {cells} |")
        print(rows[-1], flush=True)
    about = f"{platform.machine()}, {os.cpu_count()} cores, {datetime.date.today()}"
    head = "`python tests/benchmarks/bench_export.py`\n\n"
    head += (
        f"{about}. TensorFlow's loader in a fresh process, its import not counted.\n"
    )
    RESULT.write_text(head + "\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
