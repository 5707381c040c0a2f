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

pytest.importorskip("tensorflow_serving")

# A process for all models: TensorFlow is slow to import.
SERVER = Path(__file__).parent / "loader_child.py"


# Checks, control flow, and the reading of weights and their file
STATEFUL = {"Assert", "If", "While", "PartitionedCall", "StatefulPartitionedCall"} | {
    "Placeholder",
    "AssignVariableOp",
    "DisableCopyOnRead",
    "MergeV2Checkpoints",
    "ReadVariableOp",
    "RestoreV2",
    "SaveV2",
    "VarHandleOp",
    "VarIsInitializedOp",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, str(SERVER)],
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
    # All ops are TensorFlow's own, or the loader had failed; no program of XLA or of
    # Python; no state but the weights, so no generator of random numbers either.
    assert not [op for op in report["ops"] if "Xla" in op or "PyFunc" in op]
    assert not report["compiled"] and set(report["stateful"]) <= STATEFUL
    names = {"serving_default", *model.endpoints()}
    assert sorted(report["warmed"]) == sorted(["served", name] for name in names)
    assert "images must be in 0..16" in report["errors"]["bad_images"]
    if family in EXACT:
        assert "known_rows must be in 0..8" in report["errors"]["bad_rows"]
    else:
        assert "z must be finite" in report["errors"]["bad_z"]
    if model.num_classes:
        assert "label must be in 0..9" in report["errors"]["bad_label"]
    refused = {k: v for k, v in report["errors"].items() if k[:4] in ("size", "numb")}
    assert f"size {density}/images" in refused
    for request, words in refused.items():
        what = "are not of the same number" if request[0] == "n" else "expected shape ["
        assert what in words, (request, words)


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


@pytest.mark.skipif(
    kgen.backend.name != "tensorflow", reason="the same SavedModel on each backend"
)
def test_a_gated_pixel_cnn_of_28x28_is_small(tmp_path):
    name = "gated_pixel_cnn_binarized_mnist"
    path = kgen.models.GenerativeModel.from_preset(name).export(tmp_path / "m" / "1")
    assert sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) < 10e6


def test_a_card_says_what_is_served(tmp_path):
    """Within each version, and beside them that of the one that came last."""
    model, folder = FAMILIES["vae-conditional"](), tmp_path / "served"
    model.export(folder / "1", card={"data": "digits", "seed": 3}, warmup=False)
    model.export(folder / "2", warmup=False)
    beside = json.loads((folder / "model_card.json").read_text())
    extra = "assets.extra/model_card.json"
    first, second = (json.loads((folder / v / extra).read_text()) for v in "12")
    assert beside == second and second["version"] == "2" and not second["training"]
    assert first["training"] == {"data": "digits", "seed": 3}
    assert first["model"] == "VAE" and first["image_shape"] == list(SHAPE)
    assert (first["levels"], first["num_classes"]) == (17, 10)
    assert first["signatures"]["sample"] == {
        "inputs": ["seed", "label"],
        "outputs": ["images"],
    }
    assert first["signatures"]["encode"]["outputs"] == ["mean", "log_var"]
    assert not (folder / "1/assets.extra/tf_serving_warmup_requests").exists()
    kgen.export._put_beside(folder / "1", "of an older version")
    assert json.loads((folder / "model_card.json").read_text()) == beside
    model.export(tmp_path / "no_version", warmup=False)  # its folder is not ours
    assert not (tmp_path / "model_card.json").exists()


def test_a_card_that_cannot_be_put_is_a_warning(tmp_path):
    (tmp_path / "served" / "1").mkdir(parents=True)
    (tmp_path / "served" / "model_card.json" / "in_the_way").mkdir(parents=True)
    with pytest.warns(UserWarning, match="is exported, but not its card"):
        kgen.export._put_beside(tmp_path / "served" / "1", "")


def test_warm_up_requests_want_their_package(tmp_path, monkeypatch):
    monkeypatch.setattr(kgen.export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'kgen\[serving\]'"):
        FAMILIES["vae"]().export(tmp_path / "1", warmup=True)


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
def slow(model, path, served):
    real(model, path, served)
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
