"""What is kept of a recipe's run: its command, data, machine, versions and numbers."""

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path


def parameters(model):
    """How many, without the copy that a GAN's average is."""
    average = getattr(model, "average", None)
    return model.count_params() - (average.count_params() if average else 0)


def write_results(path, args, model, splits, results):
    import keras

    import kgen

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
            "kgen": kgen.__version__,
        },
        "date": datetime.now(UTC).date().isoformat(),
        "results": results,
    }
    with kgen.files.atomic(path) as unfinished:
        unfinished.write_text(json.dumps(card, indent=2) + "\n")
