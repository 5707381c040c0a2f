"""Files and folders are written atomically, and nothing of others is replaced."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from zoo import new

import kgen

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def model():
    return new("vae")


def write(path, text, kind="file"):
    if kind == "folder":
        path.mkdir(exist_ok=True)
        path = path / "f"
    path.write_text(text)


def read(path):
    return (path / "f" if path.is_dir() else path).read_text()


def test_folders_with_other_files_are_not_replaced(model, tmp_path):
    thesis, preset = tmp_path / "thesis", tmp_path / "preset"
    write(thesis, "years of work", "folder")
    model.save_to_preset(preset)
    write(preset, "years of work", "folder")
    for use in (model.save_to_preset, model.save, model.export):
        with pytest.raises((FileExistsError, ValueError)):
            use(thesis)
    with pytest.raises(FileExistsError):
        model.save_to_preset(preset)
    assert read(thesis) == read(preset) == "years of work"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_simultaneous_writers_get_one_result(kind, tmp_path):
    """Both have passed the first check when they write: the first one wins, whole, and
    only the other gets the error."""
    for attempt in range(20):
        target, ready = tmp_path / str(attempt), threading.Barrier(2)

        def write_both(name, target=target, ready=ready):
            with kgen.files.atomic(target, replace=False) as path:
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
    with pytest.raises(KeyboardInterrupt), kgen.files.atomic(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.txt"]


def test_paths_that_cannot_be_written_raise(model, tmp_path):
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
