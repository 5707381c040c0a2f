"""What every exact model owes: probabilities that sum to one, samples of that
distribution, completions, temperature, gradients, half precision, errors.
Which dimensions depend on which is in test_causality.py."""

import itertools

import keras
import numpy as np
import pytest
import zoo
from zoo import EXACT, ONE_PASS, cases, every_image, image_index, numpy, tensor

from kgen import random

pytestmark = pytest.mark.portable

SHAPE, LEVELS = (3, 3, 1), 2  # few enough to list all 512 images
N = 256  # images at a time, nearly everywhere: programs are compiled for a number
LABELS = np.arange(N) % 2


def shared(name, shape=SHAPE, levels=LEVELS, **kwargs):
    return zoo.shared(name, shape, levels, 2, scale=2.0, **kwargs)


def log_probs(model):
    """log p of every image, with each label in turn: float64 (2, images)."""
    images = every_image(model.image_shape, model.levels)
    labels = np.repeat([0, 1], len(images))
    log_p = model.log_prob(np.tile(images, (2, 1, 1, 1)), labels)
    return numpy(log_p).astype("float64").reshape(2, -1)


def random_images(rng, shape=SHAPE):
    return rng.integers(0, LEVELS, (N, *shape)).astype("uint8")


def fixed_point(model, x, seed, temperature=1.0):
    """What would be sampled at each dimension, given that all before it are those of x:
    x itself, if it was sampled with this seed."""
    u = model._uniforms(tensor(random.image_seeds(seed, N), "int32"))
    return numpy(model.likelihood.draw(model.logits(x, LABELS), u, temperature))


# The distribution

COLOR, GRAY, THREE = ((1, 2, 3), 2), ((2, 1, 1), 4), ((2, 2, 1), 3)
RANDOM, LOGISTIC = {"ordering": "random"}, {"likelihood": "discretized_logistic"}
CASES = [(name, (SHAPE, LEVELS), {}) for name in EXACT]
CASES += [("made-ensemble", COLOR, RANDOM), ("gated", GRAY, LOGISTIC)]
CASES += [("pp", COLOR, {})]  # a mixture, which couples the channels
FURTHER = [(name, case, {}) for name in EXACT for case in (COLOR, GRAY)]
FURTHER += [("made-ensemble", GRAY, RANDOM | kwargs) for kwargs in ({}, LOGISTIC)]
FURTHER += [
    (name, THREE, {"likelihood": likelihood})
    for name in ("made", "gated", "pp")
    for likelihood in ("categorical", "discretized_logistic", "logistic_mixture")
]


@pytest.mark.parametrize("name, case, kwargs", cases(CASES, FURTHER), ids=str)
def test_probabilities_of_all_images_sum_to_one(name, case, kwargs):
    log_p = log_probs(shared(name, *case, **kwargs))
    np.testing.assert_allclose(np.exp(log_p).sum(1), 1, atol=1e-4)
    assert np.exp(log_p).max() > 1.5 / log_p.shape[1]  # and not by being uniform
    assert np.abs(log_p[0] - log_p[1]).max() > 0.05  # the label matters


@pytest.mark.parametrize("name", cases(["pixel-cnn"], ["fvbn", "made", "gated"]))
def test_codes_beyond_bytes(name):
    """More than 256 levels, as a codebook has: int32 in and out, and served."""
    model = shared(name, (1, 2, 1), 300)
    drawn = model.sample(20_000, seed=0, labels=0, verbose=0)
    assert drawn.dtype == "int32" and drawn.max() > 255
    likeliest = np.bincount(drawn[:, 0, 0, 0]).argmax()
    rows = np.stack([np.full(300, likeliest), np.arange(300)], axis=1)
    rows = rows.reshape(300, 1, 2, 1).astype("int32")  # all second codes, given this
    p = np.exp(numpy(model.log_prob(rows, np.zeros(300, "int32"))))
    given = drawn[drawn[:, 0, 0, 0] == likeliest, 0, 1, 0]
    assert len(given) / 20_000 == pytest.approx(p.sum(), abs=0.01)
    second = np.bincount(given, minlength=300)
    assert zoo.chi_square(second, p / p.sum()) > 1e-3
    model.compile("sgd")
    model.fit(drawn[:64], np.zeros(64, "int32"), verbose=0)
    with pytest.raises(ValueError, match="300"):
        model.log_prob(rows + 1, np.zeros(300, "int32"))
    signature = model.endpoints()["complete"]
    assert signature.inputs["images"].interval == (0, 299)
    assert signature.outputs["images"].dtype == "int32"


DENSE = ["fvbn", "nade", "made"]
CASES = [(n, {}) for n in (*DENSE, "made-ensemble", "gated", "diagonal", "pp")]
CASES += [("made-ensemble", RANDOM)]


@pytest.mark.parametrize("name, kwargs", cases(CASES, [(n, {}) for n in EXACT]))
def test_frequencies_of_samples_fit_the_probabilities(name, kwargs):
    model, labels = shared(name, **kwargs), np.arange(80 * N) % 2
    x = image_index(model.sample(80 * N, seed=3, labels=labels, verbose=0))
    for label, p in enumerate(np.exp(log_probs(model))):
        for cells in (512, 16):  # all images; those alike in the last 4 dimensions
            counts = np.bincount(x[labels == label] % cells, minlength=cells)
            assert zoo.chi_square(counts, p.reshape(-1, cells).sum(0)) > 1e-3


@pytest.mark.parametrize("name", cases(["made-ensemble"], ["gated"]))
def test_completions_have_the_conditional_distribution(name):
    model, n = shared(name), 80 * N
    top, labels = np.arange(n) % 8, np.arange(n) // 8 % 2
    x = every_image(SHAPE, LEVELS)[64 * top]
    y = image_index(model.complete(x, 1, seed=8, labels=labels, verbose=0))
    np.testing.assert_array_equal(y // 64, top)
    for label, log_p in enumerate(log_probs(model)):
        for row, p in enumerate(np.exp(log_p).reshape(8, 64)):
            counts = np.bincount(y[(labels == label) & (top == row)] % 64, minlength=64)
            assert zoo.chi_square(counts, p) > 1e-3


# Samples, dimension by dimension

SAMPLERS = [*DENSE, "gated"]  # the others have gated's


@pytest.mark.parametrize("name", cases([*SAMPLERS, "made-ensemble"], EXACT))
def test_completions_keep_known_rows_and_sample_the_rest(name, rng):
    model, x = shared(name), random_images(rng)
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
        again = fixed_point(model, out, seed=4)
        np.testing.assert_array_equal(again[~known], out[~known])


CASES = [(name, SHAPE, LEVELS) for name in SAMPLERS]
SHAPES = [((5, 4, 1), 2), ((3, 4, 1), 5), ((1, 6, 1), 5), ((3, 2, 3), 4)]
FURTHER = [(name, *case) for name in ONE_PASS for case in [(SHAPE, LEVELS), *SHAPES]]


@pytest.mark.parametrize("name, shape, levels", cases(CASES, FURTHER), ids=str)
def test_temperature_changes_every_conditional(name, shape, levels):
    kwargs = {"num_resolutions": 2} if name == "pp" and shape[0] > 3 else {}
    model, nll = shared(name, shape, levels, **kwargs), []
    for T in (0.5, 1.0, 2.0):
        x = model.sample(N, seed=5, temperature=T)
        np.testing.assert_array_equal(fixed_point(model, x, 5, T), x)
        lower = model.complete(x, shape[0] // 2, 5, LABELS, temperature=T)
        np.testing.assert_array_equal(lower, x)
        nll.append(-numpy(model.log_prob(x, LABELS)).mean())
        if T == 1.0:
            np.testing.assert_array_equal(x, model.sample(N, seed=5))
            assert len(np.unique(x.reshape(N, -1), axis=0)) > N / 8
    if model.likelihood.name != "logistic_mixture":  # whose scales it multiplies
        assert nll[0] < nll[1] < nll[2]


# Training: evaluation is in test_train_step.py

SMOOTH = {"made": {"activation": "tanh"}, "pp": {"dropout": 0.0}}
TRAINED = ["fvbn", "nade", "made-ensemble", "gated", "diagonal", "pp"]


@pytest.mark.parametrize("name", cases(TRAINED, EXACT))
def test_a_training_step_follows_the_gradient(name, rng):
    kwargs, x = SMOOTH.get(name.split("-")[0], {}), random_images(rng)
    model = zoo.tiny(name, SHAPE, LEVELS, 2, 0.7, **kwargs)
    if name == "pp":
        model.initialized.assign(True)

    def nll():
        if name != "made-ensemble":
            return -numpy(model.log_prob(x, LABELS)).mean()
        logits = model.logits(x, LABELS, mask=0)  # trained on one mask's likelihood
        return -numpy(model.likelihood.log_prob(logits, x)).mean()

    zoo.check_step(model, nll, x, LABELS)


CASES = [(n, "bfloat16", SHAPE) for n in ("nade", "gated", "diagonal", "pp")]
FURTHER = itertools.product(ONE_PASS, ("bfloat16", "float16"), (SHAPE, (3, 4, 3)))


@pytest.mark.parametrize("name, dtype, shape", cases(CASES, FURTHER), ids=str)
def test_half_precision_models_score_sample_and_train(name, dtype, shape, rng):
    x = random_images(rng, shape)
    expected = numpy(zoo.tiny(name, shape, LEVELS, 2, 0.5).log_prob(x, LABELS))
    keras.config.set_dtype_policy(f"mixed_{dtype}")
    model = zoo.tiny(name, shape, LEVELS, 2, 0.5)
    params = model.params(*model.prepare_inputs(x, LABELS))
    assert keras.backend.standardize_dtype(params.dtype) == dtype
    log_p = numpy(model.log_prob(x, LABELS))
    assert log_p.dtype == "float32"
    np.testing.assert_allclose(log_p, expected, rtol=0.02)
    out = model.complete(x, 1, seed=3, labels=LABELS)
    np.testing.assert_array_equal(out[:, :1], x[:, :1])
    assert 0.1 < np.mean(out[:, 1:]) < 0.9
    model.compile(keras.optimizers.Adam(1e-3))
    losses = model.fit(x, LABELS, batch_size=N, epochs=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert min(losses[4:]) < losses[0]  # dropout, and steps that overflow float16


# Errors


def test_wrong_arguments_of_calls_raise():
    model = zoo.shared("fvbn", (4, 3, 1), 2, 3)
    x, labels = np.zeros((4, 4, 3, 1), "uint8"), np.zeros(4, int)
    for rows, words in (
        (5, r"known_rows must be in 0\.\.4; got 5"),
        (-1, r"in 0\.\.4; got -1"),
        (1.5, "must be an integer"),
        (np.zeros(3, int), "or 4 of them"),
    ):
        with pytest.raises(ValueError, match=words):
            model.complete(x, rows, labels=labels)
    for use in (model.log_prob, model.logits, lambda x, y: model.complete(x, 2, 0, y)):
        with pytest.raises(ValueError, match="conditional"):
            use(x, None)
        with pytest.raises(ValueError, match="labels: expected 4, got 1"):
            use(x, labels[:1])
