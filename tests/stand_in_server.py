#!/usr/bin/env python
"""Replaces `tensorflow_model_server` where there is none: TensorFlow's loader behind
the documented REST and gRPC interfaces, with the flags that the tests give. It polls
for versions, loads the newest, and then drops the older one. It does not batch.

    TENSORFLOW_MODEL_SERVER=tests/stand_in_server.py pytest tests/test_tf_serving.py
"""

import argparse
import sys
import time
from pathlib import Path

sys.modules["keras"] = sys.modules["kgen"] = None  # a server has neither

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from serving_api import Refused, serve_grpc, serve_rest
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2


class SavedModel:
    """A version folder, loaded as a stock server loads it: in graph mode, by the tag
    `serve`, and its warm-up requests are run at once."""

    state = "AVAILABLE"

    def __init__(self, path):
        self.number = int(path.name)
        with tf.Graph().as_default():
            session = tf.compat.v1.Session()
            meta = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        self.graph, self.signatures = meta.graph_def, dict(meta.signature_def)
        self.signatures.pop("__saved_model_init_op", None)
        plain = {
            "preserving_proto_field_name": True,
            "always_print_fields_with_no_presence": True,
        }
        self.described, self.functions, self.warmed = {}, {}, []
        for name, signature in self.signatures.items():
            self.described[name] = MessageToDict(signature, **plain)
            options = config_pb2.CallableOptions()
            options.feed.extend(v.name for _, v in sorted(signature.inputs.items()))
            options.fetch.extend(v.name for _, v in sorted(signature.outputs.items()))
            # The runtime's own entrance, for the session's in Python checks shapes.
            self.functions[name] = session._make_callable_from_options(options)
        files = path.glob("assets.extra/tf_serving_warmup_requests")
        for record in tf.data.TFRecordDataset([str(file) for file in files]):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            request = log.predict_log.request
            name, signature = request.model_spec.name, request.model_spec.signature_name
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            assert all(len(v) == 1 for v in self.predict(signature, inputs).values())
            self.warmed.append((name, signature))

    def predict(self, signature, inputs):
        signature = signature or "serving_default"
        if signature not in self.signatures:
            words = f'Serving signature key "{signature}" not found.'
            raise Refused("FAILED_PRECONDITION", words)
        spec, feed = self.signatures[signature], []
        try:
            for name, tensor in sorted(spec.inputs.items()):
                value = inputs[name]
                if isinstance(value, list):  # JSON has no types: 256 as uint8 is 0
                    dtype = tf.dtypes.as_dtype(tensor.dtype).as_numpy_dtype
                    value = np.asarray(value).astype(dtype)
                feed.append(value)
            outputs = self.functions[signature](*feed)
        except (tf.errors.InvalidArgumentError, KeyError, ValueError) as error:
            raise Refused("INVALID_ARGUMENT", str(error)) from error
        return dict(zip(sorted(spec.outputs), outputs, strict=True))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--rest_api_port", type=int)
    parser.add_argument("--model_config_file", type=Path)
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1.0)
    args, _ = parser.parse_known_args()
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(args.model_config_file.read_text(), config)
    loaded = {}  # of each name the newest version

    def find(name, number):
        model = loaded.get(name)
        if model is None or number not in (None, model.number):
            raise Refused("NOT_FOUND", f"Servable not found for request: {name}")
        return model

    with serve_rest(find, args.rest_api_port), serve_grpc(find, args.port):
        while True:
            for model in config.model_config_list.config:
                versions = Path(model.base_path).glob("[0-9]*")
                newest = max(versions, key=lambda path: int(path.name))
                name, number = model.name, int(newest.name)
                if name not in loaded or loaded[name].number != number:
                    loaded[name] = SavedModel(newest)
            time.sleep(args.file_system_poll_wait_seconds)


if __name__ == "__main__":
    main()
