"""Presets and files of weights that ask for absurd sizes raise before anything of that
size is allocated."""

import copy
import json
import re
import time
import tracemalloc
import zipfile

import h5py
import keras
import numpy as np
import pytest
import zoo

from kgen import limits
from kgen.models import FVBN, GatedPixelCNN, GenerativeModel

pytestmark = pytest.mark.once
HUGE = 10**9 + 1  # odd, for kernel sizes


def save_preset(folder, name="gated", **arguments):
    """A preset without checksums, as an attacker would write matching ones."""
    zoo.new(name, **arguments).save_to_preset(folder)
    (folder / "metadata.json").unlink()
    return json.loads((folder / "config.json").read_text())


def load_changed(folder, config, path, value, **options):
    """`from_preset` after the value at `path` of the configuration was replaced; the
    error's text, None without an error. Asserts that it took neither time nor memory.
    """
    config = copy.deepcopy(config)
    inner = config["config"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    start, text = time.process_time(), None
    tracemalloc.start()
    try:
        GenerativeModel.from_preset(folder, **options)
    except ValueError as error:
        text = str(error)
    peak = tracemalloc.get_traced_memory()[1]  # of NumPy and of Python
    tracemalloc.stop()
    assert time.process_time() - start < 5.0 and peak < 2**27, (path, value)
    return text


def integers(node, path=()):
    """The paths of all integers of a configuration."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, (dict, list)):
            yield from integers(value, (*path, key))
        elif isinstance(value, int) and not isinstance(value, bool):
            yield (*path, key)


@pytest.mark.parametrize(
    "path, value, words",
    [
        (("filters",), HUGE, "asks for more weights than"),
        (("num_blocks",), HUGE, "asks for more weights than"),
        (("num_classes",), HUGE, "asks for more weights than"),
        (("kernel_size",), HUGE, "asks for more weights than"),
        (("levels",), HUGE, "levels must be in 2..65536"),
        (("image_shape",), [10**6, 10**6, 1], "image_shape of .* at most 16777216"),
    ],
)
def test_absurd_arguments_raise(path, value, words, tmp_path):
    config = save_preset(tmp_path / "p")
    assert re.search(words, load_changed(tmp_path / "p", config, path, value))


@pytest.mark.parametrize(
    "name, path",
    [
        ("made", ("hidden_units", 0)),
        ("made-ensemble", ("num_masks",)),
        ("vae-user-networks", ("encoder", "config", "layers", 4, "config", "units")),
        ("gan", ("width",)),
    ],
)
def test_absurd_sizes_of_each_kind_raise(name, path, tmp_path):
    config = save_preset(tmp_path / "p", name)
    text = load_changed(tmp_path / "p", config, path, HUGE)
    assert "asks for more weights than" in text


# Arguments of computations, or of parts that another argument replaces.
HARMLESS = {"seed", "num_samples", "discriminator_steps", "hidden_units", "image_shape"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", zoo.MODELS)
def test_each_absurd_integer_raises_or_is_harmless(name, tmp_path):
    config = save_preset(tmp_path / "p", name)
    for path in integers(config["config"]):
        for value in (HUGE, 10**6 + 1):
            text = load_changed(tmp_path / "p", config, path, value)
            shape = any("input_shape" in str(key) for key in path)
            assert text or shape or path[0] in HARMLESS, (path, value)


def test_absurd_sizes_without_weights_raise(tmp_path):
    config = save_preset(tmp_path / "p")
    (tmp_path / "p" / "model.weights.h5").unlink()
    folder = tmp_path / "p"
    assert load_changed(folder, config, ("filters",), 8, load_weights=False) is None
    text = load_changed(folder, config, ("filters",), HUGE, load_weights=False)
    assert "without a file of weights" in text
    with pytest.raises(ValueError, match="has no model.weights.h5"):
        GenerativeModel.from_preset(folder)


@pytest.mark.parametrize(
    "content",
    ["[" * 10**5, "[]", "{}", "nonsense", "\xff"],
    ids=["deep", "list", "empty", "text", "bytes"],
)
def test_damaged_configurations_raise(content, tmp_path):
    save_preset(tmp_path / "p")
    (tmp_path / "p" / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="configuration of .* (damaged|no model)"):
        GenerativeModel.from_preset(tmp_path / "p")


def test_constructors_have_no_limit_after_a_refusal(tmp_path):
    """Layers are counted in that thread, while a preset is built."""
    add_weight = keras.Layer.add_weight
    config = save_preset(tmp_path / "p")
    assert load_changed(tmp_path / "p", config, ("filters",), HUGE)
    assert keras.Layer.add_weight is add_weight
    GatedPixelCNN((8, 8, 1), filters=64, num_blocks=4)


# Files that claim more than they hold


def claim(path, shape, **options):
    """Adds an array of that shape to a file of weights, and writes none of it."""
    with h5py.File(path, "a") as file:
        file.create_dataset("claimed", shape, "float32", **options)


@pytest.mark.parametrize("options", [{}, {"chunks": (1024,), "compression": "gzip"}])
def test_weights_that_claim_absurd_shapes_raise(options, tmp_path):
    save_preset(tmp_path / "p", "fvbn")
    weights = tmp_path / "p" / "model.weights.h5"
    claim(weights, (10**8,), **options)  # less than what Keras refuses
    for load in (
        lambda: GenerativeModel.from_preset(tmp_path / "p"),
        lambda: zoo.new("fvbn").load_weights(weights),
    ):
        with pytest.raises(ValueError, match=r"claims 400\d{6} bytes of arrays in a"):
            load()


def test_keras_files_are_presets_too(tmp_path):
    made, path = zoo.randomize(zoo.new("fvbn")), tmp_path / "m.keras"
    made.compile("adam")
    made.save(path)
    zoo.assert_same(FVBN.from_preset(path), made)
    hostile = tmp_path / "hostile.keras"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename == "config.json":
                config = json.loads(content)
                config["config"]["image_shape"] = [1000, 1000, 1]  # 10**12 weights
                content = json.dumps(config)
            new.writestr(member.filename, content)
    with pytest.raises(ValueError, match="asks for more weights than"):
        FVBN.from_preset(hostile)


def test_archives_that_claim_absurd_sizes_raise(tmp_path):
    packed, claimed = tmp_path / "packed.npz", tmp_path / "claimed.npz"
    np.savez_compressed(packed, np.zeros(10**6))
    with zipfile.ZipFile(claimed, "w") as archive, archive.open("a.npy", "w") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**10,)}
        np.lib.format.write_array_header_1_0(file, header)
    for path in (packed, claimed):
        with pytest.raises(ValueError, match="claims .* bytes of arrays in a file of"):
            limits.check_archive(path)
    np.savez(packed, np.zeros(10**6), np.float32(1.0))
    limits.check_archive(packed)
    packed.write_bytes(packed.read_bytes()[:100])
    with pytest.raises(ValueError, match="no intact zip file"):
        limits.check_archive(packed)
