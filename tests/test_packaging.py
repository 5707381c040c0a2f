"""What imports what: only kgen.backend imports frameworks, and nothing else is imported
before it is used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from zoo import run_python

import kgen
from kgen import backend

PACKAGE = Path(kgen.__file__).parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}


@pytest.mark.once
def test_only_the_backend_package_imports_frameworks():
    """But for TensorFlow, which data, export and serving import on use."""
    for path in PACKAGE.rglob("*.py"):
        where, tree = path.relative_to(PACKAGE), ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = getattr(node, "names", []) if isinstance(node, ast.Import) else []
            names = [alias.name for alias in names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("keras.src") for name in names), where
            frameworks = {name.split(".")[0] for name in names} & FRAMEWORKS
            if frameworks and where.parts[0] != "backend":
                assert frameworks == {"tensorflow"} and node not in tree.body, where
                assert where.parts[0] in ("data", "export.py", "serving"), where


@pytest.mark.once
@pytest.mark.parametrize("part", ["", "_devices"])
def test_backend_files_define_the_same_functions(part):
    found = {}
    for name in FRAMEWORKS:
        tree = ast.parse((PACKAGE / "backend" / f"{name}{part}.py").read_text())
        functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        found[name] = [
            (f.name, [a.arg for a in f.args.args])
            for f in functions
            if not f.name.startswith("_")
        ]
    assert found["tensorflow"] == found["jax"] == found["torch"]
    assert all(hasattr(backend, name) for name, _ in found["jax"])


@pytest.mark.once
def test_files_and_functions_stay_readable():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 450, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                code = node.end_lineno - node.lineno - docstring.count("\n")
                arguments = len(node.args.args + node.args.kwonlyargs)
                assert code - arguments <= 40, (path.name, node.name, code)


CHILD = """
import sys
import keras
before = set(sys.modules)  # Keras imports its backend, and Pillow if it is there
import kgen
optional = {"tensorflow", "tensorflow_datasets", "keras_cv", "PIL", "sklearn"}
added = optional & (set(sys.modules) - before)
assert not added, added
others = {"tensorflow", "torch"} - {keras.backend.backend()}
assert not others & set(sys.modules), others & set(sys.modules)
if keras.backend.backend() == "tensorflow":
    sys.exit()

sys.modules["tensorflow"] = None  # as if it were not installed
import numpy as np
x = np.random.default_rng(0).integers(0, 17, (80, 8, 8, 1)).astype("uint8")
model = kgen.models.VAE((8, 8, 1), levels=17, latent_dim=2, hidden_units=(8,))
model.compile("adam")
model.fit(x[:64], validation_data=x[:32], epochs=2, verbose=0)
data = kgen.data.load(15 * x, binarize="dynamic", validation=8, batch_size=32)
model.fit(data.train, verbose=0)
assert np.isfinite(model.evaluate(x[:32], verbose=0, return_dict=True)["loss"])
assert model.sample(3, seed=1).shape == (3, 8, 8, 1)
assert model.log_prob(x[:2], 10).shape == (2,)
model.save(sys.argv[1])
keras.models.load_model(sys.argv[1])
"""


def test_kgen_imports_no_other_framework_and_needs_none(tmp_path):
    """Without TensorFlow, where it is not the backend, models train, are evaluated,
    sampled, saved and loaded. (Keras itself imports JAX where it is installed.)"""
    run_python("-c", CHILD, tmp_path / "m.keras")


@pytest.mark.once
def test_other_backend_raises():
    child = subprocess.run(
        [sys.executable, "-c", "import kgen"],
        env=os.environ | {"KERAS_BACKEND": "numpy"},
        capture_output=True,
        text=True,
    )
    assert "kgen runs on the Keras backends tensorflow, jax and torch" in child.stderr
