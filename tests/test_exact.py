"""What every exact model owes: probabilities that sum to one, samples of that
distribution, completions, temperature, gradients, evaluation, half precision, errors.
Which dimensions depend on which is in test_causality.py."""

import itertools

import keras
import numpy as np
import pytest
from zoo import (
    EXACT,
    ONE_PASS,
    chi_square,
    every_image,
    image_index,
    numpy,
    shared,
    tensor,
    tiny,
)

from kgen import random

pytestmark = pytest.mark.portable


def mark(cases, further):
    """These cases, and those of `further` that only `make test-all` runs."""
    further = [c if isinstance(c, tuple) else (c,) for c in further if c not in cases]
    return cases + [pytest.param(*c, marks=pytest.mark.exhaustive) for c in further]


SHAPE, LEVELS, CLASSES = (3, 3, 1), 2, 2  # few enough to list all 512 images
N = 256  # images at a time, everywhere: programs are compiled for a number of them
LABELS = np.arange(N) % 2


def model_of(name):
    return shared(name, SHAPE, LEVELS, CLASSES, scale=2.0)


def log_probs(model):
    """log p of every image, with each label in turn: float64 (K or 1, images)."""
    images = every_image(model.image_shape, model.levels)
    parts = np.split(images, max(1, len(images) // N))
    log_p = [
        [numpy(model.log_prob(x, np.full(len(x), k))) for x in parts]
        for k in range(model.num_classes or 1)
    ]
    return np.array(log_p, "float64").reshape(len(log_p), -1)


def random_images(rng, n=N):
    return rng.integers(0, LEVELS, (n, *SHAPE)).astype("uint8")


def fixed_point(model, x, u, labels, temperature=1.0):
    """What would be sampled at each dimension, given that all before it are those of x:
    x itself, if it was sampled with the uniforms u."""
    params = model.logits(x, labels)
    return numpy(model.likelihood.draw(params, u, temperature))


def uniforms(model, seed):
    return model._uniforms(tensor(random.image_seeds(seed, N), "int32"))


# The distribution

COLOR, GRAY, THREE = ((1, 2, 3), 2, 2), ((2, 1, 1), 4, 2), ((2, 2, 1), 3, 2)
RANDOM, LOGISTIC = {"ordering": "random"}, {"likelihood": "discretized_logistic"}
CASES = [(name, (SHAPE, LEVELS, CLASSES), {}) for name in EXACT] + [
    ("made-ensemble", COLOR, RANDOM),
    ("gated", GRAY, LOGISTIC),
    ("pp", COLOR, {}),  # a mixture, which couples the channels
]
FURTHER = [(name, case, {}) for name in EXACT for case in (COLOR, GRAY)]
FURTHER += [("made-ensemble", GRAY, RANDOM | kwargs) for kwargs in ({}, LOGISTIC)]
FURTHER += [
    (name, THREE, {"likelihood": likelihood})
    for name in ("made", "gated", "pp")
    for likelihood in ("categorical", "discretized_logistic", "logistic_mixture")
]


@pytest.mark.parametrize("name, case, kwargs", mark(CASES, FURTHER), ids=str)
def test_probabilities_of_all_images_sum_to_one(name, case, kwargs):
    log_p = log_probs(shared(name, *case, scale=2.0, **kwargs))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, atol=1e-4)
    assert np.exp(log_p).max() > 1.5 / log_p.shape[1]  # and not by being uniform
    assert np.abs(log_p[0] - log_p[1]).max() > 0.05  # the label matters


DENSE = ["fvbn", "nade", "made"]
CASES = [(n, {}) for n in (*DENSE, "made-ensemble", "gated", "diagonal", "pp")]
CASES += [("made-ensemble", RANDOM)]


@pytest.mark.parametrize("name, kwargs", mark(CASES, [(n, {}) for n in EXACT]))
def test_frequencies_of_samples_fit_the_probabilities(name, kwargs):
    model = shared(name, SHAPE, LEVELS, CLASSES, scale=2.0, **kwargs)
    labels = np.arange(80 * N) % 2
    x = image_index(model.sample(80 * N, seed=3, labels=labels, verbose=0))
    for label, p in enumerate(np.exp(log_probs(model))):
        for cells in (512, 16):  # all images; those alike in the last 4 dimensions
            counts = np.bincount(x[labels == label] % cells, minlength=cells)
            assert chi_square(counts, p.reshape(-1, cells).sum(0)) > 1e-3


@pytest.mark.parametrize("name", mark(["made-ensemble"], ["gated"]))
def test_completions_have_the_conditional_distribution(name):
    model, n = model_of(name), 80 * N
    top, labels = np.arange(n) % 8, np.arange(n) // 8 % 2
    x = every_image(SHAPE, LEVELS)[64 * top]
    y = image_index(model.complete(x, 1, seed=8, labels=labels, verbose=0))
    np.testing.assert_array_equal(y // 64, top)
    for label, log_p in enumerate(log_probs(model)):
        for row, p in enumerate(np.exp(log_p).reshape(8, 64)):
            counts = np.bincount(y[(labels == label) & (top == row)] % 64, minlength=64)
            assert chi_square(counts, p) > 1e-3


# Samples, dimension by dimension

SAMPLERS = [*DENSE, "gated"]  # the others have gated's


@pytest.mark.parametrize("name", mark([*SAMPLERS, "made-ensemble"], EXACT))
def test_completions_keep_known_rows_and_sample_the_rest(name, rng):
    model, x = model_of(name), random_images(rng)
    rows = np.arange(N) % 4
    known = np.arange(3) < rows[:, None]  # (N, H)
    out = model.complete(x, rows, seed=4, labels=LABELS)
    assert out.dtype == "uint8" and out.max() < LEVELS
    np.testing.assert_array_equal(out[known], x[known])
    assert np.mean(out[~known] != x[~known]) > 0.2
    # rows below are not used, and one number serves all images
    other = np.where(known[..., None, None], x, 1 - x)
    np.testing.assert_array_equal(model.complete(other, rows, 4, LABELS), out)
    np.testing.assert_array_equal(model.complete(x, 2, 4, LABELS)[2::4], out[2::4])
    # nothing known: a sample; all known: the image
    sample = model.sample(N, seed=4, labels=LABELS)
    np.testing.assert_array_equal(model.complete(x, 0, 4, LABELS), sample)
    np.testing.assert_array_equal(model.complete(x, 3, 4, LABELS), x)
    if name in ONE_PASS:
        again = fixed_point(model, out, uniforms(model, 4), LABELS)
        np.testing.assert_array_equal(again[~known], out[~known])


CASES = [(name, SHAPE, LEVELS) for name in SAMPLERS]
FURTHER = [((5, 4, 1), 2), ((3, 4, 1), 5), ((1, 6, 1), 5), ((3, 2, 3), 4)]
FURTHER = [(name, *case) for name in ONE_PASS for case in [CASES[0][1:], *FURTHER]]


@pytest.mark.parametrize("name, shape, levels", mark(CASES, FURTHER), ids=str)
def test_temperature_changes_every_conditional(name, shape, levels):
    kwargs = {"num_resolutions": 2} if name == "pp" and shape[0] > 3 else {}
    model = shared(name, shape, levels, CLASSES, scale=2.0, **kwargs)
    u, nll = uniforms(model, 5), []
    for T in (0.5, 1.0, 2.0):
        x = model.sample(N, seed=5, temperature=T)
        np.testing.assert_array_equal(fixed_point(model, x, u, LABELS, T), x)
        lower = model.complete(x, shape[0] // 2, 5, LABELS, temperature=T)
        np.testing.assert_array_equal(lower, x)
        nll.append(-numpy(model.log_prob(x, LABELS)).mean())
        if T == 1.0:
            np.testing.assert_array_equal(x, model.sample(N, seed=5))
            assert len(np.unique(x.reshape(N, -1), axis=0)) > N / 8
    if model.likelihood.name != "logistic_mixture":  # whose scales it multiplies
        assert nll[0] < nll[1] < nll[2]


# Training and evaluation

SMOOTH = {"made": {"activation": "tanh"}, "pp": {"dropout": 0.0}}
TRAINED = ["fvbn", "nade", "made-ensemble", "gated", "diagonal", "pp"]


@pytest.mark.parametrize("name", mark(TRAINED, EXACT))
def test_a_training_step_follows_the_gradient(name, rng):
    """The step of plain gradient descent, along a direction, against central
    differences of log_prob."""
    rate, epsilon = 1e-2, 1e-2
    model = tiny(
        name, SHAPE, LEVELS, CLASSES, 0.7, **SMOOTH.get(name.split("-")[0], {})
    )
    if name == "pp":
        model.initialized.assign(True)
    x = random_images(rng)
    before = [numpy(v).astype("float64") for v in model.trainable_variables]

    def nll():
        if name == "made-ensemble":  # a step is on one mask's likelihood
            log_p = model.likelihood.log_prob(model.logits(x, LABELS, mask=0), x)
        else:
            log_p = model.log_prob(x, LABELS)
        return -numpy(log_p).mean()

    model.compile(keras.optimizers.SGD(rate))
    model.fit(x, LABELS, batch_size=N, shuffle=False, verbose=0)
    after = [numpy(v) for v in model.trainable_variables]
    gradient = [(b - a) / rate for b, a in zip(before, after, strict=True)]
    norm = np.sqrt(sum((g**2).sum() for g in gradient))
    assert norm > 0.1
    values = []
    for sign in (1, -1):
        for v, b, g in zip(model.trainable_variables, before, gradient, strict=True):
            v.assign(b + sign * epsilon * g / norm)
        values.append(nll())
    slope = (values[0] - values[1]) / (2 * epsilon)
    assert slope == pytest.approx(norm, rel=5e-3)


@pytest.mark.parametrize("name", mark(["fvbn", "made-ensemble"], EXACT))
def test_evaluate_is_the_mean_over_uneven_batches(name, rng):
    model = tiny(name, SHAPE, LEVELS, CLASSES)
    model.compile("adam")
    x = random_images(rng, N + 9)
    labels = rng.integers(0, 2, N + 9)
    logs = model.evaluate(x, labels, batch_size=N, verbose=0)
    parts = slice(0, N), slice(9, N + 9)  # two of N images, of which N - 9 are in both
    first, last = (numpy(model.log_prob(x[part], labels[part])) for part in parts)
    nll = -np.concatenate([first, last[-9:]]).mean()
    assert logs["nll_nats"] == pytest.approx(nll, rel=1e-5)
    assert logs["bits_per_dim"] == pytest.approx(nll / (9 * np.log(2)), rel=1e-5)
    assert logs["loss"] == logs["nll_nats"] and len(logs) == 3


def half_precision(name, dtype, shape, rng):
    """Images, the log p of a float32 model, and that model in half precision."""
    x = rng.integers(0, LEVELS, (N, *shape)).astype("uint8")
    log_p = numpy(tiny(name, shape, LEVELS, CLASSES, 0.5).log_prob(x, LABELS))
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    return x, log_p, tiny(name, shape, LEVELS, CLASSES, 0.5)


CASES = [(n, "bfloat16", SHAPE) for n in ("nade", "gated", "diagonal", "pp")]
FURTHER = itertools.product(ONE_PASS, ("bfloat16", "float16"), (SHAPE, (3, 4, 3)))
FURTHER = list(FURTHER)


@pytest.mark.parametrize("name, dtype, shape", mark(CASES, FURTHER), ids=str)
def test_half_precision_models_score_and_sample(name, dtype, shape, rng):
    x, expected, model = half_precision(name, dtype, shape, rng)
    log_prob, dtypes = model.likelihood.log_prob, set()

    def recorded(params, x):
        dtypes.add(keras.backend.standardize_dtype(params.dtype))
        return log_prob(params, x)

    model.likelihood.log_prob = recorded
    log_p = numpy(model.log_prob(x, LABELS))
    assert log_p.dtype == "float32" and dtypes == {dtype}
    np.testing.assert_allclose(log_p, expected, rtol=0.02)
    out = model.complete(x, 1, seed=3, labels=LABELS)
    np.testing.assert_array_equal(out[:, :1], x[:, :1])
    assert 0.1 < np.mean(out[:, 1:]) < 0.9


@pytest.mark.parametrize("name, dtype, shape", mark(CASES[:1], FURTHER), ids=str)
def test_half_precision_models_train(name, dtype, shape, rng):
    x, _, model = half_precision(name, dtype, shape, rng)
    model.compile(keras.optimizers.Adam(1e-3))
    history = model.fit(x, LABELS, batch_size=N, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(history).all() and history[2] < history[0]


# Errors


def test_wrong_temperatures_raise():
    model = shared("fvbn", (2, 2, 1))
    for value in (0, -1.0, float("nan"), float("inf"), [1.0], "1"):
        with pytest.raises(ValueError, match="temperature must be a positive number"):
            model.sample(1, temperature=value)


def test_wrong_known_rows_raise():
    model, x = shared("fvbn", (4, 3, 1)), np.zeros((2, 4, 3, 1), "uint8")
    for rows, words in (
        (5, r"known_rows must be in 0\.\.4; got 5"),
        (-1, r"in 0\.\.4; got -1"),
        (1.5, "must be an integer"),
        (np.zeros(3, int), "or 2 of them"),
    ):
        with pytest.raises(ValueError, match=words):
            model.complete(x, rows)


def test_missing_labels_of_images_raise():
    model = shared("fvbn", (4, 3, 1), 2, 3)
    x = np.zeros((4, 4, 3, 1), "uint8")
    for use in (model.log_prob, model.logits, lambda x, y: model.complete(x, 2, 0, y)):
        with pytest.raises(ValueError, match="conditional"):
            use(x, None)
        with pytest.raises(ValueError, match="labels: expected 4, got 1"):
            use(x, np.array([1]))


CONVOLUTIONAL = {
    "filters must be a positive multiple of the image's 3 chann": {"filters": 4},
    "kernel_size must be an odd integer, 1 or more; got 4": {"kernel_size": 4},
    "must be an odd integer, 3 or more; got 1": {"first_kernel_size": 1},
    "num_blocks must be a positive integer; got -1": {"num_blocks": -1},
    "head_filters must be a positive multiple": {"head_filters": 0},
    "couples the channels of a pixel": {"likelihood": "logistic_mixture"},
    "'poisson'": {"likelihood": "poisson"},
}
RECURRENT = {
    "units must be a positive multiple of the image's 3 chann": {"units": 4},
    "must be an odd integer, 3 or more; got 1": {"first_kernel_size": 1},
    "num_layers must be a positive integer; got 0": {"num_layers": 0},
    "head_filters must be a positive multiple": {"head_filters": 4},
}
ERRORS = {
    "fvbn": {"levels must be in": {"levels": 2.5}},
    "nade": {
        "units must be a positive integer; got 7.9": {"units": 7.9},
        "units must be a positive integer; got 0": {"units": 0},
    },
    "made": {
        "num_masks must be a positive integer; got 0": {"num_masks": 0},
        "without hidden layers, MADE is FVBN": {"hidden_units": ()},
        "'raster' or 'random'": {"ordering": "random order"},
    },
    "pixel-cnn": CONVOLUTIONAL,
    "gated": CONVOLUTIONAL,
    "row-lstm": RECURRENT,
    "diagonal": RECURRENT,
    "pp": {
        "num_mixtures must be a positive integer": {"num_mixtures": -4},
        "num_blocks must be a positive integer; got 1.5": {"num_blocks": 1.5},
        "num_blocks must be a positive integer; got 0": {"num_blocks": 0},
        "filters must be a positive integer": {"filters": 0},
        "num_resolutions must be in 1..3 for .* got 4": {"num_resolutions": 4},
        "num_resolutions must be in 1..3 for .* got 0": {"num_resolutions": 0},
        "image_shape must be": {"shape": 8},
    },
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_arguments_raise(name):
    for words, kwargs in ERRORS[name].items():
        with pytest.raises(ValueError, match=words):
            tiny(name, **{"shape": (4, 4, 3), "levels": 4} | kwargs)
    with pytest.raises(TypeError, match="likelihood must be a name"):
        tiny(name, (4, 4, 3), 4, likelihood=5)
