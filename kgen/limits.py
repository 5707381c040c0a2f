"""What files from others may ask for: no more memory than they bring numbers.

A preset is a configuration, which names sizes, and a file of weights. A model that is
built from it can have no more weights than the file holds, so the file's size bounds
what is allocated before a weight is read. Models that are built by their constructors
have no limit.
"""

import contextlib
import math
import threading
import zipfile

import keras
import numpy as np

IMAGE_VALUES = 2**24  # of one image: convolutions have no weights that bound it
UNSTORED_WEIGHTS = 2**27  # 0.5 GB, of a configuration without a file of weights
TABLE_VALUES = 2**20  # of tables that files do not hold, such as MADE's masks

_lock, _thread = threading.RLock(), threading.local()


class _Exceeded(Exception):
    """Not a ValueError, which others catch to add words of their own."""


class _Budget:
    def __init__(self, numbers, variables):
        # Twice as many: a layer of the user's own may have weights it does not store.
        self.numbers, self.variables = 2 * numbers + 2**16, 2 * variables + 100
        self.tables, self.exceeded = numbers + TABLE_VALUES, False

    def check(self):
        if min(self.numbers, self.variables, self.tables) < 0:
            self.exceeded = True
            raise _Exceeded


@contextlib.contextmanager
def limit_weights(stored, source):
    """Layers that this thread makes in the block create no more weights than that.

    Args:
        stored: (numbers, variables) of the file of weights, or None without one.
        source: what is loaded, for the error.

    Raises:
        ValueError: before the first array is allocated that would be too many.
    """
    numbers, variables = stored or (UNSTORED_WEIGHTS, 2**16)
    budget = _Budget(numbers, variables)

    def add_counted_weight(layer, *args, **kwargs):
        if getattr(_thread, "budget", None) is budget:
            shape = kwargs.get("shape", args[0] if args else None)
            budget.numbers -= math.prod(shape or ())
            budget.variables -= 1
            budget.check()
        return add_weight(layer, *args, **kwargs)

    # Keras has no hook that sees a weight's shape before its values are made.
    with _lock:
        add_weight, keras.Layer.add_weight = keras.Layer.add_weight, add_counted_weight
        _thread.budget = budget
        try:
            yield
        except Exception as error:
            if not budget.exceeded:
                raise
            have = f"{numbers} in {variables} arrays"
            have = have if stored else f"{numbers} without a file of weights"
            raise ValueError(
                f"The configuration of {source} asks for more weights than there can "
                f"be ({have}): it is damaged or hostile. Build the model by its "
                "constructor if it is yours."
            ) from error
        finally:
            _thread.budget, keras.Layer.add_weight = None, add_weight


def count_table(values):
    """Within `limit_weights`, counts the values of a table that no file holds, before
    it is made."""
    budget = getattr(_thread, "budget", None)
    if budget is not None:
        budget.tables -= values
        budget.check()


def check_image_shape(config, source):
    """Raises a ValueError if a model's configuration has images of absurd size."""
    arguments = config.get("config") if isinstance(config, dict) else None
    shape = arguments.get("image_shape") if isinstance(arguments, dict) else None
    if isinstance(shape, list) and all(isinstance(n, int) for n in shape):
        if math.prod(shape) > IMAGE_VALUES:
            raise ValueError(
                f"image_shape of {source} must have at most {IMAGE_VALUES} values in a "
                f"file from others; got {shape}. Build the model by its constructor if "
                "it is yours, and load its weights."
            )


def count_stored_weights(file, size, source):
    """(numbers, arrays) that an HDF5 file holds, without reading them.

    Args:
        file: path, or a file object open for reading.
        size: of the file, in bytes.
        source: what is loaded, for the error.

    Raises:
        ValueError: it is no HDF5 file, or its arrays claim more bytes than it has, as
            only compressed ones can, or ones that were never written.
    """
    import h5py  # which Keras brings, and imports on use

    found = []

    def count(name, item):
        if isinstance(item, h5py.Dataset):
            found.append((item.size or 0, item.dtype.itemsize))

    try:
        with h5py.File(file, "r") as h5:
            h5.visititems(count)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{source} is no intact HDF5 file: {error}") from error
    _check_claim(sum(n * each for n, each in found), size, source)
    return sum(n for n, _ in found), len(found)


def check_archive(path):
    """Raises a ValueError if a zip file (.keras, .npz) claims more bytes than it has:
    Keras and NumPy write them uncompressed. Arrays of an .npz are to fill their
    members.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_claim(sum(m.file_size for m in members), path.stat().st_size, path)
            for member in members:
                if member.filename.endswith(".npy"):
                    with archive.open(member) as file:
                        claim = _read_npy_size(file)
                    _check_claim(claim, member.file_size, path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is no intact zip file: {error}") from error


def _read_npy_size(file):
    """The bytes of the array that a .npy file's header claims."""
    npy = np.lib.format
    first = npy.read_magic(file) == (1, 0)
    read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return math.prod(shape) * dtype.itemsize


def _check_claim(claimed, size, source):
    if claimed > size:
        raise ValueError(
            f"{source} claims {claimed} bytes of arrays in a file of {size} bytes: it "
            "is damaged or hostile, or was compressed by another program. Write it "
            "without compression."
        )
