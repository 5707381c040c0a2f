"""The package's presets are what their cards describe; a preset keeps its card."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo

import kgen
from kgen.models import VAE, GatedPixelCNN, GenerativeModel

NAMES = kgen.presets.list()
ASSETS = Path(kgen.__file__).parent / "assets/presets"


def on(backends, name):
    """By default these run it alone: backends agree, as other tests prove."""
    default = kgen.backend.name in backends
    return pytest.param(name, marks=[] if default else pytest.mark.exhaustive)


@pytest.mark.once
def test_package_has_presets_of_each_kind():
    assert NAMES == sorted(set(NAMES))
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
    assert any("nats" in k or "distance" in k for k in card["results"])
    recorded = zoo.TESTS.parent / "recipes" / "results" / name / "metrics.json"
    if recorded.is_file():  # the numbers of the record, not others
        assert json.loads(recorded.read_text())["results"] == card["results"]


@pytest.mark.skipif(not zoo.prepared("binarized_mnist"), reason="set TFDS_DATA_DIR")
@pytest.mark.parametrize(
    "name",
    [
        on("torch" if name.startswith("gated") else "", name)
        for name in NAMES
        if name.endswith("binarized_mnist")
    ],
)
def test_card_numbers_are_of_these_weights(name):
    """On the first 300 validation images, within what chance allows. Another backend
    wrote some of the files."""
    data = kgen.data.load("binarized_mnist", max_bytes=2**23)  # train is not read
    images = data.validation[:300]
    results = kgen.presets.card(name)["results"]
    model = GenerativeModel.from_preset(name)
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
    "name", [on("torch", "sngan_mnist"), on("tensorflow jax", "vae_binarized_mnist")]
)
def test_preset_can_be_trained_further(name):
    model = GenerativeModel.from_preset(name)
    model.compile(keras.optimizers.Adam(1e-5))
    images = np.zeros((8, 28, 28, 1), "uint8")
    assert all(np.isfinite(v[0]) for v in model.fit(images, verbose=0).history.values())
