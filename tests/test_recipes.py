"""The recipes as a user runs them: scripts, in an empty folder, to the SavedModel.
By default each backend runs one: models have tests of their own on each."""

import ast
import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo
from PIL import Image

import kgen
import report

RECIPES = zoo.TESTS.parent / "recipes"
DIGITS = ("--data", "digits")  # 8x8: pixels are sampled quickly


def run(recipe, *flags, cwd):
    """Its output as a script; `--backend` counts, not the environment."""
    command = [RECIPES / f"{recipe}.py", "--backend", kgen.backend.name, *flags]
    return zoo.run_python(*command, cwd=cwd, KERAS_BACKEND="no-such-backend").stdout


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """Runs a recipe in this process, in an empty folder."""

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")

    monkeypatch.syspath_prepend(RECIPES)
    monkeypatch.chdir(tmp_path)
    yield run
    for module in ("adversarial", "backend_flag", "records", "run"):
        sys.modules.pop(module, None)


DEFAULT = {  # the cheapest backend for each kind
    "torch": ("fvbn_binarized_mnist", "vae_digits"),
    "tensorflow": ("gan_mlp_mnist",),
}.get(kgen.backend.name, ())


def by_backend(**recipes):
    """The recipes that this backend runs."""
    return [
        pytest.param(name, marks=[] if name in DEFAULT else pytest.mark.exhaustive)
        for name in recipes[kgen.backend.name].split()
    ]


def run_name(recipe, flags):
    """Runs on other data than the recipe's, or other levels, are named after them."""
    if "--levels" in flags:
        return f"{recipe}_{flags[flags.index('--levels') + 1]}_levels_smoke"
    if "digits" not in flags or recipe == "vae_digits":
        return f"{recipe}_smoke"
    if recipe not in ("gan_losses", "mnist_features"):
        recipe = re.sub("_(binarized_mnist|fashion_mnist|mnist)$", "", recipe)
    return f"{recipe}_digits_smoke"


def read_card(out):
    return json.loads((out / "metrics.json").read_text())


def read_history(out):
    with open(out / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_exported(folder, name, card):
    version = folder / "saved_models" / name / "1"
    assert (version / "saved_model.pb").exists()
    served = json.loads((version.parent / "model_card.json").read_text())
    assert served["training"] == card


def contrast(path):
    return np.asarray(Image.open(path)).std()


# Smoke runs


@pytest.mark.parametrize(
    "name",
    by_backend(
        torch="fvbn_binarized_mnist vae_digits vae_binarized_mnist "
        "iwae_two_layers_binarized_mnist",
        jax="vae_digits vae_binarized_mnist fvbn_binarized_mnist",
        tensorflow="vae_digits vae_binarized_mnist fvbn_binarized_mnist "
        "nade_binarized_mnist made_binarized_mnist pixel_cnn_binarized_mnist "
        "gated_pixel_cnn_binarized_mnist row_lstm_binarized_mnist "
        "diagonal_bilstm_binarized_mnist pixel_cnn_pp_fashion_mnist",
    ),
)
def test_smoke_run_reaches_the_saved_model(name, tmp_path):
    mnist = name in ("vae_binarized_mnist", "fvbn_binarized_mnist")
    mnist &= name not in DEFAULT and zoo.prepared("binarized_mnist")
    flags = ["--smoke", "--seed", "3", *(() if mnist else DIGITS)]
    flags += ["--levels", "9"] * (name == "vae_digits")
    printed = run(name, *flags, cwd=tmp_path)
    called = run_name(name, flags)
    out = tmp_path / "runs" / called
    assert printed.startswith(f"backend     {kgen.backend.name}, keras")
    vae = name.startswith(("vae", "iwae"))
    number = "test_elbo_nats" if vae else "test_nll_nats"
    for line in ("device", "data  ", "model  ", "parameters", number):
        assert line in printed
    pictures = ("samples_expected", "reconstructions") if vae else ("completions",)
    for picture in ("samples", *pictures):
        assert contrast(out / f"{picture}.png") > 10  # not blank
    assert (out / "model.keras").exists()
    card = read_card(out)
    assert (", 9 levels," in card["data"]) == ("--levels" in flags)
    assert_exported(tmp_path, called, card)
    assert card["seed"] == 3 and card["backend"] == kgen.backend.name
    results = card["results"]
    assert results["test_images"] == 100 and results["test_bits_per_dim"] > 0
    if vae:
        assert results["test_iw100_nats"] > results[number]
        assert -200 * 10 < results[number] < 0
    else:  # not worse than half as much again as the uniform distribution
        dims, levels = 784 if mnist else 64, 17 if "fashion" in name else 2
        assert 0 < results[number] < 1.5 * dims * np.log(levels)


@pytest.mark.parametrize(
    "name",
    by_backend(
        torch="gan_mlp_mnist wgan_gp_mnist sngan_mnist dcgan_fashion_mnist gan_losses",
        jax="gan_mlp_mnist",
        tensorflow="gan_mlp_mnist",
    ),
)
def test_smoke_run_of_a_gan(name, tmp_path):
    """On 8x8 digits, and one on MNIST, for which there are features."""
    measured = name == "wgan_gp_mnist" and zoo.prepared("mnist")
    flags = ["--smoke", "--seed", "3", "--width", "10", *(() if measured else DIGITS)]
    runs = {
        "gan_mlp_mnist": ["non_saturating", "minimax"],
        "gan_losses": "minimax non_saturating least_squares hinge wgan wgan_gp".split(),
    }.get(name)
    if runs is None:
        runs, flags = ["seed_3", "seed_4"], [*flags, "--seeds", "2"]
    printed = run(name, *flags, cwd=tmp_path)
    served = run_name(name, flags)
    out = tmp_path / "runs" / served
    card = read_card(out)
    assert_exported(tmp_path, served, card)
    results = card["results"]
    for each in runs:
        assert np.asarray(Image.open(out / f"{each}.png")).shape[0] > 100
        assert keras.models.load_model(out / each / "model.keras").compiled
        rows = read_history(out / each)
        assert len(rows) == 2 and float(rows[1]["val_generator_loss"])
        distance = f"{each}_mnist_frechet_distance"
        assert (distance in results) == (f"{distance}_floor" in results) == measured
    if measured:
        pair = [results[f"{each}_mnist_frechet_distance"] for each in runs]
        found = [results[f"{k}_mnist_frechet_distance"] for k in ("mean", "stdev")]
        assert found == pytest.approx([np.mean(pair), np.std(pair, ddof=1)])
        assert "mean" in printed
    if name == "gan_mlp_mnist":
        assert contrast(out / "gradient_norms.png") > 1


@pytest.mark.once
def test_feature_recipe_writes_model_and_baselines(recipe, capsys):
    recipe("mnist_features", "--smoke", *DIGITS)
    out = Path("runs", run_name("mnist_features", DIGITS))
    assert str(out / "mnist_features.keras") in capsys.readouterr().out
    model = keras.saving.load_model(out / "mnist_features.keras")
    assert model.output_shape == (None, 64)
    results = read_card(out)["results"]
    for kind in ("grey", "binary"):
        assert 0 <= results[f"{kind}_test_accuracy"] <= 1
        assert results[f"{kind}_100_mnist_frechet_distance_floor"] > 0


# Help


@pytest.mark.once
def test_help_has_our_number_from_the_record(recipe, capsys):
    for name in ("nade_binarized_mnist", "gan_losses", "mnist_features"):
        with pytest.raises(SystemExit):
            recipe(name, "--help")
        printed = capsys.readouterr().out
        records = sorted((RECIPES / "results").glob(f"{name}*/metrics.json"))
        assert printed.count("Ours, recipes/results/") == len(records) > 0
        for path in records:
            card = json.loads(path.read_text())
            assert card["command"] in printed and card["data"] in printed
            assert f"{card['parameters']:,} parameters" in printed
            for key, value in card["results"].items():
                if re.search("_nats$|_accuracy$", key):
                    assert re.search(rf"  {key} +{value:.4f}\n", printed)
                if key.endswith("frechet_distance"):
                    assert f"  {value:.4g}" in printed
    assert report.describe_runs("new.py") == "Ours: not recorded yet.\n"


@pytest.mark.once
def test_each_card_leaves_our_number_to_the_record():
    for path in RECIPES.glob("*.py"):
        card = ast.get_docstring(ast.parse(path.read_text()))
        assert "\nOurs" not in card, path.name


@pytest.mark.once
def test_recipes_without_kgen_name_the_installation():
    """-S: no installed packages."""
    command = [sys.executable, "-S", RECIPES / "fvbn_binarized_mnist.py", "--help"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install -e ." in done.stderr


# Resumed

KILLED = """
import os, runpy, signal, sys
import kgen
def kill(self, epoch, logs=None):
    if epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
kgen.callbacks.SampleGrid.on_epoch_end = kill
sys.argv.remove("-c")
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.once
def test_killed_run_resumes(recipe, tmp_path, monkeypatch, capsys):
    """SIGKILL when the second epoch's row is in history.csv; the last backup is of 10
    of its 13 batches."""
    name, flags = "fvbn_binarized_mnist", [*DIGITS, "--epochs", "3", "--save-freq", "5"]

    def write(model, path, served):
        path.mkdir()

    monkeypatch.setattr(kgen.export, "_write", write)
    monkeypatch.setattr(kgen.export, "_write_in_child", write)
    recipe(name, *flags, "--out", "whole")
    arguments = [RECIPES / f"{name}.py", *flags, "--out", "cut"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments])
    assert killed.returncode == -signal.SIGKILL
    assert list(Path("cut", "backup").glob("*-epoch-1-batch-10"))
    assert [row["epoch"] for row in read_history(Path("cut"))] == ["0", "1"]
    capsys.readouterr()
    recipe(name, *flags, "--out", "cut", "--resume")
    printed = capsys.readouterr().out
    assert "epoch 1/3" not in printed and "epoch 2/3" in printed
    nats, losses = [], []
    for out in (Path("whole"), Path("cut")):
        rows = read_history(out)
        assert [row["epoch"] for row in rows] == ["0", "1", "2"]  # each once
        losses.append([float(row["loss"]) for row in rows])
        nats.append(read_card(out)["results"]["test_nll_nats"])
    assert nats[0] == pytest.approx(nats[1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert Path("saved_models", "fvbn_digits", "2").is_dir()


@pytest.mark.once
def test_earlier_runs_are_moved_aside(recipe, capsys, monkeypatch):
    monkeypatch.setattr(kgen.export, "_write", lambda model, path, served: path.mkdir())
    monkeypatch.setattr(kgen.export, "_write_in_child", kgen.export._write)
    name, flags = "fvbn_binarized_mnist", [*DIGITS, "--steps", "26", "--name", "mine"]
    for _ in range(2):
        recipe(name, *flags)
    printed = capsys.readouterr().out
    out = Path("runs", "mine")
    assert f"moved the earlier run to {out / 'earlier_1'}" in printed
    for folder in (out, out / "earlier_1"):
        for kept in ("backup", "best.weights.h5", "model.keras", "samples.png"):
            assert (folder / kept).exists()
        assert len(read_history(folder)) == 2  # epochs of 13 steps
    seconds = read_card(out)["results"]["training_seconds"]
    recipe(name, *flags, "--resume", "--batch-size", "50")
    printed = capsys.readouterr().out
    assert "resuming    at its end, 1 epochs" in printed
    assert "batches were of 100 images, now of 50" in printed
    results = read_card(out)["results"]
    assert results["training_seconds"] == seconds and not results["resumed"]
    recipe(name, *flags, "--resume", "--out", "empty")
    assert "there is no backup in empty: the run begins anew" in capsys.readouterr().out


@pytest.mark.once
def test_runs_of_a_gan_are_moved_aside_and_resumed(recipe, monkeypatch):
    """The record of several networks too. A run that is interrupted after the 42nd of
    44 batches, with a backup of 30, then writes the steps that the whole one wrote."""
    monkeypatch.setattr(kgen.export, "_write", lambda model, path, served: path.mkdir())
    monkeypatch.setattr(kgen.export, "_write_in_child", kgen.export._write)
    flags = [*DIGITS, "--width", "10", "--batch-size", "30", "--epochs", "2"]
    flags += ["--out", "mine", "--save-freq", "15"]
    recipe("gan_mlp_mnist", *flags)
    record = Path("mine", "metrics.json").read_text()
    batches = 0

    def interrupt(self, batch, logs=None):
        nonlocal batches
        batches += 1
        if batches == 3 * 44 + 42:  # of the second network, in its second epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kgen.callbacks.CollapseGuard, "on_train_batch_end", interrupt)
        with pytest.raises(SystemExit, match="Interrupted"):
            recipe("gan_mlp_mnist", *flags)
    out, earlier = Path("mine"), Path("mine", "earlier_1")
    assert (earlier / "metrics.json").read_text() == record
    assert not (out / "metrics.json").exists()
    for name in ("preset", "minimax/model.keras", "gradient_norms.png", "minimax.png"):
        assert (earlier / name).exists()
    steps = "minimax_steps.csv"
    (out / steps).write_text((out / steps).read_text() + "88,0.5,")  # a cut-off line
    assert (out / steps).read_text().count("\n") == 4
    recipe("gan_mlp_mnist", *flags, "--resume")
    for name in (steps, "non_saturating_steps.csv"):
        assert (out / name).read_text() == (earlier / name).read_text()
        rows = np.loadtxt(out / name, delimiter=",")
        assert rows[:, 0].tolist() == [20, 40, 64, 84] and np.ptp(rows, 0).min() > 0
    assert (out / "metrics.json").exists()


@pytest.mark.once
def test_other_data_than_mnist_warn_once(recipe, rng, monkeypatch):
    import adversarial

    x = rng.integers(0, 2, (20, 28, 28, 1))
    splits = types.SimpleNamespace(name="binarized_mnist", levels=2, train=x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adversarial.make_distances(splits, x)
    splits.name = "garments"
    with pytest.warns(UserWarning, match="garments are over .* of MNIST") as caught:
        for _ in range(2):
            adversarial.make_distances(splits, x)
    assert sum("garments" in str(w.message) for w in caught) == 1


@pytest.mark.once
def test_an_interrupted_run_names_resume(recipe, monkeypatch):
    def interrupt(self, epoch, logs=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(kgen.callbacks.SampleGrid, "on_epoch_end", interrupt)
    words = "Interrupted. To go on: python .*fvbn.* --data digits --resume"
    with pytest.raises(SystemExit, match=words):
        recipe("fvbn_binarized_mnist", *DIGITS)


# Wrong flags


@pytest.mark.once
@pytest.mark.parametrize(
    "flags,words",
    [
        (["--data", "no_such_set"], "no_such_set"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--backend", "mxnet"], "invalid choice: 'mxnet'"),
        (["--out", "file/run"], "cannot write there"),
        (["--lr", "-1"], "--lr must be in 0..10"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--levels", "1"], "--levels must be in 2..256"),
        (["--levels", "18"], "--data digits --levels 18: "),
        (["--name", "../up"], "expected letters, digits and _.-"),
    ],
)
def test_wrong_flags_end_with_a_message(flags, words, recipe, tmp_path, capsys):
    """SystemExit: Python prints its message, no traceback; before any training."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as error:
        recipe("vae_digits", *flags)
    message = error.value.code  # or 2, after argparse has printed it
    printed = capsys.readouterr()
    assert words in (message if isinstance(message, str) else printed.err)
    assert message and "epoch 1" not in printed.out


@pytest.mark.once
def test_recipes_of_binary_images_refuse_levels(recipe):
    for name in ("fvbn_binarized_mnist", "vae_binarized_mnist"):
        with pytest.raises(SystemExit, match="--levels 4: this recipe is of binary"):
            recipe(name, *DIGITS, "--levels", "4")
