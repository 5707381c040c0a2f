"""MADE's masks against plain NumPy from the paper; ensembles and their orders: what
they give probability to, draw and complete; the turn of the masks."""

import keras
import numpy as np
import pytest
from dense import CASES, by_dimension, images, numpy, randomised, some_labels, weights
from keras import ops
from scipy import stats
from scipy.special import logsumexp

from kgen.layers.masked_dense import mask_degrees
from kgen.models import MADE


def ensemble(shape=(2, 2, 1), levels=2, **kwargs):
    kwargs = {"hidden_units": (5, 4), "num_masks": 3, "ordering": "random"} | kwargs
    return randomised(MADE(shape, levels, **kwargs))


def all_images(model):
    grid = np.indices((model.levels,) * model.num_dims).reshape(model.num_dims, -1).T
    return grid.reshape(-1, *model.image_shape).astype("uint8")


def index_of(x):
    """Binary images -> their place in `all_images`."""
    flat = x.reshape(len(x), -1)
    return flat @ (1 << np.arange(flat.shape[1])[::-1])


def chi_square(counts, p):
    """The p-value of counts of cells of these probabilities, with the cells that
    expect fewer than 5 joined to the likeliest."""
    p = p.astype("float64") / p.sum(dtype="float64")
    expected = counts.sum() * p
    cell = np.where(expected < 5, p.argmax(), np.arange(len(p)))
    counts, expected = np.bincount(cell, counts), np.bincount(cell, expected)
    return stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue


# Masks


def masks_of(degrees, m, params_per_dim):
    """The masks one entry at a time, as eqs. 12 and 13 of the paper say them."""
    inputs, *hidden = [list(table[m]) for table in degrees]
    outputs = np.repeat(inputs, params_per_dim)
    masks = []
    for below, own in zip([inputs, *hidden[:-1]], hidden, strict=True):
        masks.append([[float(j <= k) for k in own] for j in below])
    for below in (hidden[-1], inputs):
        masks.append([[float(j < k) for k in outputs] for j in below])
    return [np.array(mask) for mask in masks]


@pytest.mark.parametrize("shape, levels, classes", CASES)
def test_made_is_a_masked_autoencoder(rng, shape, levels, classes):
    model = ensemble(shape, levels, num_classes=classes, hidden_units=(9, 7))
    x, labels = images(rng, 20, model), some_labels(rng, 20, model)
    W1, b1, W2, b2, V, c, A, *of_labels = weights(model)
    one_hot = np.eye(classes)[labels] if classes else None
    added = [one_hot @ table for table in of_labels] or [0.0] * 3
    v = x.reshape(20, -1) / (levels - 1)
    for m in range(3):
        M1, M2, MV, MA = masks_of(model.degrees, m, model.params_per_dim)
        h = np.maximum(0, v @ (W1 * M1) + b1 + added[0])
        h = np.maximum(0, h @ (W2 * M2) + b2 + added[1])
        expected = h @ (V * MV) + c + v @ (A * MA) + added[2]
        params = numpy(model.logits(x, labels, mask=m)).reshape(20, -1)
        np.testing.assert_allclose(params, expected, atol=2e-5)


def test_degrees():
    inputs, first, second = mask_degrees(12, (11, 30), 1)
    np.testing.assert_array_equal(inputs, [np.arange(1, 13)])
    np.testing.assert_array_equal(first, [np.arange(1, 12)])
    assert set(second[0]) == set(range(1, 12))
    inputs, first, second = mask_degrees(6, (50, 50), 4, "random")
    np.testing.assert_array_equal(np.sort(inputs), np.tile(np.arange(1, 7), (4, 1)))
    assert len({tuple(row) for row in inputs}) == 4
    assert len({tuple(row) for row in first}) == 4
    assert set(first.ravel()) == set(range(1, 6))
    inputs, first, second = mask_degrees(100, (3, 50), 20)
    assert np.all(inputs == np.arange(1, 101))
    assert np.all(second.min(1) >= first.min(1))
    assert mask_degrees(1, (3,), 2)[1].tolist() == [[1, 1, 1]] * 2


def test_degrees_are_the_same_for_ever():
    """Weights are worthless under other masks: these are in nobody's file."""
    inputs, hidden = mask_degrees(5, (4,), 2, "random", seed=3)
    assert inputs.tolist() == [[4, 5, 2, 1, 3], [1, 5, 2, 3, 4]]
    assert hidden.tolist() == [[1, 1, 1, 2], [3, 2, 4, 3]]


# Ensembles: probabilities and draws


def test_an_ensemble_averages_likelihoods(rng):
    model = ensemble((2, 2, 3), 4, num_classes=2)
    x, labels = images(rng, 20, model), some_labels(rng, 20, model)
    log_p = []
    for m in range(3):
        params = by_dimension(model, model.logits(x, labels, mask=m)).astype("float64")
        chosen = np.take_along_axis(params, x.reshape(20, -1, 1).astype(int), -1)
        log_p.append((chosen[..., 0] - logsumexp(params, -1)).sum(-1))
    expected = logsumexp(log_p, 0) - np.log(3)
    np.testing.assert_allclose(numpy(model.log_prob(x, labels)), expected, rtol=1e-5)
    assert np.std(log_p, 0).min() > 1e-3  # masks differ


@pytest.mark.parametrize(
    "ordering, shape, levels, likelihood, classes",
    [
        ("raster", (2, 2, 1), 2, None, None),
        ("random", (1, 2, 3), 2, None, 2),
        ("random", (2, 1, 1), 4, None, None),
        ("random", (2, 1, 1), 4, "discretized_logistic", 2),
    ],
)
def test_an_ensembles_probabilities_sum_to_one(
    ordering, shape, levels, likelihood, classes
):
    model = ensemble(
        shape, levels, num_classes=classes, likelihood=likelihood, ordering=ordering
    )
    x = all_images(model)
    for label in range(classes or 1):
        labels = np.full(len(x), label) if classes else None
        total = np.exp(numpy(model.log_prob(x, labels)).astype("float64")).sum()
        assert abs(total - 1) < 1e-4


@pytest.mark.parametrize("ordering", ["raster", "random"])
def test_an_ensembles_samples_follow_log_prob(ordering):
    model = ensemble(ordering=ordering)
    p = np.exp(numpy(model.log_prob(all_images(model))))
    drawn = model.sample(20_000, seed=0, verbose=0)
    counts = np.bincount(index_of(drawn), minlength=16)
    assert chi_square(counts, p) > 1e-3


def test_an_ensemble_completes_by_the_exact_conditional(rng):
    model = ensemble(ordering="raster")
    p = np.exp(numpy(model.log_prob(all_images(model)))).reshape(4, 4)  # upper, lower
    upper = np.arange(12_000) % 4
    x = all_images(model)[4 * upper + rng.integers(0, 4, 12_000)]
    drawn = model.complete(x, 1, seed=1, verbose=0)
    np.testing.assert_array_equal(drawn[:, 0], x[:, 0])
    for row in range(4):
        counts = np.bincount(index_of(drawn[upper == row][:, 1]), minlength=4)
        assert chi_square(counts, p[row]) > 1e-3
    np.testing.assert_array_equal(model.complete(x[:64], 2, 1, verbose=0), x[:64])
    again = model.complete(x[:64], 0, seed=5, verbose=0)
    np.testing.assert_array_equal(again, model.sample(64, seed=5, verbose=0))
    other = x[:64].copy()
    other[:, 1] = 1 - other[:, 1]
    np.testing.assert_array_equal(model.complete(other, 1, 1, verbose=0), drawn[:64])


@pytest.mark.parametrize("direct", [True, False])
def test_each_image_is_drawn_in_its_masks_order(rng, direct):
    model = ensemble((2, 3, 1), direct=direct, num_masks=4)
    masks = (np.arange(40) % 4).astype("int32")
    u = rng.uniform(size=(40, 2, 3, 1)).astype("float32")
    zeros = ops.zeros(u.shape, "int32")
    given = ops.convert_to_tensor(u), 0, None, 1.0, ops.convert_to_tensor(masks)
    drawn = numpy(model.fill(zeros, *given)).reshape(40, 6)
    for m in range(4):
        x = np.zeros((40, 6), "int32")
        for d in np.argsort(model.degrees[0][m]):
            params = model.logits(x.reshape(u.shape), mask=m)
            drawn_d = numpy(model.likelihood.draw(params, ops.convert_to_tensor(u)))
            x[:, d] = drawn_d.reshape(40, 6)[:, d]
        np.testing.assert_array_equal(drawn[masks == m], x[masks == m])


# Training and keeping


def test_training_takes_the_masks_in_turn(rng, tmp_path):
    model = ensemble(seed=7)
    model.compile(keras.optimizers.SGD(0.0))
    x = images(rng, 8, model)
    given = x.reshape(8, 4).astype("float64")
    expected = []
    for m in range(3):
        logits = numpy(model.logits(x, mask=m)).reshape(8, 4)
        log_p = given * logits - np.logaddexp(0, logits)
        expected.append(-log_p.sum(1).mean())
    losses = model.fit(x, batch_size=8, epochs=5, verbose=0).history["nll_nats"]
    np.testing.assert_allclose(losses, (2 * expected)[:5], rtol=1e-5)
    ensembles = -numpy(model.log_prob(x)).mean()
    found = model.evaluate(x, batch_size=8, verbose=0)["nll_nats"]
    np.testing.assert_allclose(found, ensembles, rtol=1e-5)
    model.predict(x, verbose=0)
    model.sample(2, verbose=0)
    assert int(numpy(model.next_mask)) == 2  # five steps of three masks

    model.save_weights(tmp_path / "made.weights.h5")
    again = MADE.from_config(model.get_config())
    for ours, theirs in zip(model.degrees, again.degrees, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again.load_weights(tmp_path / "made.weights.h5")
    again.compile(keras.optimizers.SGD(0.0))
    losses = again.fit(x, batch_size=8, epochs=2, verbose=0).history["nll_nats"]
    np.testing.assert_allclose(losses, [expected[2], expected[0]], rtol=1e-5)


def test_errors_say_what_to_do(rng):
    model = ensemble()
    assert "complete" not in model.endpoints()
    assert "complete" in ensemble(ordering="raster").endpoints()
    x = images(rng, 2, model)
    with pytest.raises(ValueError, match="ordering='raster'"):
        model.complete(x, 1)
    with pytest.raises(ValueError, match=r"mask must be in 0\.\.2"):
        model.logits(x, mask=3)
    for kwargs, match in [
        ({"hidden_units": ()}, "FVBN"),
        ({"num_masks": 0}, "num_masks must be a positive"),
        ({"ordering": "random order"}, "'raster' or 'random'"),
        ({"seed": None}, "seed must be an integer"),
        ({"seed": -1}, "seed must be an integer"),
    ]:
        with pytest.raises(ValueError, match=match):
            MADE((2, 2, 1), **kwargs)
