"""What `fit` does around Keras' own: order, resumption, and an end at NaN."""

import contextlib
import warnings

import keras

from kgen import backend
from kgen.callbacks import BackupAndRestore, CollapseGuard, SetEpoch, StopOnNaN
from kgen.data import Batches


@contextlib.contextmanager
def prepared(model, x, callbacks, kwargs):
    """Data and callbacks as Keras' `fit` is to have them; `kwargs` of it are changed.

    - Data sets that make their own batches keep their order: Keras would shuffle a
      PyDataset's batches by the global random state, which no checkpoint holds.
    - What has `set_epoch` is told the epoch.
    - Backups are restored now and saved after all other callbacks.
    - NaN in a metric is an error, unless another callback sees to it.
    """
    callbacks = keras.tree.flatten(callbacks or [])
    backups = [c for c in callbacks if isinstance(c, BackupAndRestore)]
    callbacks = [c for c in callbacks if c not in backups]
    if not any(isinstance(c, _ENDS_AT_NAN) for c in callbacks):
        callbacks.insert(0, StopOnNaN())
    if not hasattr(x, "shape"):
        kwargs.setdefault("shuffle", False)
    first_batch = _restored(model, x, backups, kwargs)
    backend.together(model.variables + model.optimizer.variables)
    data, x = x, fed(x)
    if hasattr(data, "set_epoch"):
        in_graph = not isinstance(x, keras.utils.PyDataset)
        callbacks.insert(0, SetEpoch(data, first_batch, stop=in_graph))
    with warnings.catch_warnings():
        if first_batch:  # the rest of an epoch is shorter than one
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield x, [*callbacks, *backups]


def fed(x):
    """Data as the backend takes them best."""
    ours = isinstance(x, Batches) or hasattr(x, "shape")
    return backend.fed(x) if ours else x


_ENDS_AT_NAN = (keras.callbacks.TerminateOnNaN, CollapseGuard)


def _restored(model, x, backups, kwargs):
    """Where the backups say to go on: sets `initial_epoch`, returns the batch."""
    first_batch = 0
    for backup in backups:
        epoch, first_batch = backup.restore(model)
        kwargs["initial_epoch"] = max(epoch, kwargs.get("initial_epoch", 0))
        if first_batch and not isinstance(x, Batches):
            backup.start_over()
            first_batch = 0
    return first_batch
