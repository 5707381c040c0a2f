"""Run by test_export: answers requests by SavedModels as a stock server does, without
kgen and keras, and reports what is in their graphs.

    python loader_child.py folder name...

For each <folder>/<name>, with a SavedModel in 1/ and requests.npz, writes answers.npz
and report.json. A request is named <signature>[:<anything>]/<input>. The named ones
are loaded by tf.saved_model.load too.
"""

import json
import sys
from pathlib import Path

sys.modules["keras"] = sys.modules["kgen"] = None

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow_serving.apis import prediction_log_pb2

BAD = {"images": 255, "label": 99, "z": np.inf, "known_rows": 9}


def read(path):
    """{call: {input: array}}."""
    calls = {}
    with np.load(path) as loaded:
        for key in loaded.files:
            call, name = key.split("/")
            calls.setdefault(call, {})[name] = loaded[key]
    return calls


def warm_up_requests(path):
    """[(model, signature, {input: array})]."""
    files = path.glob("assets.extra/tf_serving_warmup_requests")
    for record in tf.data.TFRecordDataset([str(file) for file in files]):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        feed = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        yield request.model_spec.name, request.model_spec.signature_name, feed


def graph(definition):
    """The operations of a graph and its functions."""
    functions = definition.library.function
    nodes = [*definition.node, *(n for f in functions for n in f.node_def)]
    ops = {n.op for n in nodes} - {f.signature.name for f in functions}
    compiled = [n for n in [*nodes, *functions] if n.attr["_XlaMustCompile"].b]
    return {
        "ops": sorted(ops),
        "stateful": sorted(o for o in ops if op_def_registry.get(o).is_stateful),
        "compiled": len(compiled),
    }


def shapes(signature):
    """{input or output: its shape}."""
    tensors = [*signature.inputs.items(), *signature.outputs.items()]
    return {k: [d.size for d in t.tensor_shape.dim] for k, t in tensors}


def callable_of(session, signature):
    """The signature by the runtime's own entrance, as a server calls it: the session's
    in Python checks shapes itself."""
    inputs, outputs = sorted(signature.inputs), sorted(signature.outputs)
    options = config_pb2.CallableOptions(
        feed=[signature.inputs[k].name for k in inputs],
        fetch=[signature.outputs[k].name for k in outputs],
    )
    call = session._make_callable_from_options(options)

    def run(feed):
        values = call(*(feed[k] for k in inputs))
        return dict(zip(outputs, values, strict=True))

    return run


def errors(run, feed):
    """{"values input": the error message} of bad values, and of an input whose "size"
    or "number" of rows is not that of the others."""
    messages = {}
    for name, value in feed.items():
        wrong = {}
        if name in BAD:
            wrong["values"] = np.full_like(value, BAD[name])
        if value.ndim > 1:
            wrong["size"] = value[:, :-1]
        if len(feed) > 1:
            wrong["number"] = value[:-1]
        for kind, bad in wrong.items():
            try:
                run(feed | {name: bad})
                messages[f"{kind} {name}"] = "no error"
            except tf.errors.InvalidArgumentError as error:
                messages[f"{kind} {name}"] = error.message
    return messages


def serve(path):
    calls, version = read(path / "requests.npz"), str(path / "1")
    warm_up = list(warm_up_requests(path / "1"))
    answers, report = {}, {"errors": {}, "shapes": {}, "warmed": []}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], version)
        run = {}
        for call, feed in calls.items():
            name = call.split(":")[0]
            signature = meta.signature_def[name]
            if call == name:
                run[name] = callable_of(session, signature)
                report["shapes"][name] = shapes(signature)
                report["errors"][name] = errors(run[name], feed)
            answers |= {f"{call}/{k}": v for k, v in run[name](feed).items()}
        for model, name, feed in warm_up:
            assert all(len(v) == 1 for v in run[name](feed).values())
            report["warmed"].append([model, name])
    np.savez(path / "answers.npz", **answers)
    (path / "report.json").write_text(json.dumps(report | graph(meta.graph_def)))


def serve_eagerly(path):
    """TensorFlow's other loader gives the same answers."""
    signatures = tf.saved_model.load(str(path / "1")).signatures
    with np.load(path / "answers.npz") as answers:
        for call, feed in read(path / "requests.npz").items():
            feed = {k: tf.constant(v) for k, v in feed.items()}
            for k, v in signatures[call.split(":")[0]](**feed).items():
                expected = answers[f"{call}/{k}"]
                np.testing.assert_allclose(v, expected, rtol=1e-5, atol=1e-5)


folder, *both = sys.argv[1:]
for path in sorted(Path(folder).glob("*/requests.npz")):
    serve(path.parent)
for name in both:
    serve_eagerly(Path(folder, name))
