"""Run by test_export: answers requests by SavedModels as a stock server does, without
kgen and keras, and reports what is in their graphs.

    python loader_child.py folder name...

Reads <folder>/requests, {name: [(signature, {input: array}, ...)]}, and the SavedModels
<folder>/<name>/1; writes <folder>/reports. The named ones are loaded by
tf.saved_model.load too.
"""

import math
import pickle
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from stand_in_server import Refused, SavedModel
from tensorflow.python.framework import op_def_registry


def report(path, requests):
    model, answers = SavedModel(path), []
    for signature, inputs, _ in requests:
        try:
            answers.append(model.predict(signature, inputs))
        except Refused as error:
            answers.append(str(error))
    functions, shapes = model.graph.library.function, {}
    nodes = [*model.graph.node, *(node for f in functions for node in f.node_def)]
    names = {f.signature.name for f in functions}
    ops = {node.op for node in nodes} - names
    for name, signature in model.signatures.items():
        tensors = [*signature.inputs.values(), *signature.outputs.values()]
        shapes[name] = [[d.size for d in t.tensor_shape.dim] for t in tensors]
    stored = tf.train.list_variables(str(path / "variables" / "variables"))
    default, sample = (model.signatures[k] for k in ("serving_default", "sample"))
    return {
        "answers": answers,  # {output: array}, or an error's message
        "compiled": any(n.attr["_XlaMustCompile"].b for n in [*nodes, *functions]),
        "default_is_sample": default == sample,
        "gradients": [f for f in names if "_grad_" in f],
        "ops": ops,
        "shapes": shapes,
        "stateful": {op for op in ops if op_def_registry.get(op).is_stateful},
        "warmed": model.warmed,
        "weights": sum(math.prod(n) for k, n in stored if "OBJECT_GRAPH" not in k),
    }


def compare_eager_loader(path, requests, answers):
    """TensorFlow's other loader gives the same answers."""
    signatures = tf.saved_model.load(str(path)).signatures
    for (signature, inputs, _), expected in zip(requests, answers, strict=True):
        if isinstance(expected, dict):
            feed = {k: tf.constant(v) for k, v in inputs.items()}
            for name, value in signatures[signature](**feed).items():
                np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


folder, reports = Path(sys.argv[1]), {}
for name, requests in pickle.loads((folder / "requests").read_bytes()).items():
    path = folder / name / "1"
    reports[name] = report(path, requests)
    if name in sys.argv[2:]:
        compare_eager_loader(path, requests, reports[name]["answers"])
(folder / "reports").write_bytes(pickle.dumps(reports))
