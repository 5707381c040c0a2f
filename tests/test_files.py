"""Files and folders are written atomically, and nothing of others is replaced."""

import threading

import pytest
from zoo import new

import kgen

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def model():
    return new("vae")


def test_folders_with_other_files_are_not_replaced(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    for use in (model.save_to_preset, model.save, model.export):
        with pytest.raises((FileExistsError, ValueError)):
            use(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"
    model.save_to_preset(tmp_path / "preset")
    (tmp_path / "preset" / "notes.txt").write_text("years of work")
    with pytest.raises(FileExistsError):
        model.save_to_preset(tmp_path / "preset")
    assert (tmp_path / "preset" / "notes.txt").exists()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_first_of_two_writers_is_kept(kind, tmp_path):
    """Two exports of one version: what the first wrote stays."""
    target = tmp_path / "target"

    def write(path, text):
        if kind == "folder":
            path.mkdir()
            path = path / "f"
        path.write_text(text)

    with pytest.raises(FileExistsError):
        with kgen.files.atomic(target, replace=False) as late:
            write(late, "late")
            with kgen.files.atomic(target, replace=False) as early:
                write(early, "early")
    assert (target / "f" if target.is_dir() else target).read_text() == "early"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_simultaneous_writers_get_one_result(kind, tmp_path):
    """Both have passed the first check when they write: one wins, whole, and only the
    other gets the error."""
    for attempt in range(20):
        target, ready = tmp_path / str(attempt), threading.Barrier(2)
        succeeded, failed = [], []

        def write(name, target=target, ready=ready, ok=succeeded, bad=failed):
            try:
                with kgen.files.atomic(target, replace=False) as path:
                    if kind == "folder":
                        path.mkdir()
                    (path / "f" if kind == "folder" else path).write_text(name)
                    ready.wait()
                ok.append(name)
            except FileExistsError:
                bad.append(name)

        threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(succeeded) == len(failed) == 1
        written = target / "f" if kind == "folder" else target
        assert written.read_text() == succeeded[0]


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
