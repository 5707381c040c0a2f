"""What is imported where: the seam holds, and no framework comes along unasked."""

import ast
import subprocess
import sys
from pathlib import Path

import features
import pytest

import kgen
from kgen import backend

PACKAGE = Path(kgen.__file__).parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}


def imports(path):
    """(module, whether at the top of the file) of every import in `path`."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in names:
            yield name, id(node) in top


def test_trap_10_frameworks_are_imported_in_the_seam_alone():
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE)
        for name, top in imports(path):
            root = name.split(".")[0]
            assert not name.startswith("keras.src"), where
            if root not in FRAMEWORKS or where.parts[0] == "backend":
                continue
            on_use = root == "tensorflow" and not top
            assert on_use and where.parts[0] in ("data", "export.py", "serving"), where


@pytest.mark.parametrize("part", ["", "_devices"])
def test_the_three_files_of_the_seam_have_one_outline(part):
    outlines = {}
    for name in FRAMEWORKS:
        tree = ast.parse((PACKAGE / "backend" / f"{name}{part}.py").read_text())
        functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
        outlines[name] = [
            (f.name, [a.arg for a in f.args.args])
            for f in functions
            if not f.name.startswith("_")
        ]
    assert outlines["tensorflow"] == outlines["jax"] == outlines["torch"]
    assert all(hasattr(backend, f) for f, _ in outlines["jax"])


def test_the_readmes_table_is_what_the_tests_left():
    text = (PACKAGE.parent / "README.md").read_text()
    made = text.split(features.BEGIN)[1].split(features.END)[0].strip()
    assert made == features.table(features.recorded())
    claimed = {f for rows in features.recorded().values() for f in rows}
    assert claimed == set(features.FEATURES)


def test_files_and_functions_stay_readable():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                code = node.end_lineno - node.lineno - docstring.count("\n")
                arguments = len(node.args.args + node.args.kwonlyargs)
                assert code - arguments <= 40, (path.name, node.name, code)


BLOCKED = """
import sys
sys.modules["tensorflow"] = None
import numpy as np, keras, kgen
from sklearn.datasets import load_digits
x = load_digits().images.astype("uint8")[..., None]
model = kgen.models.VAE((8, 8, 1), levels=17, latent_dim=2, hidden_units=(8,))
model.compile("adam")
model.fit(x[:200], validation_data=x[200:300], epochs=2, verbose=0)
model.fit(kgen.data.load("digits", labels=True).train, verbose=0)
print(sorted(model.evaluate(x[300:], verbose=0)), model.sample(3, seed=1).shape)
model.log_prob(x[:2], 10)
model.save(sys.argv[1])
keras.models.load_model(sys.argv[1])
"""


@pytest.mark.skipif(backend.name == "tensorflow", reason="TensorFlow is the backend")
def test_without_tensorflow_models_train_evaluate_and_sample(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(tmp_path / "m.keras")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "(3, 8, 8, 1)" in done.stdout


def test_importing_kgen_imports_no_other_framework():
    """But JAX, which Keras itself looks at where it is installed."""
    others = {"tensorflow", "torch"} - {backend.name}
    code = f"import sys, kgen; print({others!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_another_backend_is_refused():
    code = "import os; os.environ['KERAS_BACKEND'] = 'numpy'; import kgen"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "kgen runs on the Keras backends tensorflow, jax and torch" in done.stderr
