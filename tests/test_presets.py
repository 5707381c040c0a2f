"""Presets: those of the package are what their cards say, and cards are kept."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from families import FAMILIES
from keras import ops

import kgen

NAMES = kgen.presets.list()


def prepared(name):
    folder = os.environ.get("TFDS_DATA_DIR")
    return bool(folder) and any(Path(folder, name).glob("*/dataset_info.json"))


def test_one_of_each_kind_comes_with_the_package():
    assert NAMES == sorted(NAMES) and len(set(NAMES)) == len(NAMES)
    # With their weights: another backend wrote some of the files.
    kinds = [kgen.models.GenerativeModel.from_preset(n) for n in NAMES]
    for family in (kgen.models.GatedPixelCNN, kgen.models.VAE, kgen.models.GAN):
        assert any(isinstance(model, family) for model in kinds)
    assert (
        sum(
            path.stat().st_size
            for name in NAMES
            for path in (Path(kgen.__file__).parent / "assets/presets" / name).iterdir()
        )
        < 30e6
    )


@pytest.mark.parametrize("name", NAMES)
def test_cards_say_how_and_how_well(name):
    card = kgen.presets.card(name)
    assert card["command"].startswith("python recipes/") and card["seed"] == 0
    for key in ("data", "backend", "machine", "date", "versions", "epochs"):
        assert card[key]
    results = card["results"]
    assert any("nats" in k or "distance" in k for k in results), results
    recorded = Path(__file__).parent.parent / "recipes" / "results" / name
    if recorded.is_dir():  # the numbers of the record, not others
        record = json.loads((recorded / "metrics.json").read_text())
        assert record["results"] == results


MEASURED = [name for name in NAMES if name.endswith("binarized_mnist")]
# Backends agree, which other tests show: each measures some.
MEASURED = MEASURED[("tensorflow", "jax", "torch").index(kgen.backend.name) :: 3]


@pytest.mark.parametrize("name", MEASURED)
def test_the_numbers_are_of_these_weights(name):
    """On the first 300 validation images, within what chance allows."""
    if not prepared("binarized_mnist"):
        pytest.skip("tfds has no prepared binarized_mnist: set TFDS_DATA_DIR")
    results = kgen.presets.card(name)["results"]
    images = kgen.data.load("binarized_mnist").validation[:300]
    model = kgen.models.GenerativeModel.from_preset(name)
    if isinstance(model, kgen.models.VAE):
        nats = -ops.convert_to_numpy(ops.stop_gradient(model.elbo(images)))
        expected = -results["test_elbo_nats"]
    else:
        nats = -ops.convert_to_numpy(ops.stop_gradient(model.log_prob(images)))
        expected = results["validation_nll_nats"]
    error = nats.std() / len(nats) ** 0.5
    assert abs(nats.mean() - expected) < 3 * error + 0.5


def test_a_card_is_kept_and_the_optimizer_is_not(digits, tmp_path):
    model = FAMILIES["vae"]()
    model.compile("adam")
    model.fit(digits, verbose=0)
    model.save_to_preset(tmp_path / "p", {"results": {"test_elbo_nats": -1.0}})
    assert kgen.presets.card(tmp_path / "p")["results"] == {"test_elbo_nats": -1.0}
    again = kgen.models.VAE.from_preset(tmp_path / "p")
    assert not again.compiled
    for v, w in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(v), ops.convert_to_numpy(w))
    model.save(tmp_path / "with.keras")
    size = (tmp_path / "p" / "model.weights.h5").stat().st_size
    assert size < 0.7 * (tmp_path / "with.keras").stat().st_size
    model.save_to_preset(tmp_path / "p")  # without a card, in place of the old one
    with pytest.raises(ValueError, match="has no model_card.json"):
        kgen.presets.card(tmp_path / "p")


def test_unknown_names_are_told():
    with pytest.raises(ValueError, match="Did you mean 'gated_pixel_cnn_binarized"):
        kgen.models.GatedPixelCNN.from_preset("gated_pixelcnn_binarized_mnist")
    with pytest.raises(ValueError, match="is a GatedPixelCNN, not a VAE"):
        kgen.models.VAE.from_preset("gated_pixel_cnn_binarized_mnist")


def test_a_preset_goes_on_training(digits):
    model = kgen.models.GAN.from_preset("sngan_mnist")
    model.compile(keras.optimizers.Adam(1e-5))
    images = np.zeros((8, 28, 28, 1), "uint8")
    assert np.isfinite(model.fit(images, verbose=0).history["loss"][0])
