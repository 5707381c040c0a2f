"""Exact likelihoods, each family: causal, normalised, drawn as they say."""

import keras
import numpy as np
import pytest
from exact import ONE_PASS, TINY, every_image, fixed_point, numpy, sees, tiny
from keras import ops
from scipy import stats

from kgen import random

NARROW = ("pixel-cnn", "row-lstm")  # do not see all earlier dimensions, as published
SHAPES = {"grey": (5, 7, 1), "colour": (4, 3, 3)}


@pytest.mark.parametrize("name", [n for n in ONE_PASS if n not in NARROW])
@pytest.mark.parametrize("kind", SHAPES)
def test_parameters_see_every_earlier_dimension_and_no_later_one(name, kind, rng):
    shape = SHAPES[kind]
    deep = {
        "gated": {"num_blocks": 4, "filters": 48},
        "diagonal": {"units": 48},
        "pp": {"num_blocks": 2, "num_resolutions": 2},
    }
    model = tiny(name, shape, levels=3, scale=2.0, **deep.get(name, {}))
    seen = sees(model, rng.integers(0, 3, (12, *shape)))
    np.testing.assert_array_equal(seen, np.tri(len(seen), k=-1, dtype=bool))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_cnn_has_the_known_blind_spot_and_no_other(channels, rng):
    """Its first layer reaches 3 pixels to the right of the row above, and each block
    one more pixel for one more row: beyond this triangle it sees nothing."""
    H, W = 4, 7
    model = tiny("pixel-cnn", (H, W, channels), 2, num_blocks=6, filters=48)
    seen = sees(model, rng.integers(0, 2, (24, H, W, channels)))
    expected = np.tri(len(seen), k=-1, dtype=bool)
    row, column = np.divmod(np.arange(H * W).repeat(channels), W)
    up, right = row[:, None] - row[None], column[None] - column[:, None]
    blind = (up >= 1) & (right > up + 2)
    assert blind.any()
    np.testing.assert_array_equal(seen, expected & ~blind)


GRIDS = [((2, 2, 1), 2), ((3, 3, 1), 2), ((2, 1, 1), 4), ((1, 2, 3), 2)]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_probabilities_of_all_images_sum_to_one(name, grid):
    model = tiny(name, *grid, scale=2.0)
    images = every_image(*grid)
    p = np.exp(numpy(model.log_prob(images)).astype("float64"))
    assert p.sum() == pytest.approx(1, abs=1e-4)
    assert p.max() > 1.5 / len(images)  # and not by being uniform


LIKELIHOODS = ["categorical", "discretized_logistic", "logistic_mixture"]


@pytest.mark.parametrize("name", ["made", "gated", "pp"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_other_likelihoods_and_labels_sum_to_one_as_well(name, likelihood):
    model = tiny(name, (2, 2, 1), 3, num_classes=2, likelihood=likelihood, scale=2.0)
    images = every_image((2, 2, 1), 3)
    totals = []
    for label in range(2):
        labels = np.full(len(images), label)
        log_p = numpy(model.log_prob(images, labels)).astype("float64")
        assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-4)
        totals.append(log_p)
    assert np.abs(totals[0] - totals[1]).max() > 0.1  # the label matters


@pytest.mark.parametrize("name", TINY)
def test_frequencies_of_samples_fit_the_probabilities(name):
    model = tiny(name, (2, 2, 1), scale=2.0)
    n = 20_000
    drawn = numpy(model._draw(1.0, random.image_seeds(3, n))).reshape(n, 4)
    counts = np.bincount(drawn @ [8, 4, 2, 1], minlength=16)
    p = np.exp(numpy(model.log_prob(every_image((2, 2, 1), 2))).astype("float64"))
    assert stats.chisquare(counts, n * p / p.sum()).pvalue > 1e-3


@pytest.mark.parametrize("name", ONE_PASS)
@pytest.mark.parametrize(
    "shape,levels", [((5, 4, 1), 2), ((1, 6, 1), 5), ((3, 2, 3), 4)], ids=str
)
def test_samples_are_what_their_uniforms_say(name, shape, levels):
    halved = {"num_resolutions": 2} if name == "pp" and shape[0] > 1 else {}
    model = tiny(name, shape, levels, scale=2.0, **halved)
    x = model.sample(16, seed=5)
    u = model._uniforms(ops.convert_to_tensor(random.image_seeds(5, 16)))
    np.testing.assert_array_equal(fixed_point(model, x, numpy(u)), x)
    assert len(np.unique(x.reshape(16, -1), axis=0)) > 4


@pytest.mark.parametrize("name", ONE_PASS)
@pytest.mark.parametrize("levels", [2, 5])
def test_a_temperature_is_of_every_conditional(name, levels):
    model = tiny(name, (3, 4, 1), levels, scale=2.0)
    u = numpy(model._uniforms(ops.convert_to_tensor(random.image_seeds(5, 32))))
    drawn = {T: model.sample(32, seed=5, temperature=T) for T in (0.5, 1.0, 2.0)}
    np.testing.assert_array_equal(drawn[1.0], model.sample(32, seed=5))
    for T, x in drawn.items():
        np.testing.assert_array_equal(fixed_point(model, x, u, (), T), x)
        lower = model.complete(x, 2, seed=5, temperature=T)
        np.testing.assert_array_equal(lower, x)
    nll = [-numpy(model.log_prob(x)).mean() for x in drawn.values()]
    assert nll[0] < nll[1] < nll[2]


@pytest.mark.parametrize(
    "value", [0, -1.0, float("nan"), float("inf"), [1.0], "1"], ids=repr
)
def test_wrong_temperatures_are_told(value):
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        tiny("fvbn", (2, 2, 1)).sample(1, temperature=value)


@pytest.mark.parametrize("name", TINY)
def test_completions_keep_what_is_known_and_draw_the_rest(name, rng):
    shape = (4, 3, 1)
    model = tiny(name, shape, 3, num_classes=2, scale=2.0)
    x = rng.integers(0, 3, (6, *shape)).astype("uint8")
    labels = np.arange(6) % 2
    rows = np.array([0, 1, 2, 3, 4, 2])
    out = model.complete(x, rows, seed=4, labels=labels)
    assert out.dtype == "uint8" and out.max() < 3
    for image, given, known in zip(out, x, rows, strict=True):
        np.testing.assert_array_equal(image[:known], given[:known])
    assert np.any(out[2] != x[2])
    # rows below are not looked at, and one number serves all images
    other = x.copy()
    for i, known in enumerate(rows):
        other[i, known:] = 2 - other[i, known:]
    np.testing.assert_array_equal(model.complete(other, rows, 4, labels), out)
    np.testing.assert_array_equal(model.complete(x, 2, 4, labels)[2], out[2])
    # nothing known: a sample; all known: the image
    sample = model.sample(6, seed=4, labels=labels)
    np.testing.assert_array_equal(model.complete(x, 0, 4, labels), sample)
    np.testing.assert_array_equal(model.complete(x, 4, 4, labels), x)
    if name in ONE_PASS:
        u = numpy(model._uniforms(ops.convert_to_tensor(random.image_seeds(4, 6))))
        again = fixed_point(model, out, u, [labels])
        for i, known in enumerate(rows):
            np.testing.assert_array_equal(again[i, known:], out[i, known:])


@pytest.mark.parametrize("name", ["gated", "made-ensemble"])
def test_completions_have_the_conditional_distribution(name):
    model = tiny(name, (2, 2, 1), scale=2.0)
    images = every_image((2, 2, 1), 2)
    p = np.exp(numpy(model.log_prob(images)).astype("float64"))
    n = 20_000
    for top in ([0, 1], [1, 1]):
        x = np.zeros((n, 2, 2, 1), "int32")
        x[:, 0, :, 0] = top
        rows = np.ones(n, "int32")
        drawn = numpy(model._complete_at(1.0, x, rows, random.image_seeds(8, n)))
        same = np.all(images[:, 0, :, 0] == top, axis=-1)
        counts = np.bincount(drawn[:, 1, :, 0] @ [2, 1], minlength=4)
        expected = n * p[same] / p[same].sum()
        assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("name", TINY)
def test_a_training_step_descends_the_gradient_of_the_likelihood(name, rng):
    """The step of plain gradient descent, along a direction, against central
    differences of log_prob."""
    shape, rate = (4, 3, 1), 1e-2
    smooth = {"made": {"activation": "tanh"}, "pp": {"dropout": 0.0}}
    model = tiny(name, shape, 3, scale=0.7, **smooth.get(name.split("-")[0], {}))
    if name == "pp":
        model.initialized.assign(True)
    x = rng.integers(0, 3, (8, *shape)).astype("uint8")
    before = [numpy(v).astype("float64") for v in model.trainable_variables]

    def nll():
        if name == "made-ensemble":  # a step is on one mask's likelihood
            log_p = model.likelihood.log_prob(model.logits(x, mask=0), x)
        else:
            log_p = model.log_prob(x)
        return -numpy(log_p).mean()

    model.compile(keras.optimizers.SGD(rate))
    model.fit(x, batch_size=8, shuffle=False, verbose=0)
    gradient = [
        (b - numpy(v)) / rate
        for b, v in zip(before, model.trainable_variables, strict=True)
    ]
    norm = np.sqrt(sum((g**2).sum() for g in gradient))
    assert norm > 0.1
    epsilon, values = 1e-2, []
    for sign in (1, -1):
        for v, b, g in zip(model.trainable_variables, before, gradient, strict=True):
            v.assign(b + sign * epsilon * g / norm)
        values.append(nll())
    slope = (values[0] - values[1]) / (2 * epsilon)
    assert slope == pytest.approx(norm, rel=5e-3)


@pytest.mark.parametrize("name", TINY)
def test_evaluate_is_the_mean_of_log_prob_over_uneven_batches(name, rng):
    model = tiny(name, (4, 3, 1), 3)
    model.compile("adam")
    x = rng.integers(0, 3, (11, 4, 3, 1)).astype("uint8")
    logs = model.evaluate(x, batch_size=4, verbose=0)
    nll = -numpy(model.log_prob(x)).mean()
    assert logs["nll_nats"] == pytest.approx(nll, rel=1e-5)
    assert logs["bits_per_dim"] == pytest.approx(nll / (12 * np.log(2)), rel=1e-5)
    assert set(logs) == {"loss", "nll_nats", "bits_per_dim"}


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    "name", ["nade", "pixel-cnn", "gated", "row-lstm", "diagonal", "pp"]
)
@pytest.mark.feature("half")
def test_half_precision_policies_keep_likelihoods_in_float32(name, policy, rng):
    x = rng.integers(0, 2, (4, 6, 5, 1)).astype("uint8")
    full = tiny(name, (6, 5, 1), scale=0.5)
    keras.config.set_dtype_policy(policy)
    half = tiny(name, (6, 5, 1), scale=0.5)
    a, b = numpy(full.log_prob(x)), numpy(half.log_prob(x))
    assert b.dtype == "float32"
    np.testing.assert_allclose(a, b, rtol=0.02)
    half.compile(keras.optimizers.Adam(1e-3))
    assert np.isfinite(half.fit(x, verbose=0).history["loss"][0])


@pytest.mark.parametrize(
    "rows,words",
    [
        (5, r"known_rows must be in 0\.\.4; got 5"),
        (-1, r"in 0\.\.4; got -1"),
        (1.5, "must be an integer"),
        (np.zeros(3, int), "or 2 of them"),
    ],
)
def test_wrong_known_rows_are_told(rows, words):
    model = tiny("fvbn", (4, 3, 1))
    with pytest.raises(ValueError, match=words):
        model.complete(np.zeros((2, 4, 3, 1), "uint8"), rows)


def test_labels_of_given_images_are_asked_for():
    model = tiny("fvbn", (4, 3, 1), num_classes=3)
    x = np.zeros((4, 4, 3, 1), "uint8")
    for use in (model.log_prob, model.logits, lambda x, y: model.complete(x, 2, 0, y)):
        with pytest.raises(ValueError, match="conditional"):
            use(x, None)
        with pytest.raises(ValueError, match="labels: expected 4, got 1"):
            use(x, np.array([1]))


@pytest.mark.parametrize(
    "name,kwargs,words",
    [
        ("nade", {"units": 7.9}, "units must be a positive integer; got 7.9"),
        ("made", {"num_masks": 0}, "num_masks must be a positive integer; got 0"),
        ("pp", {"num_mixtures": -4}, "num_mixtures must be a positive integer"),
        ("pp", {"num_blocks": 1.5}, "num_blocks must be a positive integer"),
        ("fvbn", {"levels": 2.5}, "levels must be in"),
    ],
)
def test_wrong_numbers_are_told(name, kwargs, words):
    with pytest.raises(ValueError, match=words):
        tiny(name, (4, 4, 1), **{"levels": 4} | kwargs)


def test_likelihoods_are_named():
    with pytest.raises(TypeError, match="likelihood must be a name"):
        tiny("fvbn", (4, 4, 1), likelihood=5)


@pytest.mark.parametrize("name", ["pixel-cnn", "gated"])
def test_wrong_sizes_are_told(name):
    for kwargs, words in (
        ({"filters": 4}, "filters must be a positive multiple of the image's 3 chann"),
        ({"kernel_size": 4}, "kernel_size must be an odd integer, 1 or more; got 4"),
        ({"first_kernel_size": 1}, "must be an odd integer, 3 or more; got 1"),
        ({"num_blocks": -1}, "num_blocks must be a positive integer; got -1"),
        ({"head_filters": 0}, "head_filters must be a positive multiple"),
        ({"likelihood": "logistic_mixture"}, "couples the channels of a pixel"),
        ({"likelihood": "poisson"}, "'poisson'"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny(name, (4, 4, 3), 4, **kwargs)
