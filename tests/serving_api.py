"""The documented REST and gRPC interfaces of TensorFlow Serving, for tests.

`find(name, version)` returns a served model or raises Refused. A served model has its
version `number`, its `state`, its signatures as dicts, `described`, and
`predict(signature, inputs)`, which returns {output: array} or raises Refused. Inputs
that came over REST are lists.
"""

import concurrent.futures
import contextlib
import http.server
import json
import re
import threading


class Refused(Exception):
    """An error of the server, by the name of gRPC's status."""

    def __init__(self, code, words):
        super().__init__(words)
        self.code = code


class Rest(http.server.BaseHTTPRequestHandler):
    """https://www.tensorflow.org/tfx/serving/api_rest"""

    PATH = r"/v1/models/(\w[\w.-]*)(?:/versions/(\d+))?[/:]?(metadata|predict)?"

    def log_message(self, *args):
        pass

    def answer(self):
        try:
            name, number, what = re.fullmatch(self.PATH, self.path).groups()
            served = self.server.find(name, number and int(number))
            code, answer = 200, getattr(self, what or "status")(served)
        except Refused as error:
            code = 404 if error.code == "NOT_FOUND" else 400
            answer = {"error": str(error)}
        content = json.dumps(answer, default=lambda array: array.tolist())
        self.send_response(code)
        self.end_headers()
        self.wfile.write(content.encode())

    do_GET = do_POST = answer

    def status(self, served):
        version = {"version": str(served.number), "state": served.state, "status": {}}
        return {"model_version_status": [version]}

    def metadata(self, served):
        return {"metadata": {"signature_def": {"signature_def": served.described}}}

    def predict(self, served):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        signature = body.get("signature_name")
        if "inputs" in body:
            outputs = served.predict(signature, body["inputs"])
            return {"outputs": outputs if len(outputs) > 1 else outputs.popitem()[1]}
        rows = body["instances"]
        outputs = served.predict(signature, {k: [r[k] for r in rows] for k in rows[0]})
        answers = [{k: v[i] for k, v in outputs.items()} for i in range(len(rows))]
        if len(outputs) == 1:
            answers = [answer.popitem()[1] for answer in answers]
        return {"predictions": answers}


@contextlib.contextmanager
def serve_rest(find, port=0):
    """Yields the port."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Rest) as server:
        server.find = find
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@contextlib.contextmanager
def serve_grpc(find, port=0):
    """Yields the port."""
    import grpc
    import tensorflow as tf
    from google.protobuf.json_format import ParseDict
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    @contextlib.contextmanager
    def requested(request, context):
        spec = request.model_spec
        number = spec.version.value if spec.HasField("version") else None
        try:
            yield find(spec.name, number)
        except Refused as error:
            context.abort(grpc.StatusCode[error.code], str(error))

    class Service(
        prediction_service_pb2_grpc.PredictionServiceServicer,
        model_service_pb2_grpc.ModelServiceServicer,
    ):
        def Predict(self, request, context):
            answer = predict_pb2.PredictResponse()
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            with requested(request, context) as served:
                outputs = served.predict(request.model_spec.signature_name, inputs)
            for name, value in outputs.items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return answer

        def GetModelMetadata(self, request, context):
            signatures = get_model_metadata_pb2.SignatureDefMap()
            with requested(request, context) as served:
                ParseDict({"signature_def": served.described}, signatures)
            answer = get_model_metadata_pb2.GetModelMetadataResponse()
            answer.metadata["signature_def"].Pack(signatures)
            return answer

        def GetModelStatus(self, request, context):
            answer = get_model_status_pb2.GetModelStatusResponse()
            with requested(request, context) as served:
                number, state = served.number, served.state
            answer.model_version_status.add(version=number, state=state)
            return answer

    server, service = grpc.server(concurrent.futures.ThreadPoolExecutor(16)), Service()
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(None)
