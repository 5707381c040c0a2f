"""The lines that callbacks print while `fit` runs."""

import time

import keras
import pytest

from kgen.callbacks import Progress, SampleDistances, SampleGrid

pytestmark = pytest.mark.once


@pytest.mark.parametrize("verbose", [0, 1, 2, "auto"])
def test_lines_of_callbacks_begin_after_the_bar(verbose, digits, tmp_path, capsys):
    """Keras' bar, which is there for 1 and "auto", ends no line before they print."""
    model = keras.Sequential()
    params = {"verbose": verbose, "epochs": 1, "steps": 4}
    grid, progress = SampleGrid(tmp_path), Progress(["loss"], seconds=1e-9)
    distances = SampleDistances(None)
    grid.write = lambda path: None
    for callback in (grid, progress, distances):
        callback.set_params(params)
        callback.set_model(model)
    progress.on_train_begin()
    progress.on_epoch_begin(0)
    for print_one in (
        lambda: grid.on_epoch_end(0),
        lambda: progress.on_train_batch_end(0, {"loss": 1.0}),
        lambda: progress.on_epoch_end(0, {"loss": 1.0}),
        lambda: distances._print({"x": 1.0, "x_floor": 2.0}),
    ):
        print_one()
        line = capsys.readouterr().out
        assert line.startswith("\n") == (verbose in (1, "auto"))
        assert line.strip().count("\n") == 0 and line.endswith("\n")


def test_seconds_of_an_epoch_have_no_exponent(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(time, "time", lambda: now)
    for seconds, words in (
        (0.25, "0.25 s/epoch"),
        (9.96, "10 s/epoch"),
        (99.6, "100 s/epoch"),
        (12345.0, "12,345 s/epoch, 3:25:45 left"),
    ):
        progress, now = Progress(["loss"]), 0.0
        progress.set_params({"epochs": 2, "steps": 1})
        progress.on_train_begin()
        progress.on_epoch_begin(0)
        now = seconds
        progress.on_epoch_end(0, {"loss": 1.0})
        assert words in capsys.readouterr().out
