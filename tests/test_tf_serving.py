"""A real TensorFlow Serving serves all models: `tensorflow_model_server`, which the
environment variable TENSORFLOW_MODEL_SERVER (a path) or PATH names; without one all is
skipped. `tests/stand_in_server.py` replaces it to try the tests."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import exports
import keras
import numpy as np
import pytest
import zoo
from zoo import MODELS, SHAPE, numpy

import kgen
from kgen.serving import Client, ServingError
from kgen.serving.config import commands, found_server

pytestmark = pytest.mark.exhaustive
if not found_server():
    named = os.environ.get("TENSORFLOW_MODEL_SERVER")
    reason = f"TENSORFLOW_MODEL_SERVER={named} is no program"
    if not named:
        reason = (
            "neither TENSORFLOW_MODEL_SERVER nor PATH names a tensorflow_model_server"
        )
    pytest.skip(f"no TensorFlow Serving: {reason}", allow_module_level=True)
pytest.importorskip("tensorflow_serving")

PROTOCOLS = ["rest", "grpc"]


class Started:
    """A server of a folder of models; a context manager."""

    def __init__(self, folder, names, batching=False):
        self.grpc, self.rest = zoo.free_ports(2)
        command, _ = commands(folder, self.grpc, self.rest, batching)
        if command[0].endswith(".py"):
            command.insert(0, sys.executable)
        command.append("--file_system_poll_wait_seconds=1")
        self.log = folder.parent / f"server_{self.grpc}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.names = names

    def client(self, name, protocol, **kwargs):
        url = f"http://127.0.0.1:{self.rest}"
        url = url if protocol == "rest" else f"grpc://127.0.0.1:{self.grpc}"
        return Client(url, name, **kwargs)

    def __enter__(self):
        end = time.monotonic() + 600  # ports open when all models are loaded
        for name in self.names:
            while True:
                ended = self.process.poll() is not None
                try:
                    self.client(name, "rest").wait_until_ready(1)
                    break
                except TimeoutError as error:
                    if ended or time.monotonic() > end:
                        last = self.log.read_text()[-3000:]
                        raise AssertionError(f"{error}\n{last}") from error
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving") / "models"


@pytest.fixture(scope="module")
def models(folder):
    """{name: model}, all exported and named in one configuration."""
    keras.utils.set_random_seed(0)
    models = {name: exports.randomized(name) for name in MODELS}
    exports.export(models, folder)
    kgen.serving.write_config(folder)
    return models


@pytest.fixture(scope="module")
def server(models, folder):
    with Started(folder, models) as started:
        yield started


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", MODELS)
def test_every_signature_answers_as_the_model_does(
    name, protocol, server, models, digits, digit_labels
):
    model, x = models[name], digits[:5]
    labels = None if model.num_classes is None else digit_labels[:5]
    given = {} if labels is None else {"label": labels}
    images, seeds = model.sample(5, 7, labels), (7 << 32) + np.arange(5)
    with server.client(name, protocol, max_batch=3) as client:
        assert client.status() == {1: "AVAILABLE"}
        described = client.metadata()["signature_def"]["signature_def"]
        assert set(described) >= {"serving_default", *model.endpoints()}
        output = described["sample"]["outputs"]["images"]
        sizes = [int(d["size"]) for d in output["tensor_shape"]["dim"]]
        assert output["dtype"] == "DT_UINT8" and sizes == [-1, *SHAPE]
        for call, (inputs, expected) in exports.answers(name, model, x, labels).items():
            seed = {"seed": 7} if call == "complete" else {}
            answers = getattr(client, call)(*inputs.values(), **seed, labels=labels)
            answers = answers if isinstance(answers, tuple) else (answers,)
            for answer, value in zip(answers, expected, strict=True):
                assert answer.shape == value.shape and answer.dtype == value.dtype
                np.testing.assert_allclose(answer, value, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(client.sample(5, 7, labels), images)
        by_default = client.predict("serving_default", seed=seeds, **given)
        np.testing.assert_array_equal(by_default, images)
        none = client.sample(0, labels=None if labels is None else labels[:0])
        assert none.shape == (0, *SHAPE)


def test_rows_are_answered_in_the_form_of_curl(server, models):
    """{"instances": [...]}, the README's request, without the client."""

    def predict(name, signature, rows):
        body = json.dumps({"signature_name": signature, "instances": rows}).encode()
        url = f"http://127.0.0.1:{server.rest}/v1/models/{name}:predict"
        request = urllib.request.Request(url, body)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["predictions"]

    seeds = [{"seed": (7 << 32) + i, "label": i} for i in range(3)]
    images = models["gated"].sample(3, 7, np.arange(3))
    for signature in ("serving_default", "sample"):
        np.testing.assert_array_equal(predict("gated", signature, seeds), images)
    x = models["vae"].sample(2, 1)
    rows = predict("vae", "encode", [{"images": image.tolist()} for image in x])
    for i, name in enumerate(("mean", "log_var")):
        expected = numpy(models["vae"].encode(x)[i])
        np.testing.assert_allclose([row[name] for row in rows], expected, atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_of_the_server_raise(protocol, server, digits, digit_labels):
    x = digits[:2]
    with server.client("gated", protocol) as client:
        with pytest.raises(ServingError, match=r"images must be in 0\.\.16") as error:
            client.log_prob(np.full((1, *SHAPE), 200), labels=[1])
        assert error.value.status == 400
        with pytest.raises(ServingError, match=r"label must be in 0\.\.9") as error:
            client.sample(2, seed=0, labels=[1, 99])
        assert error.value.status == 400
        with pytest.raises(ServingError, match="encode") as error:
            client.encode(x, digit_labels[:2])
        assert error.value.status in (400, 404)
        for wrong in (x[:, :-1], x[:1], x[..., 0]):
            with pytest.raises(ServingError) as error:
                client.predict("log_prob", images=wrong, label=[1, 1])
            assert error.value.status == 400
    for name, version in (("nobody", None), ("vae", 99)):
        client = server.client(name, protocol, version=version)
        with client, pytest.raises(ServingError) as error:
            client.sample(1, seed=0)
        assert error.value.status == 404
    with server.client("vae", protocol, version=1) as client:
        assert client.sample(1, seed=0).shape == (1, *SHAPE)


def test_new_version_appears_while_requests_flow(server, folder, models):
    """None fails, and each is answered by the one version or the other."""
    new = zoo.randomize(zoo.new("fvbn"), 0.5, seed=1)
    both = [model.sample(2, seed=3) for model in (models["fvbn"], new)]
    assert np.any(both[0] != both[1])
    answers, failures, stop = [], [], threading.Event()

    def ask(protocol):
        with server.client("fvbn", protocol) as client:
            while not stop.is_set():
                try:
                    answers.append(client.sample(2, seed=3))
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask, args=(p,)) for p in PROTOCOLS * 2]
    for thread in threads:
        thread.start()
    new.export(folder / "fvbn" / "2")
    server.client("fvbn", "rest", version=2).wait_until_ready(60)
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    equal = [[np.array_equal(a, b) for b in both] for a in answers]
    assert all(map(any, equal))
    assert equal[0] == [True, False] and equal[-1] == [False, True]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_give_each_client_its_answers(protocol, models, folder, digits):
    """--enable_batching: 16 at a time, each with its own seed, rows and images."""
    with Started(folder, models, batching=True) as server:

        def ask(seed):
            with server.client("gated", protocol) as client:
                images = client.sample(1 + seed % 3, seed=seed, labels=seed % 10)
                x, y = digits[seed : seed + 2], [seed % 10] * 2
                return images, client.log_prob(x, y)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(64)))
    model = models["gated"]
    for seed, (images, nats) in enumerate(answers):
        if seed % 8 == 0:
            expected = model.sample(1 + seed % 3, seed, seed % 10, verbose=0)
            np.testing.assert_array_equal(images, expected)
        y = np.full(2, seed % 10)
        expected = numpy(model.log_prob(digits[seed : seed + 2], y))
        np.testing.assert_allclose(nats, expected, rtol=1e-4)
