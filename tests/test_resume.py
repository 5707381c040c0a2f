"""A run that was killed or interrupted ends as one that was not: weights, moments,
seeds, metrics and samples. Damaged backups and other data are detected."""

import functools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import zoo
from sklearn.datasets import load_digits

from kgen import backend
from kgen.callbacks import BackupAndRestore
from kgen.data import Batches

DIGITS = load_digits().images[:320].astype("uint8")[..., None]
CASES = {  # arguments of the model and of its optimizer, or its networks' optimizers
    "pixel-cnn": (
        {"levels": 2, "num_blocks": 1},  # binarized anew in each epoch
        {"use_ema": True, "gradient_accumulation_steps": 2},
    ),
    "vae": ({}, {"clipnorm": 100.0, "weight_decay": 1e-3}),
    "gan": (
        {"architecture": "mlp", "width": 10, "loss": "minimax"},  # with dropout
        {"generator_optimizer": "adam", "discriminator_optimizer": "rmsprop"},
    ),
}


@functools.cache
def compiled(case):
    """A model, its variables (moments and seeds too), and their first values."""
    keras.utils.set_random_seed(4)
    arguments, rules = CASES[case]
    model = zoo.new(case, **arguments)
    if case != "gan":
        rate = keras.optimizers.schedules.CosineDecay(1e-2, 20)
        rules = {"optimizer": keras.optimizers.Adam(rate, **rules)}
    model.compile(**rules)
    return model, values(model)


def new(case="vae"):
    """The model as a new process makes it; its step is compiled once."""
    model, initial = compiled(case)
    for v, value in zip(variables(model), initial, strict=True):
        v.assign(value)
    return model


def variables(model):
    return model.variables + model.optimizer.variables


def values(model):
    return [zoo.numpy(v).copy() for v in variables(model)]


def assert_equal(whole, resumed):
    """Bit for bit; TensorFlow sums in another order from run to run, on busy cores."""
    near = {"atol": 2e-5, "rtol": 1e-5} if backend.name == "tensorflow" else {"rtol": 0}
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(a, b, **near)


# Killed

WITHIN = (2, 3, 7, 8)  # of 5 batches an epoch, a backup after every second one


def train(case, *callbacks):
    """The state that training ends in, its metrics, and samples."""
    model, options = new(case), {"source_levels": 17, "seed": 3}
    data = Batches(DIGITS[:160], None, 32, binarize=model.levels == 2, **options)
    logs = model.fit(data, epochs=4, verbose=0, callbacks=[*callbacks]).history
    return [*values(model), *(v[-1] for v in logs.values())], model.sample(8)


def train_with_backups(done, case, *arguments):
    """Run in a process that is killed; each batch releases the semaphore `done`."""
    if backend.name == "torch":  # as in the tests: sums depend on it
        import torch

        torch.set_num_threads(1)

    def report(batch, logs):
        done.release()
        time.sleep(0.02)  # the time to kill it in

    lines = keras.callbacks.LambdaCallback(on_train_batch_end=report)
    train(case, BackupAndRestore(*arguments), lines)


@pytest.mark.parametrize(
    "case,kills",
    zoo.cases(
        [("pixel-cnn", [(2, WITHIN)]), ("gan", [("epoch", (6, 7, 8))])],
        [
            ("vae", [(2, WITHIN), ("epoch", (6, 7, 8))]),
            ("gan", [("epoch", range(1, 9)), (2, (2, 3))]),
        ],
    ),
)
def test_killed_run_ends_as_the_uninterrupted(case, kills, tmp_path):
    """SIGKILL within an epoch, or with a backup at each epoch's end alone."""
    rng = random.Random(os.environ.get("KILL_SEED", 0))
    for save_freq, batches in kills:
        done = zoo.PROCESSES.Semaphore(0)
        child = zoo.start(train_with_backups, done, case, tmp_path, save_freq)
        for _ in range(rng.choice(batches)):
            assert done.acquire(timeout=300)
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    keep = BackupAndRestore(tmp_path, 2)
    assert any(keep.backups())
    (whole, samples), (resumed, again) = train(case), train(case, keep)
    assert_equal(whole, resumed)
    # on TensorFlow, ties may differ
    assert np.mean(samples != again) <= (0.02 if backend.name == "tensorflow" else 0)


# Interrupted


class Probe(keras.callbacks.Callback):
    """Lists the batches; an interruption after so many, or weights that are NaN from
    the start of batch `poison` on."""

    def __init__(self, stop=None, poison=None):
        super().__init__()
        self.stop, self.poison, self.batches = stop, poison, []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.poison:
            v = self.model.trainable_variables[-1]
            v.assign(v * float("nan"))

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)
        if len(self.batches) == self.stop:
            raise KeyboardInterrupt


def fit(x, folder=None, *callbacks, epochs=2, stop=None, model=None):
    """10 batches an epoch, backups in `folder` after every second one. Returns the
    values that a new model ends with, and its history, None if interrupted."""
    model, callbacks = model or new(), [*callbacks, Probe(stop)]
    if folder:
        callbacks.append(BackupAndRestore(folder, 2, delete_checkpoint=False))
    try:
        logs = model.fit(x, epochs=epochs, verbose=0, callbacks=callbacks).history
    except KeyboardInterrupt:
        logs = None
    return values(model), logs


def iterations():
    """How many steps the last of these models has made."""
    return int(compiled("vae")[0].optimizer.iterations)


def data(**other):
    return Batches(DIGITS, **{"batch_size": 32, "seed": 1} | other)


@functools.cache
def uninterrupted(epochs):
    return fit(data(), epochs=epochs)


@pytest.fixture(scope="module")
def backups(tmp_path_factory):
    """Those of a run that was interrupted after 7 batches of the second epoch."""
    folder = tmp_path_factory.mktemp("backups")
    fit(data(), folder, stop=17)
    return folder


@pytest.fixture
def cut(backups, tmp_path):
    return shutil.copytree(backups, tmp_path / "cut")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_resumes_at_the_exact_batch(cut):
    """Also with a CallbackList of Keras."""
    assert names(cut) == ["00000006-epoch-1-batch-4", "00000007-epoch-1-batch-6"]
    whole, expected = uninterrupted(2)
    model, probe, keep = new(), Probe(), BackupAndRestore(cut, 2)
    callbacks = keras.callbacks.CallbackList([keep, probe], model=model, epochs=2)
    logs = model.fit(data(), epochs=2, verbose=0, callbacks=callbacks).history
    for name in expected:  # of all the epoch's batches
        assert logs[name] == pytest.approx(expected[name][1:], rel=1e-5)
    assert probe.batches == [0, 1, 2, 3] and not cut.exists()
    assert_equal(whole, values(model))


@pytest.mark.exhaustive
@pytest.mark.skipif(backend.name == "torch", reason="Keras has one step at once there")
def test_resumes_with_several_steps_at_once(tmp_path):
    """Of 9 batches two at once: the last step of an epoch has one."""

    def run(folder=None, stop=None):
        keras.utils.set_random_seed(4)
        model = zoo.new("vae")
        model.compile("adam", steps_per_execution=2)
        x = Batches(DIGITS[:288], batch_size=32, seed=1)
        return fit(x, folder, stop=stop, model=model)[0]

    whole = run()
    run(tmp_path, stop=7)
    assert any(tmp_path.iterdir())
    assert_equal(whole, run(tmp_path))


@pytest.mark.parametrize(
    "name, damage",
    [("state.weights.h5", zoo.flip_bit), ("metrics.npz", Path.unlink)],
)
def test_damaged_backup_is_replaced_by_the_previous(name, damage, cut):
    newest = sorted(cut.iterdir())[-1]
    damage(newest / name)
    with pytest.warns(RuntimeWarning, match=f"{newest.name} is damaged"):
        assert_equal(uninterrupted(2)[0], fit(data(), cut)[0])
    for path in cut.iterdir():
        damage(path / name)
    with (
        pytest.warns(RuntimeWarning, match="is damaged"),
        pytest.raises(ValueError, match="None of the backups in .* is intact"),
    ):
        fit(data(), cut)


def test_interrupted_backup_leaves_the_old_ones_alone(cut, monkeypatch):
    before = names(cut)
    (cut / ".writing-abc").mkdir()  # of a save that was killed
    monkeypatch.setattr(np, "savez", Mock(side_effect=KeyboardInterrupt))
    assert fit(data(), cut)[1] is None
    assert names(cut) == before


def test_backup_of_another_model_raises(cut):
    for hidden_units, optimizer in ((8, 8), "adam"), ((8,), "sgd"):
        other = zoo.new("vae", hidden_units=hidden_units)
        other.compile(optimizer)  # Keras would load what fits
        with pytest.raises(ValueError, match="not of this model and optimizer"):
            fit(data(), cut, model=other)


@pytest.mark.parametrize("other", [None, {"batch_size": 64}, {"seed": 2}])
def test_other_data_start_the_epoch_over(other, cut):
    """Arrays, or other batches: the second epoch, whole."""
    x, probe = data(**other) if other else DIGITS, Probe()
    n = len(x) if other else 10
    with pytest.warns(RuntimeWarning, match="an epoch of other data.*starts over"):
        fit(x, cut, probe)
    assert probe.batches == list(range(n)) and iterations() == 16 + n


def test_nan_replaces_no_good_backup(tmp_path):
    """NaN from the 6th batch on: the backups are of batches 2 and 4."""
    with pytest.raises(FloatingPointError, match="is nan after batch 6 of epoch 1"):
        fit(data(), tmp_path, Probe(poison=5))
    kept = ["00000000-epoch-0-batch-2", "00000001-epoch-0-batch-4"]
    assert names(tmp_path) == kept
    end = Probe(poison=0), keras.callbacks.TerminateOnNaN()  # ends without an error
    with pytest.warns(RuntimeWarning, match="No backup after batch"):
        fit(data(), tmp_path, *end, epochs=3)
    assert names(tmp_path) == kept


def test_same_data_object_resumes_too(tmp_path):
    """As in a notebook: a cell that was interrupted, twice, and run again; then with
    nothing to do, and with more epochs."""
    batches = data()
    for stop in (7, 8, None):
        fit(batches, tmp_path, stop=stop)
    assert fit(batches, tmp_path)[1] == {}
    longer, history = fit(batches, tmp_path, epochs=3)
    assert len(history["loss"]) == 1
    assert_equal(uninterrupted(3)[0], longer)
    fit(batches, stop=2)  # without backups
    batches.set_epoch(0, 7)  # as an interruption may leave it
    fit(batches)
    assert iterations() == 20


def test_backups_are_kept_by_age_not_by_batch(tmp_path):
    """Arrays start an epoch over, and their later backups are of earlier batches."""
    fit(DIGITS, tmp_path, stop=9)
    with pytest.warns(RuntimeWarning, match="the epoch starts over"):
        fit(DIGITS, tmp_path, stop=5)
    kept = [name.split("-", 1)[1] for name in names(tmp_path)]
    assert kept == ["epoch-0-batch-2", "epoch-0-batch-4"]
    with pytest.warns(RuntimeWarning, match="the epoch starts over"):
        BackupAndRestore(tmp_path).restore(new())
    assert iterations() == 8 + 4


def test_validation_batches_repeat_after_a_resume(binary, tmp_path):
    """Binarized anew in each epoch of training, they are the same in each validation,
    and in that of a resumed run."""
    model = zoo.tiny("fvbn", (8, 8, 1))
    model.trainable = False
    model.compile("sgd")
    held = Batches(DIGITS, None, 64, binarize=True, source_levels=17, seed=5)

    def losses(*callbacks):
        x = Batches(binary, batch_size=64)
        options = {"epochs": 3, "verbose": 0, "callbacks": [*callbacks]}
        return model.fit(x, validation_data=held, **options).history["val_loss"]

    whole = losses()
    assert whole == pytest.approx([whole[0]] * 3, rel=1e-6)
    with pytest.raises(KeyboardInterrupt):
        losses(BackupAndRestore(tmp_path), Probe(8))
    assert losses(BackupAndRestore(tmp_path)) == pytest.approx(whole[1:], rel=1e-6)


def test_wrong_uses_raise(tmp_path):
    a, b = (BackupAndRestore(tmp_path / name) for name in "ab")
    plain = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    labeled = data(labels=np.zeros(len(DIGITS), "int32"))
    for error, words, model, options in (
        (ValueError, "takes one BackupAndRestore", new(), {"callbacks": [a, b]}),
        (ValueError, "no steps_per_epoch", new(), {"steps_per_epoch": 5}),
        (ValueError, "call `compile", zoo.new("vae"), {}),
        (RuntimeError, "in the `fit` of kgen's models", plain, {}),
    ):
        with pytest.raises(error, match=words):
            model.fit(labeled, verbose=0, **{"callbacks": [a]} | options)
    for save_freq in (0, -1, "batch", 2.5):
        with pytest.raises(ValueError, match="save_freq must be 'epoch' or a positive"):
            BackupAndRestore(tmp_path, save_freq)
