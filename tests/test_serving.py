"""The client, against TensorFlow Serving's documented REST and gRPC before a model; the
configuration files; the commands."""

import contextlib
import os
import re
import socket
import sys
import threading
import time

import exports
import numpy as np
import pytest
from exports import refused
from keras import ops
from PIL import Image
from serving_api import Refused, serve_grpc, serve_rest
from zoo import CLASSES, LEVELS, SHAPE, numpy, shared

import kgen
from kgen.serving import Client, ServingError
from kgen.serving.__main__ import main
from kgen.serving.config import commands
from kgen.signatures import Input, Output, Signature

pytestmark = pytest.mark.once

INTERFACES = {"rest": ("http", serve_rest), "grpc": ("grpc", serve_grpc)}


class Stub:
    """Serves a model as version 3 of "m". `asked` is the version of the last request,
    `seen` are those of a prediction, (signature, inputs), but of `limits`; `reads` how
    often signatures or limits were read; `delay` makes it slow; `states` are those of
    the version, one a request. An `older` export takes bytes, and has no `limits`."""

    number = 3

    def __init__(self, model, older=False):
        self.model, self.seen, self.delay, self.states = model, [], 0.0, ["AVAILABLE"]
        self.reads, self.older, self.levels = 0, older, LEVELS

    def describe(self, name, tensor):
        """A tensor in the metadata."""
        dtype = "uint8" if self.older and name == "images" else tensor.dtype
        sizes = [{"size": str(size)} for size in (-1, *tensor.shape)]
        dtype = f"DT_{dtype.upper().replace('FLOAT32', 'FLOAT')}"
        return {"dtype": dtype, "tensor_shape": {"dim": sizes}}

    @property
    def described(self):
        self.reads += 1
        signatures = dict(self.model.endpoints())
        if not self.older:
            outputs = dict.fromkeys(["levels", "num_classes"], Output("int32"))
            signatures["limits"] = Signature(None, {"index": Input("int64")}, outputs)
        return {
            name: {
                "inputs": {k: self.describe(k, v) for k, v in s.inputs.items()},
                "outputs": {k: self.describe("", v) for k, v in s.outputs.items()},
            }
            for name, s in signatures.items()
        }

    def find(self, name, version):
        if name != "m":
            raise Refused("NOT_FOUND", f"Could not find any versions of {name}")
        self.asked = version
        return self

    @property
    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def predict(self, signature, inputs):
        if signature == "limits" and not self.older:
            self.reads += 1
            classes = np.array([self.model.num_classes or 0])
            return {"levels": np.array([self.levels]), "num_classes": classes}
        self.seen.append((signature, inputs))
        time.sleep(self.delay)
        asked = self.model.endpoints()[signature]
        types = {name: given.dtype for name, given in asked.inputs.items()}
        types |= {"images": "uint8"} if self.older else {}
        for name, value in inputs.items():  # JSON has no types
            if not isinstance(value, list) and value.dtype != types[name]:
                words = f"Expects arg[0] to be {types[name]} but {value.dtype} is"
                raise Refused("INVALID_ARGUMENT", words)
        inputs = {k: np.asarray(v, types[k]) for k, v in inputs.items()}
        if "images" in inputs and inputs["images"].max() >= self.levels:
            raise Refused("INVALID_ARGUMENT", "[images must be in 0..16]")
        if "seed" in inputs:
            words = inputs["seed"] >> 32, inputs["seed"] & 0xFFFFFFFF
            inputs["seed"] = np.stack(words, -1).astype("int32")  # (n, 2)
        arguments = (ops.convert_to_tensor(inputs[k]) for k in asked.inputs)
        results = asked.function(*arguments)
        results = results if isinstance(results, tuple) else (results,)
        return dict(zip(asked.outputs, map(numpy, results), strict=True))


@contextlib.contextmanager
def serve(over="rest", port=0, name="fvbn", num_classes=None, older=False, model=None):
    """(a client of the model, or of that of this name, the stub)."""
    scheme, interface = INTERFACES[over]
    stub = Stub(model or shared(name, SHAPE, LEVELS, num_classes), older)
    with interface(stub.find, port) as port:
        with Client(f"{scheme}://127.0.0.1:{port}/", "m", max_batch=4) as client:
            yield client, stub


@pytest.fixture(params=INTERFACES)
def over(request):
    if request.param == "grpc":
        pytest.importorskip("tensorflow_serving")
    return request.param


@pytest.fixture
def served(over):
    with serve(over) as client_and_stub:
        yield client_and_stub


# The client


def test_samples_are_those_of_the_model(served):
    """In batches of `max_batch`."""
    client, stub = served
    images = client.sample(10, seed=7)
    assert images.dtype == "uint8"
    np.testing.assert_array_equal(images, stub.model.sample(10, seed=7))
    assert [len(inputs["seed"]) for _, inputs in stub.seen] == [4, 4, 2]
    signature, inputs = stub.seen[1]
    assert stub.asked is None and signature == "sample"
    assert list(inputs["seed"]) == [7 * 2**32 + i for i in (4, 5, 6, 7)]
    none = client.sample(0, seed=7)
    assert none.shape == (0, *SHAPE) and none.dtype == "uint8" and len(stub.seen) == 3
    assert stub.reads == 2 and client.limits() == {"levels": 17, "num_classes": 0}
    assert np.any(client.sample(2) != client.sample(2))


@pytest.mark.parametrize(
    "name, num_classes", [("fvbn", None), ("vae-conditional", CLASSES), ("gan", None)]
)
def test_methods_return_what_the_models_return(
    name, num_classes, over, digits, digit_labels
):
    x, y = digits[:5].astype("int64"), digit_labels[:5]
    with serve(over, name=name, num_classes=num_classes) as (client, stub):
        exports.check_client(client, stub.model, x, y, 1e-5)
        if num_classes:  # one label for all
            z = np.ones((5, 3))
            expected = client.decode(z, np.full(5, 2))
            np.testing.assert_array_equal(client.decode(z, 2), expected)


def test_call_asks_for_any_signature(over, rng):
    """In batches of `max_batch`, in the dtypes of the metadata, which REST drops."""
    inputs, outputs = exports.masking_request(10, rng)
    with serve(over, model=exports.Masking(SHAPE, LEVELS)) as (client, stub):
        for rows in (slice(None), slice(0)):
            answer = client.call("mask", **{k: v[rows] for k, v in inputs.items()})
            assert answer.keys() == outputs.keys()
            for name, value in outputs.items():
                assert answer[name].dtype == value.dtype
                np.testing.assert_array_equal(answer[name], value[rows])
        assert [len(inputs["mask"]) for _, inputs in stub.seen] == [4, 4, 2]
        images = client.call("sample", seed=range(5))  # one output: no dict
        np.testing.assert_array_equal(images, client.sample(5, seed=0))
        stub.seen.clear()
        for wrong, words in (
            ({}, "needs"),
            ({"noise": 1.0}, "needs"),
            (inputs | {"label": [1]}, "takes no labels in 'mask'"),
            (inputs | {"mask": inputs["noise"]}, "mask must be integers"),
            (inputs | {"mask": inputs["mask"][:9]}, r"shape \(10\); got \(9,\)"),
            (inputs | {"step": []}, r"step must be of shape \(10\); got \(0,\)"),
        ):
            with pytest.raises(ValueError, match=words):
                client.call("mask", **wrong)
        with refused("no signature 'nothing'", 400):
            client.call("nothing", **inputs)
        assert not stub.seen


def test_older_exports_take_bytes(over, digits):
    """They have no `limits`: the server checks the range."""
    with serve(over, older=True) as (client, stub):
        x = digits[:5].astype("int64")
        np.testing.assert_allclose(
            client.log_prob(x), numpy(stub.model.log_prob(x)), 1e-5
        )
        assert client.limits() is None
        with pytest.raises(ValueError, match=r"0\.\.255; got 0\.\.256"):
            client.log_prob(np.where(x == x.max(), 256, 0))
        with refused("images must be in 0..16", 400):
            client.log_prob(np.full((1, *SHAPE), 200))


def test_signatures_of_a_new_version_are_read_again(over, digits):
    with serve(over, older=True) as (client, stub):
        expected = client.log_prob(digits[:2])
        stub.older = False
        np.testing.assert_allclose(client.log_prob(digits[:2]), expected)
        stub.levels = 2
        with pytest.raises(ValueError, match=r"images must be in 0\.\.1; got"):
            client.log_prob(digits[:2])
        stub.levels = LEVELS
        np.testing.assert_allclose(client.log_prob(digits[:2]), expected)
        stub.older = True
        np.testing.assert_allclose(client.log_prob(digits[:2]), expected)


def test_missing_models_and_signatures_raise(served, digits):
    client, _ = served
    with refused("no signature 'encode'", 400):
        client.encode(digits[:1])
    with refused("Could not find", 404):
        Client(client.url, "other").status()


def images_of(value):
    return np.full((1, *SHAPE), value)


WRONG = [  # signature, inputs, words of the error
    ("log_prob", {"images": images_of(256)}, r"images must be in 0\.\.16; got 256"),
    ("log_prob", {"images": images_of(17)}, r"images must be in 0\.\.16; got 17"),
    ("log_prob", {"images": images_of(-1)}, r"images must be in 0\.\.16; got -1"),
    ("log_prob", {"images": images_of(1.0)}, "must be integers; got float64"),
    ("log_prob", {"images": images_of(1)[0]}, r"shape \(8, 8, 8, 1\); got \(8"),
    ("log_prob", {"images": images_of(1)[:, 1:]}, r"\(1, 8, 8, 1\); got \(1, 7"),
    ("log_prob", {"images": 1}, r"\(1, 8, 8, 1\); got \(\)"),
    ("log_prob", {"images": images_of(1), "label": [1]}, "'m' takes no labels in"),
    ("log_prob", {"images": images_of(1), "z": [1]}, "takes no z in 'log_prob'"),
    ("complete", {"images": images_of(1), "seed": [1]}, "needs known_rows in"),
    ("complete", {"images": images_of(1), "seed": [1], "known_rows": [9]},
     r"known_rows must be in 0\.\.8; got 9"),
    ("complete", {"images": images_of(1), "seed": [1], "known_rows": [-1]},
     r"known_rows must be in 0\.\.8; got -1"),
    ("complete", {"images": images_of(1), "seed": [1, 2], "known_rows": [0]},
     r"seed must be of shape \(1\); got \(2,\)"),
    ("complete", {"images": images_of(1), "seed": [1], "known_rows": [3.7]},
     "known_rows must be integers; got float64"),
]  # fmt: skip


def test_wrong_inputs_raise_and_are_not_sent(served):
    client, stub = served
    for signature, inputs, words in WRONG:
        with pytest.raises(ValueError, match=words):
            client.predict(signature, **inputs)
    assert not stub.seen


def test_one_wrong_row_of_many_stops_all_requests(served, digits):
    client, stub = served
    x = digits[:9].astype("int64")
    x[8, 0, 0] = 17
    with pytest.raises(ValueError, match="images must be"):
        client.log_prob(x)
    with pytest.raises(ValueError, match="known_rows must be"):
        client.complete(digits[:9], np.arange(1, 10))
    with pytest.raises(ValueError, match="takes no labels in 'sample'"):
        client.sample(9, seed=0, labels=1)
    assert not stub.seen


def test_wrong_labels_and_latents_raise_and_are_not_sent(over, digits):
    with serve(over, name="vae-conditional", num_classes=CLASSES) as (client, stub):
        for label, words in (
            (None, "'m' needs labels in 'elbo'"),
            (10, r"label must be in 0\.\.9; got 10"),
            (-1, r"label must be in 0\.\.9; got -1"),
            ("1", "label must be integers"),
        ):
            with pytest.raises(ValueError, match=words):
                client.elbo(digits[:2], label)
        for z, words in (
            (np.full((1, 3), np.nan), "z must be finite latents"),
            (np.full((1, 3), -1e4), "z must be finite latents, .z. < 10000"),
            (np.zeros((1, 2)), r"z must be of shape \(1, 3\); got \(1, 2\)"),
        ):
            with pytest.raises(ValueError, match=words):
                client.decode(z, 1)
        assert not stub.seen


def test_wrong_clients_raise():
    with pytest.raises(TypeError):
        Client("http://localhost:8501", "m", version=1.5)
    with pytest.raises(ValueError, match="begin with http"):
        Client("localhost:8501", "m")


def test_slow_and_missing_servers_raise(served, over):
    client, stub = served
    client.sample(1, seed=0)
    stub.delay, client.timeout = 1.0, 0.2
    with pytest.raises(TimeoutError, match="within 0.2 s"):
        client.sample(1, seed=0)
    missing = Client(f"{INTERFACES[over][0]}://127.0.0.1:9", "m")
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
        assert stub.asked == version


def test_client_waits_for_a_server_that_starts_later(over):
    """gRPC alone waits longer from one attempt to connect to the next: by its defaults
    eight attempts take 34 s or more."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        nobody.settimeout(60)
        port = nobody.getsockname()[1]
        client = Client(f"{INTERFACES[over][0]}://127.0.0.1:{port}", "m")
        waiting = threading.Thread(
            target=client.wait_until_ready, args=(300,), daemon=True
        )
        begin = time.monotonic()
        waiting.start()
        for _ in range(8):
            nobody.accept()[0].close()
        seconds = time.monotonic() - begin
    with serve(over, port):
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
        with contextlib.suppress(SystemExit):  # where nothing is served
            main(words)
        assert len(started) == 2 - status
    assert started.pop()[1] == commands(tmp_path)[1]
    capsys.readouterr()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):  # nothing is served
        main(words)
    printed = capsys.readouterr().out
    assert "tensorflow_model_server --port=8500 --rest_api_port=8501" in printed
    assert f"-v {tmp_path}:{tmp_path}:ro tensorflow/serving" in printed
    assert len(started) == 1
    with pytest.raises(SystemExit, match="No exported model"):
        main(["serve", "--folder", str(tmp_path / "m")])


def test_sample_command_writes_a_picture(tmp_path, capsys):
    out = tmp_path / "m.png"
    with serve() as (client, stub):
        words = ["sample", "m", "--url", client.url, "--folder", str(tmp_path)]
        main([*words, "--n", "9", "--out", str(out)])
    assert capsys.readouterr().out.strip() == str(out)
    assert np.asarray(Image.open(out)).std() > 10
    assert list(stub.seen[0][1]["seed"]) == [7 * 2**32 + i for i in range(9)]
    with pytest.raises(SystemExit, match="No TensorFlow Serving"):
        main([*words, "--wait", "0.2"])
