"""Backups of training, from which a killed run ends as if it had not been killed."""

import contextlib
import json
import shutil
import warnings

import keras
import numpy as np
from keras import ops

from kgen import files, limits
from kgen.checks import boolean, is_integer
from kgen.tensor_checks import all_finite

_WEIGHTS, _METRICS, _ABOUT = "state.weights.h5", "metrics.npz", "backup.json"
_NAMES = {_WEIGHTS, _METRICS, _ABOUT}


class BackupAndRestore(keras.callbacks.Callback):
    """As `keras.callbacks.BackupAndRestore`, exactly, also within an epoch.

    A backup holds the weights, the optimizer's state, seed generators and metrics; it
    is written atomically, and the one before it stays until then. `fit` restores the
    newest that is intact and goes on from the very batch, with what the batches of the
    epoch so far gave the metrics. (Keras' own starts the epoch over; killed between its
    two files, it repeats an epoch.) Within an epoch that wants `kgen.data.Batches`,
    whose order is a function of its seed and the epoch; of other data the interrupted
    epoch starts over from the backup's weights. Arrays that Keras shuffles are in
    another order in each run.

    `fit` puts it after all other callbacks, and it saves when an epoch begins or the
    training ends: so whatever others do at an epoch's end is done. What they remember
    themselves (EarlyStopping's patience, and that it ended the run) is not kept.
    Weights that are NaN or infinite are not saved; a backup that cannot be written, on
    a full disk, is left out with a warning. The processes of one run share the folder;
    a second run is refused while the first one trains.

    Args:
        backup_dir: folder of this run's backups. Other files in it are left alone.
        save_freq: "epoch", or an integer: after so many batches too.
        delete_checkpoint: whether to remove the backups when the training has ended;
            if not, more `epochs` go on from there (with `use_ema` from the average,
            which Keras puts in the weights' place at the end).

    Raises:
        ValueError: from `fit`; no backup is intact, or they are of another model.
        RuntimeError: in the `fit` of a model that is not kgen's; another run uses the
            folder.
    """

    def __init__(self, backup_dir, save_freq="epoch", delete_checkpoint=True):
        super().__init__()
        whole = is_integer(save_freq) and save_freq >= 1
        if not whole and (not isinstance(save_freq, str) or save_freq != "epoch"):
            raise ValueError(
                "save_freq must be 'epoch' or a positive number of batches; got "
                f"{save_freq!r}."
            )
        boolean(delete_checkpoint=delete_checkpoint)
        self.folder = files.check_path("backup_dir", backup_dir)
        self.save_freq = save_freq
        self.delete_checkpoint = delete_checkpoint
        self.async_safe = save_freq == "epoch"  # Keras: nothing is done after a batch
        self.lock = files.Lock(self.folder)  # `fit` takes it
        self._ready = False
        self._begin(0, 0)

    def _begin(self, epoch, batch, metrics=None):
        self.epoch, self.first_batch, self._metrics = epoch, batch, metrics
        self._now, self._restore = epoch, metrics is not None

    def backups(self):
        """The folders of the backups there are, oldest first."""
        found = (
            self.folder.glob("[0-9]*-epoch-*-batch-*") if self.folder.is_dir() else []
        )
        return sorted(path for path in found if path.is_dir())

    def restore(self, model, data=None):
        """Loads the newest intact backup into a compiled model, if there is any. `fit`
        does it; `data` describes the batches, for JSON.

        Returns: (epoch, batch) to go on from, (0, 0) where there is no backup.
        """
        self._begin(0, 0)
        self._ready, self._data = True, data
        if files.writes() and self.folder.is_dir():
            for left in self.folder.glob(".writing-*"):  # a save was killed
                shutil.rmtree(left, ignore_errors=True)
        path, about = self.newest()
        if path:
            self._load(model, path, about)
        return self.epoch, self.first_batch

    def newest(self):
        """The newest intact backup: its folder and its metadata, a dict of
        `epoch` and `batch` to go on from; (None, None) where there are none."""
        found = self.backups()
        for path in reversed(found):
            about = _read(path)
            if isinstance(about, dict):
                return path, about
            warnings.warn(
                f"The backup {path} is damaged ({about}); trying the one before it.",
                RuntimeWarning,
                stacklevel=3,
            )
        if found:
            raise ValueError(
                f"None of the backups in '{self.folder}' is intact: remove that folder "
                "to start anew."
            )
        return None, None

    def _load(self, model, path, about):
        if about["shapes"] != _shapes(model):  # Keras would load what fits
            raise ValueError(
                f"The backup {path} is not of this model and optimizer. Resume with "
                f"the settings it was made with, or remove '{self.folder}' to start "
                "anew."
            )
        model.load_weights(path / _WEIGHTS)
        limits.check_archive(path / _METRICS)
        with np.load(path / _METRICS) as arrays:
            metrics = [arrays[name] for name in arrays.files]
        batch = about["batch"]
        if batch and (self._data is None or self._data != about["data"]):
            warnings.warn(
                f"{path} is of batch {batch} of an epoch of other data, or these are "
                "no kgen.data.Batches: the epoch starts over.",
                RuntimeWarning,
                stacklevel=3,
            )
            batch = 0
        self._begin(about["epoch"], batch, metrics)

    def on_train_begin(self, logs=None):
        if not self._ready:
            raise RuntimeError(
                "kgen.callbacks.BackupAndRestore works in the `fit` of kgen's models; "
                "for others there is keras.callbacks.BackupAndRestore."
            )
        self._ready = False

    def on_epoch_begin(self, epoch, logs=None):
        self._now = epoch
        self._done = self.first_batch if epoch == self.epoch else 0
        if not self._restore:
            return self._save(epoch, 0) if epoch > self.epoch else None
        if self.first_batch:  # after Keras has reset them
            variables = self.model.metrics_variables
            for v, value in zip(variables, self._metrics, strict=True):
                v.assign(value)
        self._restore = False

    def on_train_batch_end(self, batch, logs=None):
        first = self.first_batch if self._now == self.epoch else 0
        done, before, self._done = first + batch + 1, self._done, first + batch + 1
        if self.save_freq == "epoch" or done >= (self.params.get("steps") or np.inf):
            return
        if done // self.save_freq > before // self.save_freq:
            self._save(self._now, done)

    def on_epoch_end(self, epoch, logs=None):
        self._now = epoch + 1

    def on_train_end(self, logs=None):
        if self.delete_checkpoint:
            if files.writes():
                for path in self.backups():
                    shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):  # other files are in it
                    self.folder.rmdir()
        elif self._now > self.epoch:
            self._save(self._now, 0)

    def _save(self, epoch, batch):
        if not all_finite(_variables(self.model)):
            warnings.warn(
                f"No backup after batch {batch} of epoch {epoch}: weights are NaN or "
                "infinite. The backups before stay.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        earlier = self.backups()
        number = int(earlier[-1].name.split("-")[0]) + 1 if earlier else 0
        path = self.folder / f"{number:08}-epoch-{epoch}-batch-{batch}"
        try:
            with files.atomic(path, replace=_NAMES) as unfinished:
                self._write(unfinished, {"epoch": epoch, "batch": batch})
        except OSError as error:  # a full disk
            warnings.warn(
                f"No backup after batch {batch} of epoch {epoch}: {error}. The backups "
                "before stay.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        if files.writes():
            for old in self.backups()[:-2]:
                shutil.rmtree(old, ignore_errors=True)

    def _write(self, folder, about):
        folder.mkdir()
        # Keras' own models: GenerativeModel.save_weights is atomic by itself
        keras.Model.save_weights(self.model, folder / _WEIGHTS)
        metrics = [ops.convert_to_numpy(v) for v in self.model.metrics_variables]
        np.savez(folder / _METRICS, *metrics)
        sums = {name: files.checksum(folder / name) for name in (_WEIGHTS, _METRICS)}
        about |= {"sha256": sums, "shapes": _shapes(self.model), "data": self._data}
        (folder / _ABOUT).write_text(json.dumps(about))


def _shapes(model):
    """Of all that is kept, as JSON gives it back."""
    return [list(v.shape) for v in _variables(model)]


def _variables(model):
    return model.variables + model.optimizer.variables


def _read(path):
    """The backup's metadata, or a sentence on what is wrong with it."""
    try:
        about = json.loads((path / _ABOUT).read_text())
        for name, expected in about["sha256"].items():
            if files.checksum(path / name) != expected:
                return f"{name} has changed since it was written"
        return about
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
