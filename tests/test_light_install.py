"""An environment without TensorFlow: README's promises of it, with JAX."""

import os
import subprocess
import sys

import pytest
import zoo

pytestmark = [pytest.mark.once, pytest.mark.exhaustive]
ROOT = zoo.TESTS.parent

USES = """
import importlib.util, sys
import keras, kgen
digits = kgen.data.load("digits")
model = kgen.models.VAE(digits.image_shape, digits.levels, latent_dim=4)
model.compile("adam")
model.fit(digits.train, validation_data=digits.validation, epochs=1, verbose=0)
images = model.sample(4, seed=0)
model.save("model.keras")
again = keras.saving.load_model("model.keras")
assert (again.sample(4, seed=0) == images).all()
kgen.callbacks.save_grid("grid.png", images, 17, 2)
kgen.models.GenerativeModel.from_preset("vae_binarized_mnist").sample(1)
for name in ("tensorflow", "tensorflow_datasets", "keras_cv", "torch"):
    assert importlib.util.find_spec(name) is None, name
try:
    model.export("1")
except RuntimeError as error:
    assert "pip install tensorflow" in str(error)
try:
    kgen.data.load("mnist")
except ImportError as error:
    assert "pip install tensorflow" in str(error)
"""


def test_kgen_works_without_tensorflow(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "--quiet"]
    light = ROOT / "requirements-light.txt"
    subprocess.run([*install, "-r", light, "jax", "hatchling"], check=True)
    options = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*install, *options, ROOT], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", USES],
        cwd=tmp_path,
        env=environment | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
