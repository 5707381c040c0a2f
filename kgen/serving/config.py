"""Files that tell TensorFlow Serving what to serve, and how; and the commands."""

import json
import os
import shutil
from pathlib import Path

from kgen import files

# Requests of several clients are answered together: drawing costs a model of pixels
# nearly the same for one image as for many. A request waits for others 2 ms at most.
_BATCHING = """\
max_batch_size { value: 64 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 1000 }
num_batch_threads { value: %d }
"""


def write_config(folder, base_path=None):
    """Writes `<folder>/models.config`, which names all exported models in `folder`, for
    `tensorflow_model_server --model_config_file`, and `<folder>/batching.config`, for
    `--enable_batching --batching_parameters_file`.

    Args:
        folder: holds `<name>/<version>/saved_model.pb`.
        base_path: of the models as the server sees them, such as "/models" in a
            container; by default the folder's own absolute path.

    Returns: the path of `models.config`.

    Raises:
        ValueError: there is no exported model in the folder.
    """
    folder = Path(folder)
    found = folder.glob("*/*/saved_model.pb")
    # A server waits for a version of each model, and none is "1_backup".
    names = sorted({p.parent.parent.name for p in found if p.parent.name.isdigit()})
    if not names:
        raise ValueError(
            f"No exported model in '{folder}': expected <name>/<version>/"
            "saved_model.pb, as model.export writes it."
        )
    base = str(base_path or folder.resolve()).rstrip("/")
    entries = [
        f"  config {{\n    name: {json.dumps(name)}\n"
        f"    base_path: {json.dumps(f'{base}/{name}')}\n"
        '    model_platform: "tensorflow"\n  }\n'
        for name in names
    ]
    with files.atomic(folder / "models.config") as path:
        path.write_text(f"model_config_list {{\n{''.join(entries)}}}\n")
    with files.atomic(folder / "batching.config") as path:
        path.write_text(_BATCHING % (os.cpu_count() or 1))
    return folder / "models.config"


def found_server():
    """The path of `tensorflow_model_server`, or None: what the environment variable
    TENSORFLOW_MODEL_SERVER names, else what PATH has."""
    return shutil.which(
        os.environ.get("TENSORFLOW_MODEL_SERVER") or "tensorflow_model_server"
    )


def commands(folder, port=8500, rest_port=8501, batching=False):
    """The two commands, lists of words, that serve what `write_config(folder)` names:
    a server's own, and Docker's with the stock image."""
    folder = Path(folder).resolve()
    flags = [
        f"--model_config_file={folder}/models.config",
        "--model_config_file_poll_wait_seconds=30",  # models that come later
        # By default four gRPC calls a core at once: others are refused, and there are
        # never enough of them for a batch.
        "--grpc_max_threads=128",
        "--rest_api_num_threads=128",
    ]
    if batching:
        config = f"--batching_parameters_file={folder}/batching.config"
        flags += ["--enable_batching", config]
    server = [
        found_server() or "tensorflow_model_server",
        f"--port={port}",
        f"--rest_api_port={rest_port}",
        *flags,
    ]
    docker = ["docker", "run", "--rm", "-p", f"{port}:8500", "-p", f"{rest_port}:8501"]
    docker += ["-v", f"{folder}:{folder}:ro", "tensorflow/serving", *flags]
    return server, docker
