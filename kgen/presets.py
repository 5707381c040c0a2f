"""Folders that hold a model: KerasHub's file names, so its users know their way.

config.json         the serialised constructor arguments
metadata.json       versions, parameter count, date
model.weights.h5    weights
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import keras

from kgen import files

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


def save(model, folder):
    """Writes `model` to `folder`, which appears whole; an earlier preset gives way."""
    config = keras.saving.serialize_keras_object(model)
    config = {k: v for k, v in config.items() if not k.endswith("_config")}
    metadata = {
        "keras_version": keras.__version__,
        "parameter_count": model.count_params(),
        "date_saved": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with files.atomic(folder, replace={_CONFIG, _METADATA, _WEIGHTS}) as path:
        path.mkdir()
        (path / _CONFIG).write_text(json.dumps(config, indent=2))
        (path / _METADATA).write_text(json.dumps(metadata, indent=2))
        model.save_weights(path / _WEIGHTS)


def load(cls, folder, load_weights=True):
    """The model in `folder`, an instance of `cls` or of a class below it."""
    folder = Path(folder)
    if not (folder / _CONFIG).is_file():
        raise ValueError(
            f"No preset in '{folder}': expected a folder with {_CONFIG} and "
            f"{_WEIGHTS}, as save_to_preset writes it."
        )
    model = keras.saving.deserialize_keras_object(
        json.loads((folder / _CONFIG).read_text())
    )
    if not isinstance(model, cls):
        raise ValueError(
            f"The preset in '{folder}' is a {type(model).__name__}, not a "
            f"{cls.__name__}: use {type(model).__name__}.from_preset."
        )
    if load_weights:
        model.load_weights(folder / _WEIGHTS)
    return model
