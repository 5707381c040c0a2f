"""Where a run is: for the reader, and for the data set."""

import datetime
import time

import keras

from kgen.checks import positive


def print_line(callback, line):
    """Prints a line of its own: Keras' progress bar leaves the cursor at its end."""
    bar = (callback.params or {}).get("verbose") in (1, "auto")
    print(f"{chr(10) * bar}{line}", flush=True)


class Progress(keras.callbacks.Callback):
    """One line an epoch: the metrics, and the time that the rest will take; within long
    epochs, one line every `seconds`.

    For runs of many epochs, with `fit(verbose=0)`.

    Args:
        metrics: names to show; by default all.
        every: print after every so many epochs, the first and the last.
        seconds: within an epoch, the time between lines; None for none.
    """

    def __init__(self, metrics=None, every=1, seconds=30):
        super().__init__()
        positive(every=every)
        self.metrics, self.every, self.seconds = metrics, every, seconds

    def on_train_begin(self, logs=None):
        self._first = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._printed = epoch, time.time()
        self._epoch_start = self._printed
        if self._first is None:
            self._first, self._start = epoch, time.time()

    def on_train_batch_end(self, batch, logs=None):
        now, steps = time.time(), self.params.get("steps")
        if not (self.seconds and steps) or now - self._printed < self.seconds:
            return
        self._printed = now
        loss = f"  loss {float(logs['loss']):.4g}" if logs and "loss" in logs else ""
        took = (now - self._epoch_start) / (batch + 1)
        left = datetime.timedelta(seconds=round(took * (steps - batch - 1)))
        print_line(
            self,
            f"epoch {self._epoch + 1}/{self.params['epochs']}, step {batch + 1}/{steps}"
            f"{loss}  {left} left in the epoch",
        )

    def on_epoch_end(self, epoch, logs=None):
        done, total = epoch + 1, self.params["epochs"]
        if done % self.every and done not in (self._first + 1, total):
            return
        names = self.metrics or sorted(logs)
        values = "  ".join(f"{k} {logs[k]:.4g}" for k in names if k in logs)
        took = (time.time() - self._start) / (done - self._first)
        left = datetime.timedelta(seconds=round(took * (total - done)))
        took = f"{took:,.0f}" if took >= 10 else f"{took:.2g}"
        print_line(self, f"epoch {done}/{total}  {values}  {took} s/epoch, {left} left")


class SetEpoch(keras.callbacks.Callback):
    """Tells a data set which epoch it is, by its `set_epoch(epoch)`, so that a resumed
    run sees what the uninterrupted one would have. A further `fit` on the same data set
    goes on where the last one ended, unless epochs are `absolute`, as they are where
    backups are kept. Of the first epoch, `first_batch` batches are left out. kgen's
    `fit` adds this callback by itself."""

    def __init__(self, data, first_batch=0, absolute=False):
        super().__init__()
        self.data, self.first_batch, self.absolute = data, first_batch, absolute

    def on_train_begin(self, logs=None):
        before = 0 if self.absolute else getattr(self.data, "epochs_seen", 0)
        self._first, self._before = None, before

    def on_epoch_begin(self, epoch, logs=None):
        if self._first is None:
            self._first = epoch
        skip = self.first_batch if epoch == self._first else 0
        epoch = max(epoch, self._before + epoch - self._first)
        self.data.set_epoch(epoch, *([skip] if skip else []))
        self.data.epochs_seen = epoch + 1


class CutEpoch(keras.callbacks.Callback):
    """Ends the first epoch, but not the training, after the batches that are left of it
    when `first_batch` were before: Keras goes on asking for as many as an epoch has,
    and a TensorFlow graph that finds none has half done its step by then. kgen's `fit`
    adds this callback by itself."""

    def __init__(self, first_batch):
        super().__init__()
        self.left, self._before = first_batch, None

    def on_train_batch_end(self, batch, logs=None):
        if self.left and self.left + batch + 1 >= self.params["steps"]:
            self._before = self.model.stop_training
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        if self._before is not None:
            self.model.stop_training = self._before
        self.left, self._before = 0, None
