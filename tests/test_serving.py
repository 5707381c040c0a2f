"""The client, against a stub of TensorFlow Serving's documented REST and gRPC that
answers with a model's methods; the configuration files; the commands."""

import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import socket
import sys
import threading
import time

import numpy as np
import pytest
from keras import ops
from PIL import Image
from zoo import CLASSES, LEVELS, SHAPE, numpy, shared

import kgen
from kgen.serving import Client, ServingError
from kgen.serving.__main__ import main
from kgen.serving.config import commands

pytestmark = pytest.mark.once

SCHEMES = {"rest": "http", "grpc": "grpc"}
IMAGES = {"dtype": "DT_UINT8"}
IMAGES |= {"tensor_shape": {"dim": [{"size": str(d)} for d in (-1, *SHAPE)]}}
METADATA = {"signature_def": {"sample": {"outputs": {"images": IMAGES}}}}


class Stub:
    """Answers with one model's methods. `seen` are the requests, (version, signature,
    inputs); `delay` makes it slow; `states` are those of the version, one a request."""

    def __init__(self, model):
        self.model, self.seen, self.delay, self.states = model, [], 0.0, ["AVAILABLE"]

    def answer(self, version, signature, inputs):
        self.seen.append((version, signature, inputs))
        time.sleep(self.delay)
        types = {"images": "uint8", "z": "float32", "seed": "int64", "label": "int32"}
        inputs = {k: np.asarray(v, types.get(k)) for k, v in inputs.items()}
        x, labels = inputs.get("images", inputs.get("z")), inputs.get("label")
        if signature == "sample":
            words = inputs["seed"] >> 32, inputs["seed"] & 0xFFFFFFFF
            rows = [np.stack(words, -1).astype("int32")]  # (n, 2)
            rows += [] if labels is None else [labels]
            return numpy(self.model.draw(*map(ops.convert_to_tensor, rows)))
        if not hasattr(self.model, signature):
            raise ValueError(f"Signature name '{signature}' not found")
        if "images" in inputs and x.max() >= LEVELS:
            raise ValueError(f"assertion failed: [images must be in 0..16] {x.max()}")
        if signature == "complete":
            seed = int(inputs["seed"][0] >> 32)
            return self.model.complete(x, inputs["known_rows"], seed, labels)
        outputs = getattr(self.model, signature)(x, labels)
        if signature == "encode":
            return dict(zip(("mean", "log_var"), map(numpy, outputs), strict=True))
        return numpy(outputs)

    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, code, body):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body, default=np.ndarray.tolist).encode())

    def do_GET(self):
        if not re.fullmatch(r"/v1/models/m(/versions/\d+)?(/metadata)?", self.path):
            self.reply(404, {"error": f"Could not find any versions: {self.path}"})
        elif self.path.endswith("metadata"):
            self.reply(200, {"metadata": {"signature_def": METADATA}})
        else:
            version = {"version": "3", "state": self.server.stub.state(), "status": {}}
            self.reply(200, {"model_version_status": [version]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        version = re.fullmatch(r"/v1/models/m(?:/versions/(\d+))?:predict", self.path)
        request = version[1] and int(version[1]), body["signature_name"], body["inputs"]
        try:
            self.reply(200, {"outputs": self.server.stub.answer(*request)})
        except ValueError as error:
            self.reply(400, {"error": str(error)})


def grpc_server(stub, port):
    """The same answers over gRPC: (server, port)."""
    pytest.importorskip("tensorflow_serving")
    import grpc
    import tensorflow as tf
    from google.protobuf import json_format
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    def requested_version(request, context):
        spec = request.model_spec
        if spec.name != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any: {spec.name}")
        return spec.version.value if spec.HasField("version") else None

    class Service:
        def Predict(self, request, context):
            version, name = requested_version(request, context), request.model_spec
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            try:
                outputs = stub.answer(version, name.signature_name, inputs)
            except ValueError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            outputs = outputs if isinstance(outputs, dict) else {"one": outputs}
            response = predict_pb2.PredictResponse()
            for key, value in outputs.items():
                response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
            return response

        def GetModelMetadata(self, request, context):
            requested_version(request, context)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            json_format.ParseDict(METADATA, signatures)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.metadata["signature_def"].Pack(signatures)
            return response

        def GetModelStatus(self, request, context):
            requested_version(request, context)
            response = get_model_status_pb2.GetModelStatusResponse()
            response.model_version_status.add(version=3, state=stub.state())
            return response

        HandleReloadConfigRequest = Classify = Regress = MultiInference = None

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    add = prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server
    add(Service(), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


@contextlib.contextmanager
def serve(model, over="rest", port=0):
    """Serves a model as "m": (a client of it, the stub)."""
    stub = Stub(model)
    if over == "grpc":
        server, port = grpc_server(stub, port)
    else:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        server.stub, port = stub, server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"{SCHEMES[over]}://127.0.0.1:{port}/"
        with Client(url, "m", max_batch=4) as client:
            yield client, stub
    finally:
        if over == "grpc":
            server.stop(None)
        else:
            server.shutdown()
            server.server_close()


def exact_model():
    return shared("fvbn", SHAPE, LEVELS)


@pytest.fixture(params=["rest", "grpc"])
def over(request):
    return request.param


@pytest.fixture
def served(over):
    with serve(exact_model(), over) as client_and_stub:
        yield client_and_stub


# The client


def test_samples_are_those_of_the_model(served, over):
    """In batches of `max_batch`."""
    client, stub = served
    images = client.sample(10, seed=7)
    assert images.dtype == "uint8"
    np.testing.assert_array_equal(images, stub.model.sample(10, seed=7))
    assert [len(inputs["seed"]) for _, _, inputs in stub.seen] == [4, 4, 2]
    version, signature, inputs = stub.seen[1]
    assert version is None and signature == "sample"
    assert list(inputs["seed"]) == [7 * 2**32 + i for i in (4, 5, 6, 7)]
    if over == "grpc":  # a server takes no other
        assert inputs["seed"].dtype == "int64"
    none = client.sample(0, seed=7)
    assert none.shape == (0, *SHAPE) and none.dtype == "uint8" and len(stub.seen) == 3
    assert np.any(client.sample(2) != client.sample(2))


@pytest.mark.parametrize("name", ["fvbn", "vae-conditional", "gan"])
def test_methods_return_what_the_models_return(name, over, digits, digit_labels):
    x, y = digits[:5].astype("int64"), digit_labels[:5]
    z = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    calls = {
        "fvbn": {"log_prob": (x,), "complete": (x[:3], np.array([3, 0, 8]), 2)},
        "vae-conditional": {
            "sample": (3, 1, y[:3]),
            "encode": (x, y),
            "decode": (z, np.full(5, 2)),
            "elbo": (x, y),
            "reconstruct": (x, y),
        },
        "gan": {"generate": (z,), "discriminate": (x,)},
    }[name]
    model = shared(name, SHAPE, LEVELS, CLASSES if name == "vae-conditional" else None)
    with serve(model, over) as (client, stub):
        for method, arguments in calls.items():
            got = np.asarray(getattr(client, method)(*arguments))
            expected = getattr(model, method)(*arguments)
            if method == "encode":
                expected = np.stack([numpy(v) for v in expected])
            np.testing.assert_allclose(got, numpy(expected), rtol=1e-5, atol=1e-5)
            if over == "grpc":
                types = {"images": "uint8", "known_rows": "int64", "seed": "int64"}
                types |= {"label": "int64", "z": "float32"}
                for key, value in stub.seen[-1][2].items():
                    assert value.dtype == types[key], (method, key)
        if name == "vae-conditional":  # one label for all
            got = client.decode(z, 2)
            np.testing.assert_array_equal(got, client.decode(z, np.full(5, 2)))


def test_refusals_of_the_server_raise(served, digits):
    client, _ = served
    with pytest.raises(ServingError, match="images must be in 0..16") as error:
        client.log_prob(np.full((1, 8, 8, 1), 200))
    assert error.value.status == 400
    with pytest.raises(ServingError, match="'encode' not found") as error:
        client.encode(digits[:1])
    assert error.value.status == 400
    with pytest.raises(ServingError, match="no signature 'complete'"):
        client.complete(digits[:0], [])
    with pytest.raises(ServingError, match="Could not find") as error:
        Client(client.url, "other").status()
    assert error.value.status == 404


def test_wrong_inputs_raise_and_are_not_sent(served):
    client, stub = served
    for wrong, words in (
        (np.full((1, 8, 8, 1), 256), r"0\.\.255; got 256"),
        (np.full((1, 8, 8, 1), -1), r"0\.\.255; got -1"),
        (np.zeros((1, 8, 8, 1)), "expected integers; got float64"),
    ):
        with pytest.raises(ValueError, match=words):
            client.log_prob(wrong)
        with pytest.raises(ValueError, match=words):
            client.predict("log_prob", images=wrong)
    with pytest.raises(ValueError, match="known_rows: expected integers"):
        client.complete(np.zeros((1, 8, 8, 1), "uint8"), 3.7)
    with pytest.raises(TypeError):
        Client(client.url, "m", version=1.5)
    with pytest.raises(ValueError, match="finite latents"):
        client.decode(np.full((1, 3), np.nan))
    with pytest.raises(ValueError, match="begin with http"):
        Client("localhost:8501", "m")
    assert not stub.seen


def test_slow_and_missing_servers_raise(served, over):
    client, stub = served
    stub.delay = 1.0
    with pytest.raises(TimeoutError, match="within 0.2 s"):
        Client(client.url, "m", timeout=0.2).sample(1, seed=0)
    missing = Client(f"{SCHEMES[over]}://127.0.0.1:9", "m")
    with pytest.raises(ConnectionError, match="No TensorFlow Serving at"):
        missing.status()
    words = "not ready at .* after 0.3 s: No (Tensor|answer)"
    with pytest.raises(TimeoutError, match=words):
        missing.wait_until_ready(0.3)


def test_client_waits_for_a_version(served):
    client, stub = served
    stub.states = ["START", "LOADING", "AVAILABLE"]
    client.wait_until_ready(60)
    assert client.status() == {3: "AVAILABLE"}
    assert "sample" in client.metadata()["signature_def"]["signature_def"]
    with pytest.raises(TimeoutError, match="versions are"):
        Client(client.url, "m", version=9).wait_until_ready(1)
    for version in (3, np.int64(0)):
        Client(client.url, "m", version=version).sample(1, seed=0)
        assert stub.seen[-1][0] == version


def test_client_waits_for_a_server_that_starts_later(over):
    """gRPC alone waits longer from one attempt to connect to the next: by its defaults
    eight attempts take 34 s or more."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.settimeout(60)
        port = nobody.getsockname()[1]
        client = Client(f"{SCHEMES[over]}://127.0.0.1:{port}", "m")
        waiting = threading.Thread(
            target=client.wait_until_ready, args=(300,), daemon=True
        )
        begin = time.monotonic()
        waiting.start()
        for _ in range(8):
            nobody.accept()[0].close()
        seconds = time.monotonic() - begin
    with serve(exact_model(), over, port):
        waiting.join(60)
        late = waiting.is_alive()
        waiting.join()
    assert seconds < 25 and not late


@pytest.mark.parametrize(
    "answer, raised, words",
    [
        (b'HTTP/1.1 400 B\r\n\r\n{ "error": "no \\\'x\\\' \\"here\\"" }',
         ServingError, """^no 'x' "here"$"""),
        (b"HTTP/1.1 502 B\r\n\r\nbad gateway", ServingError, "HTTP 502: bad gateway"),
        (b"HTTP/1.1 504 T\r\n\r\n{}", TimeoutError, "No answer from"),
        (b"not HTTP at all\r\n\r\n", ConnectionError, "No TensorFlow Serving"),
        (b"", ConnectionError, "No TensorFlow Serving|closed"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", ConnectionError, "is no TensorFlow Serving"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", ConnectionError, "is no TensorFlow Serving"),
    ],
)  # fmt: skip
def test_other_answers_over_http_raise(answer, raised, words):
    def reply():
        connection, _ = server.accept()
        with connection:
            connection.recv(10000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=reply)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(raised, match=words):
            Client(url, "m").status()
        thread.join()


def test_grpc_without_port_or_package_raises(monkeypatch):
    pytest.importorskip("tensorflow_serving")
    with pytest.raises(ValueError, match="expected a port"):
        Client("grpc://localhost", "m")
    monkeypatch.setitem(sys.modules, "kgen.serving.over_grpc", None)
    with pytest.raises(ImportError, match=r"pip install 'kgen\[serving\]'"):
        Client("grpc://localhost:8500", "m")


# Configuration and commands


def test_configuration_names_every_exported_model(tmp_path):
    pytest.importorskip("tensorflow_serving")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    for name in ("vae/1", 'a "quoted" \\ name/7', "no_version/1_backup"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "unfinished" / "1").mkdir(parents=True)
    path = kgen.serving.write_config(tmp_path)
    assert path.name == "models.config"
    parsed = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(path.read_text(), parsed)
    configs = parsed.model_config_list.config
    names = ['a "quoted" \\ name', "vae"]
    assert [c.name for c in configs] == names
    assert [c.base_path for c in configs] == [f"{tmp_path}/{name}" for name in names]
    assert all(c.model_platform == "tensorflow" for c in configs)
    batching = (tmp_path / "batching.config").read_text()
    # of BatchingParameters, whose messages hold one `value` each
    settings = dict(re.findall(r"^(\w+) \{ value: (\d+) \}$", batching, re.M))
    assert len(settings) == len(batching.splitlines()) == 4
    assert int(settings["max_batch_size"]) == Client("http://h", "m").max_batch
    inside = kgen.serving.write_config(tmp_path, "/models").read_text()
    assert 'base_path: "/models/vae"' in inside
    with pytest.raises(ValueError, match="No exported model"):
        kgen.serving.write_config(tmp_path / "vae" / "1")


def test_serve_starts_the_server_or_prints_commands(tmp_path, monkeypatch, capsys):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").touch()
    server, started = tmp_path / "server", []
    server.touch(0o755)
    monkeypatch.setattr(os, "execvp", lambda *words: started.append(words))
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", str(server))
    words = ["serve", "--folder", str(tmp_path)]
    main([*words, "--port", "5", "--batching"])
    ((program, command),) = started
    assert program == command[0] == str(server)
    assert command == commands(tmp_path, 5, batching=True)[0]
    assert "--port=5" in command and "--enable_batching" in command
    assert f"--model_config_file={tmp_path}/models.config" in command
    assert f"--batching_parameters_file={tmp_path}/batching.config" in command
    monkeypatch.delenv("TENSORFLOW_MODEL_SERVER")
    for status in (1, 0):  # of `docker info`, which fails without its engine
        docker = tmp_path / f"{status}" / "docker"
        docker.parent.mkdir()
        docker.write_text(f"#!/bin/sh\nexit {status}\n")
        docker.chmod(0o755)
        monkeypatch.setenv("PATH", f"{docker.parent}:/bin")
        main(words)
        assert len(started) == 2 - status
    assert started.pop()[1] == commands(tmp_path)[1]
    capsys.readouterr()
    monkeypatch.setenv("PATH", "")
    main(words)
    printed = capsys.readouterr().out
    assert "tensorflow_model_server --port=8500 --rest_api_port=8501" in printed
    assert f"-v {tmp_path}:{tmp_path}:ro tensorflow/serving" in printed
    assert len(started) == 1
    with pytest.raises(SystemExit, match="No exported model"):
        main(["serve", "--folder", str(tmp_path / "m")])


def test_sample_command_writes_a_picture(tmp_path, capsys):
    out = tmp_path / "m.png"
    with serve(exact_model()) as (client, stub):
        words = ["sample", "m", "--url", client.url, "--folder", str(tmp_path)]
        main([*words, "--n", "9", "--out", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    assert np.asarray(Image.open(out)).std() > 10
    assert list(stub.seen[0][2]["seed"]) == [7 * 2**32 + i for i in range(9)]
    with pytest.raises(SystemExit, match="No TensorFlow Serving"):
        main([*words, "--wait", "0.2"])
