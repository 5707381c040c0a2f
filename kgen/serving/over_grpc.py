"""gRPC, with the stubs of `tensorflow-serving-api`; imported on use, for it imports
TensorFlow."""

import urllib.parse

import grpc
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kgen.serving.errors import MAX_ANSWER, AttemptTimeout, ServingError

# What the REST API answers for the same errors (its model_servers/http_server.cc).
_HTTP = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
}

# Messages of gRPC itself, not of a server.
_UNCONNECTED = (
    "failed to connect",
    "DNS resolution failed",
    "Name resolution",
    "Connection reset",
    "Connection refused",
    "Socket closed",
    "GOAWAY",
)
_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # images pass 4 MB, the default, easily
    ("grpc.max_receive_message_length", MAX_ANSWER),
    ("grpc.initial_reconnect_backoff_ms", 200),  # a server that is started is soon seen
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class Grpc:
    """Requests about one model, over a channel; see Client for the arguments."""

    def __init__(self, url, name, version):
        parts = urllib.parse.urlsplit(url)
        if not parts.port:
            raise ValueError(
                f"url: expected a port, such as grpc://host:8500: {url!r}."
            )
        self.url, self.name, self.version = url, name, version
        if parts.scheme == "grpcs":
            keys = grpc.ssl_channel_credentials()
            self.channel = grpc.secure_channel(parts.netloc, keys, _OPTIONS)
        else:
            self.channel = grpc.insecure_channel(parts.netloc, _OPTIONS)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        service = prediction_service_pb2_grpc.PredictionServiceStub
        self.predictions = service(self.channel)

    def predict(self, signature, inputs, timeout):
        import tensorflow as tf

        request = self._about(predict_pb2.PredictRequest())
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        answer = self._answer(self.predictions.Predict, request, timeout)
        outputs = {name: tf.make_ndarray(t) for name, t in answer.outputs.items()}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def status(self, timeout):
        request = self._about(get_model_status_pb2.GetModelStatusRequest())
        answer = self._answer(self.models.GetModelStatus, request, timeout)
        state = get_model_status_pb2.ModelVersionStatus.State.Name
        return {v.version: state(v.state) for v in answer.model_version_status}

    def metadata(self, timeout):
        request = self._about(get_model_metadata_pb2.GetModelMetadataRequest())
        request.metadata_field.append("signature_def")
        answer = self._answer(self.predictions.GetModelMetadata, request, timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        said = MessageToDict(
            signatures,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        return {"signature_def": said}

    def close(self):
        self.channel.close()

    def _about(self, request):
        request.model_spec.name = self.name
        if self.version is not None:
            request.model_spec.version.value = self.version
        return request

    def _answer(self, method, request, timeout):
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            code, words = error.code().name, error.details()
            if code == "DEADLINE_EXCEEDED":
                raise AttemptTimeout(
                    f"No answer from {self.url} within {timeout:.3g} s."
                ) from error
            if code == "UNAVAILABLE" and any(w in words for w in _UNCONNECTED):
                raise ConnectionError(
                    f"No TensorFlow Serving at {self.url} ({words})."
                ) from error
            raise ServingError(words, _HTTP.get(code, 500)) from error
