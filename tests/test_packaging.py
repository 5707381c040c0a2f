"""What imports what: only kgen.backend imports frameworks, nothing else is imported
before it is used, and no imports go round."""

import ast
import graphlib
import tomllib
from pathlib import Path

import keras
import pytest
from zoo import TESTS, new, run_python

import kgen
from kgen import backend

PACKAGE, ROOT = Path(kgen.__file__).parent, TESTS.parent
FRAMEWORKS = {"tensorflow", "jax", "torch"}
TREES = {
    p.relative_to(PACKAGE): ast.parse(p.read_text()) for p in PACKAGE.rglob("*.py")
}


@pytest.mark.once
def test_only_the_backend_package_imports_frameworks():
    """But for TensorFlow, which data, export and serving import on use."""
    for where, tree in TREES.items():
        for node in ast.walk(tree):
            imported = isinstance(node, ast.Import) and [n.name for n in node.names]
            names = imported or [getattr(node, "module", None) or ""]  # from ... import
            assert not any(name.startswith("keras.src") for name in names), where
            frameworks = {name.split(".")[0] for name in names} & FRAMEWORKS
            if frameworks and where.parts[0] != "backend":
                assert frameworks == {"tensorflow"} and node not in tree.body, where
                assert where.parts[0] in ("data", "export.py", "serving"), where


def imports(module, tree, modules):
    """The modules of kgen that one imports, also inside functions, with the packages
    that they are in."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    packages = {name.rpartition(".")[0] for name in found & modules} - {"kgen"}
    packages -= {name for name in packages if module.startswith(f"{name}.")}
    return (found | packages) & modules - {module}


@pytest.mark.once
def test_no_imports_go_round():
    """`kgen` imports its public modules on their first use, so none imports `kgen`."""
    names = (".".join(("kgen", *path.with_suffix("").parts)) for path in TREES)
    names = [name.removesuffix(".__init__") for name in names]
    graph = {
        name: imports(name, tree, set(names))
        for name, tree in zip(names, TREES.values(), strict=True)
    }
    assert graph["kgen.fitting"] >= {"kgen.callbacks", "kgen.files"}
    graph["kgen"] |= {f"kgen.{name}" for name in kgen.__all__}
    graphlib.TopologicalSorter(graph).prepare()  # raises, with the cycle


@pytest.mark.once
@pytest.mark.parametrize("part", ["", "_devices"])
def test_backend_files_define_the_same_functions(part):
    tensorflow, jax, torch = (
        [
            (f.name, [a.arg for a in f.args.args])
            for f in TREES[Path("backend", f"{name}{part}.py")].body
            if isinstance(f, ast.FunctionDef) and not f.name.startswith("_")
        ]
        for name in ("tensorflow", "jax", "torch")
    )
    assert tensorflow == jax == torch
    assert all(hasattr(backend, name) for name, _ in jax)


# What kgen uses of Keras beyond what it documents: text, where, why, Keras' file.
# Nothing public does the same. `keras.Layer.add_weight` (kgen/limits.py), which is
# public, is replaced while a preset is built: Keras has no hook before a weight's
# values are made (test_hostile_files).
PRIVATE = [
    (
        "_flatten_layers",
        "models/networks.py",
        "all layers of a network: `layers` lists those of models alone",
        "layers/layer.py",
    ),
    (
        "_use_cached_eval_dataset",
        "models/base.py",
        "whether `fit` calls `evaluate`, for the words of an error",
        "backend/torch/trainer.py",
    ),
    (
        "Your input ran out of data",
        "fitting.py",
        "a warning that does not hold for the rest of an epoch",
        "trainers/epoch_iterator.py",
    ),
    (
        ".torch.optimizers.",
        "checks.py",
        "how Keras saves optimizers on PyTorch, which other backends cannot load",
        "backend/torch/optimizers/torch_adam.py",
    ),
    (
        "jax_state_sync",
        "backend/jax.py",
        "gives variables their values while `fit` runs; without an underscore",
        "backend/jax/trainer.py",
    ),
]


@pytest.mark.once
@pytest.mark.parametrize("text, ours, why, theirs", PRIVATE)
def test_private_names_are_there(text, ours, why, theirs):
    assert text in (PACKAGE / ours).read_text() and why
    source = Path(keras.__file__).parent / "src" / theirs
    assert text.startswith(".") or text in source.read_text()
    assert source.is_file()


@pytest.mark.once
def test_no_other_private_names_are_used():
    """Attributes with an underscore that kgen does not define itself."""
    used, defined = set(), {"_exit", "_context"}  # of os and urllib
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name):
                defined.add(node.id)
            elif isinstance(node, ast.alias):
                defined.add(node.name)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                defined |= {node.value} & {"_kl_weight"}  # set in __dict__
            elif isinstance(node, ast.Attribute):
                names = defined if isinstance(node.ctx, ast.Store) else used
                names.add(node.attr)
    public = {name for name in used if not name.startswith("_")}
    special = {name for name in used if name.endswith("__")} - {"__internal__"}
    listed = {text for text, *_ in PRIVATE}
    assert used - public - special - defined - listed == set()


@pytest.mark.once
def test_light_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in (ROOT / "requirements-light.txt").read_text().splitlines():
        assert line.startswith("#") or line in project["dependencies"]


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
    words = "kgen runs on the Keras backends tensorflow, jax and torch"
    with pytest.raises(AssertionError, match=words):
        run_python("-c", "import keras, kgen", KERAS_BACKEND="numpy")


CLIENT = """
import sys
sys.modules |= dict.fromkeys(["keras", "tensorflow", "jax", "torch", "PIL"])
import kgen.serving, kgen.serving.__main__  # as if those were not installed
assert {"models", "serving", "__version__"} <= set(dir(kgen))
kgen.serving.Client("http://localhost:8501", "m")
(folder := kgen.serving.config.Path(sys.argv[1]) / "m" / "1").mkdir(parents=True)
(folder / "saved_model.pb").touch()
assert kgen.serving.write_config(sys.argv[1]).is_file()
"""


@pytest.mark.once
def test_serving_needs_numpy_alone(tmp_path):
    run_python("-c", CLIENT, tmp_path)


@pytest.mark.once
@pytest.mark.parametrize(
    "line", ["import keras, kgen", "import kgen, keras, kgen.models"]
)
def test_keras_loads_models_after_imports(line, tmp_path):
    """Keras imports no modules of other packages by their names in a file: `kgen`
    imports the models with Keras, or on their first use."""
    new("fvbn").save(tmp_path / "m.keras")
    words = (
        f"{line}; print(keras.saving.load_model({str(tmp_path / 'm.keras')!r}).name)"
    )
    assert run_python("-c", words).stdout.startswith("fvbn")


@pytest.mark.once
def test_public_modules_are_imported_on_use():
    lines = (
        "import sys, kgen; assert 'keras' not in sys.modules",
        "assert kgen.data.load and sys.modules['kgen.data'] is kgen.data",
        "from kgen import backend; assert backend.name",
        "assert not hasattr(kgen, 'nothing')",
    )
    run_python("-c", "\n".join(lines))
