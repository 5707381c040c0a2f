"""SavedModels as a stock server sees them: loaded where kgen and keras cannot be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from families import EXACT, FAMILIES, GANS, SHAPE
from keras import ops

import kgen

pytest.importorskip("tensorflow")

# Blocks kgen and keras; for each line of input loads a model both ways, runs requests
# from a file, writes answers. One process for all models: TensorFlow is slow to import.
SERVER = """
import sys, json, traceback
sys.modules["keras"] = sys.modules["kgen"] = None
import numpy as np, tensorflow as tf

def serve(path, requests, answers):
    requests = np.load(requests)
    calls = {}
    for key in requests.files:
        call, name = key.split("/")
        calls.setdefault(call, {})[name] = requests[key]
    out, loaded = {}, {}
    eager = tf.saved_model.load(path)
    for call, feed in calls.items():
        answer = eager.signatures[call.split(":")[0]](
            **{k: tf.constant(v) for k, v in feed.items()})
        loaded[call] = {k: v.numpy() for k, v in answer.items()}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
        nodes = list(meta.graph_def.node)
        for fn in meta.graph_def.library.function:
            nodes += fn.node_def
        ops = sorted({n.op for n in nodes})
        shapes = {}
        for call, feed in calls.items():
            signature = meta.signature_def[call.split(":")[0]]
            shapes[call.split(":")[0]] = {
                k: [t.dtype, [d.size for d in t.tensor_shape.dim]]
                for part in (signature.inputs, signature.outputs)
                for k, t in part.items()}
            fetched = session.run(
                {k: t.name for k, t in signature.outputs.items()},
                {signature.inputs[k].name: v for k, v in feed.items()})
            for k, v in fetched.items():
                np.testing.assert_allclose(v, loaded[call][k], rtol=1e-5, atol=1e-5)
                out[call + "/" + k] = v
        errors = {}
        bad = {"bad_images": {"images": 255}, "bad_label": {"label": 99},
               "bad_z": {"z": np.inf}, "bad_rows": {"known_rows": 9}}
        for call, feed in bad.items():
            names = [n for n in calls if list(feed)[0] in calls[n] and ":" not in n]
            name = names[-1] if names else None
            if name is None:
                continue
            signature = meta.signature_def[name]
            first = {k: np.full_like(v, feed.get(k, 0)) if k in feed else v
                     for k, v in calls[name].items()}
            try:
                session.run({k: t.name for k, t in signature.outputs.items()},
                            {signature.inputs[k].name: v for k, v in first.items()})
            except tf.errors.InvalidArgumentError as error:
                errors[call] = error.message
    np.savez(answers, **out)
    return {"ops": ops, "errors": errors, "shapes": shapes,
            "default": "serving_default" in meta.signature_def}

for line in sys.stdin:
    try:
        said = serve(*json.loads(line))
    except Exception:
        said = {"failed": traceback.format_exc()}
    print(json.dumps(said), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=clean,
        cwd=tmp_path_factory.mktemp("server"),
    )
    with process:
        yield process
        process.stdin.close()


def serve(server, path, requests, tmp_path):
    """{call: {output: array}} of {call: {input: array}}; calls of one signature are
    told apart by `:something` after its name."""
    np.savez(tmp_path / "requests.npz", **{
        f"{call}/{name}": value
        for call, feed in requests.items() for name, value in feed.items()
    })  # fmt: skip
    files = [path, tmp_path / "requests.npz", tmp_path / "answers.npz"]
    print(json.dumps([str(file) for file in files]), file=server.stdin, flush=True)
    report = json.loads(server.stdout.readline())
    assert "failed" not in report, report["failed"][-3000:]
    answers = {}
    with np.load(tmp_path / "answers.npz") as loaded:
        for key in loaded.files:
            call, name = key.split("/")
            answers.setdefault(call, {})[name] = loaded[key]
    return answers, report


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


def asked_vae(model, x, labels, seeds):
    """Requests of a VAE's signatures, and what the model itself says to them."""
    z = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    mean, log_var = map(numpy, model.encode(x, labels))
    requests = {call: {"images": x} for call in ("elbo", "encode", "reconstruct")}
    return requests | {"decode": {"z": z}}, {
        "elbo": {"elbo": numpy(model.elbo(x, labels))},
        "encode": {"mean": mean, "log_var": log_var},
        "decode": {"images": numpy(model.decode(z, labels))},
        "reconstruct": {"images": numpy(model.reconstruct(x, labels))},
    }


def asked_exact(model, x, labels, seeds):
    rows = np.array([0, 3, 8, 5, 1])
    return {
        "log_prob": {"images": x},
        "complete": {"images": x, "known_rows": rows, "seed": seeds},
    }, {
        "log_prob": {"log_prob": numpy(model.log_prob(x, labels))},
        "complete": {"images": model.complete(x, rows, seed=7, labels=labels)},
    }


def asked_gan(model, x, labels, seeds):
    z = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    return {"discriminate": {"images": x}, "generate": {"z": z}}, {
        "discriminate": {"logits": numpy(model.discriminate(x, labels))},
        "generate": {"images": numpy(model.generate(z, labels))},
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.feature("export")
def test_a_process_without_keras_gets_the_models_answers(
    family, digits, digit_labels, server, tmp_path
):
    model = FAMILIES[family]()
    model.compile("adam")
    data = (digits, digit_labels) if model.num_classes else (digits,)
    model.fit(*data, epochs=3, verbose=0)
    version = kgen.export.next_version(tmp_path / "served")
    path = model.export(version)
    assert path == version and path.name == "1" and (path / "saved_model.pb").exists()

    y = np.asarray(digit_labels[:5], "int64")
    labels = None if model.num_classes is None else y
    given = {} if labels is None else {"label": y}
    seeds = (np.int64(7) << 32) + np.arange(5)
    pick = [3, 0]
    requests = {
        "serving_default": {"seed": seeds, **given},
        "sample:alone": {"seed": seeds[3:4], **{k: v[3:4] for k, v in given.items()}},
        "sample:some": {"seed": seeds[pick], **{k: v[pick] for k, v in given.items()}},
        "sample:none": {"seed": seeds[:0], **{k: v[:0] for k, v in given.items()}},
    }
    exact, gan = family in EXACT, family in GANS
    ask = asked_exact if exact else asked_gan if gan else asked_vae
    asked, expected = ask(model, digits[:5], labels, seeds)
    requests |= {call: feed | given for call, feed in asked.items()}
    density = "log_prob" if exact else "discriminate" if gan else "elbo"
    one = {k: v[2:3] for k, v in requests[density].items()}
    requests[f"{density}:one"] = one
    expected[f"{density}:one"] = {k: v[2:3] for k, v in expected[density].items()}
    answers, report = serve(server, path, requests, tmp_path)

    drawn = answers["serving_default"]["images"]
    assert drawn.dtype == "uint8" and drawn.shape == (5, *SHAPE)
    np.testing.assert_array_equal(drawn, model.sample(5, seed=7, labels=labels))
    np.testing.assert_array_equal(answers["sample:alone"]["images"], drawn[3:4])
    np.testing.assert_array_equal(answers["sample:some"]["images"], drawn[pick])
    assert answers["sample:none"]["images"].shape == (0, *SHAPE)
    for call, outputs in expected.items():
        for name, value in outputs.items():
            answer = answers[call][name]
            assert answer.dtype == value.dtype and value.dtype in ("float32", "uint8")
            np.testing.assert_allclose(answer, value, rtol=1e-5, atol=1e-5)

    assert report["default"]
    for name, tensors in report["shapes"].items():  # the batch is free, nothing else
        for tensor, (_, shape) in tensors.items():
            assert shape[0] == -1 and -1 not in shape[1:], (name, tensor, shape)
    refused = ("Xla", "PyFunc", "RandomUniform", "RandomStandardNormal", "Multinomial")
    ops_found = [op for op in report["ops"] if not op.startswith("Stateless")]
    assert not [op for op in ops_found if any(r in op for r in refused)]
    assert "images must be in 0..16" in report["errors"]["bad_images"]
    if family in EXACT:
        assert "known_rows must be in 0..8" in report["errors"]["bad_rows"]
    else:
        assert "z must be finite" in report["errors"]["bad_z"]
    if model.num_classes:
        assert "label must be in 0..9" in report["errors"]["bad_label"]


def test_versions_count_up_and_nothing_is_overwritten(tmp_path):
    model = FAMILIES["vae"]()
    folder = tmp_path / "served"
    assert kgen.export.next_version(folder) == folder / "1"
    model.export(folder / "9")
    assert kgen.export.next_version(folder) == folder / "10"
    before = (folder / "9" / "saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        model.export(folder / "9")
    assert (folder / "9" / "saved_model.pb").read_bytes() == before
    (folder / "10").mkdir()  # an empty folder is no export
    model.export(folder / "10")
    assert (folder / "10" / "saved_model.pb").exists()


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    model = FAMILIES["vae"]()

    def broken():
        raise ZeroDivisionError("half-way")

    monkeypatch.setattr(kgen.export, "_write", lambda *a: broken())
    monkeypatch.setattr(kgen.export, "_write_in_child", lambda *a: broken())
    with pytest.raises(ZeroDivisionError):
        model.export(tmp_path / "served" / "1")
    assert list((tmp_path / "served").iterdir()) == []


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from families import FAMILIES
from kgen import export
real = export.{writer}
def slow(model, path):
    real(model, path)
    print("written", flush=True)
    time.sleep(60)
export.{writer} = slow
FAMILIES["vae"]().export({path!r})
"""


def test_a_killed_export_leaves_no_half_written_version(tmp_path):
    """SIGKILL after the files are written and before they are moved into place."""
    path = tmp_path / "served" / "1"
    writer = "_write" if kgen.backend.name == "tensorflow" else "_write_in_child"
    code = KILLED.format(
        tests=str(Path(__file__).parent), path=str(path), writer=writer
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with child:
        assert b"written" in child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    visible = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    assert visible == []
    assert kgen.export.next_version(path.parent) == path
    FAMILIES["vae"]().export(path)
    assert (path / "saved_model.pb").exists()


@pytest.mark.skipif(
    kgen.backend.name == "tensorflow", reason="TensorFlow exports in its own process"
)
def test_classes_that_the_child_cannot_import_are_told(tmp_path):
    class Mine(kgen.models.VAE):
        pass

    Mine.__module__ = "__main__"
    with pytest.raises(RuntimeError, match="classes defined in __main__"):
        Mine(SHAPE, latent_dim=2).export(tmp_path / "1")


@pytest.mark.skipif(
    kgen.backend.name == "tensorflow", reason="TensorFlow exports in its own process"
)
def test_what_goes_wrong_in_the_child_is_told(tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no TensorFlow here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RuntimeError, match="no TensorFlow here"):
        FAMILIES["vae"]().export(tmp_path / "served" / "1")
    assert list((tmp_path / "served").iterdir()) == []
