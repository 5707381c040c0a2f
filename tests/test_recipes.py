"""The recipes as a user runs them: scripts, in an empty folder, to the SavedModel."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import kgen

RECIPES = Path(__file__).parent.parent / "recipes"


def command(recipe, *flags):
    backend = ["--backend", kgen.backend.name]
    return [sys.executable, str(RECIPES / recipe), *backend, *flags]


def run(recipe, *flags, cwd, **env):
    return subprocess.run(
        command(recipe, *flags),
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_BACKEND": "no-such-backend"} | env,
    )


def prepared(name):
    folder = os.environ.get("TFDS_DATA_DIR")
    return bool(folder) and any(Path(folder, name).glob("*/dataset_info.json"))


VAES, EXACT = (
    ("vae_digits", "vae_binarized_mnist"),
    (
        "fvbn_binarized_mnist",
        "nade_binarized_mnist",
        "made_binarized_mnist",
        "pixel_cnn_binarized_mnist",
        "gated_pixel_cnn_binarized_mnist",
        "row_lstm_binarized_mnist",
        "diagonal_bilstm_binarized_mnist",
        "pixel_cnn_pp_fashion_mnist",
    ),
)
ON_THEIR_DATA = ("vae_binarized_mnist", "fvbn_binarized_mnist")
# The recipes are the same on each backend, and models have their own tests there.
if kgen.backend.name != "tensorflow":
    EXACT = ("fvbn_binarized_mnist",)
if kgen.backend.name == "torch":  # the quickest of the three
    VAES += ("iwae_two_layers_binarized_mnist",)


@pytest.mark.parametrize("recipe", [*VAES, *EXACT])
def test_smoke_run_reaches_the_saved_model(recipe, tmp_path):
    flags = ["--smoke", "--seed", "3"]
    if recipe in ON_THEIR_DATA and not prepared("binarized_mnist"):
        pytest.skip("tfds has no prepared binarized_mnist: set TFDS_DATA_DIR")
    if recipe not in ON_THEIR_DATA:  # 8x8, so that pixels are drawn quickly
        flags += ["--data", "digits"]
    pytest.importorskip("tensorflow")
    done = run(f"{recipe}.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "runs" / f"{recipe}_smoke"
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"backend     {kgen.backend.name}, keras")
    number = "test_elbo_nats" if recipe in VAES else "test_nll_nats"
    for line in ("device", "data  ", "model  ", "parameters", number):
        assert line in done.stdout
    pictures = {
        VAES: ("samples", "samples_expected", "reconstructions"),
        EXACT: ("samples", "completions"),
    }
    for picture in pictures[VAES if recipe in VAES else EXACT]:
        pixels = np.asarray(Image.open(out / f"{picture}.png"))
        assert pixels.std() > 10  # not a blank picture
    version = tmp_path / "saved_models" / f"{recipe}_smoke" / "1"
    assert (version / "saved_model.pb").exists() and (out / "model.keras").exists()
    card = json.loads((out / "metrics.json").read_text())
    served = json.loads((version.parent / "model_card.json").read_text())
    assert served["training"] == card
    assert card["seed"] == 3 and card["backend"] == kgen.backend.name
    results = card["results"]
    assert results["test_images"] == 100
    if recipe in VAES:
        assert results["test_iw100_nats"] > results[number]
    if recipe in VAES:
        assert -200 * 10 < results[number] < 0
    else:  # not worse than half as much again as the uniform distribution
        dims, levels = (784, 2) if recipe in ON_THEIR_DATA else (64, 2)
        levels = 17 if "fashion" in recipe else levels
        assert 0 < results[number] < 1.5 * dims * np.log(levels)
    assert results["test_bits_per_dim"] > 0


GANS = ("gan_mlp_mnist", "wgan_gp_mnist", "sngan_mnist", "dcgan_fashion_mnist")
GANS += ("gan_losses",)


@pytest.mark.parametrize("recipe", GANS if kgen.backend.name == "torch" else GANS[:1])
def test_smoke_run_of_a_game(recipe, tmp_path):
    """On 8x8 digits, and one on MNIST, for which there are features."""
    pytest.importorskip("tensorflow")
    flags = ["--smoke", "--seed", "3", "--width", "10"]
    measured = recipe == "wgan_gp_mnist" and prepared("mnist")
    flags += [] if measured else ["--data", "digits"]
    several = ["seed_3", "seed_4"]
    if recipe == "gan_mlp_mnist":
        several = ["non_saturating", "minimax"]
    elif recipe == "gan_losses":
        several = ["minimax", "non_saturating", "least_squares"]
        several += ["hinge", "wgan", "wgan_gp"]
    else:
        flags += ["--seeds", "2"]
    done = run(f"{recipe}.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    of = "gan_losses_digits" if recipe == "gan_losses" else recipe
    out = tmp_path / "runs" / f"{of}_smoke"
    results = json.loads((out / "metrics.json").read_text())["results"]
    for name in several:
        assert np.asarray(Image.open(out / f"{name}.png")).shape[0] > 100
        assert keras.models.load_model(out / name / "model.keras").compiled
        history = (out / name / "history.csv").read_text().splitlines()
        rows = list(csv.DictReader(history))
        assert len(rows) == 2 and float(rows[1]["val_generator_loss"])
        distance = f"{name}_mnist_frechet_distance"
        assert (distance in results) == (f"{distance}_floor" in results) == measured
    if measured:
        pair = [results[f"{n}_mnist_frechet_distance"] for n in several]
        assert results["mean_mnist_frechet_distance"] == pytest.approx(np.mean(pair))
        spread = results["stdev_mnist_frechet_distance"]
        assert spread == pytest.approx(np.std(pair, ddof=1))
        assert "mean" in done.stdout
    if recipe == "gan_mlp_mnist":
        assert np.asarray(Image.open(out / "gradient_norms.png")).std() > 1
    version = tmp_path / "saved_models" / f"{of}_smoke" / "1"
    assert (version / "saved_model.pb").exists()


def test_the_feature_recipe_reaches_its_model_and_floors(tmp_path):
    done = run("mnist_features.py", "--smoke", "--data", "digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "runs" / "mnist_features_smoke"
    assert str(Path("runs", out.name, "mnist_features.keras")) in done.stdout
    features = keras.saving.load_model(out / "mnist_features.keras")
    assert features.output_shape == (None, 64)
    results = json.loads((out / "metrics.json").read_text())["results"]
    for kind in ("grey", "binary"):
        assert 0 <= results[f"{kind}_test_accuracy"] <= 1
        assert results[f"{kind}_100_mnist_frechet_distance_floor"] > 0


def test_a_killed_run_resumes_to_the_same_end(tmp_path):
    """SIGKILL within an epoch, then --resume: the uninterrupted run's history
    and weights."""
    flags = ["fvbn_binarized_mnist.py", "--data", "digits", "--seed", "4"]
    flags += ["--epochs", "12", "--save-freq", "5"]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    whole = run(*flags, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    killed = subprocess.Popen(
        command(*flags, "--out", "cut"), cwd=tmp_path, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with killed:
        for line in killed.stdout:
            if line.startswith("epoch 3/12"):
                break
        deadline, backups = time.time() + 60, tmp_path / "cut" / "backup"
        while time.time() < deadline:  # within an epoch
            if list(backups.glob("*-epoch-[3-9]-batch-[1-9]*/backup.json")):
                break
            time.sleep(0.001)
        killed.send_signal(signal.SIGKILL)
    assert not (tmp_path / "cut" / "metrics.json").exists()
    resumed = run(*flags, "--out", "cut", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "epoch 1/12" not in resumed.stdout
    cards = [
        json.loads((tmp_path / out / "metrics.json").read_text())["results"]
        for out in ("whole", "cut")
    ]
    assert cards[0]["test_nll_nats"] == pytest.approx(
        cards[1]["test_nll_nats"], rel=1e-5
    )
    assert (tmp_path / "saved_models" / "fvbn_binarized_mnist" / "2").is_dir()
    histories = []
    for out in ("whole", "cut"):
        with open(tmp_path / out / "history.csv", newline="") as file:
            rows = list(csv.DictReader(file))
            histories.append({row["epoch"]: float(row["loss"]) for row in rows})
            assert [row["epoch"] for row in rows] == list(
                map(str, range(12))
            )  # each once
    assert histories[0].keys() == histories[1].keys()
    for epoch, loss in histories[0].items():
        assert histories[1][epoch] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "flags,words",
    [
        (["--data", "no_such_set"], "no_such_set"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--backend", "mxnet"], "invalid choice: 'mxnet'"),
    ],
)
def test_wrong_flags_are_told_without_a_traceback(flags, words, tmp_path):
    done = run("vae_digits.py", *flags, cwd=tmp_path)
    assert done.returncode != 0 and words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unwritable_out_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = run("vae_digits.py", "--out", "file/run", cwd=tmp_path)
    assert done.returncode != 0 and "cannot write there" in done.stderr
    assert "Traceback" not in done.stderr
