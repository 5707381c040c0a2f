"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from kgen import backend


@contextlib.contextmanager
def atomic(path, replace=True):
    """Yields a path beside `path` to write to, and renames it to `path` at the end.

    If the block raises, or the process dies, `path` stays as it was. Works for a file
    and for a folder (made by the block). The name is kept, for what it ends in may
    matter (`.keras`, `.weights.h5`), in a hidden folder which no server polls. Of
    several processes that train together, the first alone leaves anything behind.

    Args:
        path: Where the result shall be.
        replace: True: an existing file gives way, a folder does not. False: nothing
            does. A set of names: a folder that holds nothing else gives way.

    Raises:
        FileExistsError: Something is at `path` that does not give way, also if it has
            come there meanwhile.
        PermissionError: The folder of `path` cannot be written to.
    """
    path = Path(path)
    if not writes():
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Path(elsewhere) / path.name
        return
    _refuse_to_replace(path, replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    except OSError as error:
        raise PermissionError(
            f"Cannot write '{path}': {error}. Choose an output path in a folder that "
            "you may write to."
        ) from error
    try:
        yield beside / path.name
        _refuse_to_replace(path, replace)
        _to_disk(beside / path.name)
        _move(beside / path.name, path, replace)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _to_disk(path):
    """So that after a power cut, too, the name stands for a whole file."""
    for part in [path, *path.rglob("*")] if path.is_dir() else [path]:
        if part.is_file():
            with open(part, "rb") as file:
                os.fsync(file.fileno())


def _refuse_to_replace(path, replace):
    if path.is_dir():
        names = {p.name for p in path.iterdir()}
        gives_way = not names or (isinstance(replace, set) and names <= replace)
    else:
        gives_way = not path.exists() or replace
    if not gives_way:
        raise FileExistsError(
            f"'{path}' exists already and is not overwritten: choose a free name, or "
            "remove it."
        )


def _move(source, target, replace):
    """One rename. Without `replace` the name must still be free: of two writers the
    second gets the error. An earlier folder is set aside, and comes back if the rename
    fails."""
    aside = source.parent / "replaced"
    try:
        if source.is_dir():
            if isinstance(replace, set) and target.is_dir() and any(target.iterdir()):
                os.rename(target, aside)
                _refuse_to_replace(aside, replace)  # what came there meanwhile
            os.rename(source, target)  # fails if there is more than an empty folder
        elif replace:
            os.replace(source, target)
        else:
            os.link(source, target)  # a rename would replace the file of another writer
    except OSError as error:
        if aside.exists():
            os.rename(aside, target)
        raise FileExistsError(
            f"'{target}' was written by another process meanwhile, or cannot be "
            f"written: {error}. Choose a free name."
        ) from error


def writes():
    """Whether this process writes files: of several that train together the first."""
    return backend.process()[0] == 0
