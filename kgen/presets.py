"""Folders that hold a model, with KerasHub's file names.

config.json         the serialised constructor arguments
metadata.json       versions, parameter count, date, checksums of the two others
model.weights.h5    weights
model_card.json     what it was trained on and what was measured, where it is known

Some come with the package: `kgen.presets.list()`.
"""

import difflib
import io
import json
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import keras

from kgen import files, limits
from kgen.checks import boolean
from kgen.tensor_checks import finite_weights

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_CARD = "model_card.json"
_PACKAGED = Path(__file__).parent / "assets" / "presets"


def list():
    """The names of the models that come with the package, for `from_preset`."""
    return sorted(path.parent.name for path in _PACKAGED.glob(f"*/{_CONFIG}"))


def card(name):
    """What is known of a preset, a name or a folder: a dict of the command that trained
    it, its data, machine, date, and `results`, the measured numbers with their units.

    Raises:
        ValueError: there is no such preset, or it has no card.
    """
    path = _found(name) / _CARD
    if not path.is_file():
        raise ValueError(f"The preset '{name}' has no {_CARD}.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def save(model, folder, card=None):
    """Writes `model` to `folder` atomically, in place of an earlier preset.

    Args:
        model: a GenerativeModel.
        folder: of the preset.
        card: None, or what is known of the model, for JSON; see `card`.

    Raises:
        ValueError: weights are NaN or infinite, or an argument is not as above.
    """
    folder = files.check_path("folder", folder)
    _check_card(card)
    finite_weights(model, "save_to_preset")
    config = keras.saving.serialize_keras_object(model)
    config = {k: v for k, v in config.items() if not k.endswith("_config")}
    metadata = {
        "keras_version": keras.__version__,
        "parameter_count": model.count_params(),
        "date_saved": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with files.atomic(folder, replace={_CONFIG, _METADATA, _WEIGHTS, _CARD}) as path:
        path.mkdir()
        (path / _CONFIG).write_text(json.dumps(config, indent=2))
        if card is not None:
            (path / _CARD).write_text(json.dumps(card, indent=2) + "\n")
        bare = model  # weights alone: a compiled model would add its optimizer's state
        if model.compiled:
            bare = type(model).from_config(model.get_config())
            bare.set_weights(model.get_weights())
        keras.Model.save_weights(bare, path / _WEIGHTS)
        sums = {name: files.checksum(path / name) for name in (_CONFIG, _WEIGHTS)}
        metadata["sha256"] = sums
        (path / _METADATA).write_text(json.dumps(metadata, indent=2))


def _check_card(card):
    """Raises a ValueError unless it is None or a dict that JSON can hold."""
    try:
        fits = card is None or (isinstance(card, dict) and json.dumps(card))
    except (TypeError, ValueError, RecursionError):  # values that are not of JSON
        fits = False
    if not fits:
        raise ValueError(f"card must be None or a dict for JSON; got {card!r}.")


def load(cls, name, load_weights=True):
    """The model of a preset, an instance of `cls` or of a class below it.

    Args:
        cls: GenerativeModel or a class below it.
        name: of a preset of the package, a folder, or a `.keras` file.
        load_weights: whether to load them; if not, the model has new ones.

    Raises:
        ValueError: there is none, it is of another class, its files have changed since
            they were written, they ask for more weights than they hold, or weights
            are NaN or infinite.
    """
    boolean(load_weights=load_weights)
    path = _found(name)
    if path.suffix == ".keras" and path.is_file():
        text, stored = _read_archive(path)
    else:
        _check_sums(path, load_weights)
        text, stored = (path / _CONFIG).read_bytes(), None
        weights = path / _WEIGHTS
        if load_weights and not weights.is_file():
            raise ValueError(f"The preset '{name}' has no {_WEIGHTS}.")
        if weights.is_file():
            stored = limits.count_stored_weights(
                weights, weights.stat().st_size, weights
            )
    config = _parse(text, path)
    limits.check_image_shape(config, path)
    with limits.limit_weights(stored, path):
        try:
            if load_weights and path.is_file():
                model = keras.saving.load_model(path, compile=False)
            else:
                model = keras.saving.deserialize_keras_object(config)
        except (TypeError, KeyError, AttributeError, IndexError) as error:
            raise ValueError(
                f"The configuration of {path} is of no model that can be built: {error}"
            ) from error
    if not isinstance(model, cls):
        raise ValueError(
            f"The preset '{name}' is a {type(model).__name__}, not a "
            f"{cls.__name__}: use {type(model).__name__}.from_preset."
        )
    if load_weights:
        if path.is_dir():
            model.load_weights(path / _WEIGHTS)
        finite_weights(model, f"the preset '{name}'")
    return model


def _read_archive(path):
    """A `.keras` file's configuration, and (numbers, arrays) of its weights."""
    limits.check_archive(path)
    with zipfile.ZipFile(path) as archive:
        try:
            text, weights = archive.read(_CONFIG), archive.read(_WEIGHTS)
        except (KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no intact .keras file: {error}") from error
    return text, limits.count_stored_weights(io.BytesIO(weights), len(weights), path)


def _parse(text, path):
    """A model's configuration from JSON, a dict."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The configuration of {path} is damaged: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ValueError(f"The configuration of {path} is of no model.")
    return config


def _check_sums(folder, weights):
    """Against those in metadata.json; presets of other libraries have none."""
    path = folder / _METADATA
    try:
        metadata = json.loads(path.read_text()) if path.is_file() else {}
        sums = metadata.get("sha256", {}).items()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, expected in sums:
        wanted = name == _CONFIG or (name == _WEIGHTS and weights)
        if wanted and files.checksum(folder / name) != expected:
            raise ValueError(
                f"{folder / name} has changed since it was written. Get the preset "
                f"anew; if the change is yours, remove 'sha256' from {_METADATA}."
            )


def _found(name):
    """Where a preset is: a folder there is, a `.keras` file, or one of the package."""
    path = files.check_path("name", name)
    files.finish(path)
    if path.suffix == ".keras" and path.is_file():
        return path
    for folder in (path, _PACKAGED / path):
        if (folder / _CONFIG).is_file():
            return folder
    near = difflib.get_close_matches(str(name), list(), n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    raise ValueError(
        f"No preset in '{name}': expected a folder with {_CONFIG} and {_WEIGHTS}, as "
        f"save_to_preset writes it, a .keras file, or one of {', '.join(list())}."
        + meant
    )
