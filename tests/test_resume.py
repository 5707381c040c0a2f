"""A run that was killed or interrupted ends as one that was not: weights, moments,
seeds, metrics and samples. Damaged backups and other data are detected."""

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import keras
import killed_child
import numpy as np
import pytest
import zoo

import kgen
from kgen.callbacks import BackupAndRestore
from kgen.data import Batches

WITHIN = (2, 3, 7, 8)  # of 5 batches an epoch, a backup after every second one


@functools.cache
def compiled(name):
    """A model of killed_child, and the first state of its variables."""
    keras.utils.set_random_seed(1)
    model = getattr(killed_child, name)()
    return model, killed_child.variables(model), killed_child.state(model)


def new(name="vae"):
    """The model as a new process makes it; its step is compiled once."""
    model, variables, initial = compiled(name)
    for v, value in zip(variables, initial, strict=True):
        v.assign(value)
    return model


def assert_equal(whole, resumed):
    """Bit for bit; TensorFlow sums in another order from run to run, on busy cores."""
    for a, b in zip(whole, resumed, strict=True):
        if kgen.backend.name == "tensorflow":
            np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)
        else:
            np.testing.assert_array_equal(a, b)


# Killed


@functools.cache
def end_of(name, folder=None):
    """How training ends, from the backups in `folder` if there is one."""
    model = new(name)
    keep = [BackupAndRestore(folder, 2)] if folder else []
    logs = killed_child.train(model, *keep)
    numbers = [*killed_child.state(model), *logs.values()]
    return numbers, [model.sample(8, seed=0), model.sample(8)]


def kill_after(batches, seconds, *arguments):
    """SIGKILL so long after so many batches of a child."""
    child = subprocess.Popen(
        [sys.executable, killed_child.__file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with child:
        for _ in zip(range(batches), child.stdout, strict=False):
            pass
        time.sleep(seconds)
        child.kill()
    assert child.returncode == -signal.SIGKILL


further = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    "name,kills",
    [
        ("pixel_cnn", [(2, WITHIN)]),
        ("gan", [("epoch", (6, 7, 8))]),
        further("vae", [(2, WITHIN), ("epoch", (6, 7, 8))]),
        further("gan", [("epoch", range(1, 9)), (2, (2, 3))]),
    ],
)
def test_killed_run_ends_as_the_uninterrupted(name, kills, tmp_path):
    """SIGKILL within an epoch, or with a backup at each epoch's end alone."""
    rng = random.Random(os.environ.get("KILL_SEED", 0))
    for save_freq, batches in kills:
        arguments = name, tmp_path / "backup", save_freq
        kill_after(rng.choice(batches), rng.uniform(0.0, 0.02), *arguments)
    assert any(BackupAndRestore(tmp_path / "backup").backups())
    (whole, samples), (resumed, again) = end_of(name), end_of(name, tmp_path / "backup")
    assert_equal(whole, resumed)
    for a, b in zip(samples, again, strict=True):  # on TensorFlow, ties may differ
        assert np.mean(a != b) <= (0.02 if kgen.backend.name == "tensorflow" else 0)


# Interrupted


class Probe(keras.callbacks.Callback):
    """Lists the batches; an interruption after so many, or weights that are NaN from
    the start of batch `poison` on."""

    def __init__(self, batches=None, poison=None):
        super().__init__()
        self.last, self.poison, self.batches = batches, poison, []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.poison:
            v = self.model.trainable_variables[-1]
            v.assign(v * float("nan"))

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)
        if len(self.batches) == self.last:
            raise KeyboardInterrupt


def fit(x, folder=None, epochs=2, stop=None, callbacks=(), model=None):
    """A new model after 10 batches an epoch, with backups in `folder` after every
    second one; and its history, None if it was interrupted."""
    model, callbacks = model or new(), [*callbacks, Probe(stop)]
    if folder:
        callbacks.append(BackupAndRestore(folder, 2, delete_checkpoint=False))
    how = {"batch_size": 32} if isinstance(x, np.ndarray) else {}
    try:
        logs = model.fit(x, epochs=epochs, verbose=0, callbacks=callbacks, **how)
        return model, logs.history
    except KeyboardInterrupt:
        return model, None


@pytest.fixture
def data(digits):
    return Batches(digits, batch_size=32, seed=1)


@pytest.fixture(scope="module")
def uninterrupted(digits):
    """`uninterrupted(epochs)`: the state that such a run ends in, and its logs."""

    @functools.cache
    def run(epochs):
        model, logs = fit(Batches(digits, batch_size=32, seed=1), epochs=epochs)
        return killed_child.state(model), logs

    return run


@pytest.fixture(scope="module")
def backups(digits, tmp_path_factory):
    """The backups of a run that was interrupted after 7 batches of the second epoch."""
    folder = tmp_path_factory.mktemp("interrupted") / "backup"
    fit(Batches(digits, batch_size=32, seed=1), folder, stop=17)
    return folder


@pytest.fixture
def cut(backups, tmp_path):
    """A copy of these backups."""
    return shutil.copytree(backups, tmp_path / "cut")


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_resumes_at_the_exact_batch(data, cut, uninterrupted):
    """Also with a CallbackList of Keras."""
    assert names(cut) == ["00000006-epoch-1-batch-4", "00000007-epoch-1-batch-6"]
    model, probe, keep = new(), Probe(), BackupAndRestore(cut, 2)
    callbacks = keras.callbacks.CallbackList([keep, probe], model=model, epochs=2)
    logs = model.fit(data, epochs=2, verbose=0, callbacks=callbacks).history
    state = killed_child.state(model)  # before `uninterrupted` trains this model
    whole, expected = uninterrupted(2)
    for name in expected:  # of all the epoch's batches
        assert logs[name] == pytest.approx(expected[name][1:], rel=1e-5)
    assert probe.batches == [0, 1, 2, 3] and not cut.exists()
    assert_equal(whole, state)


def damage(path, kind):
    file = path / "state.weights.h5"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    if kind == "truncated":
        file.write_bytes(content[:middle])
    elif kind == "changed":
        content[middle] ^= 1
        file.write_bytes(content)
    else:
        (path / "metrics.npz").unlink()


@pytest.mark.parametrize("kind", ["truncated", "changed", "file removed"])
def test_damaged_backup_is_replaced_by_the_previous(kind, data, cut, uninterrupted):
    newest = sorted(cut.iterdir())[-1]
    damage(newest, kind)
    with pytest.warns(RuntimeWarning, match=f"{newest.name} is damaged"):
        resumed, _ = fit(data, cut)
    state = killed_child.state(resumed)
    assert_equal(uninterrupted(2)[0], state)
    for path in cut.iterdir():
        damage(path, kind)
    with (
        pytest.warns(RuntimeWarning, match="is damaged"),
        pytest.raises(ValueError, match="None of the backups in .* is intact"),
    ):
        fit(data, cut)


def test_interrupted_backup_leaves_the_old_ones_alone(data, cut, monkeypatch):
    before = names(cut)
    (cut / ".writing-abc").mkdir()  # of a save that was killed

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupt)
    assert fit(data, cut)[1] is None
    assert names(cut) == before


def test_backup_of_another_model_raises(data, cut):
    deeper = kgen.models.VAE((8, 8, 1), 17, latent_dim=3, hidden_units=(8, 8))
    deeper.compile(keras.optimizers.Adam(1e-2))
    other_rule = killed_child.vae()
    other_rule.compile("sgd")
    for other in (deeper, other_rule):  # Keras would load what fits
        with pytest.raises(ValueError, match="not of this model and optimizer"):
            fit(data, cut, model=other)


@pytest.mark.parametrize(
    "other", [None, {"batch_size": 64}, {"seed": 2}, further({"batch_size": 40})]
)
def test_other_data_start_the_epoch_over(other, digits, cut):
    """Arrays, or other batches: the second epoch, whole."""
    x = Batches(digits, **{"batch_size": 32, "seed": 1} | other) if other else digits
    probe, n = Probe(), len(x) if other else 10
    with pytest.warns(RuntimeWarning, match="an epoch of other data.*starts over"):
        model, _ = fit(x, cut, callbacks=[probe])
    assert probe.batches == list(range(n))
    assert int(model.optimizer.iterations) == 16 + n


def test_more_epochs_continue_from_the_end(data, tmp_path, uninterrupted):
    fit(data, tmp_path)
    assert fit(data, tmp_path)[1] == {}  # nothing to do
    longer, history = fit(data, tmp_path, epochs=3)
    assert len(history["loss"]) == 1
    state = killed_child.state(longer)
    assert_equal(uninterrupted(3)[0], state)


def test_nan_replaces_no_good_backup(data, tmp_path):
    """NaN from the 6th batch on: the backups are of batches 2 and 4."""
    with pytest.raises(FloatingPointError, match="is nan after batch 6 of epoch 1"):
        fit(data, tmp_path, callbacks=[Probe(poison=5)])
    kept = ["00000000-epoch-0-batch-2", "00000001-epoch-0-batch-4"]
    assert names(tmp_path) == kept
    end = [Probe(poison=0), keras.callbacks.TerminateOnNaN()]  # ends without an error
    with pytest.warns(RuntimeWarning, match="No backup after batch"):
        fit(data, tmp_path, epochs=3, callbacks=end)
    assert names(tmp_path) == kept


def test_same_data_object_resumes_too(data, tmp_path, uninterrupted):
    """As in a notebook: a cell that was interrupted, twice, and run again."""
    for stop in (17, 3, None):
        resumed, _ = fit(data, tmp_path, epochs=3, stop=stop)
    state = killed_child.state(resumed)
    assert_equal(uninterrupted(3)[0], state)
    assert len(data) == 10
    fit(data, stop=2)  # without backups
    data.set_epoch(0, 7)  # as an interruption may leave it
    assert int(fit(data)[0].optimizer.iterations) == 20


def test_backups_are_kept_by_age_not_by_batch(digits, tmp_path):
    """Arrays start an epoch over, and their later backups are of earlier batches."""
    fit(digits, tmp_path, stop=9)
    with pytest.warns(RuntimeWarning, match="the epoch starts over"):
        fit(digits, tmp_path, stop=5)
    kept = [name.split("-", 1)[1] for name in names(tmp_path)]
    assert kept == ["epoch-0-batch-2", "epoch-0-batch-4"]
    model = new()
    with pytest.warns(RuntimeWarning, match="the epoch starts over"):
        BackupAndRestore(tmp_path).restore(model)
    assert int(model.optimizer.iterations) == 8 + 4


def test_validation_batches_repeat_after_a_resume(binary, digits, tmp_path):
    """Binarized anew in each epoch of training, they are the same in each validation,
    and in that of a resumed run."""
    model = zoo.tiny("fvbn", (8, 8, 1))
    model.trainable = False
    model.compile("sgd")
    held = Batches(digits, None, 64, binarize=True, source_levels=17, seed=5)

    def losses(*callbacks):
        x = Batches(binary, batch_size=64)
        options = {"epochs": 3, "verbose": 0, "callbacks": [*callbacks]}
        return model.fit(x, validation_data=held, **options).history["val_loss"]

    def keep():
        return BackupAndRestore(tmp_path / "cut", delete_checkpoint=False)

    whole = losses()
    assert whole == pytest.approx([whole[0]] * 3, rel=1e-6)
    with pytest.raises(KeyboardInterrupt):
        losses(keep(), Probe(8))
    assert losses(keep()) == pytest.approx(whole[1:], rel=1e-6)


def test_wrong_uses_raise(data, tmp_path):
    keep = [BackupAndRestore(tmp_path / name) for name in "ab"]
    with pytest.raises(ValueError, match="takes one BackupAndRestore"):
        new().fit(data, callbacks=keep)
    with pytest.raises(ValueError, match="no steps_per_epoch"):
        new().fit(data, steps_per_epoch=5, callbacks=keep[:1])
    with pytest.raises(ValueError, match="call `compile"):
        zoo.new("vae").fit(data)
    plain = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    with pytest.raises(RuntimeError, match="in the `fit` of kgen's models"):
        plain.fit(np.ones((4, 2)), np.ones((4, 1)), callbacks=keep[:1], verbose=0)
    for save_freq in (0, -1, "batch", 2.5):
        with pytest.raises(ValueError, match="save_freq must be 'epoch' or a positive"):
            BackupAndRestore(tmp_path, save_freq)
