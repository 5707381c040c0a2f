"""Wrong arguments raise a ValueError or TypeError of kgen's own, with what was
expected; a seeded fuzz of them."""

import traceback
from pathlib import Path

import keras
import numpy as np
import pytest
import zoo
from zoo import CLASSES, LEVELS, SHAPE, shared

import kgen
from kgen.callbacks import CollapseGuard, KLWarmUp, ReconstructionGrid

X = np.arange(3 * 64, dtype="uint8").reshape(3, *SHAPE) % LEVELS
Y = np.array([1, 2, 3])
NAN = np.full((2, 3), np.nan, "float32")


def model(name):
    classes = CLASSES if name in ("gated", "vae-conditional", "gan-critic") else None
    made = shared(name, SHAPE, LEVELS, classes)
    if not made.compiled:
        made.compile("sgd") if "gan" not in name else made.compile()
    return made


CALLS = [
    ("gated", "log_prob", (X, 3), "labels: expected integer labels .*got 3"),
    ("gated", "log_prob", (X, "x"), "labels: expected integer labels .*got 'x'"),
    ("gated", "log_prob", (X, Y[:, None]), r"Pass labels\[:, 0\]"),
    ("gated", "log_prob", (X, Y / 2), "got float64"),
    ("gated", "sample", (2.5,), "n must be an integer"),
    ("gated", "sample", (True,), "n must be an integer"),
    ("gated", "fit", (None,), "got a NoneType"),
    ("gated", "evaluate", (None,), "got a NoneType"),
    ("gated", "fit", (X, Y, 0), "batch_size must be a positive integer; got 0"),
    ("gated", "evaluate", (X, Y, 2.5), "batch_size must be a positive integer"),
    ("gated", "compile", (None,), "expected an optimizer"),
    ("vae", "log_prob", (X[..., 0],), r"Add the axis of channels: x\[..., None\]"),
    ("vae", "log_prob", (X[0],), r"Pass one image as x\[None\]"),
    ("vae", "decode", (NAN,), "finite"),
    ("vae", "interpolate", (X, X, 1), "steps must be an integer of at least 2"),
    ("vae", "interpolate", (X, X[:2], 3), "pairs of images; got 3 and 2"),
    ("gan-critic", "generate", (NAN, Y[:2]), "finite"),
    ("gan-critic", "compile", ([],), "Could not interpret optimizer|optimizer"),
]


@pytest.mark.portable
@pytest.mark.parametrize("name, method, arguments, words", CALLS)
def test_wrong_calls_raise(name, method, arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        getattr(model(name), method)(*arguments)


@pytest.mark.once
@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("vae", {"latent_dim": 2.5}, "latent_dim must be a positive integer"),
        ("vae", {"beta": float("nan")}, "beta must be a number"),
        ("vae", {"levels": "256"}, r"levels must be in 2\.\.256, .*; got '256'"),
        ("vae", {"levels": 257}, r"levels must be in 2\.\.256, .*; got 257"),
        ("fvbn", {"levels": 2.5}, r"levels must be in 2\.\.65536, .*; got 2.5"),
        ("fvbn", {"num_classes": True}, "num_classes must be a positive integer"),
        ("pp", {"dropout": 1.0}, "dropout must be in 0..1"),
        ("row-lstm", {"skip_connections": "no"}, "must be True or False; got 'no'"),
        ("made", {"direct": "no"}, "must be True or False"),
        ("gan", {"spectral_norm": "no"}, "must be True or False"),
    ],
)
def test_wrong_constructor_arguments_raise(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        zoo.new(name, **arguments)


@pytest.mark.once
def test_wrong_data_arguments_raise():
    for arguments, words in (
        ({"levels": 0}, "expected levels in"),
        ({"levels": 2.5}, "expected levels in"),
        ({"validation": 1.0}, "expected validation to be a share below 1"),
        ({"seed": -1, "labels": True}, "expected a seed of 0 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            kgen.data.load("digits", **arguments)
    with pytest.raises(ValueError, match="expected levels in"):
        kgen.data.quantize(X, 2.5)
    with pytest.raises(ValueError, match="below 1e50"):
        kgen.metrics.frechet_distance(np.full((9, 2), 1e200), np.ones((9, 2)))


@pytest.mark.once
def test_temperatures_that_float32_has_not_raise():
    for wrong in (0.0, 1e-40, np.nan, np.inf, -1.0, True, "1"):
        with pytest.raises(ValueError, match="temperature must be a positive number"):
            model("fvbn").sample(1, seed=0, temperature=wrong)
    assert model("fvbn").sample(2, seed=0, temperature=1e-30).max() < LEVELS


@pytest.mark.once
@pytest.mark.parametrize(
    "name, callback",
    [
        ("vae", CollapseGuard()),
        ("gan-critic", ReconstructionGrid("nowhere", X)),
        ("gated", KLWarmUp(3)),
    ],
)
def test_callbacks_of_other_models_raise_at_once(name, callback):
    """Before the first batch, which would have taken an hour."""
    seen = []
    first = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: seen.append(1))
    with pytest.raises(ValueError, match="is for a (GAN|VAE).*; got a"):
        model(name).fit(X, Y, callbacks=[callback, first], verbose=0)
    assert not seen


@pytest.mark.once
def test_binary_images_in_a_model_of_more_levels_warn():
    with pytest.warns(UserWarning, match="all values are 0 or 1.*17 levels"):
        model("vae").evaluate(X % 2, verbose=0)


# A fuzz: a method with right arguments, one of which is replaced by a wrong one

GOOD = {
    "gated": {
        "log_prob": {"x": X, "labels": Y},
        "logits": {"x": X, "labels": Y},
        "sample": {"n": 2, "seed": 1, "labels": 3, "temperature": 1.0},
        "complete": {"x": X, "known_rows": 3, "seed": 1, "labels": Y},
        "evaluate": {"x": X, "y": Y, "batch_size": 2},
        "predict": {"x": (X, Y), "batch_size": 2},
    },
    "vae": {
        "log_prob": {"x": X, "num_samples": 2, "seed": 1},
        "elbo": {"x": X},
        "encode": {"x": X},
        "decode": {"z": np.zeros((2, 3), "float32")},
        "reconstruct": {"x": X},
        "interpolate": {"a": X, "b": X, "steps": 3},
        "sample": {"n": 2, "seed": 1},
        "sample_expected": {"n": 2, "seed": 1},
    },
    "gan-critic": {
        "generate": {"z": np.zeros((2, 3), "float32"), "labels": Y[:2]},
        "discriminate": {"x": X, "labels": Y},
        "sample": {"n": 2, "seed": 1, "labels": 3},
        "evaluate": {"x": X, "y": Y, "batch_size": 2},
    },
}
# Functions and classes that are no model's: name: (where they are, {function: ...})
PLACES = {
    "FVBN": kgen.models.FVBN,
    "presets": kgen.presets,
    "data": kgen.data,
    "callbacks": kgen.callbacks,
}
DIGITS = np.tile(X, (4, 1, 1, 1))
PRESET = "fvbn_binarized_mnist"
GOOD |= {
    "fvbn": {"save_to_preset": {"folder": "preset", "card": {"seed": 1}}},
    "FVBN": {"from_preset": {"name": PRESET, "load_weights": False}},
    "presets": {"card": {"name": PRESET}},
    "data": {
        "load": {
            "source": (DIGITS, np.arange(12) % 3),
            "image_size": 8,
            "channels": 1,
            "levels": 4,
            "binarize": None,
            "labels": True,
            "validation": 0.25,
            "batch_size": 4,
            "seed": 0,
            "data_dir": ".",
            "max_bytes": 1000,
        },
        "quantize": {"images": DIGITS, "levels": 4, "source_levels": LEVELS},
        "Batches": {
            "images": DIGITS,
            "labels": np.arange(12) % 3,
            "batch_size": 4,
            "shuffle": True,
            "binarize": True,
            "source_levels": LEVELS,
            "seed": 0,
            "drop_remainder": True,
        },
    },
    "callbacks": {
        "BackupAndRestore": {
            "backup_dir": "backup",
            "save_freq": 2,
            "delete_checkpoint": False,
        },
        "KLWarmUp": {"epochs": 3, "start": 0.0, "end": 1.0},
        "SampleGrid": {"folder": "grids", "n": 4, "every": 2, "seed": 0},
        "Progress": {"every": 2},
        "image_grid": {"images": X, "levels": LEVELS, "columns": 2},
    },
}
IMAGES = [
    None, "x", 7, [], X[0], X[..., 0], X[:, :-1], X[:0], X / 2.0, X.astype("float32"),
    X.astype("int32") - 1, X + np.uint8(100), np.full((3, *SHAPE), np.nan), {"x": X},
    X.astype("complex64"), X.astype(object), X.astype(str), np.repeat(X, 2, -1),
]  # fmt: skip
INTEGERS = [None, "x", -1, 2.5, True, float("nan"), float("inf"), [], np.array([1, 2])]
WRONG = {
    "x": IMAGES,
    "a": IMAGES,
    "b": [*IMAGES, X[:2]],
    "labels": [
        "x",
        -1,
        CLASSES,
        2.5,
        np.arange(4),
        Y[:, None],
        Y + CLASSES,
        Y / 2,
        Y - 9,
    ],
    "n": INTEGERS,
    "seed": ["x", -1, 2.5, float("nan"), 2**31, [1]],
    "steps": [*INTEGERS, 0, 1],
    "num_samples": [*INTEGERS, 0],
    "batch_size": ["x", -1, 0, 2.5, True, float("nan"), [], np.array([1, 2])],
    "temperature": [None, "x", 0.0, -1.0, float("nan"), float("inf"), True, [1.0]],
    "known_rows": [None, "x", -1, 9, 2.5, float("nan"), np.array([1, 2])],
    "z": [
        None,
        "x",
        7,
        [],
        NAN,
        np.zeros((2, 4)),
        np.zeros(3),
        np.full((2, 3), np.inf),
    ],
}
WRONG["y"] = WRONG["labels"]
PATHS = [None, 7, 2.5, True, "", "a\0b", [], {}, b"x"]
FLAGS = [None, "no", 1, 0.0, [], np.array([True, False])]
COUNTS = [*INTEGERS, 0]
RAW = [
    None, "x", 7, [], X[0, :, 0], X[:0], X / 2.0, X.astype("int32") - 1,
    X.astype("int32") + 300, np.full((3, *SHAPE), np.nan), {"x": X}, [[1], [1, 2]],
    X.astype("complex64"), X.astype(object), X.astype(str),
]  # fmt: skip
WRONG |= {
    "folder": PATHS,
    "backup_dir": PATHS,
    "name": [*PATHS, "nowhere", "fvbn"],
    "card": ["x", 7, [], {"x": X}, {1, 2}, {"x": object()}],
    "load_weights": FLAGS,
    "source": [*RAW[3:], None, 7, "./nowhere", "x.npz", (X,), (X, Y, Y), (X, Y / 2)],
    "image_size": ["x", -1, 0, 2.5, True, [], (8,), (8, 0), (8, 2.5), np.ones(2)],
    "channels": ["x", -1, 0, 2, 4, 2.5, True, [], np.ones(2)],
    "levels": ["x", -1, 0, 1, 300, 2.5, True, [], np.array([2, 3]), float("nan")],
    "binarize": ["x", 7, True, [], np.ones(2), "dynamic "],
    "load.labels": FLAGS,
    "Batches.labels": ["x", -1, np.arange(11), np.arange(12) - 1, X, np.ones(12)],
    "Batches.binarize": FLAGS,
    "validation": ["x", -1, 1.0, 12, float("nan"), [], True, np.ones(2)],
    "data_dir": ["./nowhere", 7, True, [], {}],
    "max_bytes": [None, "x", -1, float("nan"), True, []],
    "images": RAW,
    "image_grid.images": [None, "x", 7, [], X[0], X[:0], {"x": X}, [[1], [1, 2]], NAN],
    "source_levels": ["x", -1, 0, 1, 3, 300, 2.5, True, []],
    "shuffle": FLAGS,
    "drop_remainder": FLAGS,
    "save_freq": [None, "batch", *COUNTS[2:]],
    "delete_checkpoint": FLAGS,
    "epochs": COUNTS,
    "start": [None, "x", -1.0, float("nan"), float("inf"), True, []],
    "every": COUNTS,
    "columns": COUNTS[1:],
}
WRONG["end"] = WRONG["start"]
KGEN = Path(kgen.__file__).parent


EVERY = [(name, method) for name in GOOD for method in GOOD[name]]


def call(name, method, arguments):
    made = getattr(PLACES[name] if name in PLACES else model(name), method)
    return made(**arguments)


def fuzzed(seed):
    """(model's or place's name, method, arguments, the one that is wrong)."""
    rng = np.random.default_rng(seed)
    name, method = EVERY[rng.integers(len(EVERY))]
    arguments = dict(GOOD[name][method])
    which = rng.choice(list(arguments))
    if method == "predict" and which == "x":
        wrong = IMAGES[rng.integers(len(IMAGES))]
        return name, method, arguments | {"x": (wrong, Y)}, "x"
    wrong = WRONG.get(f"{method}.{which}", WRONG[which])
    arguments[which] = wrong[rng.integers(len(wrong))]
    return name, method, arguments, which


@pytest.mark.portable
def test_right_calls_do_not_raise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, methods in GOOD.items():
        for method, arguments in methods.items():
            verbose = {"verbose": 0} if method in ("evaluate", "predict") else {}
            call(name, method, arguments | verbose)


@pytest.mark.exhaustive
def test_wrong_calls_of_a_fuzz_raise(tmp_path, monkeypatch):
    """1,000 calls: none is accepted, and the error begins in kgen or in Keras' check of
    an argument."""
    monkeypatch.chdir(tmp_path)
    silent, foreign = set(), set()
    for seed in range(1000):
        name, method, arguments, which = fuzzed(seed)
        case = f"{name}.{method}({which}={arguments[which]!r:.60})"
        try:
            call(name, method, arguments)
            silent.add(case)
        except (ValueError, TypeError) as error:
            last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
            if KGEN not in last.parents:
                foreign.add(f"{case}: {type(error).__name__}: {str(error)[:80]}")
        except Exception as error:
            foreign.add(f"{case}: {type(error).__name__}: {str(error)[:80]}")
    assert not silent | foreign, "\n".join([*sorted(silent), "--", *sorted(foreign)])
