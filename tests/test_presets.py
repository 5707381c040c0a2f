"""The package's presets are what their cards describe; a preset keeps its card."""

import functools
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo

import kgen
from kgen.models import VAE, GatedPixelCNN, GenerativeModel

NAMES = kgen.presets.list()
TORCH = kgen.backend.name == "torch"  # compiles nothing
further = pytest.mark.exhaustive
ASSETS = Path(kgen.__file__).parent / "assets/presets"


@pytest.mark.once
def test_package_has_presets_of_each_kind():
    assert NAMES == sorted(NAMES) and len(set(NAMES)) == len(NAMES)
    configs = [json.loads((ASSETS / n / "config.json").read_text()) for n in NAMES]
    assert {"GatedPixelCNN", "VAE", "GAN"} <= {c["class_name"] for c in configs}
    files = [path for name in NAMES for path in (ASSETS / name).iterdir()]
    assert sum(path.stat().st_size for path in files) < 30e6


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_cards_record_command_data_and_results(name):
    card = kgen.presets.card(name)
    assert card["command"].startswith("python recipes/") and card["seed"] == 0
    for key in ("data", "backend", "machine", "date", "versions", "epochs"):
        assert card[key]
    results = card["results"]
    assert any("nats" in k or "distance" in k for k in results), results
    recorded = zoo.TESTS.parent / "recipes" / "results" / name
    if recorded.is_dir():  # the numbers of the record, not others
        record = json.loads((recorded / "metrics.json").read_text())
        assert record["results"] == results


# Backends agree, as other tests prove: by default PyTorch measures one.
MEASURED = [name for name in NAMES if name.endswith("binarized_mnist")]
DEFAULT = "gated_pixel_cnn_binarized_mnist" if TORCH else None


@functools.cache
def held_out():
    """The first 300 validation images of binarized MNIST."""
    return kgen.data.load("binarized_mnist").validation[:300]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == DEFAULT else further) for n in MEASURED],
)
def test_card_numbers_are_of_these_weights(name):
    """On the first 300 validation images, within what chance allows. Another backend
    wrote some of the files."""
    if not zoo.prepared("binarized_mnist"):
        pytest.skip("tfds has no prepared binarized_mnist: set TFDS_DATA_DIR")
    results = kgen.presets.card(name)["results"]
    images, model = held_out(), GenerativeModel.from_preset(name)
    if isinstance(model, VAE):
        nats, expected = -zoo.numpy(model.elbo(images)), -results["test_elbo_nats"]
    else:
        nats = -zoo.numpy(model.log_prob(images))
        expected = results["validation_nll_nats"]
    error = nats.std() / len(nats) ** 0.5
    assert abs(nats.mean() - expected) < 3 * error + 0.5


def test_preset_keeps_its_card_and_no_optimizer(tmp_path):
    model = zoo.randomize(zoo.new("vae"))
    model.compile("adam")  # with its moments
    model.save_to_preset(tmp_path / "p", {"results": {"test_elbo_nats": -1.0}})
    assert kgen.presets.card(tmp_path / "p")["results"] == {"test_elbo_nats": -1.0}
    again = VAE.from_preset(tmp_path / "p")
    assert not again.compiled
    zoo.assert_same(model, again)
    model.save(tmp_path / "with.keras")
    size = (tmp_path / "p" / "model.weights.h5").stat().st_size
    assert size < 0.7 * (tmp_path / "with.keras").stat().st_size
    model.save_to_preset(tmp_path / "p")  # without a card, in place of the old one
    with pytest.raises(ValueError, match="has no model_card.json"):
        kgen.presets.card(tmp_path / "p")


@pytest.mark.once
def test_unknown_and_wrong_names_raise():
    with pytest.raises(ValueError, match="Did you mean 'gated_pixel_cnn_binarized"):
        GatedPixelCNN.from_preset("gated_pixelcnn_binarized_mnist")
    with pytest.raises(ValueError, match="is a GatedPixelCNN, not a VAE"):
        VAE.from_preset("gated_pixel_cnn_binarized_mnist")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("sngan_mnist", marks=[] if TORCH else further),
        pytest.param("vae_binarized_mnist", marks=further if TORCH else []),
    ],
)
def test_preset_can_be_trained_further(name):
    model = GenerativeModel.from_preset(name)
    model.compile(keras.optimizers.Adam(1e-5))
    images = np.zeros((8, 28, 28, 1), "uint8")
    assert all(np.isfinite(v[0]) for v in model.fit(images, verbose=0).history.values())
