"""Files and folders are written atomically, nothing of others is replaced, and kills,
full disks and second runs lose nothing and leave nothing over."""

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zoo
from zoo import assert_same

import kgen
from kgen import files
from kgen.callbacks import BackupAndRestore

pytestmark = pytest.mark.once


def preset(seed=0):
    return zoo.tiny("fvbn", (2, 2, 1), seed=seed)


# Atomic writes


def write(path, text, kind="file"):
    if kind == "folder":
        path.mkdir(exist_ok=True)
        path = path / "f"
    path.write_text(text)


def read(path):
    return (path / "f" if path.is_dir() else path).read_text()


def test_folders_with_other_files_are_not_replaced(tmp_path):
    model, thesis, saved = preset(), tmp_path / "thesis", tmp_path / "preset"
    model.save_to_preset(saved)
    for folder in (thesis, saved):
        write(folder, "years of work", "folder")
    for use in (model.save_to_preset, model.save, model.export):
        with pytest.raises((FileExistsError, ValueError)):
            use(thesis)
    with pytest.raises(FileExistsError):
        model.save_to_preset(saved)
    assert read(thesis) == read(saved) == "years of work"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_simultaneous_writers_get_one_result(kind, tmp_path):
    """Both have passed the first check when they write: the first one wins, whole, and
    only the other gets the error."""
    for attempt in range(20):
        target, ready = tmp_path / str(attempt), threading.Barrier(2)

        def write_both(name, target=target, ready=ready):
            with files.atomic(target, replace=False) as path:
                write(path, name, kind)
                ready.wait()

        with ThreadPoolExecutor(2) as pool:
            a, b = (pool.submit(write_both, name) for name in "ab")
        winner, loser = (a, b) if read(target) == "a" else (b, a)
        assert winner.exception() is None
        assert isinstance(loser.exception(), FileExistsError)


def test_interrupted_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "m.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), files.atomic(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.txt"]


def test_paths_that_cannot_be_written_raise(tmp_path):
    model = preset()
    (tmp_path / "file").write_text("in the way")
    for use, name in (
        (model.save, "m.keras"),
        (model.save_weights, "m.weights.h5"),
        (model.save_to_preset, "preset"),
        (model.export, "1"),
    ):
        with pytest.raises(PermissionError, match="Choose an output path"):
            use(tmp_path / "file" / name)
    with pytest.raises(ValueError, match="No preset in"):
        kgen.models.VAE.from_preset(tmp_path / "nothing")


# The folder of backups

X = np.zeros((8, 2, 2, 1), "uint8")


def fit(folder, epochs=1, **options):
    model = preset()
    model.compile("sgd")
    backup = BackupAndRestore(folder, **options)
    return model.fit(X, epochs=epochs, callbacks=[backup], verbose=0)


def test_a_second_run_is_refused_until_the_first_ends(tmp_path):
    """That one that is killed or fails frees its folder, test_resume.py proves."""
    folder = tmp_path / "backup"
    fit(folder, delete_checkpoint=False)
    first = files.Lock(folder)
    first.take()
    words = f"another run .process {os.getpid()} of"
    for _ in range(2):  # a refused run leaves the lock alone
        with pytest.raises(RuntimeError, match=words):
            fit(folder, epochs=2)
    first.release()
    assert fit(folder, epochs=3).epoch == [1, 2] and not folder.exists()


def test_training_goes_on_when_a_backup_cannot_be_written(tmp_path, monkeypatch):
    write, epochs = BackupAndRestore._write, []

    def full(backup, folder, about):
        epochs.append(about["epoch"])
        write(backup, folder, about)
        if about["epoch"] == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(BackupAndRestore, "_write", full)
    with pytest.warns(RuntimeWarning) as caught:
        fit(tmp_path, epochs=4, delete_checkpoint=False)
    (words,) = (str(w.message) for w in caught if "No backup" in str(w.message))
    assert "epoch 2: [Errno 28] No space left" in words and epochs == [1, 2, 3, 4]
    kept = sorted(p.name.split("-", 1)[1] for p in tmp_path.iterdir())
    assert kept == ["epoch-3-batch-0", "epoch-4-batch-0"]


# Kills


def save_and_die_between_renames(folder):
    rename = os.rename

    def kill(source, target):
        rename(source, target)
        if str(target).endswith("replaced"):
            os.kill(os.getpid(), signal.SIGKILL)

    os.rename = kill
    preset(seed=2).save_to_preset(folder)


def test_a_preset_killed_between_two_renames_is_found(tmp_path):
    """It is the new one: the old one had given way to it."""
    folder = tmp_path / "preset"
    preset(seed=1).save_to_preset(folder)
    child = zoo.start(save_and_die_between_renames, folder)
    child.join()
    assert child.exitcode == -signal.SIGKILL and not folder.exists()
    found = kgen.models.FVBN.from_preset(folder)
    assert_same(found, preset(seed=2))
    found.save_to_preset(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["preset"]  # the rest is cleared


def test_next_writer_clears_what_dead_ones_left(tmp_path):
    dead = subprocess.Popen("true")
    dead.wait()
    left = tmp_path / f".writing-{files._HOST}-{dead.pid}-xyz"
    alive = tmp_path / f".writing-{files._HOST}-{os.getpid()}-xyz"
    elsewhere = tmp_path / f".writing-other_host-{dead.pid}-xyz"
    for folder in (left, alive, elsewhere):
        folder.mkdir()
        (folder / "half").write_text("half")
    with files.atomic(tmp_path / "new.txt") as path:
        path.write_text("whole")
    assert not left.exists() and alive.exists() and elsewhere.exists()


def export(path, temporary):
    tempfile.tempdir = temporary
    preset().export(path)


@pytest.mark.skipif(kgen.backend.name == "tensorflow", reason="exports without a child")
def test_exporting_child_ends_with_its_parent(tmp_path):
    path, temporary = tmp_path / "served" / "1", tmp_path / "temporary"
    temporary.mkdir()
    parent = zoo.start(export, path, str(temporary))

    def wait_for(there):
        """A process whose command names the temporary folder."""
        for _ in range(1200):
            found = subprocess.run(["pgrep", "-f", str(temporary)], capture_output=True)
            if (found.returncode == 0) == there:
                return
            time.sleep(0.05)
        raise TimeoutError

    wait_for(True)
    parent.kill()
    parent.join()
    wait_for(False)
    assert not list(temporary.iterdir()) and not path.exists()


def test_two_writers_of_one_preset_leave_one_whole(tmp_path):
    folder, both, failures = tmp_path / "preset", [preset(1), preset(2)], []

    def write(made):
        for _ in range(50):
            try:
                made.save_to_preset(folder)
            except Exception as error:
                failures.append(error)

    with ThreadPoolExecutor(2) as pool:
        pool.map(write, both)
    found = zoo.weights(kgen.models.FVBN.from_preset(folder))
    assert any(all(map(np.array_equal, found, zoo.weights(made))) for made in both)
    # some find that the other one was faster
    assert {type(error) for error in failures} <= {FileExistsError}
    assert [p.name for p in tmp_path.iterdir()] == ["preset"]


# Damaged presets and weights


def test_flipped_bits_of_a_preset_raise(tmp_path):
    preset().save_to_preset(tmp_path)
    for seed, name in enumerate(("config.json", "model.weights.h5") * 10):
        zoo.flip_bit(tmp_path / name, seed)
        with pytest.raises(ValueError, match=f"{name} has changed since"):
            kgen.models.FVBN.from_preset(tmp_path)
        zoo.flip_bit(tmp_path / name, seed)
    kgen.models.FVBN.from_preset(tmp_path)
    (tmp_path / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="metadata.json is damaged"):
        kgen.models.FVBN.from_preset(tmp_path)


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    model, folder = preset(), tmp_path / "preset"
    model.save_to_preset(folder)
    (folder / "metadata.json").unlink()
    model.weights[0].assign(np.nan * model.weights[0])
    for keep in (model.save_to_preset, model.export):
        with pytest.raises(ValueError, match="1 of 2 weights hold NaN or infinity"):
            keep(tmp_path / "other")
    model.save_weights(folder / "model.weights.h5")
    with pytest.raises(ValueError, match="the preset .* 1 of 2 weights hold NaN"):
        kgen.models.FVBN.from_preset(folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_packaged_presets_have_checksums():
    for name in kgen.presets.list():
        metadata = kgen.presets._PACKAGED / name / "metadata.json"
        assert len(json.loads(metadata.read_text())["sha256"]) == 2


# Kills at random moments


@pytest.mark.exhaustive
def test_random_kills_lose_nothing():
    """Of training, saves, presets, pairs of writers and exports; see kills.py."""
    options = ("--kills", 8, "--seed", 1)
    done = zoo.run_python(zoo.TESTS / "kills.py", *options, KERAS_BACKEND="tensorflow")
    assert "8 kills" in done.stdout and "lost nothing" in done.stdout
