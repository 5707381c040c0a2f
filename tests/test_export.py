"""SavedModels give the model's answers to a stock server, without kgen and keras. An
export is written atomically, with a card, under the next free version."""

import json
import pickle
import subprocess
import sys

import exports
import keras
import numpy as np
import pytest
import zoo
from zoo import SHAPE, TESTS, cases

import kgen
from kgen.signatures import Output, Signature

pytest.importorskip("tensorflow_serving")

HERE = kgen.backend.name == "tensorflow"  # others export in a TensorFlow process
SOME = {
    "tensorflow": ("vae-user-networks", "gated", "gan", "fvbn", "nade", "iwae"),
    "jax": ("vae-user-networks",),
    "torch": ("vae-user-networks", "gan"),
}[kgen.backend.name]
COLD = ("fvbn",) if HERE else ()  # exported without warm-up requests
OTHERS = tuple(name for name in zoo.MODELS if name not in SOME)
GROUPS = [SOME, pytest.param(OTHERS, marks=pytest.mark.exhaustive)]

# Checks, control flow, and the reading of weights and their file
STATEFUL = """
    Assert If While PartitionedCall StatefulPartitionedCall Placeholder VarHandleOp
    AssignVariableOp DisableCopyOnRead ReadVariableOp VarIsInitializedOp
    MergeV2Checkpoints RestoreV2 SaveV2
""".split()
BAD = {  # input: values, and the server's words
    "images": ((17, 255, 256, -240), "images must be in 0..16"),
    "known_rows": ((9,), "known_rows must be in 0..8"),
    "label": ((99,), "label must be in 0..9"),
    "z": ((np.inf,), "z must be finite"),
}


# Answers


def requests_and_answers(model, x, labels):
    """[(signature, {input: array}, the model's {output: array})] of all rows, of some
    and of none; with wrong inputs the words of the error in place of an answer. Values
    out of range are in lists, as JSON has them, for the server to cast."""
    requests, endpoints = exports.requests(model, x, labels), model.endpoints()
    asked = []
    for signature in ("serving_default", *endpoints):
        method = "sample" if signature == "serving_default" else signature
        inputs = requests[method]
        values = exports.ask(model, method, inputs)
        outputs = dict(zip(endpoints[method].outputs, values, strict=True))
        for rows in (slice(None), [3, 0], []):
            given, expected = (
                {k: v[rows] for k, v in arrays.items()} for arrays in (inputs, outputs)
            )
            asked.append((signature, given, expected))
        for name, value in inputs.items():
            values, words = BAD.get(name, ((), None))
            for bad in values:
                wrong = inputs | {name: np.full_like(value, bad).tolist()}
                asked.append((signature, wrong, words))
            if value.ndim > 1:
                wrong = inputs | {name: value[:, :-1]}
                asked.append((signature, wrong, "expected shape ["))
            if len(inputs) > 1:
                wrong = inputs | {name: value[:-1]}
                asked.append((signature, wrong, "are not of the same number"))
    limits = np.full(2, model.levels, "int32"), np.full(2, model.num_classes or 0)
    limits = {"levels": limits[0], "num_classes": limits[1].astype("int32")}
    asked.append(("limits", {"index": np.array([-3, 2**62])}, limits))
    return asked


@pytest.fixture(scope="module", params=GROUPS, ids=["some", "others"])
def served(request, digits, digit_labels, tmp_path_factory):
    """{name: (model, [(signature, the model's answer, the server's)], a report)}."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("served")
    models = {name: exports.randomized(name) for name in request.param}
    others = dict(models)
    if "vae-user-networks" in models:  # by itself; with an optimizer's state
        model = others.pop("vae-user-networks")
        model.compile("adam")
        model.fit(digits, verbose=0)
        model.export(folder / "vae-user-networks" / "1")
    if others:
        exports.export(others, folder, COLD)
    x, y = digits[:5], digit_labels[:5]
    asked = {k: requests_and_answers(model, x, y) for k, model in models.items()}
    (folder / "requests").write_bytes(pickle.dumps(asked))
    eagerly = "vae-user-networks", "made"
    zoo.run_python(TESTS / "loader_child.py", folder, *eagerly, cwd=folder)
    reports = pickle.loads((folder / "reports").read_bytes())
    served = {}
    for name, report in reports.items():
        pairs = zip(asked[name], report["answers"], strict=True)
        answers = [(signature, own, answer) for (signature, _, own), answer in pairs]
        report["size"] = (folder / name / "1" / "saved_model.pb").stat().st_size
        served[name] = models[name], answers, report
    return served


def test_server_without_keras_gives_the_models_answers(served):
    for name, (_, answers, _) in served.items():
        for signature, expected, answer in answers:
            if isinstance(expected, str):
                continue
            assert answer.keys() == expected.keys(), (name, signature, answer)
            for output, value in expected.items():
                got, where = answer[output], f"{name} {signature} {output}"
                assert got.dtype == value.dtype and got.shape == value.shape, where
                kinds = ("int32",) if signature == "limits" else ("uint8", "float32")
                assert got.dtype in kinds, where
                np.testing.assert_allclose(
                    got, value, rtol=1e-5, atol=1e-5, err_msg=where
                )
        images = answers[0][2]["images"]
        assert images.shape == (5, *SHAPE) and images.std() > 0


def test_signatures_and_graphs_are_of_tensorflow_alone(served):
    for name, (model, _, report) in served.items():
        # All ops are TensorFlow's, or the loader had failed; no program of XLA or of
        # Python; no state but the weights, so no generator of random numbers either.
        assert not [op for op in report["ops"] if "Xla" in op or "PyFunc" in op], name
        assert not report["compiled"] and report["stateful"] <= set(STATEFUL), name
        assert report["size"] < 2e6, name  # pixels are loops, not 64 copies of a graph
        shapes = [shape for tensors in report["shapes"].values() for shape in tensors]
        assert all(B == -1 and -1 not in rest for B, *rest in shapes), name
        signatures = {"serving_default", "limits", *model.endpoints()}
        assert report["shapes"].keys() == signatures
        warmed = signatures if name not in COLD else ()
        assert sorted(report["warmed"]) == sorted((name, s) for s in warmed)


def test_server_gets_errors_of_wrong_requests(served):
    for name, (_, answers, _) in served.items():
        for signature, words, answer in answers:
            if isinstance(words, str):
                assert isinstance(answer, str), (name, signature, words)
                assert words in answer, (name, signature)


def test_nothing_is_exported_twice_or_in_vain(served):
    for name, (model, _, report) in served.items():
        assert report["weights"] < 1.5 * model.count_params(), name  # beta is one more
        assert report["default_is_sample"] and not report["gradients"], name


@pytest.mark.parametrize("kind", cases(["masking"] * HERE, ["masking"]))
def test_users_model_exports_inputs_of_its_own(kind, tmp_path, rng):
    """The graph refuses other values, and takes an empty batch."""
    exports.Masking(SHAPE, 17).export(tmp_path / kind / "1")
    inputs, outputs = exports.masking_request(4, rng)
    asked = [("mask", inputs, outputs)]
    asked += [("mask", *({k: v[:0] for k, v in d.items()} for d in (inputs, outputs)))]
    wrong = {"mask": [0, 1, 2, 0], "step": [1, 0, 1, 1]}
    asked += [("mask", inputs | {k: v}, None) for k, v in wrong.items()]
    (tmp_path / "requests").write_bytes(pickle.dumps({kind: asked}))
    zoo.run_python(TESTS / "loader_child.py", tmp_path, cwd=tmp_path)
    report = pickle.loads((tmp_path / "reports").read_bytes())[kind]
    *answers, mask, step = report["answers"]
    assert "mask must be in 0..1" in mask and "step must be in 1..9" in step
    for (_, _, expected), answer in zip(asked, answers, strict=False):
        for name, value in expected.items():
            assert answer[name].dtype == value.dtype
            np.testing.assert_array_equal(answer[name], value)
    assert len(report["warmed"]) == 4 and "mask" in report["shapes"]


@pytest.mark.skipif(not HERE, reason="the same check in each child")
def test_outputs_unlike_their_description_raise(tmp_path, monkeypatch):
    model = exports.Masking(SHAPE, 17)
    signature = model.endpoints()["mask"]
    for wrong in (Output("float32", (2,)), Output("int32", (3,))):
        outputs = signature.outputs | {"masked": wrong}
        described = {"mask": Signature(signature.function, signature.inputs, outputs)}
        monkeypatch.setattr(model, "endpoints", lambda described=described: described)
        with pytest.raises(ValueError, match="masked must be .*; got float32"):
            model.export(tmp_path / "1", warmup=False)
    assert not (tmp_path / "1").exists()


# Folders


@pytest.fixture
def writer(monkeypatch):
    """Writes a line in place of a SavedModel; the names that models were served by. Of
    the name "failing" it fails half-way."""
    names = []

    def write(model, path, served):
        names.append(served)
        path.mkdir()
        (path / "saved_model.pb").write_text(f"{len(names)}")
        if served == "failing":
            raise ZeroDivisionError

    monkeypatch.setattr(kgen.export, "_write", write)
    monkeypatch.setattr(kgen.export, "_write_in_child", write)
    return names


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
    assert writer == ["served", "served"]


@pytest.mark.once
@pytest.mark.parametrize(
    "name, signatures",
    [
        ("fvbn", "sample log_prob complete"),
        ("iwae", "sample elbo encode decode reconstruct"),
        ("gan", "sample generate discriminate"),
    ],
)
def test_each_family_has_its_signatures(name, signatures):
    assert set(zoo.new(name).endpoints()) == set(signatures.split())


@pytest.mark.once
def test_card_describes_what_is_served(tmp_path, writer):
    """Within each version, and beside them that of the one that came last."""
    model, folder = zoo.new("vae-conditional"), tmp_path / "served"
    model.export(folder / "1", card={"data": "digits", "seed": 3}, warmup=False)
    model.export(folder / "2", warmup=False)
    assert writer == ["", ""]  # no warm-up requests
    beside = json.loads((folder / "model_card.json").read_text())
    extra = "assets.extra/model_card.json"
    first, second = (json.loads((folder / v / extra).read_text()) for v in "12")
    assert beside == second and second["version"] == "2" and not second["training"]
    assert first["training"] == {"data": "digits", "seed": 3}
    assert first["model"] == "VAE" and first["image_shape"] == list(SHAPE)
    assert (first["levels"], first["num_classes"]) == (17, 10)
    sample, encode = first["signatures"]["sample"], first["signatures"]["encode"]
    assert sample == {"inputs": ["seed", "label"], "outputs": ["images"]}
    assert encode["outputs"] == ["mean", "log_var"]
    assert first["signatures"]["limits"]["inputs"] == ["index"]
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
def test_killed_or_failed_export_leaves_no_version(tmp_path, writer):
    """After the files are written and before they are moved into place."""
    path = tmp_path / "served" / "1"
    done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=TESTS)
    assert done.returncode == -9 and list(path.parent.glob(".writing-*/1/*"))
    assert not [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    assert kgen.export.next_version(path.parent) == path
    model = zoo.new("vae")
    model.export(path)
    assert (path / "saved_model.pb").exists()
    with pytest.raises(ZeroDivisionError):
        model.export(tmp_path / "failing" / "1")
    assert list((tmp_path / "failing").iterdir()) == []


@pytest.mark.skipif(HERE, reason="TensorFlow exports in its own process")
def test_models_that_the_child_cannot_export_raise(tmp_path, monkeypatch):
    class Mine(kgen.models.VAE):
        pass

    Mine.__module__ = "__main__"
    with pytest.raises(RuntimeError, match="classes defined in __main__"):
        Mine(SHAPE, latent_dim=2).export(tmp_path / "1")
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no TensorFlow here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(RuntimeError, match="no TensorFlow here"):
        zoo.new("vae").export(tmp_path / "served" / "1")
    assert list((tmp_path / "served").iterdir()) == []
