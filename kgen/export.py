"""Model -> SavedModel with its signatures, as a stock TensorFlow Serving takes it.

The graph is always made of TensorFlow's own ops: on JAX and PyTorch the model is saved,
and rebuilt in a child process with KERAS_BACKEND=tensorflow (`python -m kgen.export`).
A SavedModel written by JAX itself loads in a stock server and then fails each request,
for it holds XLA programs.

Signatures (B = batch, first on every input and output):

    sample = serving_default   seed int64 (B,) -> images uint8 (B, H, W, C)
    log_prob                   images int32 (B, H, W, C) -> log_prob float32 (B,)
    complete                   images, known_rows int64 (B,), seed -> images uint8
    elbo, encode, reconstruct  images int32 (B, H, W, C) -> float32
    decode, generate           z float32 (B, L) -> images float32 (B, H, W, C)
    discriminate               images int32 (B, H, W, C) -> logits float32 (B,)
    limits                     index int64 (B,) -> levels, num_classes int32 (B,)

and `label` int64 (B,) on each but `limits` where the model is conditional. Inputs are
checked in the graph: a client gets InvalidArgument with the reason. Images are int32
there because TensorFlow Serving casts JSON to the type of the signature first: 256 as
uint8 is 0, and would pass. Image b is a function of seed b.

`limits` is for clients that check before they send: a server that batches requests
fails all requests of a batch for one of them. It ignores the values of `index`;
num_classes is 0 where the model is not conditional.

In `assets.extra`: `tf_serving_warmup_requests`, one request of each signature, which a
server answers itself before it calls a version available; and `model_card.json`, what
is known of the model, also beside the version folders, of the newest version.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np

from kgen import files
from kgen.signatures import Input, Output, Signature
from kgen.tensor_checks import finite_weights
from kgen.version import __version__

_EXTRA, _CARD = "assets.extra", "model_card.json"


def export(model, path, card=None, warmup=None):
    """Writes `model` as a SavedModel to the folder `path`, atomically.

    TensorFlow Serving wants `<model name>/<version number>`; see `next_version`. Of
    several processes that train together, the first writes.

    Args:
        model: a GenerativeModel.
        path: of the version's folder.
        card: what is known of the model, a dict for JSON, such as a recipe's
            `metrics.json`; comes into `model_card.json` as "training".
        warmup: whether to write warm-up requests; None: where their format is
            installed, tensorflow-serving-api (the extra `serving`).

    Returns: `path`, as pathlib.Path.

    Raises:
        ImportError: `warmup` without tensorflow-serving-api.
        ValueError: weights are NaN or infinite.
        FileExistsError: there is something at `path` already.
        PermissionError: `path` cannot be written.
        RuntimeError: the child process failed; with its last words.
    """
    path = Path(path)
    finite_weights(model, "export")
    if not files.writes():
        return path
    if warmup is not False:
        installed = importlib.util.find_spec("tensorflow_serving") is not None
        if warmup and not installed:
            raise ImportError("Warm-up requests need it: pip install 'kgen[serving]'.")
        warmup = installed
    served = path.resolve().parent.name if warmup else ""
    about = json.dumps(_card(model, path.name, card), indent=2) + "\n"
    with files.atomic(path, replace=False) as unfinished:
        if keras.backend.backend() == "tensorflow":
            _write(model, unfinished, served)
        else:
            _write_in_child(model, unfinished, served)
        (unfinished / _EXTRA).mkdir(exist_ok=True)
        (unfinished / _EXTRA / _CARD).write_text(about)
    if path.name.isdigit():  # a version of a served model; else the folder is not ours
        _put_beside(path, about)
    return path


def _put_beside(path, about):
    """The newest version's card, beside the versions, which are whole without it."""
    if next_version(path.parent).name != str(int(path.name) + 1):
        return
    try:
        with files.atomic(path.parent / _CARD) as beside:
            beside.write_text(about)
    except OSError as error:
        warnings.warn(f"{path} is exported, but not its card: {error}", stacklevel=3)


def _card(model, version, training):
    average = getattr(model, "average", None)
    return {
        "model": type(model).__name__,
        "version": version,
        "image_shape": model.image_shape,
        "levels": model.levels,
        "num_classes": model.num_classes,
        "parameters": model.count_params() - (average.count_params() if average else 0),
        "signatures": {
            name: {"inputs": list(s.inputs), "outputs": list(s.outputs)}
            for name, s in _signatures(model).items()
        },
        "headline": model.headline and dataclasses.asdict(model.headline),
        "units": {"log_prob": "nats", "elbo": "nats", "images": "0..levels-1"},
        "backend": keras.backend.backend(),
        "versions": {"keras": keras.__version__, "kgen": __version__},
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": training,
    }


def next_version(folder):
    """The path of the next free version in a served model's folder: `folder/1`, ..."""
    folder = Path(folder)
    taken = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    return folder / str(max(taken, default=0) + 1)


def _signatures(model):
    """The model's endpoints, and `limits`."""

    def limits(index):
        zeros = keras.ops.zeros_like(index, "int32")
        return zeros + model.levels, zeros + (model.num_classes or 0)

    outputs = dict.fromkeys(["levels", "num_classes"], Output("int32"))
    inputs = {"index": Input("int64")}
    return model.endpoints() | {"limits": Signature(limits, inputs, outputs)}


def _write(model, path, served):
    """The SavedModel; with warm-up requests, if it is `served` under a name."""
    import tensorflow as tf

    # Without `track`, which would write every weight twice: a variable of Keras and the
    # one of TensorFlow in it. The endpoints keep those that they read.
    archive = keras.export.ExportArchive()
    for name, signature in _signatures(model).items():
        specs = [_spec(*i) for i in signature.inputs.items()]
        archive.add_endpoint(name, _make_endpoint(signature), specs)
    # A server needs no gradients, which are a function for every convolution.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(str(path), options, verbose=False)
    _share_default(Path(path) / "saved_model.pb")
    if served:
        _write_warmup(model, Path(path) / _EXTRA, served)


def _share_default(path):
    """Gives `serving_default` the tensors of `sample`. Keras writes them twice, and a
    server then optimizes the largest graph of the model twice."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    signatures = saved.meta_graphs[0].signature_def
    signatures["serving_default"].CopyFrom(signatures["sample"])
    path.write_bytes(saved.SerializeToString(deterministic=True))
    path.with_name("fingerprint.pb").unlink(missing_ok=True)  # of the file as it was


def _write_warmup(model, folder, served):
    """A request of one row for each signature."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    folder.mkdir()
    signatures = _signatures(model)
    signatures |= {"serving_default": signatures["sample"]}
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as records:
        for name, signature in signatures.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = served
            request.model_spec.signature_name = name
            for key, given in signature.inputs.items():
                value = np.full((1, *given.shape), given.example, given.dtype)
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            records.write(log.SerializeToString())


def _spec(name, given):
    import tensorflow as tf

    return tf.TensorSpec((None, *given.shape), given.dtype, name)


def _make_endpoint(signature):
    """The signature's function behind the checks of its inputs, its outputs by name."""
    import tensorflow as tf

    def endpoint(*values):
        values, prepared = _check_shapes(signature.inputs, values), []
        n = tf.shape(values[0])[0]
        # TensorFlow's fused convolutions give wrong shapes for no images at all: an
        # empty batch gets a row, whose answer is dropped.
        fill = tf.maximum(1 - n, 0)
        for (name, given), value in zip(signature.inputs.items(), values, strict=True):
            rows = [[0, fill], *[[0, 0]] * len(given.shape)]
            value = tf.pad(value, rows, constant_values=given.example)
            prepared.append(_prepare(name, given, value))
        results = signature.function(*prepared)
        results = results if isinstance(results, tuple) else (results,)
        described = zip(signature.outputs.items(), results, strict=True)
        return {name: _check_output(name, o, v)[:n] for (name, o), v in described}

    return endpoint


def _check_shapes(inputs, values):
    """`values` after the check of their shapes, which a server leaves to the graph."""
    import tensorflow as tf

    names = list(inputs)
    values = [
        tf.ensure_shape(value, (None, *inputs[name].shape))
        for name, value in zip(names, values, strict=True)
    ]
    n = tf.shape(values[0])[0]
    checks = [
        tf.debugging.assert_equal(
            tf.shape(value)[0], n, f"{name} and {names[0]} are not of the same number"
        )
        for name, value in zip(names[1:], values[1:], strict=True)
    ]
    with tf.control_dependencies(checks):
        return [tf.identity(value) for value in values]


def _prepare(name, given, value):
    """`value` as the function takes it, after the check of its range: what uses it
    shall not fail first, in its words."""
    import tensorflow as tf

    checks = []
    if given.interval is not None:
        least, most = (tf.constant(end, value.dtype) for end in given.interval)
        message = "{} must be in {}..{}".format(name, *given.interval)
        checks = [
            tf.debugging.assert_greater_equal(value, least, message),
            tf.debugging.assert_less_equal(value, most, message),
        ]
    if given.kind == "latent":  # beyond any prior, and answers stay finite
        message = f"{name} must be finite, |{name}| < 1e4"
        checks.append(tf.debugging.assert_less(tf.abs(value), 1e4, message))
    with tf.control_dependencies(checks):
        value = tf.identity(value)
    if given.kind == "seed":
        low_high = tf.bitcast(value, tf.int32)  # (B, 2), little end first
        return tf.reverse(low_high, [1])
    bytes_hold_it = given.kind == "image" and given.interval[1] < 256
    return tf.cast(value, tf.uint8) if bytes_hold_it else value


def _check_output(name, expected, value):
    """`value`; raises a ValueError, before anything is written, unless it is as its
    signature describes it."""
    wanted = (None, *expected.shape)
    if value.dtype != expected.dtype or not value.shape.is_compatible_with(wanted):
        raise ValueError(
            f"{name} must be {expected.dtype} {wanted}, as its signature describes it; "
            f"got {value.dtype.name} {value.shape}."
        )
    return value


def _write_in_child(model, path, served):
    modules = _modules(keras.saving.serialize_keras_object(model))
    if "__main__" in modules:
        raise RuntimeError(
            "The model has classes defined in __main__ (a script or a notebook), which "
            "the TensorFlow process that writes the SavedModel cannot import. Move "
            "them to a module, or export with KERAS_BACKEND=tensorflow."
        )
    with tempfile.TemporaryDirectory() as folder:
        saved = os.path.join(folder, "model.keras")
        model.save(saved)
        # No GPU: the parent may hold all of its memory. Its sys.path, for the modules
        # that custom encoders and decoders are defined in.
        environment = os.environ | {
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "-1",
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        command = sys.executable, "-m", "kgen.export"
        with _pipe() as alive:
            child = subprocess.run(
                [*command, str(alive), saved, str(path), served, *sorted(modules)],
                env=environment,
                pass_fds=[alive] if os.name == "posix" else [],
                capture_output=True,
                text=True,
            )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [f"exit {child.returncode}"])[-1]
        raise RuntimeError(
            f"Export failed in the TensorFlow process that writes the SavedModel: "
            f"{last[:500]}\n(`pip install tensorflow` if it is missing there.)\n"
            f"{child.stderr[-2000:]}"
        )


@contextlib.contextmanager
def _pipe():
    """A descriptor that ends when this process does."""
    reads, writes = os.pipe()
    try:
        yield reads
    finally:
        os.close(reads)
        os.close(writes)


def _end_with_parent(alive, folder):
    """Waits in a thread for the end of the process that asked for the export; then this
    one has nothing to do, nor anybody to remove its folder."""

    def wait():
        with contextlib.suppress(OSError):  # where descriptors are not inherited
            os.read(alive, 1)
            for _ in range(100):  # the main thread may be writing to it
                shutil.rmtree(folder, ignore_errors=True)
                if not os.path.exists(folder):
                    break
                time.sleep(0.01)
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _modules(config):
    """Modules of the classes, other than Keras', in a serialised configuration."""
    if isinstance(config, (list, tuple)):
        return set().union(*map(_modules, config))
    if not isinstance(config, dict):
        return set()
    module = None
    if "registered_name" in config and "module" in config:
        module = config["module"] or "__main__"  # Keras writes None for __main__
    own = module and module.split(".")[0] not in ("keras", "builtins")
    inner = map(_modules, config.values())
    return set().union({module} if own else (), *inner)


if __name__ == "__main__":
    import importlib

    alive, saved, path, served, *modules = sys.argv[1:]
    _end_with_parent(int(alive), os.path.dirname(saved))
    for module in modules:  # registers their classes
        importlib.import_module(module)
    _write(keras.models.load_model(saved, compile=False), path, served)
