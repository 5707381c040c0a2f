"""What is kept of a recipe's run: its folder, and its command, data, machine, versions
and numbers."""

import csv
import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import keras

import kgen


def prepare(out, resume, also=()):
    """Makes the folder of the results. Without `resume`, what an earlier run left there
    is moved to a folder of its own: `also` names what a recipe leaves beside the usual.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / f".writable{os.getpid()}").touch()
        (out / f".writable{os.getpid()}").unlink()
    except OSError as error:
        raise SystemExit(
            f"--out {out}: cannot write there ({error}). Choose another folder."
        ) from error
    if not resume and kgen.files.writes():
        _put_aside(out, also)
    kgen.distribute.wait()


_STATE = ("backup", "best.weights.h5", "history.csv")
_RESULTS = ("metrics.json", "model.keras", "preset", "epochs")


def _put_aside(out, also):
    """Moves an earlier run's state and results: without --resume the new run would
    overwrite hours of work."""
    names = dict.fromkeys([*_STATE, *_RESULTS, *also])
    there = [name for name in names if (out / name).exists()]
    if not there:
        return
    number = 1
    while (out / f"earlier_{number}").exists():
        number += 1
    aside = out / f"earlier_{number}"
    aside.mkdir()
    paths = [*(out / name for name in there), *out.glob("*.png"), *out.glob("*.csv")]
    for path in dict.fromkeys(paths):  # history.csv is of both
        path.rename(aside / path.name)
    print(f"moved the earlier run to {aside} (--resume goes on with it)", flush=True)


def training(args, seconds):
    """A run's time for its results: a finished run that is resumed keeps its own."""
    path = Path(args.out) / "metrics.json"
    results = {"training_seconds": round(seconds, 1), "resumed": args.resume}
    if args.resume and path.exists():
        earlier = json.loads(path.read_text())
        if earlier.get("epochs", 0) >= args.epochs:  # nothing was left to do
            kept = earlier.get("results", {})
            results |= {name: kept[name] for name in results if name in kept}
    return results


def rows_until(history, epoch):
    """The least `val_loss` of an interrupted run's epochs before `epoch`, or None. Of
    later ones, which are to come again, the rows are removed."""
    if not history.exists():
        return None
    with open(history, newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    rows = [row for row in rows if len(row) == len(header) and int(row[0]) < epoch]
    with kgen.files.atomic(history) as path, open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows] if rows else [])
    losses = [float(dict(zip(header, row, strict=True))["val_loss"]) for row in rows]
    return min(losses, default=None)


def parameters(model):
    """How many, without the copy that a GAN's average is."""
    average = getattr(model, "average", None)
    return model.count_params() - (average.count_params() if average else 0)


def write_results(path, args, model, splits, results):
    """Writes the card of a run, and returns it."""
    card = {
        "recipe": args.name,
        "command": shlex.join(
            ["python", f"recipes/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        ),
        "data": str(splits),
        "seed": args.seed,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "parameters": parameters(model),
        "backend": keras.backend.backend(),
        "device": kgen.backend.device(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            keras.backend.backend(): version(keras.backend.backend()),
            "kgen": kgen.__version__,
        },
        "date": datetime.now(UTC).date().isoformat(),
        "results": results,
    }
    with kgen.files.atomic(path) as unfinished:
        unfinished.write_text(json.dumps(card, indent=2) + "\n")
    return card
