"""Models for tests of exports and of serving, their SavedModels, and requests. As a
script, run with TensorFlow, exports saved models:

    python exports.py folder: <folder>/<name>.keras -> <folder>/<name>/1
"""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import users_models  # noqa: F401, registers them
import zoo
from keras import ops
from zoo import GANS, numpy

import kgen
from kgen.serving import Client, ServingError
from kgen.serving.config import commands
from kgen.signatures import Input, Output, Signature


@keras.saving.register_keras_serializable(package="tests")
class Masking(kgen.models.GenerativeModel):
    """A user's model, with a signature like none of kgen's."""

    def __init__(self, image_shape, levels, **kwargs):
        super().__init__(image_shape, levels, **kwargs)
        self.built = True

    def draw(self, seeds, labels=None):
        zeros = ops.zeros_like(seeds[:, :1, None, None])
        return zeros + ops.zeros(self.image_shape, "int32")

    def mask(self, noise, mask, step):
        masked = noise * ops.cast(mask, "float32")[:, None]
        return masked, mask * ops.cast(step, "int32")

    def endpoints(self):
        inputs = {
            "noise": Input("float32", (3,)),
            "mask": Input("int32", interval=(0, 1)),
            "step": Input("int64", interval=(1, 9)),
        }
        outputs = {"masked": Output("float32", (3,)), "steps": Output("int32")}
        return super().endpoints() | {"mask": Signature(self.mask, inputs, outputs)}


def masking_request(n, rng):
    """({input: array}, {output: array}) of the signature `mask`."""
    noise = rng.normal(size=(n, 3)).astype("float32")
    mask, step = rng.integers(0, 2, n, "int32"), rng.integers(1, 10, n)
    outputs = {
        "masked": noise * mask[:, None].astype("float32"),
        "steps": mask * step.astype("int32"),
    }
    return {"noise": noise, "mask": mask, "step": step}, outputs


def randomized(name):
    """A model whose weights, averages and batch statistics are no initial ones."""
    model, rng = zoo.new(name), np.random.default_rng(1)
    if name not in GANS:
        zoo.randomize(model, 0.5)
    for v in model.non_trainable_variables:
        if "float" in v.dtype:
            v.assign(v + 0.2 * rng.uniform(size=v.shape))
    return model


def export(models, folder, cold=()):
    """{name: model} to <folder>/<name>/1, in one TensorFlow process; there those that
    are `cold` have no warm-up requests."""
    if kgen.backend.name == "tensorflow":
        for name, model in models.items():
            model.export(folder / name / "1", warmup=name not in cold)
        return
    folder.mkdir(exist_ok=True)
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    zoo.run_python(__file__, folder, **environment)


def requests(model, x, labels):
    """{signature: {input: array}}, a row for each image; of seed 7."""
    n, rng = len(x), np.random.default_rng(0)
    values = {
        "images": x.astype("int32"),
        "known_rows": np.resize([0, 3, 8, 5, 1], n),
        "label": labels,
        "seed": (7 << 32) + np.arange(n),
        "z": rng.normal(size=(n, 3)).astype("float32"),
    }
    return {
        name: {key: values[key] for key in signature.inputs}
        for name, signature in model.endpoints().items()
    }


def ask(source, signature, inputs):
    """The outputs of a signature, a list of arrays, by the method of a model or of a
    client."""
    arguments = [v for k, v in inputs.items() if k not in ("seed", "label")]
    options = {"labels": inputs.get("label")}
    if "seed" in inputs:
        options["seed"] = 7
    if signature == "sample":
        arguments = [len(inputs["seed"])]
    outputs = getattr(source, signature)(*arguments, **options)
    return [numpy(v) for v in (outputs if isinstance(outputs, tuple) else (outputs,))]


def check_client(client, model, x, labels, tolerance):
    """All methods of a client return what the model's own do."""
    for signature, inputs in requests(model, x, labels).items():
        expected = ask(model, signature, inputs)
        for answer, value in zip(ask(client, signature, inputs), expected, strict=True):
            assert answer.shape == value.shape and answer.dtype == value.dtype
            np.testing.assert_allclose(answer, value, rtol=tolerance, atol=tolerance)


PROTOCOLS = {"rest": "http", "grpc": "grpc"}


@contextlib.contextmanager
def started(folder, names, batching=False):
    """A server of these models in a folder: a function that returns clients of it."""
    ports = dict(zip(PROTOCOLS, zoo.free_ports(2), strict=True))
    command, _ = commands(folder, ports["grpc"], ports["rest"], batching)
    if command[0].endswith(".py"):
        command.insert(0, sys.executable)
    command.append("--file_system_poll_wait_seconds=1")
    process = subprocess.Popen(command)

    def client(name, protocol="rest", **kwargs):
        url = f"{PROTOCOLS[protocol]}://127.0.0.1:{ports[protocol]}"
        return Client(url, name, **kwargs)

    def ready(name):
        with contextlib.suppress(TimeoutError):
            client(name).wait_until_ready(1)
            return True

    try:
        end = time.monotonic() + 600  # ports open when all models are loaded
        while not all(map(ready, names)):
            assert process.poll() is None and time.monotonic() < end
        yield client
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def refused(words, *statuses):
    with pytest.raises(ServingError, match=words) as error:
        yield
    assert error.value.status in statuses


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.keras")):
        model = keras.models.load_model(path, compile=False)
        model.export(path.with_suffix("") / "1")
