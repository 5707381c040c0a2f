"""SavedModels give the model's answers to a stock server, without kgen and keras. An
export is written atomically, with a card, under the next free version."""

import json
import subprocess
import sys

import exports
import keras
import numpy as np
import pytest
import zoo
from zoo import EXACT, SHAPE, TESTS

import kgen

pytest.importorskip("tensorflow_serving")

HERE = kgen.backend.name == "tensorflow"  # others export in a TensorFlow process
SOME = {
    "tensorflow": ("vae-user-networks", "gated", "gan", "fvbn", "nade", "iwae"),
    "jax": ("vae-user-networks",),
    "torch": ("vae-user-networks", "gated", "gan"),
}[kgen.backend.name]
COLD = ("fvbn",) if HERE else ()  # exported without warm-up requests
OTHERS = tuple(name for name in zoo.MODELS if name not in SOME)
GROUPS = [SOME, pytest.param(OTHERS, marks=pytest.mark.exhaustive)]

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


# Answers


def ask(name, model, x, y):
    """Requests of 5 rows of each signature, and of fewer of some: {call: {input:
    array}}; and what the model itself answers: {call/output: array}."""
    labels = None if model.num_classes is None else y
    given = {} if labels is None else {"label": y}
    feed = {"seed": (np.int64(7) << 32) + np.arange(5), **given}
    images = model.sample(5, seed=7, labels=labels)
    requests, expected = {"serving_default": feed}, {"serving_default/images": images}
    for call, rows in (
        ("sample", range(5)),
        ("sample:some", [3, 0]),
        ("sample:none", []),
    ):
        rows = np.array(rows, int)
        requests[call] = {k: v[rows] for k, v in feed.items()}
        expected[f"{call}/images"] = images[rows]
    endpoints = model.endpoints()
    for call, (inputs, answers) in exports.answers(name, model, x, labels).items():
        inputs |= given
        if "seed" in endpoints[call][1]:
            inputs["seed"] = feed["seed"]
        requests[call] = inputs
        requests[f"{call}:one"] = {k: v[2:3] for k, v in inputs.items()}
        for output, answer in zip(endpoints[call][2], answers, strict=True):
            expected[f"{call}/{output}"] = answer
            expected[f"{call}:one/{output}"] = answer[2:3]
    assert {call.split(":")[0] for call in requests} == {"serving_default", *endpoints}
    return requests, expected


@pytest.fixture(scope="module", params=GROUPS, ids=["some", "others"])
def served(request, digits, digit_labels, tmp_path_factory):
    """{name: (model, its answers, the server's, the server's report)}."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("served")
    models = {name: exports.randomized(name) for name in request.param}
    others = dict(models)
    if "vae-user-networks" in models:  # by itself; with an optimizer's state
        model = others.pop("vae-user-networks")
        model.compile("adam")
        model.fit(digits, verbose=0)
        model.export(folder / "vae-user-networks" / "1")
    for name in set(COLD) & others.keys():
        exports.export({name: others.pop(name)}, folder, warmup=False)
    if others:
        exports.export(others, folder)
    y, expected = np.asarray(digit_labels[:5], "int64"), {}
    for name, model in models.items():
        requests, expected[name] = ask(name, model, digits[:5], y)
        flat = {f"{c}/{k}": v for c, feed in requests.items() for k, v in feed.items()}
        np.savez(folder / name / "requests.npz", **flat)
    both = [name for name in ("vae-user-networks", "made") if name in models]
    zoo.run_python(TESTS / "loader_child.py", folder, *both, cwd=folder)
    served = {}
    for name, model in models.items():
        with np.load(folder / name / "answers.npz") as loaded:
            answers = {k: loaded[k] for k in loaded.files}
        report = json.loads((folder / name / "report.json").read_text())
        report["size"] = (folder / name / "1" / "saved_model.pb").stat().st_size
        served[name] = model, expected[name], answers, report
    return served


def test_server_without_keras_gives_the_models_answers(served):
    for name, (_, expected, answers, _) in served.items():
        assert expected.keys() == answers.keys()
        for call, value in expected.items():
            answer = answers[call]
            assert answer.dtype == value.dtype and answer.shape == value.shape, call
            assert answer.dtype in ("uint8", "float32"), (name, call)
            np.testing.assert_allclose(
                answer, value, rtol=1e-5, atol=1e-5, err_msg=f"{name} {call}"
            )
        images = answers["serving_default/images"]
        assert images.shape == (5, *SHAPE) and images.std() > 0


def test_signatures_and_graphs_are_of_tensorflow_alone(served):
    for name, (model, *_, report) in served.items():
        # All ops are TensorFlow's, or the loader had failed; no program of XLA or of
        # Python; no state but the weights, so no generator of random numbers either.
        assert not [op for op in report["ops"] if "Xla" in op or "PyFunc" in op], name
        assert not report["compiled"] and set(report["stateful"]) <= STATEFUL, name
        assert report["size"] < 2e6, name  # pixels are loops, not 64 copies of a graph
        shapes = [v for tensors in report["shapes"].values() for v in tensors.values()]
        assert all(B == -1 and -1 not in rest for B, *rest in shapes), name
        signatures = {"serving_default", *model.endpoints()}
        assert report["shapes"].keys() == signatures
        warmed = signatures if name not in COLD else ()
        assert sorted(report["warmed"]) == sorted([name, s] for s in warmed)


def test_server_gets_errors_of_wrong_requests(served):
    words = {
        "values images": "images must be in 0..16",
        "values known_rows": "known_rows must be in 0..8",
        "values label": "label must be in 0..9",
        "values z": "z must be finite",
        "size": "expected shape [",
        "number": "are not of the same number",
    }
    for name, (model, *_, report) in served.items():
        found = set()
        for signature, errors in report["errors"].items():
            for wrong, message in errors.items():
                kind = wrong if wrong in words else wrong.split()[0]
                assert words[kind] in message, (name, signature, wrong, message)
                found.add(kind)
        expected = {"values images", "size"}
        expected |= {"values known_rows", "number"} if name in EXACT else {"values z"}
        expected |= {"values label", "number"} if model.num_classes else set()
        assert found == expected, name


# Folders


@pytest.fixture
def writer(monkeypatch):
    """Writes a line in place of a SavedModel; what it was called with."""
    calls = []

    def write(model, path, served):
        calls.append((path, served))
        path.mkdir()
        (path / "saved_model.pb").write_text(f"{len(calls)}")

    monkeypatch.setattr(kgen.export, "_write", write)
    monkeypatch.setattr(kgen.export, "_write_in_child", write)
    return calls


@pytest.mark.once
def test_versions_count_up_and_none_is_overwritten(tmp_path, writer):
    model, folder = zoo.new("vae"), tmp_path / "served"
    assert kgen.export.next_version(folder) == folder / "1"
    assert model.export(folder / "9") == folder / "9"
    assert kgen.export.next_version(folder) == folder / "10"
    with pytest.raises(FileExistsError, match="exists already"):
        model.export(folder / "9")
    assert (folder / "9" / "saved_model.pb").read_text() == "1"
    (folder / "10").mkdir()  # an empty folder is no export
    model.export(folder / "10")
    assert (folder / "10" / "saved_model.pb").exists()
    assert [served for _, served in writer] == ["served", "served"]


@pytest.mark.once
def test_card_describes_what_is_served(tmp_path, writer):
    """Within each version, and beside them that of the one that came last."""
    model, folder = zoo.new("vae-conditional"), tmp_path / "served"
    model.export(folder / "1", card={"data": "digits", "seed": 3}, warmup=False)
    model.export(folder / "2", warmup=False)
    assert [served for _, served in writer] == ["", ""]  # no warm-up requests
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
    model.export(folder / "01", warmup=False)  # of an older version: beside it stays
    assert json.loads((folder / "model_card.json").read_text()) == beside
    model.export(tmp_path / "no_version", warmup=False)  # its folder is not ours
    assert not (tmp_path / "model_card.json").exists()
    gan = zoo.new("gan")
    gan.export(tmp_path / "gan" / "1", warmup=False)
    card = json.loads((tmp_path / "gan" / "model_card.json").read_text())
    networks = gan.generator, gan.discriminator  # not the average of the generator
    assert card["parameters"] == sum(m.count_params() for m in networks)
    (tmp_path / "other" / "model_card.json" / "in_the_way").mkdir(parents=True)
    with pytest.warns(UserWarning, match="is exported, but not its card"):
        model.export(tmp_path / "other" / "1")


@pytest.mark.exhaustive
@pytest.mark.skipif(not HERE, reason="the same SavedModel on each backend")
def test_gated_pixel_cnn_of_28x28_is_small(tmp_path):
    name = "gated_pixel_cnn_binarized_mnist"
    path = kgen.models.GenerativeModel.from_preset(name).export(tmp_path / "m" / "1")
    assert sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) < 10e6


# Failures


@pytest.mark.once
def test_warm_up_without_its_package_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(kgen.export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'kgen\[serving\]'"):
        zoo.new("vae").export(tmp_path / "1", warmup=True)


@pytest.mark.once
def test_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    def write(model, path, served):
        path.mkdir()
        raise ZeroDivisionError("half-way")

    monkeypatch.setattr(kgen.export, "_write", write)
    monkeypatch.setattr(kgen.export, "_write_in_child", write)
    with pytest.raises(ZeroDivisionError):
        zoo.new("vae").export(tmp_path / "served" / "1")
    assert list((tmp_path / "served").iterdir()) == []


KILLED = """
import os, signal, sys
import zoo
from kgen import export
def write(model, path, served):
    path.mkdir()
    (path / "saved_model.pb").write_text("written")
    os.kill(os.getpid(), signal.SIGKILL)
export._write = export._write_in_child = write
zoo.new("fvbn").export(sys.argv[1])
"""


@pytest.mark.once
def test_killed_export_leaves_no_half_written_version(tmp_path, writer):
    """SIGKILL after the files are written and before they are moved into place."""
    path = tmp_path / "served" / "1"
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=TESTS)
    assert done.returncode == -9 and list(path.parent.glob(".writing-*/1/*"))
    assert not [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    assert kgen.export.next_version(path.parent) == path
    zoo.new("vae").export(path)
    assert (path / "saved_model.pb").exists()


@pytest.mark.skipif(HERE, reason="TensorFlow exports in its own process")
def test_classes_of_main_raise(tmp_path):
    class Mine(kgen.models.VAE):
        pass

    Mine.__module__ = "__main__"
    with pytest.raises(RuntimeError, match="classes defined in __main__"):
        Mine(SHAPE, latent_dim=2).export(tmp_path / "1")


@pytest.mark.skipif(HERE, reason="TensorFlow exports in its own process")
def test_failure_in_the_child_raises(tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no TensorFlow here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RuntimeError, match="no TensorFlow here"):
        zoo.new("vae").export(tmp_path / "served" / "1")
    assert list((tmp_path / "served").iterdir()) == []
