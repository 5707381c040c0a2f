"""Files and folders that are written atomically."""

import contextlib
import hashlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path


@contextlib.contextmanager
def atomic(path, replace=True):
    """Yields a path beside `path` to write to, and renames it to `path` at the end.

    If the block raises, or the process dies, `path` stays as it was. Works for a file
    and for a folder (made by the block). The name is kept, for what it ends in may
    matter (`.keras`, `.weights.h5`), in a hidden folder which no server polls. Of
    several processes that train together, the first alone leaves anything behind.

    Args:
        path: Where the result shall be.
        replace: True: an existing file is replaced, a folder is not. False: nothing
            is. A set of names: a folder that holds nothing else is replaced.

    Raises:
        FileExistsError: Something is at `path` that is not to be replaced, also if
            it has come there meanwhile.
        PermissionError: The folder of `path` cannot be written to.
    """
    path = check_path("path", path)
    finish(path)
    if not writes():
        with tempfile.TemporaryDirectory() as elsewhere:
            yield Path(elsewhere) / path.name
        return
    _refuse_to_replace(path, replace)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent)
        prefix = f".writing-{_HOST}-{os.getpid()}-"
        beside = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    except OSError as error:
        raise PermissionError(
            f"Cannot write '{path}': {error}. Choose an output path in a folder that "
            "you may write to."
        ) from error
    try:
        yield beside / path.name
        _to_disk(beside / path.name)
        _move(beside / path.name, path, replace)
        _sync(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


_HOST = socket.gethostname().replace("-", "_")
_REPLACED = "replaced"  # an earlier folder, while another takes its name


def _clear(folder):
    """Removes what writers of this machine that were killed have left."""
    for left in folder.glob(f".writing-{_HOST}-*"):
        pid = left.name.split("-")[2]
        if pid.isdigit() and not _runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def finish(path):
    """Gives a folder its name, if its writer was killed between the two renames by
    which it took an earlier one's place."""
    path = Path(path)
    if path.exists() or not path.parent.is_dir():
        return
    for left in path.parent.glob(".writing-*"):
        if (left / _REPLACED).exists() and (left / path.name).exists():
            with contextlib.suppress(OSError):  # another process did it
                os.rename(left / path.name, path)


def check_path(name, value):
    """`value` as a Path; raises a ValueError unless it can name a file or a folder."""
    text = str(value) if isinstance(value, (str, os.PathLike)) else ""
    if not text or "\0" in text:  # Path("") is the current folder
        raise ValueError(f"{name} must be a path or a name; got {value!r}.")
    return Path(value)


def checksum(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path):
    """So that after a power cut, too, the name stands for a whole file."""
    for part in [*path.rglob("*"), path] if path.is_dir() else [path]:
        _sync(part)


def _sync(path):
    """A file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """An exclusive lock of a folder, by a file in it that the system unlocks when the
    process ends, however it ends.

    Raises:
        RuntimeError: from `take`; a process that runs has it.
    """

    def __init__(self, folder):
        self.path, self._descriptor = Path(folder) / ".lock", None

    def take(self):
        try:
            import fcntl
        except ImportError:  # Windows
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                here = os.stat(self.path).st_ino
            except FileNotFoundError:  # its owner has just removed it
                here = None
            except BlockingIOError as error:
                owner = os.read(descriptor, 100).decode(errors="replace")
                os.close(descriptor)
                raise RuntimeError(
                    f"'{self.path.parent}' is in use by another run ({owner}). Wait "
                    "for its end, or choose another folder."
                ) from error
            if here == os.fstat(descriptor).st_ino:
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} of {_HOST}".encode())

    def release(self):
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None
            with contextlib.suppress(OSError):  # other files are in it
                self.path.parent.rmdir()


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
    aside = source.parent / _REPLACED
    try:
        if source.is_dir():
            if isinstance(replace, set) and target.is_dir() and any(target.iterdir()):
                os.rename(target, aside)
                _refuse_to_replace(aside, replace)  # what came there meanwhile
            # Fails if there is more than an empty folder. What is gone, `finish` moved.
            if source.exists() or not aside.exists():
                os.rename(source, target)
        elif replace:
            os.replace(source, target)
        else:
            os.link(source, target)  # a rename would replace the file of another writer
    except OSError as error:
        with contextlib.suppress(OSError):  # nothing aside, or another's has the name
            os.rename(aside, target)
        raise FileExistsError(
            f"'{target}' was written by another process meanwhile, or cannot be "
            f"written: {error}. Choose a free name."
        ) from error


def writes():
    """Whether this process writes files: of several that train together the first. A
    process without the backend, such as a client of a server, trains nothing."""
    backend = sys.modules.get("kgen.backend")
    return backend is None or backend.process()[0] == 0
