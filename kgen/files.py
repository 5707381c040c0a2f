"""Files and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path


@contextlib.contextmanager
def atomic(path, replace=True):
    """Yields a path beside `path` to write to, and renames it to `path` at the end.

    If the block raises, or the process dies, `path` stays as it was. Works for a file
    and for a folder (made by the block). The name is kept, for what it ends in may
    matter (`.keras`, `.weights.h5`), in a hidden folder which no server polls.

    Args:
        path: Where the result shall be.
        replace: Whether an existing file or folder gives way.

    Raises:
        FileExistsError: `path` exists and `replace` is False.
        PermissionError: The folder of `path` cannot be written to.
    """
    path = Path(path)
    if not replace and path.exists() and not _is_empty_folder(path):
        raise FileExistsError(
            f"'{path}' exists already and is not overwritten: choose a free name, or "
            "remove it."
        )
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
        _move(beside / path.name, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _is_empty_folder(path):
    return path.is_dir() and not any(path.iterdir())


def _move(source, target):
    if target.is_dir() and not _is_empty_folder(target):
        # A full folder cannot be renamed over: the old one steps aside for a moment.
        aside = source.parent / "replaced"
        os.rename(target, aside)
    os.replace(source, target)
