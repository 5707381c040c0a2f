"""FVBN, NADE and MADE against plain NumPy from the papers; MADE's masks, ensembles and
their orders."""

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import expit, logsumexp
from zoo import assert_same, cases, new, numpy, tensor, tiny

from kgen.layers import MaskedDense
from kgen.layers.masked_dense import mask_degrees
from kgen.models import MADE, nade

pytestmark = pytest.mark.portable

# shape, levels, num_classes
PLAIN, CONDITIONAL = ((2, 5, 1), 2, None), ((3, 1, 3), 4, 3)
CASES = cases([CONDITIONAL], [PLAIN])
B = 20


def weights(model):
    return [numpy(v) for v in model.trainable_variables]


def data(rng, model):
    """Images, and labels or None."""
    x = rng.integers(0, model.levels, (B, *model.image_shape)).astype("uint8")
    return x, rng.integers(0, model.num_classes, B) if model.num_classes else None


def logits(model, *args):
    """By dimension: (B, D, P)."""
    return numpy(model.logits(*args)).reshape(B, model.num_dims, -1)


@pytest.mark.parametrize("shape, levels, classes", CASES)
def test_fvbn_is_a_regression_for_each_dimension(rng, shape, levels, classes):
    model = tiny("fvbn", shape, levels, classes)
    x, labels = data(rng, model)
    U, b, *label_weights = weights(model)
    D, v = model.num_dims, x.reshape(B, -1) / (levels - 1)
    below = np.triu(np.ones((D, D)), 1)[..., None]
    expected = np.einsum("bi,idp->bdp", v, U.reshape(D, D, -1) * below)
    expected = expected + b.reshape(D, -1)
    if classes:
        expected = expected + label_weights[0].reshape(classes, D, -1)[labels]
    np.testing.assert_allclose(logits(model, x, labels), expected, atol=1e-5)


def test_fvbn_begins_at_the_uniform_distribution(rng):
    model = new("fvbn", (3, 3, 1), 2)
    log_p = numpy(model.log_prob(data(rng, model)[0]))
    np.testing.assert_allclose(log_p, -9 * np.log(2), rtol=1e-6)


# Blocks of 4: several, the last of which is not full
@pytest.mark.parametrize(
    "shape, levels, classes, block",
    cases([(*PLAIN, 4), (*CONDITIONAL, 100)], [(*PLAIN, 100), (*CONDITIONAL, 4)]),
)
def test_nade_is_the_papers_loop(rng, monkeypatch, shape, levels, classes, block):
    monkeypatch.setattr(nade, "_BLOCK", block)
    model = tiny("nade", shape, levels, classes)
    x, labels = data(rng, model)
    W, c, V, b, *label_weights = weights(model)
    v, a, b = x.reshape(B, -1) / (levels - 1), np.tile(c, (B, 1)), b[None]
    if classes:
        a = a + label_weights[0][labels]
        b = b + label_weights[1].reshape(classes, *b.shape[1:])[labels]
    params = logits(model, x, labels)
    for d in range(model.num_dims):
        expected = b[:, d] + expit(a) @ V[d]  # eq. 2
        np.testing.assert_allclose(params[:, d], expected, atol=1e-5)
        a = a + v[:, d : d + 1] * W[d]  # eq. 3


# MADE's masks


@pytest.mark.parametrize("shape, levels, classes", CASES)
def test_made_is_an_ensemble_of_masked_autoencoders(rng, shape, levels, classes):
    model = tiny("made-ensemble", shape, levels, classes, ordering="random")
    x, labels = data(rng, model)
    W1, b1, W2, b2, V, c, A, *label_weights = weights(model)
    added = [w[labels] for w in label_weights] or [0.0] * 3
    v, log_p = x.reshape(B, -1) / (levels - 1), []
    at_most, less = np.less_equal.outer, np.less.outer  # eqs. 12 and 13 of the paper
    for m, (inputs, first, second) in enumerate(zip(*model.degrees, strict=True)):
        outputs = np.repeat(inputs, model.params_per_dim)
        h = np.maximum(0, v @ (W1 * at_most(inputs, first)) + b1 + added[0])
        h = np.maximum(0, h @ (W2 * at_most(first, second)) + b2 + added[1])
        expected = h @ (V * less(second, outputs)) + c + added[2]
        expected = expected + v @ (A * less(inputs, outputs))
        params = numpy(model.logits(x, labels, mask=m))
        np.testing.assert_allclose(params.reshape(B, -1), expected, atol=2e-5)
        expected = tensor(expected.reshape(params.shape))
        log_p.append(numpy(model.likelihood.log_prob(expected, x)))
    average = logsumexp(log_p, 0) - np.log(3)  # of likelihoods
    np.testing.assert_allclose(numpy(model.log_prob(x, labels)), average, rtol=1e-5)
    assert np.std(log_p, 0).min() > 1e-3  # masks differ


@pytest.mark.once
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


@pytest.mark.once
def test_degrees_of_a_seed_never_change():
    """Weights are worthless under other masks, and no file holds the masks."""
    inputs, hidden = mask_degrees(5, (4,), 2, "random", seed=3)
    assert inputs.tolist() == [[4, 5, 2, 1, 3], [1, 5, 2, 3, 4]]
    assert hidden.tolist() == [[1, 1, 1, 2], [3, 2, 4, 3]]


@pytest.mark.parametrize("direct", cases([True], [False]))
def test_each_image_is_sampled_in_the_order_of_its_mask(rng, direct):
    sizes = {"ordering": "random", "num_masks": 4, "direct": direct}
    model = tiny("made-ensemble", (2, 3, 1), **sizes)
    masks = (np.arange(B) % 4).astype("int32")
    u = tensor(rng.uniform(size=(B, 2, 3, 1)))
    x = ops.zeros(u.shape, "int32")
    x = numpy(model.fill(x, u, 0, None, 1.0, tensor(masks, "int32")))
    for m in range(4):  # all that is sampled, given what is before it in this order
        again = numpy(model.likelihood.draw(model.logits(x, mask=m), u))
        np.testing.assert_array_equal(again[masks == m], x[masks == m])


def test_training_takes_the_masks_in_turn(rng):
    model = tiny("made-ensemble", (2, 2, 1), ordering="random")
    model.compile(keras.optimizers.SGD(0.0))
    x, _ = data(rng, model)
    log_p = [model.likelihood.log_prob(model.logits(x, mask=m), x) for m in range(3)]
    expected = [-numpy(each).mean() for each in log_p]
    losses = model.fit(x, batch_size=B, epochs=5, verbose=0).history["nll_nats"]
    np.testing.assert_allclose(losses, (2 * expected)[:5], rtol=1e-5)
    evaluated = model.evaluate(x, batch_size=B, verbose=0)["nll_nats"]
    assert evaluated == pytest.approx(-numpy(model.log_prob(x)).mean(), rel=1e-5)
    model.predict(x, verbose=0)
    model.sample(2, verbose=0)
    assert int(numpy(model.next_mask)) == 2  # five steps of three masks
    again = MADE.from_config(model.get_config())
    assert_same(model.degrees, again.degrees)


def test_impossible_completions_and_wrong_masks_raise():
    model = new("made-ensemble", (2, 2, 1), 2, ordering="random")
    assert "complete" not in model.endpoints()
    assert "complete" in new("made-ensemble", (2, 2, 1), 2).endpoints()
    x = np.zeros((2, 2, 2, 1), "uint8")
    with pytest.raises(ValueError, match="ordering='raster'"):
        model.complete(x, 1)
    with pytest.raises(ValueError, match=r"mask must be in 0\.\.2"):
        model.logits(x, mask=3)


def test_masked_dense_keeps_its_configuration():
    layer = MaskedDense(3, strict=True, use_bias=False, kernel_initializer="ones")
    again = MaskedDense.from_config(layer.get_config())
    degrees = tensor([1, 2, 3], "int32")
    y = again(tensor([[1.0, 10.0, 100.0]]), degrees, degrees)
    np.testing.assert_array_equal(numpy(y), [[0, 1, 11]])
