"""What every model owes a Keras user, proved on one trained model of each variant:
configure, fit with callbacks, save, load, preset, resume, evaluate, predict, sample."""

import contextlib
import io
import json
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image
from zoo import CLASSES, LEVELS, MODELS, SHAPE, assert_same, cases, inputs, new, numpy

import kgen
from kgen.data import Batches

EPOCHS, HALF, BATCH = 3, 2, 64  # one batch size: one trace of each function


def fit(run, model, *callbacks, **kwargs):
    model.compile(keras.optimizers.Adam(1e-2))
    kwargs |= {"epochs": EPOCHS, "verbose": 0, "callbacks": [*callbacks]}
    return model.fit(Batches(*run.data, batch_size=BATCH, seed=3), **kwargs).history


SIMILAR = ("made", "vae-conv")  # MADE with one mask; a VAE with other default networks
VARIANTS = cases([name for name in MODELS if name not in SIMILAR], SIMILAR)


@pytest.fixture(scope="module", params=VARIANTS)
def run(request, digits, digit_labels, tmp_path_factory):
    """A model of each variant after three epochs, and what its callbacks left."""
    folder = tmp_path_factory.mktemp(request.param)
    keras.utils.set_random_seed(5)
    model = new(request.param)
    data = inputs(model, digits[: 2 * BATCH], digit_labels[: 2 * BATCH])
    held_out = inputs(model, digits[-BATCH:], digit_labels[-BATCH:])
    run = SimpleNamespace(model=model, folder=folder, data=data, held_out=held_out)
    run.name = request.param
    run.first_config = keras.saving.serialize_keras_object(model)

    def interrupt(epoch, logs):
        """Keeps the backups as they are just before that of epoch 2."""
        if epoch == HALF:
            shutil.copytree(folder / "backups", folder / "interrupted")

    theirs, keep = keras.callbacks, {"delete_checkpoint": False}
    callbacks = [
        theirs.LambdaCallback(on_epoch_end=interrupt),
        kgen.callbacks.BackupAndRestore(folder / "backups" / "kgen", **keep),
        theirs.BackupAndRestore(folder / "backups" / "keras", **keep),
        theirs.EarlyStopping(patience=50),
        theirs.ModelCheckpoint(folder / "best.keras", save_best_only=True),
        theirs.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
        theirs.TensorBoard(folder / "tensorboard", histogram_freq=1, update_freq=1),
        theirs.CSVLogger(folder / "log.csv"),
        theirs.ReduceLROnPlateau(patience=50),
        theirs.TerminateOnNaN(),
        kgen.callbacks.SampleGrid(folder / "samples", n=6),
        kgen.callbacks.Progress(["loss"]),
    ]
    if hasattr(model, "reconstruct"):
        images, labels = (*held_out, None)[:2]
        grid = kgen.callbacks.ReconstructionGrid(folder / "r", images, labels, every=2)
        callbacks.append(grid)
    validation = held_out if len(held_out) > 1 else held_out[0]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run.logs = fit(run, model, *callbacks, validation_data=validation)
    run.printed = printed.getvalue()
    return run


def test_config_round_trip_is_json(run):
    config = json.loads(json.dumps(run.first_config))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(run.model) and again.built
    first, second = (
        # users' networks hold numbers of shared objects
        {k: v for k, v in m.get_config().items() if k not in ("encoder", "decoder")}
        for m in (run.model, again)
    )
    assert first == second
    assert [v.shape for v in again.weights] == [v.shape for v in run.model.weights]


def test_keras_callbacks_work_unmodified(run):
    losses = run.logs["val_loss"]
    assert len(losses) == EPOCHS and np.all(np.isfinite(losses))
    assert run.name.startswith("gan") or losses[-1] < losses[0]
    assert (run.folder / f"{EPOCHS}.weights.h5").exists()
    assert list((run.folder / "tensorboard").rglob("*events*"))
    assert len((run.folder / "log.csv").read_text().splitlines()) == EPOCHS + 1
    best = keras.models.load_model(run.folder / "best.keras")
    scores = best.evaluate(*run.held_out, batch_size=BATCH, verbose=0)
    assert scores["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_evaluate_returns_the_metrics_of_fit(run):
    scores = run.model.evaluate(*run.held_out, batch_size=BATCH, verbose=0)
    names = {m.name for m in run.model.metrics if "gradient" not in m.name}
    assert set(scores) == names - {"out_of_range"}
    headline = run.model.headline
    assert headline.kind == "distance" or headline.metric in scores
    for name, value in scores.items():
        assert value == pytest.approx(run.logs[f"val_{name}"][-1], rel=1e-4, abs=1e-6)


def test_files_restore_weights_seeds_and_optimizer(run, tmp_path):
    model = run.model
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert_same(model.variables, loaded.variables)
    assert_same(model.optimizer.variables, loaded.optimizer.variables)
    np.testing.assert_array_equal(model.sample(2, seed=2), loaded.sample(2, seed=2))
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = type(model).from_config(model.get_config())
    fresh.load_weights(tmp_path / "m.weights.h5")
    assert_same(model.variables, fresh.variables)


def test_presets_restore_weights(run, tmp_path):
    model, folder = run.model, tmp_path / "preset"
    model.save_to_preset(folder)
    model.save_to_preset(folder)  # replaces the first
    assert [p.name for p in tmp_path.iterdir()] == ["preset"]
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["config.json", "metadata.json", "model.weights.h5"]
    config = json.loads((folder / "config.json").read_text())
    assert "compile_config" not in config and "build_config" not in config
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["parameter_count"] == model.count_params()
    assert_same(model, kgen.models.GenerativeModel.from_preset(folder))
    initial = type(model).from_preset(folder, load_weights=False)
    pairs = zip(initial.weights, model.weights, strict=True)
    assert any(np.any(numpy(a) != numpy(b)) for a, b in pairs)


@pytest.mark.parametrize("package", cases([kgen], [keras]))
def test_resumed_run_equals_uninterrupted(package, run):
    """Order of batches, noise, moments: 2 epochs and 1 in two models equal 3 in one."""
    resumed = type(run.model).from_config(run.model.get_config())
    keras.utils.set_random_seed(77)
    folder = run.folder / "interrupted" / package.__name__
    backup = package.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    logs = fit(run, resumed, backup)
    assert len(logs["loss"]) == EPOCHS - HALF
    # TensorFlow sums in another order from run to run when cores are busy
    assert_same(run.model, resumed, atol=2e-5)
    assert_same(run.model.optimizer.variables, resumed.optimizer.variables, atol=2e-5)
    different = run.model.sample(2, seed=4) != resumed.sample(2, seed=4)
    assert np.mean(different) < 0.02  # ties within rounding


def test_predict_returns_parameters_or_logits_as_call(run):
    data, few = run.held_out, tuple(a[:3] for a in run.held_out)
    x, some = (data, few) if len(data) > 1 else (data[0], few[0])
    out = run.model.predict(x, batch_size=BATCH, verbose=0)
    maps = out.ndim > 1  # logits of a GAN are not
    assert out.shape[:3] == data[0].shape[: 3 if maps else 1]
    assert np.all(np.isfinite(out))
    np.testing.assert_allclose(numpy(run.model(some)), out[:3], rtol=1e-4, atol=1e-5)


def test_samples_are_functions_of_seed_and_label(run):
    model = run.model
    images = model.sample(6, seed=3)
    assert images.dtype == "uint8" and images.shape == (6, *SHAPE)
    assert images.max() < LEVELS
    np.testing.assert_array_equal(images, model.sample(6, seed=3))
    assert np.any(images != model.sample(6, seed=4))
    labels = None
    if model.num_classes is not None:
        labels = np.arange(6) % CLASSES
        np.testing.assert_array_equal(images, model.sample(6, seed=3, labels=labels))
        labels = labels[:2]
    # whatever else is in the batch, and whatever its size
    np.testing.assert_array_equal(images[:2], model.sample(2, seed=3, labels=labels))
    assert np.any(model.sample(6) != model.sample(6))  # the model's generator moves on
    assert model.sample(0, seed=1).shape == (0, *SHAPE)


def test_callbacks_draw_grids_of_the_last_weights(run):
    path = run.folder / "samples" / f"samples_epoch_{EPOCHS:03}.png"
    assert str(path) in run.printed
    assert f"epoch {EPOCHS}/{EPOCHS}  loss" in run.printed
    expected = kgen.callbacks.image_grid(run.model.sample(6, seed=0), LEVELS)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    pictures = [p.name for p in (run.folder / "r").glob("*.png")]
    with_encoder = hasattr(run.model, "reconstruct")
    assert pictures == ["reconstructions_epoch_002.png"] * with_encoder
