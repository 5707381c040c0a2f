"""The client against servers that are slow, busy, wrong or not TensorFlow Serving."""

import contextlib
import http.server
import json
import threading
import time

import numpy as np
import pytest

from kgen.serving import Client, ServingError, over_rest
from kgen.serving import client as client_module
from kgen.serving.errors import AttemptTimeout

pytestmark = pytest.mark.once

X = np.zeros((3, 2, 2, 1), "uint8")
IMAGES = {"dtype": "DT_UINT8", "tensor_shape": {"dim": [{"size": "-1"}] * 4}}
SEED = {"dtype": "DT_INT64", "tensor_shape": {"dim": [{"size": "-1"}]}}
SIGNATURES = {"sample": {"inputs": {"seed": SEED}, "outputs": {"images": IMAGES}}}
FLOATS = IMAGES | {"dtype": "DT_FLOAT"}
SIGNATURES |= {
    name: {"inputs": {"images": IMAGES}, "outputs": dict.fromkeys(outputs, FLOATS)}
    for name, outputs in {
        "log_prob": ["log_prob"],
        "encode": ["mean", "log_var"],
    }.items()
}
LIMITED = SIGNATURES | {"limits": {}}


def metadata(signatures):
    return {"metadata": {"signature_def": {"signature_def": signatures}}}


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        with contextlib.suppress(OSError):  # the client has gone
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.server.paths.append(self.path)
            if self.path.endswith("/metadata") and self.server.metadata:
                self.send_response(200)
                self.end_headers()
                return self.wfile.write(json.dumps(self.server.metadata).encode())
            reply = self.server.replies
            reply = reply.pop(0) if isinstance(reply, list) else reply
            if callable(reply):
                return reply(self)
            status, body, *headers = reply
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    do_POST = do_GET


@contextlib.contextmanager
def serve(replies, **kwargs):
    """A client and its server, which gives `replies`, (status, body, *headers) each, or
    the only one to all; to a request for metadata `metadata`, unless it is None."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.replies, server.paths, server.metadata = replies, [], metadata(SIGNATURES)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Client(f"http://127.0.0.1:{server.server_port}", "m", **kwargs), server
    finally:
        server.shutdown()
        server.server_close()


def drip(text):
    def reply(handler):
        for byte in text:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)

    return reply


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"y" * 200,
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 200,
    ],
)
def test_an_answer_in_drops_ends_at_the_deadline(text):
    with serve(drip(text), timeout=0.5) as (client, _):
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="within 0.5 s"):
            client.log_prob(X)
        assert time.monotonic() - begin < 5.0


def test_large_answers_raise(monkeypatch):
    monkeypatch.setattr(over_rest, "MAX_ANSWER", 2**20)
    with serve((200, b" " * 2**20 + b"{}")) as (client, _):
        with pytest.raises(ConnectionError, match="more than 1 MiB: lower max_batch"):
            client.log_prob(X)


def test_redirects_are_not_followed():
    with serve((200, {"outputs": [0.0] * 3})) as (client, other):
        moved = (302, b"", ("Location", f"{client.url}/v1/models/m:predict"))
        with serve(moved) as (client, _), pytest.raises(ServingError) as error:
            client.log_prob(X)
        assert error.value.status == 302 and not other.paths


@pytest.mark.parametrize(
    "outputs, words",
    [
        ([1.0, 2.0], r"expected 3 rows of float32; got float64 \(2,\)"),
        ([1.0, float("nan"), 2.0], "NaN or infinity"),
        (1.0, r"got float64 \(\)"),
        (["a", "b", "c"], "expected 3 rows of float32; got <U1"),
        ({"mean": [0.0] * 3}, None),
    ],
)
def test_impossible_numbers_raise(outputs, words):
    with serve((200, {"outputs": outputs})) as (client, _):
        if words:
            with pytest.raises(ConnectionError, match=words):
                client.log_prob(X)
        with pytest.raises(
            ConnectionError, match="no mean and log_var|expected 3 rows"
        ):
            client.encode(X)


@pytest.mark.parametrize("pixel", [300, -1, 0.5, float("nan")])
def test_images_that_are_no_bytes_raise(pixel):
    images = np.full((2, 2, 2, 1), pixel).tolist()
    with serve((200, {"outputs": images})) as (client, _):
        with pytest.raises(ConnectionError, match="expected 2 rows of uint8; got"):
            client.sample(2, seed=0)


def test_busy_servers_are_asked_again():
    busy, done = (429, {"error": "Server Threadpool Exhausted"}), [1.0, 2.0, 3.0]
    with serve([busy, (503, b""), busy, (200, {"outputs": done})]) as (client, server):
        np.testing.assert_array_equal(client.log_prob(X), done)
        assert len(server.paths) == 5 and server.paths[0].endswith("metadata")
    with serve(busy, timeout=1.0) as (client, server):
        with pytest.raises(ServingError, match="Threadpool") as error:
            client.log_prob(X)
        assert error.value.status == 429 and len(server.paths) > 2
    with serve((400, {"error": "bad"})) as (client, server):
        with pytest.raises(ServingError, match="bad"):
            client.log_prob(X)
        assert sum(path.endswith(":predict") for path in server.paths) == 1


def test_attempts_share_the_timeout(monkeypatch):
    """All of a call: metadata, limits, and a prediction of a server that is busy."""
    timeouts = []

    class Busy(over_rest.Rest):
        def metadata(self, timeout):
            timeouts.append(timeout)
            time.sleep(0.1)
            return metadata(LIMITED)["metadata"]

        def predict(self, signature, inputs, timeout):
            timeouts.append(timeout)
            if signature == "limits":
                return {"levels": [2], "num_classes": [0]}
            if len(timeouts) < 5:
                raise ServingError("busy", 503)
            raise AttemptTimeout

    monkeypatch.setattr(client_module, "Rest", Busy)
    client = Client("http://localhost:1", "m", timeout=9.0)
    with pytest.raises(TimeoutError, match=r"within 9 s, after it was busy \(busy\)"):
        client.log_prob(X)
    assert len(timeouts) == 5 and timeouts == sorted(timeouts, reverse=True)
    assert timeouts[0] <= 9.0 and timeouts[1] <= 8.9  # less what went before it
    assert timeouts[3] <= timeouts[2] - 0.025 and timeouts[4] <= timeouts[3] - 0.05


def test_other_json_raises():
    deep = b'{"outputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with serve((200, deep)) as (client, _):
        with pytest.raises(ConnectionError, match="is no TensorFlow Serving"):
            client.log_prob(X)
    text = json.dumps(metadata(SIGNATURES))
    odd = [{"metadata": 7}, metadata([1])]
    odd += [json.loads(text.replace(t, "DT_STRING")) for t in ("DT_INT64", "DT_UINT8")]
    with serve(None) as (client, server):
        for server.metadata in odd:
            with pytest.raises(ConnectionError):
                Client(client.url, "m").sample(0)  # reads the outputs
                Client(client.url, "m").sample(1, seed=0)  # the inputs
        server.metadata = metadata(LIMITED)
        for odd in ([1], "2", {"levels": 2}, {"levels": [0], "num_classes": [0]}):
            server.replies = (200, {"outputs": odd})
            with pytest.raises(ConnectionError, match="limits that no model of kgen"):
                Client(client.url, "m").log_prob(X)


def test_labels_that_nothing_uses_raise():
    """TensorFlow Serving ignores them over REST."""
    with serve(None) as (client, server):
        with pytest.raises(ValueError, match="takes no labels in 'sample'"):
            client.sample(2, seed=0, labels=[1, 2])
        assert server.paths == ["/v1/models/m/metadata"]


def test_times_that_are_none_raise():
    for wrong in (float("nan"), -1.0, "3", None, float("inf")):
        with pytest.raises(ValueError, match="must be a number of seconds"):
            Client("http://localhost:8501", "m", timeout=wrong)
        with pytest.raises(ValueError, match="must be a number of seconds"):
            Client("http://localhost:8501", "m").wait_until_ready(wrong)
