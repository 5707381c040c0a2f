"""What kills, full disks and second runs leave: nothing lost, nothing left over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo
from zoo import TESTS, assert_same

import kgen
from kgen import files
from kgen.callbacks import BackupAndRestore

pytestmark = pytest.mark.once


def model():
    made = zoo.new("fvbn", (2, 2, 1), 2)
    made.compile("sgd")
    return made


X = np.zeros((8, 2, 2, 1), "uint8")


def start(code, *arguments):
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(words, cwd=TESTS, stdout=subprocess.PIPE, text=True)


# A second run in a backup's folder

HOLDS = """
import sys, time
from kgen import files
files.Lock(sys.argv[1]).take()
print("taken", flush=True)
time.sleep(60)
"""


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "backup"
    model().fit(
        X, callbacks=[BackupAndRestore(folder, delete_checkpoint=False)], verbose=0
    )
    kept = sorted(p.name for p in folder.iterdir())
    first = start(HOLDS, folder)
    assert first.stdout.readline() == "taken\n"
    for _ in range(2):  # a refused run leaves the lock alone
        with pytest.raises(RuntimeError, match=f"another run .process {first.pid} of"):
            model().fit(X, epochs=2, callbacks=[BackupAndRestore(folder)], verbose=0)
    first.kill()
    first.wait()
    first.stdout.close()
    again = model()
    history = again.fit(X, epochs=3, callbacks=[BackupAndRestore(folder)], verbose=0)
    assert history.epoch == [1, 2] and len(kept) == 1 and not folder.exists()


def test_a_failed_run_gives_its_folder_back(tmp_path):
    def fail(epoch, logs):
        raise ZeroDivisionError

    bad = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(ZeroDivisionError):
        model().fit(X, callbacks=[bad, BackupAndRestore(tmp_path / "b")], verbose=0)
    model().fit(X, callbacks=[BackupAndRestore(tmp_path / "b")], verbose=0)


# A full disk


def test_training_goes_on_when_a_backup_cannot_be_written(tmp_path, monkeypatch):
    backup = BackupAndRestore(tmp_path / "b", delete_checkpoint=False)
    write, calls = backup._write, []

    def full(folder, about):
        calls.append(about["epoch"])
        if about["epoch"] == 2:
            folder.mkdir()
            (folder / "state.weights.h5").write_text("half")
            raise OSError(28, "No space left on device")
        write(folder, about)

    monkeypatch.setattr(backup, "_write", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model().fit(X, epochs=4, callbacks=[backup], verbose=0)
    words = [str(w.message) for w in caught if "No backup" in str(w.message)]
    assert calls == [1, 2, 3, 4] and len(words) == 1
    assert "epoch 2: [Errno 28] No space left" in words[0]
    assert [p.name.split("-", 1)[1] for p in backup.backups()] == [
        "epoch-3-batch-0",
        "epoch-4-batch-0",
    ]
    assert not list(backup.folder.glob(".writing-*"))


# Kills

BETWEEN = """
import os, signal, sys
import zoo
from kgen import files
move, rename = files._move, os.rename
def killed(source, target):
    rename(source, target)
    if str(target).endswith("replaced"):
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = killed
zoo.randomize(zoo.new("fvbn", (2, 2, 1), 2), seed=2).save_to_preset(sys.argv[1])
"""


def test_a_preset_killed_between_two_renames_is_found(tmp_path):
    """It is the new one: the old one had given way to it."""
    folder = tmp_path / "preset"
    zoo.randomize(zoo.new("fvbn", (2, 2, 1), 2), seed=1).save_to_preset(folder)
    child = start(BETWEEN, folder)
    assert child.wait() == -signal.SIGKILL and not folder.exists()
    child.stdout.close()
    found = kgen.models.FVBN.from_preset(folder)
    assert_same(found, zoo.randomize(zoo.new("fvbn", (2, 2, 1), 2), seed=2))
    found.save_to_preset(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["preset"]  # the rest is cleared


def test_next_writer_clears_what_dead_ones_left(tmp_path):
    dead = start("print()")
    dead.wait()
    dead.stdout.close()
    left = tmp_path / f".writing-{files._HOST}-{dead.pid}-xyz"
    alive = tmp_path / f".writing-{files._HOST}-{os.getpid()}-xyz"
    elsewhere = tmp_path / f".writing-other_host-{dead.pid}-xyz"
    for folder in (left, alive, elsewhere):
        folder.mkdir()
        (folder / "half").write_text("half")
    with files.atomic(tmp_path / "new.txt") as path:
        path.write_text("whole")
    assert not left.exists() and alive.exists() and elsewhere.exists()


EXPORTS = """
import sys, tempfile
import zoo
tempfile.tempdir = sys.argv[2]
print("begins", flush=True)
zoo.new("fvbn", (2, 2, 1), 2).export(sys.argv[1])
"""


@pytest.mark.skipif(kgen.backend.name == "tensorflow", reason="exports without a child")
def test_exporting_child_ends_with_its_parent(tmp_path):
    folder, temporary = tmp_path / "served", tmp_path / "temporary"
    temporary.mkdir()
    parent = start(EXPORTS, folder / "1", temporary)
    assert parent.stdout.readline() == "begins\n"

    def children():
        found = subprocess.run(
            ["pgrep", "-f", str(temporary)], capture_output=True, text=True
        )
        return {int(pid) for pid in found.stdout.split()} - {parent.pid}

    end = time.monotonic() + 60
    while not children() and time.monotonic() < end:
        time.sleep(0.05)
    assert children()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while children() and time.monotonic() < end:
        time.sleep(0.05)
    assert not children() and not list(temporary.iterdir())
    assert not (folder / "1").exists()


def test_two_writers_and_a_reader_of_one_preset(tmp_path):
    """Whoever looks finds one whole preset or the other, or in the moment between two
    renames none."""
    folder, ends = tmp_path / "preset", time.monotonic() + 2.0
    both = [zoo.randomize(zoo.new("fvbn", (2, 2, 1), 2), seed=s) for s in (1, 2)]
    both[0].save_to_preset(folder)
    failures = []

    def write(made):
        while time.monotonic() < ends:
            try:
                made.save_to_preset(folder)
            except FileExistsError:
                pass  # the other one was faster
            except Exception as error:
                failures.append(error)

    writers = [threading.Thread(target=write, args=(made,)) for made in both]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures
    found = kgen.models.FVBN.from_preset(folder)
    same = [
        all(map(np.array_equal, zoo.weights(found), zoo.weights(made))) for made in both
    ]
    assert any(same) and [Path(p).name for p in tmp_path.iterdir()] == ["preset"]


# Damaged presets and weights


def test_flipped_bits_of_a_preset_raise(tmp_path):
    folder = tmp_path / "preset"
    zoo.randomize(model()).save_to_preset(folder)
    rng = np.random.default_rng(0)
    for name in ("config.json", "model.weights.h5") * 10:
        path = folder / name
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=f"{name} has changed since"):
            kgen.models.FVBN.from_preset(folder)
        path.write_bytes(whole)
    kgen.models.FVBN.from_preset(folder)
    (folder / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="metadata.json is damaged"):
        kgen.models.FVBN.from_preset(folder)


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    made = zoo.randomize(model())
    made.save_to_preset(tmp_path / "preset")
    (tmp_path / "preset" / "metadata.json").unlink()
    made.weights[0].assign(np.full(made.weights[0].shape, np.nan))
    for keep in (made.save_to_preset, made.export):
        with pytest.raises(ValueError, match="1 of 2 weights hold NaN or infinity"):
            keep(tmp_path / "other")
    made.save_weights(tmp_path / "preset" / "model.weights.h5")
    with pytest.raises(ValueError, match="the preset .* 1 of 2 weights hold NaN"):
        kgen.models.FVBN.from_preset(tmp_path / "preset")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preset"]


def test_packaged_presets_have_checksums():
    for name in kgen.presets.list():
        metadata = kgen.presets._PACKAGED / name / "metadata.json"
        assert len(json.loads(metadata.read_text())["sha256"]) == 2


# Kills at random moments


@pytest.mark.exhaustive
def test_random_kills_lose_nothing():
    """Of training, saves, presets, pairs of writers and exports; see kills.py."""
    options = ("--kills", 8, "--seed", 1)
    done = zoo.run_python(TESTS / "kills.py", *options, KERAS_BACKEND="tensorflow")
    assert "8 kills" in done.stdout and "lost nothing" in done.stdout
