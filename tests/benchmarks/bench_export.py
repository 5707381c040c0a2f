"""Size of the exported presets, the nodes of their graphs, seconds to load them in a
process without Keras, in graph mode as a server does, seconds of the first answers of
all signatures (the warm-up of a server), and the time of one image after that.

    python tests/benchmarks/bench_export.py [preset...]

writes tests/benchmarks/results/export.md, if it is of all presets.
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
import numpy as np
import tensorflow as tf
start = time.perf_counter()
with tf.Graph().as_default():
    session = tf.compat.v1.Session()
    meta = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
seconds = [time.perf_counter() - start, 0.0]
def ask(signature):
    feed = {}
    for tensor in signature.inputs.values():
        sizes = [dim.size for dim in tensor.tensor_shape.dim]
        dtype = tf.dtypes.as_dtype(tensor.dtype).as_numpy_dtype
        feed[tensor.name] = np.zeros([1, *sizes[1:]], dtype)
    start = time.perf_counter()
    session.run([tensor.name for tensor in signature.outputs.values()], feed)
    return time.perf_counter() - start
for name, signature in sorted(meta.signature_def.items()):
    if not name.startswith("__"):
        seconds[1] += ask(signature)
functions = meta.graph_def.library.function
nodes = len(meta.graph_def.node) + sum(len(f.node_def) for f in functions)
print(nodes, *seconds, ask(meta.signature_def["serving_default"]))
"""


def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def main():
    import kgen

    rows = [
        "| preset | MB | nodes | loads in, s | first answers, s | one image, ms |",
        "|---" * 6 + "|",
    ]
    for name in sys.argv[1:] or kgen.presets.list():
        model = kgen.models.GenerativeModel.from_preset(name)
        with tempfile.TemporaryDirectory() as folder:
            path = model.export(Path(folder) / name / "1")
            command = [sys.executable, "-c", LOAD, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            nodes, loaded, first, image = map(float, done.stdout.split())
            size = size_of(path) / 1e6
        cells = f"{size:.2f} | {nodes:.0f} | {loaded:.2f} | {first:.2f}"
        rows.append(f"| {name} | {cells} | {1e3 * image:.0f} |")
        print(rows[-1], flush=True)
    if sys.argv[1:]:
        return
    about = f"{platform.machine()}, {os.cpu_count()} cores, {datetime.date.today()}"
    head = "`python tests/benchmarks/bench_export.py`\n\n"
    head += (
        f"{about}. TensorFlow's loader in a fresh process, its import not counted.\n"
    )
    RESULT.write_text(head + "\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
