"""A real TensorFlow Serving in front of all families: `tensorflow_model_server`, which
the environment variable TENSORFLOW_MODEL_SERVER (a path) or PATH names; without one
all is skipped. `tests/stand_in_server.py` stands in for it, to try the tests."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from families import EXACT, FAMILIES, GANS, SHAPE
from keras import ops

import kgen
from kgen.serving import Client, ServingError
from kgen.serving.config import commands, found_server

if not found_server():
    named = os.environ.get("TENSORFLOW_MODEL_SERVER")
    pytest.skip(
        f"no TensorFlow Serving: TENSORFLOW_MODEL_SERVER={named} is no program"
        if named
        else "no TensorFlow Serving: neither TENSORFLOW_MODEL_SERVER nor PATH names "
        "a tensorflow_model_server",
        allow_module_level=True,
    )
pytest.importorskip("tensorflow_serving")

OVER = ["rest", "grpc"]


def numpy(x):
    if isinstance(x, np.ndarray):  # drawn images are already
        return x
    return ops.convert_to_numpy(ops.stop_gradient(x))


def free_ports(n):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Started:
    """A server of a folder of models; a context manager."""

    def __init__(self, folder, batching=False):
        self.grpc, self.rest = free_ports(2)
        command, _ = commands(folder, self.grpc, self.rest, batching)
        if command[0].endswith(".py"):
            command.insert(0, sys.executable)
        command.append("--file_system_poll_wait_seconds=1")
        self.log = folder.parent / f"server_{self.grpc}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def client(self, name, over, **kwargs):
        url = f"http://127.0.0.1:{self.rest}"
        url = url if over == "rest" else f"grpc://127.0.0.1:{self.grpc}"
        return Client(url, name, **kwargs)

    def wait(self, names):
        end = time.monotonic() + 600  # ports open when all models are loaded
        for name in names:
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

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving") / "models"


@pytest.fixture(scope="module")
def models(folder):
    """{family: model}, all exported and named in one configuration."""
    keras.utils.set_random_seed(0)
    made = {}
    for family, make in FAMILIES.items():
        made[family] = make()
        path = made[family].export(folder / family / "1")
        assert (path / "assets.extra" / "tf_serving_warmup_requests").exists()
    kgen.serving.write_config(folder)
    return made


@pytest.fixture(scope="module")
def server(models, folder):
    with Started(folder) as started:
        yield started.wait(models)


def questions(family, model, client, x, labels):
    """Pairs of (what the server says, what the model says)."""
    yield client.sample(5, seed=7, labels=labels), model.sample(5, 7, labels)
    if family in EXACT:
        yield client.log_prob(x, labels), model.log_prob(x, labels)
        rows = [0, 3, 8, 5, 1]
        done = model.complete(x, np.array(rows), seed=2, labels=labels)
        yield client.complete(x, rows, seed=2, labels=labels), done
        return
    z = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    if family in GANS:
        yield client.discriminate(x, labels), model.discriminate(x, labels)
        yield client.generate(z, labels), model.generate(z, labels)
        return
    yield client.elbo(x, labels), model.elbo(x, labels)
    yield from zip(client.encode(x, labels), model.encode(x, labels), strict=True)
    yield client.decode(z, labels), model.decode(z, labels)
    yield client.reconstruct(x, labels), model.reconstruct(x, labels)


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_signature_answers_as_the_model_does(
    family, over, server, models, digits, digit_labels
):
    model, client = models[family], server.client(family, over, max_batch=3)
    with client:
        assert client.status() == {1: "AVAILABLE"}
        described = client.metadata()["signature_def"]["signature_def"]
        assert set(described) >= {"serving_default", *model.endpoints()}
        images = described["sample"]["outputs"]["images"]
        assert images["dtype"] == "DT_UINT8"
        sizes = [int(d["size"]) for d in images["tensor_shape"]["dim"]]
        assert sizes == [-1, *SHAPE]
        labels = digit_labels[:5] if model.num_classes else None
        for said, expected in questions(family, model, client, digits[:5], labels):
            expected = numpy(expected)
            assert said.shape == expected.shape and said.dtype == expected.dtype
            np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-4)
        given = {} if labels is None else {"label": labels}
        seeds = (7 << 32) + np.arange(5)
        drawn = client.predict("serving_default", seed=seeds, **given)
        np.testing.assert_array_equal(drawn, model.sample(5, 7, labels))
        none = client.sample(0, labels=None if labels is None else labels[:0])
        assert none.shape == (0, *SHAPE)


def test_rows_are_answered_as_curl_asks_for_them(server, models):
    """{"instances": [...]}, the README's request, without the client."""

    def asked(family, signature, rows):
        body = json.dumps({"signature_name": signature, "instances": rows}).encode()
        url = f"http://127.0.0.1:{server.rest}/v1/models/{family}:predict"
        with urllib.request.urlopen(
            urllib.request.Request(url, body), timeout=60
        ) as to:
            return json.load(to)["predictions"]

    seeds = [{"seed": (7 << 32) + i, "label": i} for i in range(3)]
    drawn = models["gated"].sample(3, 7, np.arange(3))
    for signature in ("serving_default", "sample"):
        np.testing.assert_array_equal(asked("gated", signature, seeds), drawn)
    x = models["vae"].sample(2, 1)
    said = asked("vae", "encode", [{"images": image.tolist()} for image in x])
    for i, name in enumerate(("mean", "log_var")):
        expected = numpy(models["vae"].encode(x)[i])
        np.testing.assert_allclose([s[name] for s in said], expected, atol=1e-4)


@pytest.mark.parametrize("over", OVER)
def test_the_servers_words_become_errors(over, server, digits, digit_labels):
    with server.client("gated", over) as client:
        with pytest.raises(ServingError, match=r"images must be in 0\.\.16") as error:
            client.log_prob(np.full((1, *SHAPE), 200), labels=[1])
        assert error.value.status == 400
        with pytest.raises(ServingError, match=r"label must be in 0\.\.9") as error:
            client.sample(2, seed=0, labels=[1, 99])
        assert error.value.status == 400
        with pytest.raises(ServingError, match="encode") as error:
            client.encode(digits[:1], digit_labels[:1])
        assert error.value.status in (400, 404)
        for wrong in (digits[:2, :-1], digits[:1], digits[:2, ..., 0]):
            with pytest.raises(ServingError) as error:
                client.predict("log_prob", images=wrong, label=[1, 1])
            assert error.value.status == 400
    for client in (
        server.client("nobody", over),
        server.client("vae", over, version=99),
    ):
        with client, pytest.raises(ServingError) as error:
            client.sample(1, seed=0)
        assert error.value.status == 404
    with server.client("vae", over, version=1) as client:
        assert client.sample(1, seed=0).shape == (1, *SHAPE)


def test_a_new_version_appears_while_requests_flow(server, folder, models):
    """None fails, and each is answered by the one version or the other."""
    old, new = models["fvbn"], FAMILIES["fvbn"]()
    for v in new.trainable_variables:
        v.assign(0.3 * np.random.default_rng(1).normal(size=v.shape))
    both = [model.sample(2, seed=3) for model in (old, new)]
    assert np.any(both[0] != both[1])
    answers, failures, stop = [], [], threading.Event()

    def ask(over):
        with server.client("fvbn", over) as client:
            while not stop.is_set():
                try:
                    answers.append(client.sample(2, seed=3))
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=ask, args=(over,)) for over in OVER * 2]
    for thread in threads:
        thread.start()
    new.export(folder / "fvbn" / "2")
    server.client("fvbn", "rest", version=2).wait_until_ready(60)
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    which = [[np.array_equal(a, b) for b in both] for a in answers]
    assert all(map(any, which))
    assert which[0] == [True, False] and which[-1] == [False, True]


@pytest.mark.parametrize("over", OVER)
def test_batches_of_several_clients_give_each_its_own(over, models, folder, digits):
    """--enable_batching: 16 at a time, each with its own seed, rows and images."""
    with Started(folder, batching=True) as server:
        server.wait(models)

        def ask(seed):
            with server.client("gated", over) as client:
                drawn = client.sample(1 + seed % 3, seed=seed, labels=seed % 10)
                x, y = digits[seed : seed + 2], [seed % 10] * 2
                return drawn, client.log_prob(x, y)

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(64)))
    model = models["gated"]
    for seed, (drawn, nats) in enumerate(answers):
        if seed % 8 == 0:
            expected = model.sample(1 + seed % 3, seed, seed % 10, verbose=0)
            np.testing.assert_array_equal(drawn, expected)
        y = np.full(2, seed % 10)
        expected = numpy(model.log_prob(digits[seed : seed + 2], y))
        np.testing.assert_allclose(nats, expected, rtol=1e-4)
