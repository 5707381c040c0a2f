"""What `fit` and `evaluate` do around Keras' own: order, resumption, an end at NaN."""

import contextlib
import warnings

import keras

from kgen import backend, files
from kgen.batching import Still
from kgen.callbacks import (
    BackupAndRestore,
    CollapseGuard,
    CutEpoch,
    SetEpoch,
    StopOnNaN,
)
from kgen.data import Batches

_ENDS_AT_NAN = (keras.callbacks.TerminateOnNaN, CollapseGuard)


@contextlib.contextmanager
def prepare(model, x, callbacks, kwargs):
    """Data and callbacks as Keras' `fit` is to have them; `kwargs` of it are changed.

    - Data sets that make their own batches keep their order: Keras would shuffle a
      PyDataset's batches by the global random state, which no checkpoint holds.
    - Data with `set_epoch` receive the epoch.
    - Backups are restored now and saved after all other callbacks; their folder is
      locked meanwhile.
    - NaN in a metric is an error, unless another callback handles it.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = keras.tree.flatten(callbacks or [])
    backend.check_load()
    if not model.compiled:  # which Keras tells of
        yield x, callbacks
        return
    backups = [c for c in callbacks if isinstance(c, BackupAndRestore)]
    callbacks = [c for c in callbacks if c not in backups]
    if isinstance(x, Batches):
        kwargs["shuffle"] = False
        x.set_epoch(x.epoch)  # whole, if an interrupted `fit` had left part of it
    elif not hasattr(x, "shape"):
        kwargs.setdefault("shuffle", False)
    with contextlib.ExitStack() as stack:
        for backup in backups if files.writes() else ():
            backup.lock.take()
            stack.callback(backup.lock.release)
        first_batch = _restore(model, x, backups, kwargs)
        if not any(isinstance(c, _ENDS_AT_NAN) for c in callbacks):
            callbacks.insert(0, StopOnNaN(first_batch))
        several = (model.steps_per_execution or 1) > 1
        data, x = x, adapt(x, uneven=first_batch > 0 and several)
        if hasattr(data, "set_epoch"):
            callbacks.insert(0, SetEpoch(data, first_batch, absolute=bool(backups)))
        if first_batch and not isinstance(x, keras.utils.PyDataset):
            callbacks.insert(0, CutEpoch(first_batch))
        stack.enter_context(warnings.catch_warnings())
        if first_batch:  # the rest of an epoch is shorter than one
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield x, [*callbacks, *backups]


def _restore(model, x, backups, kwargs):
    """Restores the newest backup: sets `initial_epoch`, returns the batch."""
    backend.together([])  # the first process may be saving still
    first_batch, of = 0, None
    if isinstance(x, Batches):
        of = {k: getattr(x, k) for k in _MADE_OF} | {"images": len(x.images)}
    if len(backups) > 1 or (backups and of and kwargs.get("steps_per_epoch")):
        raise ValueError(
            "`fit` takes one BackupAndRestore, and with kgen.data.Batches, which has "
            "epochs of its own, no steps_per_epoch beside it."
        )
    for backup in backups:
        epoch, first_batch = backup.restore(model, of)
        if epoch < kwargs.get("initial_epoch", 0):  # asked for, so whole
            first_batch = backup.first_batch = 0
        else:
            kwargs["initial_epoch"] = epoch
    backend.together(model.variables + model.optimizer.variables)
    return first_batch


_MADE_OF = ("batch_size", "shuffle", "binarize", "seed", "drop_remainder")


def adapt(x, **kwargs):
    """Data in the form that the backend handles fastest."""
    ours = isinstance(x, (Batches, Still)) or hasattr(x, "shape")
    return backend.adapt(x, **kwargs) if ours else x


def adapt_for_evaluation(x):
    """The same, of an epoch that does not move on."""
    return adapt(Still(x) if isinstance(x, Batches) else x)
