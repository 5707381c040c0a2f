"""The client, against a stub that speaks TensorFlow Serving's documented JSON and its
gRPC, and answers with a model's own methods; the configuration files; the commands."""

import concurrent.futures
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
from families import FAMILIES
from keras import ops
from PIL import Image

import kgen
from kgen.serving import Client, ServingError
from kgen.serving.__main__ import main
from kgen.serving.config import commands

SIGNATURE = {"outputs": {"images": {
    "dtype": "DT_UINT8",
    "tensor_shape": {"dim": [{"size": str(d)} for d in (-1, 8, 8, 1)]},
}}}  # fmt: skip


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


class Stub(http.server.ThreadingHTTPServer):
    """Serves one model as "m"; `seen` are (version, signature, inputs) of the requests,
    `delay` makes it slow."""

    def __init__(self, model, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.seen, self.delay, self.states = model, [], 0.0, ["AVAILABLE"]

    def answer(self, version, signature, inputs):
        self.seen.append((version, signature, inputs))
        time.sleep(self.delay)
        model, x = self.model, inputs.get("images")
        if x is not None:
            x = np.asarray(x, "uint8")
            if x.max(initial=0) >= model.levels:
                raise ValueError(
                    f"assertion failed: [images must be in 0..16] {x.max()}"
                )
        if signature != "sample" and not hasattr(model, signature):
            raise ValueError(f"Signature name '{signature}' not found")
        labels = np.asarray(inputs["label"], "int32") if "label" in inputs else None
        if signature == "sample":
            seeds = np.asarray(inputs["seed"], "int64")
            pairs = np.stack([seeds >> 32, seeds & 0xFFFFFFFF], -1).astype("int32")
            rows = (pairs,) if labels is None else (pairs, labels)
            return numpy(model.draw(*map(ops.convert_to_tensor, rows)))
        if signature == "encode":
            mean, log_var = map(numpy, model.encode(x, labels))
            return {"mean": mean.tolist(), "log_var": log_var.tolist()}
        if signature == "complete":
            rows, seeds = inputs["known_rows"], np.asarray(inputs["seed"], "int64")
            drawn = [
                model.complete(x[i : i + 1], rows[i], seed=int(seeds[i] >> 32))
                for i in range(len(x))
            ]
            return np.concatenate(drawn)
        given = np.asarray(inputs["z"], "float32") if x is None else x
        return numpy(getattr(model, signature)(given, labels))

    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, code, body):
        content = json.dumps(body).encode()
        self.send_response(code)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        if not re.fullmatch(r"/v1/models/m(/versions/\d+)?(/metadata)?", self.path):
            return self.reply(
                404, {"error": f"Could not find any versions: {self.path}"}
            )
        if self.path.endswith("metadata"):
            described = {"signature_def": {"sample": SIGNATURE}}
            return self.reply(200, {"metadata": {"signature_def": described}})
        versions = [{"version": "3", "state": self.server.state(), "status": {}}]
        self.reply(200, {"model_version_status": versions})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        version = re.fullmatch(r"/v1/models/m(?:/versions/(\d+))?:predict", self.path)
        version = version[1] and int(version[1])
        try:
            outputs = self.server.answer(
                version, body["signature_name"], body["inputs"]
            )
        except ValueError as error:
            return self.reply(400, {"error": str(error)})
        outputs = outputs if isinstance(outputs, dict) else outputs.tolist()
        self.reply(200, {"outputs": outputs})


def start_grpc(stub, port=0):
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

    def known(request, context):
        if request.model_spec.name != "m":
            name = request.model_spec.name
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any: {name}")
        spec = request.model_spec
        return spec.version.value if spec.HasField("version") else None

    class Service:
        def Predict(self, request, context):
            version, answer = known(request, context), predict_pb2.PredictResponse()
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            try:
                name = request.model_spec.signature_name
                outputs = stub.answer(version, name, inputs)
            except ValueError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            outputs = outputs if isinstance(outputs, dict) else {"one": outputs}
            for key, value in outputs.items():
                value = tf.make_tensor_proto(np.asarray(value))
                answer.outputs[key].CopyFrom(value)
            return answer

        def GetModelMetadata(self, request, context):
            known(request, context)
            said = {"signature_def": {"sample": SIGNATURE}}
            said = json_format.ParseDict(said, get_model_metadata_pb2.SignatureDefMap())
            answer = get_model_metadata_pb2.GetModelMetadataResponse()
            answer.metadata["signature_def"].Pack(said)
            return answer

        def GetModelStatus(self, request, context):
            known(request, context)
            answer = get_model_status_pb2.GetModelStatusResponse()
            answer.model_version_status.add(version=3, state=stub.state())
            return answer

        HandleReloadConfigRequest = Classify = Regress = MultiInference = None

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    add = prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server
    add(Service(), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


@pytest.fixture(params=["rest", "grpc"])
def over(request):
    return request.param


@pytest.fixture
def served(request, over):
    """(client, stub) of a family."""
    stub = Stub(FAMILIES[getattr(request, "param", "fvbn")]())
    if over == "rest":
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{stub.server_port}/"
    else:
        server, port = start_grpc(stub)
        url = f"grpc://127.0.0.1:{port}"
    with Client(url, "m", max_batch=4) as client:
        yield client, stub
    stub.shutdown() if over == "rest" else server.stop(None)
    stub.server_close()


def test_samples_are_those_of_the_model_in_parts(served):
    client, stub = served
    images = client.sample(10, seed=7)
    assert images.dtype == "uint8"
    np.testing.assert_array_equal(images, stub.model.sample(10, seed=7))
    assert [len(inputs["seed"]) for _, _, inputs in stub.seen] == [4, 4, 2]
    version, signature, inputs = stub.seen[1]
    assert version is None and signature == "sample"
    assert list(inputs["seed"]) == [7 * 2**32 + i for i in (4, 5, 6, 7)]
    if client.url.startswith("grpc"):  # a server takes no other
        assert inputs["seed"].dtype == "int64"
    none = client.sample(0, seed=7)
    assert none.shape == (0, 8, 8, 1) and none.dtype == "uint8" and len(stub.seen) == 3
    assert np.any(client.sample(2) != client.sample(2))


def test_densities_and_completions(served, digits):
    client, stub = served
    expected = numpy(stub.model.log_prob(digits[:6]))
    np.testing.assert_allclose(client.log_prob(digits[:6]), expected, rtol=1e-5)
    if client.url.startswith("grpc"):
        assert stub.seen[-1][2]["images"].dtype == "uint8"
    done = client.complete(digits[:1].astype("int64"), 3, seed=2)
    if client.url.startswith("grpc"):
        types = {name: str(value.dtype) for name, value in stub.seen[-1][2].items()}
        assert types == {"images": "uint8", "known_rows": "int64", "seed": "int64"}
    np.testing.assert_array_equal(done, stub.model.complete(digits[:1], 3, seed=2))


@pytest.mark.parametrize("served", ["vae-conditional"], indirect=True)
def test_a_vae_with_labels(served, digits, digit_labels):
    client, stub = served
    x, y, model = digits[:5], digit_labels[:5], stub.model
    for ours, theirs in zip(client.encode(x, y), model.encode(x, y), strict=True):
        np.testing.assert_allclose(ours, numpy(theirs), rtol=1e-5, atol=1e-6)
    z = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    decoded = numpy(model.decode(z, np.full(5, 2)))
    np.testing.assert_allclose(client.decode(z, 2), decoded, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(client.elbo(x, y), numpy(model.elbo(x, y)), rtol=1e-5)
    expected = numpy(model.reconstruct(x, y))
    np.testing.assert_allclose(client.reconstruct(x, y), expected, rtol=1e-4, atol=1e-5)
    assert client.sample(3, seed=1, labels=[1, 2, 3]).shape == (3, 8, 8, 1)


@pytest.mark.parametrize("served", ["gan"], indirect=True)
def test_a_gan(served, digits):
    client, stub = served
    z = np.random.default_rng(0).normal(size=(3, 3)).astype("float32")
    made = numpy(stub.model.generate(z))
    np.testing.assert_allclose(client.generate(z), made, rtol=1e-4, atol=1e-4)
    logits = numpy(stub.model.discriminate(digits[:3]))
    np.testing.assert_allclose(client.discriminate(digits[:3]), logits, rtol=1e-4)


def test_the_servers_words_become_errors(served, digits):
    client, stub = served
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


def test_what_would_be_misread_is_not_sent(served):
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


def test_slow_and_missing_servers_are_told(served):
    client, stub = served
    stub.delay = 1.0
    slow = Client(client.url, "m", timeout=0.2)
    with pytest.raises(TimeoutError, match="within 0.2 s"):
        slow.sample(1, seed=0)
    nobody = Client(f"{client.url.split(':')[0]}://127.0.0.1:9", "m")
    with pytest.raises(ConnectionError, match="No TensorFlow Serving at"):
        nobody.status()
    with pytest.raises(
        TimeoutError, match="not ready at .* after 0.3 s: No (Tensor|answer)"
    ):
        nobody.wait_until_ready(0.3)


def test_waiting_for_a_version(served):
    client, stub = served
    stub.states = ["START", "LOADING", "AVAILABLE"]
    client.wait_until_ready(60)
    assert client.status() == {3: "AVAILABLE"}
    assert "sample" in client.metadata()["signature_def"]["signature_def"]
    with pytest.raises(TimeoutError, match="versions are"):
        Client(client.url, "m", version=9).wait_until_ready(3)
    Client(client.url, "m", version=3).sample(1, seed=0)
    assert stub.seen[-1][0] == 3
    Client(client.url, "m", version=np.int64(0)).sample(1, seed=0)
    assert stub.seen[-1][0] == 0


def test_a_server_that_starts_while_one_waits(over):
    """gRPC alone would wait longer from one try to connect to the next: by its
    defaults twelve tries take some five minutes."""
    stub, tries = Stub(FAMILIES["fvbn"]()), 0
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.settimeout(60)
        port = nobody.getsockname()[1]
        client = Client(f"{'http' if over == 'rest' else over}://127.0.0.1:{port}", "m")
        waited = threading.Thread(target=client.wait_until_ready, args=(300,))
        waited.start()
        end = time.monotonic() + 60
        while tries < 12 and time.monotonic() < end:
            nobody.accept()[0].close()
            tries += 1
    if over == "rest":
        server = Stub(stub.model, port)
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server, _ = start_grpc(stub, port)
    waited.join(60)
    late = waited.is_alive()
    waited.join()
    server.shutdown() if over == "rest" else server.stop(None)
    for each in {stub, server} if over == "rest" else {stub}:
        each.server_close()
    assert tries == 12 and not late


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
def test_what_else_may_come_over_http(answer, raised, words):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            with connection:
                connection.recv(10000)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(raised, match=words):
            Client(url, "m").status()
        thread.join()


def test_one_configuration_for_all_models(tmp_path):
    for name in ("vae", "gan", "unfinished", "no_version"):
        version = "1_backup" if name == "no_version" else "1"
        (tmp_path / name / version).mkdir(parents=True)
        if name != "unfinished":
            (tmp_path / name / version / "saved_model.pb").touch()
    path = kgen.serving.write_config(tmp_path)
    text = path.read_text()
    assert path.name == "models.config" and text.count("config {") == 2
    assert re.findall(r'name: "(\w+)"', text) == ["gan", "vae"]
    assert f'base_path: "{tmp_path}/gan"' in text
    assert text.count("{") == text.count("}")
    inside = kgen.serving.write_config(tmp_path, "/models").read_text()
    assert 'base_path: "/models/vae"' in inside
    with pytest.raises(ValueError, match="No exported model"):
        kgen.serving.write_config(tmp_path / "vae" / "1")


def test_the_servers_own_parser_reads_the_configuration(tmp_path):
    pytest.importorskip("tensorflow_serving")
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    name = 'a "quoted" \\ name'
    (tmp_path / name / "7").mkdir(parents=True)
    (tmp_path / name / "7" / "saved_model.pb").touch()
    read = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(kgen.serving.write_config(tmp_path).read_text(), read)
    (config,) = read.model_config_list.config
    assert config.name == name and config.base_path == f"{tmp_path}/{name}"
    assert config.model_platform == "tensorflow"
    batching = (tmp_path / "batching.config").read_text()
    # of BatchingParameters, whose messages hold one `value` each
    settings = dict(re.findall(r"^(\w+) \{ value: (\d+) \}$", batching, re.M))
    assert len(settings) == len(batching.splitlines()) == 4
    assert int(settings["max_batch_size"]) == Client("http://h", "m").max_batch


def test_gRPC_wants_a_port_and_its_package(monkeypatch):
    pytest.importorskip("tensorflow_serving")
    with pytest.raises(ValueError, match="expected a port"):
        Client("grpc://localhost", "m")
    monkeypatch.setitem(sys.modules, "kgen.serving.over_grpc", None)
    with pytest.raises(ImportError, match=r"pip install 'kgen\[serving\]'"):
        Client("grpc://localhost:8500", "m")


def test_serve_becomes_the_server_that_is_there_or_says_how(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").touch()
    server, became = tmp_path / "server", []
    server.touch(0o755)
    monkeypatch.setattr(os, "execvp", lambda *words: became.append(words))
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", str(server))
    main(["serve", "--folder", str(tmp_path), "--port", "5", "--batching"])
    ((program, command),) = became
    assert program == command[0] == str(server)
    assert command == commands(tmp_path, 5, batching=True)[0]
    assert "--port=5" in command and "--enable_batching" in command
    assert f"--model_config_file={tmp_path}/models.config" in command
    assert f"--batching_parameters_file={tmp_path}/batching.config" in command
    monkeypatch.delenv("TENSORFLOW_MODEL_SERVER")
    for engine in (1, 0):  # a docker without its engine is none
        docker = tmp_path / f"{engine}" / "docker"
        docker.parent.mkdir()
        docker.write_text(f"#!/bin/sh\nexit {engine}\n")
        docker.chmod(0o755)
        monkeypatch.setenv("PATH", f"{docker.parent}:/bin")
        main(["serve", "--folder", str(tmp_path)])
        assert len(became) == 2 - engine
    assert became.pop()[1] == commands(tmp_path)[1]
    capsys.readouterr()
    monkeypatch.setenv("PATH", "")
    main(["serve", "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    assert "tensorflow_model_server --port=8500 --rest_api_port=8501" in said
    assert f"-v {tmp_path}:{tmp_path}:ro tensorflow/serving" in said
    assert len(became) == 1
    with pytest.raises(SystemExit, match="No exported model"):
        main(["serve", "--folder", str(tmp_path / "m")])


def test_a_picture_is_drawn_from_a_server(tmp_path, capsys):
    stub = Stub(FAMILIES["fvbn"]())
    threading.Thread(target=stub.serve_forever, daemon=True).start()
    url, out = f"http://127.0.0.1:{stub.server_port}", tmp_path / "m.png"
    words = ["sample", "m", "--url", url, "--folder", str(tmp_path)]
    main([*words, "--n", "9", "--out", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    assert np.asarray(Image.open(out)).std() > 10
    assert list(stub.seen[0][2]["seed"]) == [7 * 2**32 + i for i in range(9)]
    stub.shutdown()
    stub.server_close()
    with pytest.raises(SystemExit, match="No TensorFlow Serving"):
        main([*words, "--wait", "0.2"])
