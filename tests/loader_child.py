"""Loads SavedModels as a stock server does, without kgen and keras: for each line of
input, [path, requests, answers], runs a model both ways on requests from one file,
writes the answers to another, and says what is in its graph."""

import json
import sys
import traceback

sys.modules["keras"] = sys.modules["kgen"] = None

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.framework import op_def_registry
from tensorflow_serving.apis import prediction_log_pb2


def warmed(path, signatures):
    """The signatures whose warm-up request is answered."""
    file, asked = path + "/assets.extra/tf_serving_warmup_requests", []
    for record in tf.data.TFRecordDataset(file):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        feed = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        answer = signatures[request.model_spec.signature_name](**feed)
        assert all(len(v) == 1 for v in answer.values())
        asked.append([request.model_spec.name, request.model_spec.signature_name])
    return asked


def shapes_refused(session, signatures, calls):
    """{"signature/input": what is said to it} of requests with an input of another size
    or number than the others. By the runtime's own entrance, as a server does: the
    session's in Python would check the shapes itself."""
    said = {}
    for call, feed in calls.items():
        if ":" in call:
            continue
        signature = signatures[call]
        options = config_pb2.CallableOptions(
            feed=[signature.inputs[k].name for k in feed],
            fetch=[t.name for t in signature.outputs.values()],
        )
        run = session._make_callable_from_options(options)
        run(*feed.values())
        for name, value in feed.items():
            wrong = {"size": value[:, :-1]} if value.ndim > 1 else {}
            wrong |= {"number": value[:-1]} if len(feed) > 1 else {}
            for what, bad in wrong.items():
                try:
                    run(*(feed | {name: bad}).values())
                    words = "nothing"
                except tf.errors.InvalidArgumentError as error:
                    words = error.message
                said[f"{what} {call}/{name}"] = words
    return said


def serve(path, requests, answers):
    requests = np.load(requests)
    calls = {}
    for key in requests.files:
        call, name = key.split("/")
        calls.setdefault(call, {})[name] = requests[key]
    out, loaded = {}, {}
    eager = tf.saved_model.load(path)
    for call, feed in calls.items():
        answer = eager.signatures[call.split(":")[0]](
            **{k: tf.constant(v) for k, v in feed.items()}
        )
        loaded[call] = {k: v.numpy() for k, v in answer.items()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
        nodes = list(meta.graph_def.node)
        own = [f.signature.name for f in meta.graph_def.library.function]
        for fn in meta.graph_def.library.function:
            nodes += fn.node_def
        compiled = [
            n
            for n in [*nodes, *meta.graph_def.library.function]
            if n.attr["_XlaMustCompile"].b
        ]
        ops = sorted({n.op for n in nodes} - set(own))
        stateful = [o for o in ops if op_def_registry.get(o).is_stateful]
        shapes = {}
        for call, feed in calls.items():
            signature = meta.signature_def[call.split(":")[0]]
            shapes[call.split(":")[0]] = {
                k: [t.dtype, [d.size for d in t.tensor_shape.dim]]
                for part in (signature.inputs, signature.outputs)
                for k, t in part.items()
            }
            fetched = session.run(
                {k: t.name for k, t in signature.outputs.items()},
                {signature.inputs[k].name: v for k, v in feed.items()},
            )
            for k, v in fetched.items():
                np.testing.assert_allclose(v, loaded[call][k], rtol=1e-5, atol=1e-5)
                out[call + "/" + k] = v
        errors = {}
        bad = {
            "bad_images": {"images": 255},
            "bad_label": {"label": 99},
            "bad_z": {"z": np.inf},
            "bad_rows": {"known_rows": 9},
        }
        for call, feed in bad.items():
            names = [n for n in calls if list(feed)[0] in calls[n] and ":" not in n]
            name = names[-1] if names else None
            if name is None:
                continue
            signature = meta.signature_def[name]
            first = {
                k: np.full_like(v, feed.get(k, 0)) if k in feed else v
                for k, v in calls[name].items()
            }
            try:
                session.run(
                    {k: t.name for k, t in signature.outputs.items()},
                    {signature.inputs[k].name: v for k, v in first.items()},
                )
            except tf.errors.InvalidArgumentError as error:
                errors[call] = error.message
        errors |= shapes_refused(session, meta.signature_def, calls)
    np.savez(answers, **out)
    return {
        "ops": ops,
        "stateful": stateful,
        "compiled": len(compiled),
        "warmed": warmed(path, eager.signatures),
        "errors": errors,
        "shapes": shapes,
        "default": "serving_default" in meta.signature_def,
    }


for line in sys.stdin:
    try:
        said = serve(*json.loads(line))
    except Exception:
        said = {"failed": traceback.format_exc()}
    print(json.dumps(said), flush=True)
