"""Kills processes at random moments, and checks that nothing is lost or left over.

    KERAS_BACKEND=tensorflow python tests/kills.py --kills 100 --seed 0

Each child is forked from this process, which imports all and computes nothing, and gets
SIGKILL while it

    train     trains with a backup after every batch: the last run resumes, and ends bit
              for bit as an uninterrupted one
    save      writes a .keras file over and over
    preset    writes a preset over and over
    pair      is one of two that write one preset; either or both are killed
    export    writes a SavedModel

After each kill the path holds a whole old or new file, or nothing where nothing was,
and after the next writer nothing but that. Prints what was killed, and fails at the
first loss.
"""

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import keras
import numpy as np
import zoo

from kgen.callbacks import BackupAndRestore
from kgen.data import Batches
from kgen.models import FVBN, GenerativeModel

KINDS = ("train", "save", "preset", "pair", "export")
PORTIONS = (4, 4, 4, 4, 1)  # exports take longest
IMAGES = np.random.default_rng(0).integers(0, 2, (96, 4, 4, 1)).astype("uint8")


# What children do, each with a function that they call when they begin


def model(seed):
    return zoo.randomize(FVBN((4, 4, 1), 2), seed=seed)


def train(folder, begin=lambda: None, backups=True):
    """Four epochs of six batches; the weights and moments go to weights.npz."""
    keras.utils.set_random_seed(3)
    made = FVBN((4, 4, 1), 2)
    made.compile(keras.optimizers.Adam(1e-2))
    data = Batches(IMAGES, batch_size=16, seed=1)
    begin()
    callbacks = [BackupAndRestore(folder / "backup", 1)] if backups else []
    made.fit(data, epochs=4, verbose=0, callbacks=callbacks)
    values = [zoo.numpy(v) for v in made.variables + made.optimizer.variables]
    np.savez(folder / "weights.npz", *values)


def write(folder, kind, begin, times=10**9, seeds=(1, 2)):
    """Two models in turn to one path."""
    made = [model(seed) for seed in seeds]
    begin()
    for i in range(times):
        try:
            if kind == "save":
                made[i % 2].save(folder / "m.keras")
            else:
                made[i % 2].save_to_preset(folder / "preset")
        except FileExistsError:  # the other writer of a pair was faster
            pass


def export(folder, begin=lambda: None):
    made = model(1)
    begin()
    made.export(folder / "1")


def check_written(folder, kind):
    """Whole, and one of the two models."""
    if kind == "save":
        found = keras.saving.load_model(folder / "m.keras")
    else:
        found = GenerativeModel.from_preset(folder / "preset")
    assert any(
        all(map(np.array_equal, zoo.weights(found), zoo.weights(model(seed))))
        for seed in (1, 2)
    )


def check_exported(folder):
    import tensorflow as tf

    signatures = tf.saved_model.load(str(folder / "1")).signatures
    images = signatures["sample"](seed=tf.constant([7], "int64"))["images"]
    assert images.shape == (1, 4, 4, 1)


# The parent


class Child:
    """A forked process that calls `fn(*arguments, begin=...)`."""

    def __init__(self, fn, *arguments, **options):
        self.begun, told = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(told)
            return
        status = 1
        try:
            single_thread()
            fn(*arguments, begin=lambda: os.write(told, b"."), **options)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def kill_after(self, seconds):
        """So long after it has begun; whether that was before its end."""
        os.read(self.begun, 1)
        time.sleep(seconds)
        os.kill(self.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self):
        os.close(self.begun)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def single_thread():
    """Sums in one order, for results bit for bit."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.threading.set_intra_op_parallelism_threads(1)


def run(fn, *arguments, **options):
    """To its end, in a child; returns its seconds after it has begun."""
    child = Child(fn, *arguments, **options)
    os.read(child.begun, 1)
    start = time.monotonic()
    assert child.wait() == 0, (fn.__name__, arguments)
    return time.monotonic() - start


def check(fn, *arguments):
    """In a child too: this process computes nothing, so that it can fork."""

    def begin_and_check(begin):
        begin()
        fn(*arguments)

    run(begin_and_check)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


class Kills:
    def __init__(self, seed, folder):
        self.rng, self.folder = random.Random(seed), folder
        self.done, self.spans = collections.Counter(), {}

    def new_folder(self):
        return Path(tempfile.mkdtemp(dir=self.folder))

    def measure(self):
        """What an uninterrupted run ends with, and how long each takes."""
        self.reference = self.new_folder()
        self.spans["train"] = run(train, self.reference, backups=False) * 1.5
        self.spans["export"] = run(export, self.reference)
        self.exported = self.files(self.reference)
        self.beside = set(names(self.reference)) - {"weights.npz"}

    def files(self, folder):
        """The names in an exported version."""
        return {p.relative_to(folder).parts[:2] for p in (folder / "1").rglob("*")}

    def train(self, most):
        """One run, killed up to four times before its last part."""
        folder = self.new_folder()
        for _ in range(min(most, self.rng.randint(1, 4))):
            child = Child(train, folder)
            if child.kill_after(self.rng.uniform(0, self.spans["train"])):
                self.done["train"] += 1
            else:  # it had ended: its backups are gone
                (folder / "weights.npz").unlink()
        run(train, folder)
        with (
            np.load(self.reference / "weights.npz") as a,
            np.load(folder / "weights.npz") as b,
        ):
            assert a.files == b.files
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])
        assert names(folder) == ["weights.npz"]

    def write(self, kind, processes=1):
        folder, path = self.new_folder(), "m.keras" if kind == "save" else "preset"
        old = self.rng.random() < 0.5
        if old:
            run(write, folder, kind, times=1)
        children = [
            Child(write, folder, kind, seeds=seeds)
            for seeds in [(1, 2), (2, 1)][:processes]
        ]
        for child in children:
            assert child.kill_after(self.rng.uniform(0, 0.2))
            self.done["pair" if processes > 1 else kind] += 1
        if old or (folder / path).exists():  # between two renames a preset is found
            check(check_written, folder, kind)
        run(write, folder, kind, times=1)
        check(check_written, folder, kind)
        assert names(folder) == [path], names(folder)

    def save(self, most):
        self.write("save")

    def preset(self, most):
        self.write("preset")

    def pair(self, most):
        self.write("preset", processes=min(most, 2))

    def export(self, most):
        folder = self.new_folder()
        child = Child(export, folder)
        killed = child.kill_after(self.rng.uniform(0, self.spans["export"]))
        self.done["export"] += killed
        if not (folder / "1").exists():
            assert killed
            run(export, folder)
        check(check_exported, folder)
        assert self.files(folder) == self.exported
        if set(names(folder)) - self.beside:  # killed after the rename
            run(write, folder, "preset", times=1)  # the next writer clears what is left
        assert set(names(folder)) <= self.beside | {"preset"}, names(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kills = Kills(args.seed, Path(folder))
        kills.measure()
        turn = 0
        while (done := sum(kills.done.values())) < args.kills:
            kind = kills.rng.choices(KINDS, PORTIONS)[0] if turn > 4 else KINDS[turn]
            getattr(kills, kind)(args.kills - done)
            turn += 1
    each = ", ".join(f"{n} {kind}" for kind, n in kills.done.most_common())
    seconds = time.monotonic() - start
    print(f"{sum(kills.done.values())} kills ({each}) lost nothing, {seconds:.0f} s")


if __name__ == "__main__":
    main()
