"""A run that was killed ends as one that was not: weights, moments, seeds, metrics and
samples, whatever the moment; and what is wrong with a backup is told."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from families import FAMILIES
from keras import ops

import kgen
from kgen.callbacks import BackupAndRestore
from kgen.data import Batches

CHILD = Path(__file__).with_name("killed_child.py")


def start(folder, mode):
    return subprocess.Popen(
        [sys.executable, CHILD, folder, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child):
    _, errors = child.communicate(timeout=400)
    assert child.returncode == 0, errors[-3000:]


def kill_after(child, kind, batches, seconds):
    """SIGKILL so long after so many batches of this model."""
    with child:
        for line in child.stdout:
            batches -= line.strip() == kind
            if batches <= 0:
                time.sleep(seconds)
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(uninterrupted, killed four times), by turns with backups within epochs."""
    whole, cut = (tmp_path_factory.mktemp(name) for name in ("whole", "cut"))
    reference = start(whole, "epoch")
    rng = random.Random(os.environ.get("KILL_SEED", 0))
    within = (2, 3, 7, 8)  # of 4 epochs of 5 batches, a backup after every second one
    kills = [("pixel_cnn", "batches", within), ("vae", "batches", within)]
    kills += [("gan", "epoch", range(1, 9)), ("gan", "batches", (2, 3))]
    for kind, mode, batches in kills:
        child = start(cut, mode)
        kill_after(child, kind, rng.choice(batches), rng.uniform(0.0, 0.02))
    finish(start(cut, "batches"))
    finish(reference)
    return whole, cut


@pytest.mark.parametrize("kind", ["pixel-cnn", "vae", "gan"])
@pytest.mark.feature("kill")
def test_killed_runs_end_as_the_uninterrupted(kind, runs):
    whole, cut = runs
    name = f"{kind.replace('-', '_')}.npz"
    with np.load(whole / name) as a, np.load(cut / name) as b:
        assert a.files == b.files and "sample" in a.files and "loss" in a.files
        for name in a.files:
            if kgen.backend.name != "tensorflow":
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
            elif "sample" in name:  # ties may fall the other way
                assert np.mean(a[name] != b[name]) < 0.02
            else:  # sums in another order from run to run, on busy cores
                close = dict(atol=2e-5, rtol=1e-5, err_msg=name)
                np.testing.assert_allclose(a[name], b[name], **close)


class Stop(keras.callbacks.Callback):
    """An interruption after so many batches."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches == 0:
            raise KeyboardInterrupt


def new():
    keras.utils.set_random_seed(2)
    model = FAMILIES["vae"]()
    model.compile(keras.optimizers.Adam(1e-2))
    return model


def fit(model, digits, folder, epochs=2, stop=None, save_freq=2):
    """10 batches an epoch."""
    keep = BackupAndRestore(folder, save_freq, delete_checkpoint=False)
    callbacks = [keep, *([Stop(stop)] if stop else [])]
    data = Batches(digits, batch_size=32, seed=1)
    try:
        return model.fit(data, epochs=epochs, verbose=0, callbacks=callbacks).history
    except KeyboardInterrupt:
        return None


def weights(model):
    return [ops.convert_to_numpy(v) for v in model.weights]


def same(a, b):
    for v, w in zip(weights(a), weights(b), strict=True):
        np.testing.assert_allclose(v, w, atol=2e-5)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_it_goes_on_from_the_very_batch(digits, tmp_path):
    fit(new(), digits, tmp_path, stop=7)
    assert names(tmp_path) == ["00000001-epoch-0-batch-4", "00000002-epoch-0-batch-6"]
    seen = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    again = new()
    keep = BackupAndRestore(tmp_path, 2)
    data = Batches(digits, batch_size=32, seed=1)
    logs = again.fit(data, verbose=0, callbacks=[keep, Count()]).history
    whole = fit(new(), digits, tmp_path / "whole", epochs=1)
    for name in whole:  # of all the epoch's batches
        assert logs[name] == pytest.approx(whole[name], rel=1e-5)
    assert seen == [0, 1, 2, 3] and names(tmp_path) == ["whole"]
    assert int(again.optimizer.iterations) == 10


@pytest.mark.parametrize("how", ["truncated", "changed", "a file is gone"])
def test_a_damaged_backup_gives_way_to_the_one_before(how, digits, tmp_path):
    whole = new()
    fit(whole, digits, tmp_path / "whole")
    folder = tmp_path / "cut"
    fit(new(), digits, folder, stop=9)
    older, newer = sorted(folder.iterdir())

    def damage(path):
        content = (path / "state.weights.h5").read_bytes()
        if how == "truncated":
            (path / "state.weights.h5").write_bytes(content[: len(content) // 2])
        elif how == "changed":
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 1])
            (path / "state.weights.h5").write_bytes(flipped + content[middle + 1 :])
        else:
            (path / "metrics.npz").unlink()

    damage(newer)
    resumed = new()
    with pytest.warns(RuntimeWarning, match=f"{newer.name} is damaged"):
        fit(resumed, digits, folder)
    same(whole, resumed)
    for path in folder.iterdir():
        damage(path)
    with (
        pytest.warns(RuntimeWarning, match="is damaged"),
        pytest.raises(ValueError, match="None of the backups in .* is intact"),
    ):
        fit(new(), digits, folder)


def test_an_interrupted_backup_leaves_the_old_ones(digits, tmp_path, monkeypatch):
    fit(new(), digits, tmp_path, stop=7)
    before = names(tmp_path)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupted)
        fit(new(), digits, tmp_path)
    assert names(tmp_path) == before


def test_a_backup_of_another_model_is_told(digits, tmp_path):
    fit(new(), digits, tmp_path, stop=7)
    deeper = kgen.models.VAE((8, 8, 1), 17, latent_dim=3, hidden_units=(8, 8))
    deeper.compile(keras.optimizers.Adam(1e-2))
    other_rule = new()
    other_rule.compile("sgd")
    for other in (deeper, other_rule):  # Keras would load what fits
        with pytest.raises(ValueError, match="not of this model and optimizer"):
            fit(other, digits, tmp_path)


def test_other_data_start_the_epoch_over(digits, tmp_path):
    fit(new(), digits, tmp_path, stop=14)
    model, batches = new(), []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            batches.append(batch)

    keep = BackupAndRestore(tmp_path)
    with pytest.warns(RuntimeWarning, match="the epoch starts over"):
        model.fit(digits, batch_size=32, epochs=2, verbose=0, callbacks=[keep, Count()])
    assert batches == list(range(10))  # the second epoch, whole
    assert int(model.optimizer.iterations) == 12 + 10


def test_more_epochs_go_on_from_the_end(digits, tmp_path):
    whole, longer = new(), new()
    fit(whole, digits, tmp_path / "whole", epochs=3)
    fit(longer, digits, tmp_path / "cut", epochs=2)
    assert fit(new(), digits, tmp_path / "cut", epochs=2) == {}  # nothing to do
    longer = new()
    assert len(fit(longer, digits, tmp_path / "cut", epochs=3)["loss"]) == 1
    same(whole, longer)


def test_nothing_that_is_lost_replaces_a_good_backup(digits, tmp_path):
    """NaN from the 6th batch on: the backups are of batches 2 and 4."""
    model = new()

    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 5:
                v = self.model.trainable_variables[-1]
                v.assign(v * float("nan"))

    data = Batches(digits, batch_size=32, seed=1)
    keep = BackupAndRestore(tmp_path, 2)
    with pytest.raises(FloatingPointError, match="is nan after batch 6 of epoch 1"):
        model.fit(data, verbose=0, callbacks=[keep, Poison()])
    assert names(tmp_path) == ["00000000-epoch-0-batch-2", "00000001-epoch-0-batch-4"]


def test_a_lost_end_replaces_no_good_backup(digits, tmp_path):
    """Who ends quietly, or goes on, at NaN, keeps the last good weights."""
    fit(new(), digits, tmp_path, epochs=1)
    kept = names(tmp_path)
    model = new()

    class Poison(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            v = self.model.trainable_variables[-1]
            v.assign(v * float("nan"))

    keep = BackupAndRestore(tmp_path, 2, delete_checkpoint=False)
    data = Batches(digits, batch_size=32, seed=1)
    quiet = [keep, Poison(), keras.callbacks.TerminateOnNaN()]
    with pytest.warns(RuntimeWarning, match="No backup after batch"):
        model.fit(data, epochs=3, verbose=0, callbacks=quiet)
    assert names(tmp_path) == kept


def test_the_same_data_object_resumes_too(digits, tmp_path):
    """As in a notebook: a cell that was interrupted, twice, and run again."""
    whole = new()
    fit(whole, digits, tmp_path / "whole", epochs=3)
    data = Batches(digits, batch_size=32, seed=1)

    def run(model, stop=None):
        keep = BackupAndRestore(tmp_path / "cut", 2, delete_checkpoint=False)
        callbacks = [keep, *([Stop(stop)] if stop else [])]
        model.fit(data, epochs=3, verbose=0, callbacks=callbacks)

    for stop in (17, 3):
        with pytest.raises(KeyboardInterrupt):
            run(new(), stop)
    resumed = new()
    run(resumed)
    same(whole, resumed)
    assert len(data) == 10
    with pytest.raises(KeyboardInterrupt):
        model = new()
        model.fit(data, verbose=0, callbacks=[Stop(2)])
    data.set_epoch(0, 7)  # as an interruption may leave it
    model = new()
    model.fit(data, epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 20


@pytest.mark.parametrize("other", [{"batch_size": 64}, {"batch_size": 40}, {"seed": 2}])
def test_other_batches_start_the_epoch_over(other, digits, tmp_path):
    fit(new(), digits, tmp_path, stop=9)
    data = Batches(digits, **{"batch_size": 32, "seed": 1} | other)
    model = new()
    keep = BackupAndRestore(tmp_path, 2)
    with pytest.warns(RuntimeWarning, match="an epoch of other data"):
        model.fit(data, verbose=0, callbacks=[keep])
    assert int(model.optimizer.iterations) == 8 + len(data)


def test_backups_are_kept_by_age_not_by_batch(digits, tmp_path):
    """Arrays start an epoch over, and their later backups are of earlier batches."""

    def run(batches):
        keep = BackupAndRestore(tmp_path, 2, delete_checkpoint=False)
        with pytest.raises(KeyboardInterrupt):
            new().fit(digits, batch_size=32, verbose=0, callbacks=[keep, Stop(batches)])

    run(9)
    with pytest.warns(RuntimeWarning, match="the epoch starts over"):
        run(5)
    last = names(tmp_path)
    assert [name.split("-", 1)[1] for name in last] == [
        "epoch-0-batch-2",
        "epoch-0-batch-4",
    ]
    model = new()
    with pytest.warns(RuntimeWarning, match="the epoch starts over"):
        BackupAndRestore(tmp_path).restore(model)
    assert int(model.optimizer.iterations) == 8 + 4


def test_validation_batches_stay_as_they_are(binary, digits, tmp_path):
    """Drawn anew in each epoch of training, they are the same in each validation, and
    in that of a resumed run."""

    def run(model, stop=None, folder=tmp_path):
        model.compile("sgd")
        keep = BackupAndRestore(folder, delete_checkpoint=False)
        held = Batches(digits, batch_size=64, binarize=True, source_levels=17, seed=5)
        try:
            return model.fit(
                Batches(binary, batch_size=64),
                validation_data=held,
                epochs=3,
                verbose=0,
                callbacks=[keep, *([Stop(stop)] if stop else [])],
            ).history
        except KeyboardInterrupt:
            return None

    def still():
        keras.utils.set_random_seed(4)
        model = kgen.models.FVBN((8, 8, 1))
        model.trainable = False
        return model

    losses = run(still(), folder=tmp_path / "whole")["val_loss"]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    run(still(), stop=8, folder=tmp_path / "cut")
    resumed = run(still(), folder=tmp_path / "cut")["val_loss"]
    assert resumed == pytest.approx(losses[1:], rel=1e-6)


def test_a_list_of_keras_is_taken_apart(digits, tmp_path):
    fit(new(), digits, tmp_path, stop=7)
    model = new()
    keep = BackupAndRestore(tmp_path, 2)
    model.fit(
        Batches(digits, batch_size=32, seed=1),
        verbose=0,
        callbacks=keras.callbacks.CallbackList([keep], model=model, epochs=1, steps=10),
    )
    assert int(model.optimizer.iterations) == 10


def test_wrong_uses_are_told(digits, tmp_path):
    data = Batches(digits, batch_size=32)
    keep = [BackupAndRestore(tmp_path / name) for name in "ab"]
    with pytest.raises(ValueError, match="takes one BackupAndRestore"):
        new().fit(data, callbacks=keep)
    with pytest.raises(ValueError, match="no steps_per_epoch"):
        new().fit(data, steps_per_epoch=5, callbacks=keep[:1])
    with pytest.raises(ValueError, match="call `compile"):
        FAMILIES["vae"]().fit(data)
    plain = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    with pytest.raises(RuntimeError, match="in the `fit` of kgen's models"):
        plain.fit(np.ones((4, 2)), np.ones((4, 1)), callbacks=keep[:1], verbose=0)


def test_a_killed_save_leaves_nothing_behind(digits, tmp_path):
    fit(new(), digits, tmp_path, stop=7)
    (tmp_path / ".writing-abc").mkdir()
    fit(new(), digits, tmp_path)
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("save_freq", [0, -1, "batch", 2.5])
def test_wrong_save_freq_is_told(save_freq, tmp_path):
    with pytest.raises(ValueError, match="save_freq must be 'epoch' or a positive"):
        BackupAndRestore(tmp_path, save_freq)
