#!/usr/bin/env python
"""Replaces `tensorflow_model_server` where there is none: TensorFlow's loader behind
the documented REST and gRPC interfaces, with the flags that the tests give. It polls
for versions, loads the newest, runs its warm-up requests, and then drops the older
one. It does not batch.

    TENSORFLOW_MODEL_SERVER=tests/stand_in_server.py pytest tests/test_tf_serving.py
"""

import argparse
import concurrent.futures
import http.server
import json
import re
import sys
import threading
import time
from pathlib import Path

sys.modules["keras"] = sys.modules["kgen"] = None  # a server has neither

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


class Refused(Exception):
    def __init__(self, code, words):
        super().__init__(words)
        self.code = code


class Version:
    """A loaded version folder."""

    def __init__(self, path):
        self.number = int(path.name)
        meta = saved_model_pb2.SavedModel()
        meta.ParseFromString((path / "saved_model.pb").read_bytes())
        self.described = dict(meta.meta_graphs[0].signature_def)
        self.described.pop("__saved_model_init_op", None)
        self.model = tf.saved_model.load(str(path), tags=["serve"])
        warmup = path / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset(str(warmup)) if warmup.exists() else ():
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            request = log.predict_log.request
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            self.predict(request.model_spec.signature_name, inputs)

    def predict(self, signature, inputs):
        signature = signature or "serving_default"
        if signature not in self.described:
            words = f'Serving signature key "{signature}" not found.'
            raise Refused("FAILED_PRECONDITION", words)
        specs = self.described[signature].inputs
        try:
            given = {}
            for name, value in inputs.items():
                dtype = tf.dtypes.as_dtype(specs[name].dtype)
                if isinstance(value, list):  # JSON has no types
                    value = np.asarray(value, dtype.as_numpy_dtype)
                given[name] = tf.constant(value)
                given[name].shape.assert_has_rank(len(specs[name].tensor_shape.dim))
            outputs = self.model.signatures[signature](**given)
        except (tf.errors.OpError, KeyError, TypeError, ValueError) as error:
            raise Refused("INVALID_ARGUMENT", str(error)) from error
        return {k: v.numpy() for k, v in outputs.items()}


class Server:
    """The models of a configuration, each at its newest version."""

    def __init__(self, config):
        read = model_server_config_pb2.ModelServerConfig()
        text_format.Parse(Path(config).read_text(), read)
        configs = read.model_config_list.config
        self.paths = {c.name: Path(c.base_path) for c in configs}
        self.versions = {}

    def poll(self):
        for name, path in self.paths.items():
            numbers = [int(p.name) for p in path.glob("*") if p.name.isdigit()]
            held = self.versions.get(name)
            if numbers and (held is None or max(numbers) != held.number):
                self.versions[name] = Version(path / str(max(numbers)))
                print("loaded", path, max(numbers), flush=True)

    def version(self, name, number=None):
        held = self.versions.get(name)
        if held is None or number not in (None, held.number):
            raise Refused("NOT_FOUND", f"Servable not found for request: {name}")
        return held


class Rest(http.server.BaseHTTPRequestHandler):
    """https://www.tensorflow.org/tfx/serving/api_rest"""

    CODES = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400}
    PATH = r"/v1/models/(\w[\w.-]*)(?:/versions/(\d+))?[/:]?(metadata|predict)?"

    def log_message(self, *args):
        pass

    def handle_request(self):
        try:
            match = re.fullmatch(self.PATH, self.path)
            if not match:
                raise Refused("INVALID_ARGUMENT", f"Malformed request: {self.path}")
            name, number, what = match.groups()
            held = self.server.models.version(name, number and int(number))
            code, answer = 200, getattr(self, what or "status")(held, name)
        except Refused as error:
            code, answer = self.CODES[error.code], {"error": str(error)}
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = handle_request

    def status(self, held, name):
        version = {"version": str(held.number), "state": "AVAILABLE", "status": {}}
        return {"model_version_status": [version]}

    def metadata(self, held, name):
        plain = {
            "preserving_proto_field_name": True,
            "always_print_fields_with_no_presence": True,
        }
        signatures = {k: MessageToDict(v, **plain) for k, v in held.described.items()}
        spec = {"name": name, "version": str(held.number)}
        metadata = {"signature_def": {"signature_def": signatures}}
        return {"model_spec": spec, "metadata": metadata}

    def predict(self, held, name):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        signature = body.get("signature_name")
        if "inputs" in body:
            outputs = held.predict(signature, body["inputs"])
            plain = {k: v.tolist() for k, v in outputs.items()}
            return {"outputs": plain if len(plain) > 1 else plain.popitem()[1]}
        rows = body["instances"]
        outputs = held.predict(signature, {k: [r[k] for r in rows] for k in rows[0]})
        answers = [
            {k: v[i].tolist() for k, v in outputs.items()} for i in range(len(rows))
        ]
        if len(outputs) == 1:
            answers = [answer.popitem()[1] for answer in answers]
        return {"predictions": answers}


def answered(method):
    """gRPC's method, with the version that a request names and errors as statuses."""

    def answer(self, request, context):
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        try:
            return method(self, request, self.models.version(spec.name, number))
        except Refused as error:
            context.abort(grpc.StatusCode[error.code], str(error))

    return answer


class Grpc(
    prediction_service_pb2_grpc.PredictionServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
):
    def __init__(self, models):
        self.models = models

    @answered
    def Predict(self, request, held):
        answer = predict_pb2.PredictResponse()
        inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
        outputs = held.predict(request.model_spec.signature_name, inputs)
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return answer

    @answered
    def GetModelMetadata(self, request, held):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in held.described.items():
            signatures.signature_def[name].CopyFrom(signature)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.metadata["signature_def"].Pack(signatures)
        return answer

    @answered
    def GetModelStatus(self, request, held):
        answer = get_model_status_pb2.GetModelStatusResponse()
        answer.model_version_status.add(version=held.number, state=AVAILABLE)
        return answer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--rest_api_port", type=int)
    parser.add_argument("--model_config_file")
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1.0)
    args, _ = parser.parse_known_args()
    models = Server(args.model_config_file)
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", args.rest_api_port), Rest)
    rest.models = models
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    service = Grpc(models)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    server.add_insecure_port(f"127.0.0.1:{args.port}")
    server.start()
    while True:
        models.poll()
        time.sleep(args.file_system_poll_wait_seconds)


if __name__ == "__main__":
    main()
