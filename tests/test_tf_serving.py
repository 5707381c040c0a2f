"""A real TensorFlow Serving serves all models: `tensorflow_model_server`, which the
environment variable TENSORFLOW_MODEL_SERVER (a path) or PATH names; without one all is
skipped. `tests/stand_in_server.py` replaces it to try the tests."""

import json
import os
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import exports
import keras
import numpy as np
import pytest
import zoo
from exports import PROTOCOLS, refused, started
from zoo import MODELS, SHAPE, numpy

import kgen
from kgen.serving.config import found_server

pytestmark = pytest.mark.exhaustive
if not found_server():
    named = os.environ.get("TENSORFLOW_MODEL_SERVER")
    reason = f"no tensorflow_model_server in PATH; TENSORFLOW_MODEL_SERVER={named}"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("tensorflow_serving")


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
def client(models, folder):
    with started(folder, models) as client:
        yield client


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", MODELS)
def test_every_signature_answers_as_the_model_does(
    name, protocol, client, models, digits, digit_labels
):
    model, x, y = models[name], digits[:5], digit_labels[:5]
    with client(name, protocol, max_batch=3) as client:
        assert client.status() == {1: "AVAILABLE"}
        exports.check_client(client, model, x, y, 1e-4)
        inputs = exports.requests(model, x, y)["sample"]
        images = client.predict("serving_default", **inputs)
        np.testing.assert_array_equal(images, client.sample(5, 7, inputs.get("label")))
        none = client.sample(0)  # by the server's description of the signature
        assert none.shape == (0, *SHAPE) and none.dtype == "uint8"


def test_rows_are_answered_in_the_form_of_curl(client, models):
    """{"instances": [...]}, the README's request, without the client."""

    def predict(name, signature, rows):
        body = json.dumps({"signature_name": signature, "instances": rows}).encode()
        url = f"{client(name).url}/v1/models/{name}:predict"
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
def test_errors_of_the_server_raise(protocol, client, digits):
    """Of requests that the client has not checked."""
    x, label = digits[:2].astype("int32"), np.array([1, 1])
    with client("gated", protocol) as gated:

        def send(signature, **inputs):
            return gated._server.predict(signature, inputs, 60.0)

        assert gated.limits() == {"levels": 17, "num_classes": 10}
        for bad in (17, 200, 256, -240):
            with refused(r"images must be in 0\.\.16", 400):
                send("log_prob", images=np.full_like(x, bad), label=label)
        with refused(r"label must be in 0\.\.9", 400):
            send("sample", seed=label, label=np.array([1, 99]))
        with refused("encode", 400, 404):
            send("encode", images=x, label=label)
        for wrong in (x[:, :-1], x[:1], x[..., 0]):
            with refused(None, 400):
                send("log_prob", images=wrong, label=label)
    for name, version in (("nobody", None), ("vae", 99)):
        with client(name, protocol, version=version) as missing, refused(None, 404):
            missing.sample(1, seed=0)
    with client("vae", protocol, version=1) as first:
        assert first.sample(1, seed=0).shape == (1, *SHAPE)


def test_new_version_appears_while_requests_flow(client, folder, models):
    """None fails, and each is answered by the one version or the other."""
    new = zoo.randomize(zoo.new("fvbn"), 0.5, seed=1)
    both = [model.sample(2, seed=3) for model in (models["fvbn"], new)]
    assert np.any(both[0] != both[1])
    answers, stop = [], threading.Event()

    def ask(protocol):
        with client("fvbn", protocol) as fvbn:
            while not stop.is_set():
                answers.append(fvbn.sample(2, seed=3))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, protocol) for protocol in [*PROTOCOLS] * 2]
        try:
            new.export(folder / "fvbn" / "2")
            client("fvbn", version=2).wait_until_ready(60)
            time.sleep(2)
        finally:
            stop.set()
    for future in asking:
        future.result()  # raises what a request has raised
    equal = [[np.array_equal(a, b) for b in both] for a in answers]
    assert all(map(any, equal))
    assert equal[0] == [True, False] and equal[-1] == [False, True]


def test_batches_give_each_client_its_answers(models, folder, digits):
    """--enable_batching: 16 at a time, each with its own seed, rows and images."""
    with started(folder, models, batching=True) as client:

        def ask(seed):
            with client("gated", [*PROTOCOLS][seed % 2]) as gated:
                images = gated.sample(1 + seed % 3, seed=seed, labels=seed % 10)
                x, y = digits[seed : seed + 2], [seed % 10] * 2
                return images, gated.log_prob(x, y)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(64)))
    model = models["gated"]
    for seed, (images, nats) in enumerate(answers):
        if seed % 9 == 0:
            expected = model.sample(1 + seed % 3, seed, seed % 10, verbose=0)
            np.testing.assert_array_equal(images, expected)
        y = np.full(2, seed % 10)
        expected = numpy(model.log_prob(digits[seed : seed + 2], y))
        np.testing.assert_allclose(nats, expected, rtol=1e-4)
