"""The client, against a stub that speaks TensorFlow Serving's documented JSON and
answers with a model's own methods; and the configuration file."""

import http.server
import json
import re
import threading
import time

import numpy as np
import pytest
from families import FAMILIES
from keras import ops

import kgen
from kgen.serving import Client, ServingError


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


class Stub(http.server.ThreadingHTTPServer):
    """Serves one model as "m"; `seen` are the requests, `delay` makes it slow."""

    def __init__(self, model):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.seen, self.delay, self.states = model, [], 0.0, ["AVAILABLE"]

    def answer(self, signature, inputs):
        model, x = self.model, inputs.get("images")
        if x is not None:
            x = np.asarray(x, "uint8")
            if x.max(initial=0) >= model.levels:
                raise ValueError(
                    f"assertion failed: [images must be in 0..16] {x.max()}"
                )
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
            return self.reply(200, {"metadata": {"signature_def": {"sample": {}}}})
        state = self.server.states[0]
        if len(self.server.states) > 1:
            self.server.states.pop(0)
        versions = [{"version": "3", "state": state, "status": {}}]
        self.reply(200, {"model_version_status": versions})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body))
        time.sleep(self.server.delay)
        try:
            outputs = self.server.answer(body["signature_name"], body["inputs"])
        except ValueError as error:
            return self.reply(400, {"error": str(error)})
        except AttributeError:
            name = body["signature_name"]
            return self.reply(400, {"error": f"Signature name {name!r} not found"})
        outputs = outputs if isinstance(outputs, dict) else outputs.tolist()
        self.reply(200, {"outputs": outputs})


@pytest.fixture
def served(request):
    """(client, stub) of a family."""
    stub = Stub(FAMILIES[getattr(request, "param", "fvbn")]())
    thread = threading.Thread(target=stub.serve_forever, daemon=True)
    thread.start()
    yield Client(f"http://127.0.0.1:{stub.server_port}/", "m", max_batch=4), stub
    stub.shutdown()
    stub.server_close()


def test_samples_are_those_of_the_model_in_parts(served):
    client, stub = served
    images = client.sample(10, seed=7)
    assert images.dtype == "uint8"
    np.testing.assert_array_equal(images, stub.model.sample(10, seed=7))
    assert [len(body["inputs"]["seed"]) for _, body in stub.seen] == [4, 4, 2]
    path, body = stub.seen[1]
    assert path == "/v1/models/m:predict" and body["signature_name"] == "sample"
    assert body["inputs"]["seed"] == [7 * 2**32 + i for i in (4, 5, 6, 7)]
    assert np.any(client.sample(2) != client.sample(2))


def test_densities_and_completions(served, digits):
    client, stub = served
    expected = numpy(stub.model.log_prob(digits[:6]))
    np.testing.assert_allclose(client.log_prob(digits[:6]), expected, rtol=1e-5)
    done = client.complete(digits[:1], 3, seed=2)
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
    with pytest.raises(ServingError, match="'encode' not found"):
        client.encode(digits[:1])
    with pytest.raises(ServingError, match="Could not find") as error:
        Client(client.url, "other").status()
    assert error.value.status == 404


def test_what_would_be_misread_is_not_sent(served):
    client, stub = served
    for wrong, words in (
        (np.full((1, 8, 8, 1), 256), r"0\.\.255; got 256"),
        (np.zeros((1, 8, 8, 1)), "expected integers; got float64"),
    ):
        with pytest.raises(ValueError, match=words):
            client.log_prob(wrong)
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
    with pytest.raises(ConnectionError, match="No TensorFlow Serving at"):
        Client("http://127.0.0.1:9", "m").status()
    with pytest.raises(TimeoutError, match="not ready at .* after 0.3 s: No Tensor"):
        Client("http://127.0.0.1:9", "m").wait_until_ready(0.3)


def test_waiting_for_a_version(served):
    client, stub = served
    stub.states = ["START", "LOADING", "AVAILABLE"]
    client.wait_until_ready(5)
    assert client.status() == {3: "AVAILABLE"}
    assert "sample" in client.metadata()["signature_def"]
    with pytest.raises(TimeoutError, match="versions are"):
        Client(client.url, "m", version=9).wait_until_ready(0.3)
    Client(client.url, "m", version=3).sample(1, seed=0)
    assert stub.seen[-1][0] == "/v1/models/m/versions/3:predict"


def test_one_configuration_for_all_models(tmp_path):
    for name in ("vae", "gan", "unfinished"):
        (tmp_path / name / "1").mkdir(parents=True)
        if name != "unfinished":
            (tmp_path / name / "1" / "saved_model.pb").touch()
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
