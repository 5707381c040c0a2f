"""FVBN and NADE against plain NumPy from the papers; of MADE too, who sees whom, the
fast sampler, half precision. MADE's masks and ensembles are in test_made.py."""

import keras
import numpy as np
import pytest
from dense import CASES, by_dimension, images, numpy, randomised, some_labels, weights
from keras import ops
from scipy.special import expit

from kgen.layers import MaskedDense
from kgen.models import FVBN, MADE, NADE, nade
from kgen.models.autoregressive import naively_filled


@pytest.mark.parametrize("shape, levels, classes", CASES)
def test_fvbn_is_a_regression_for_each_dimension(rng, shape, levels, classes):
    model = randomised(FVBN(shape, levels, classes))
    x, labels = images(rng, 20, model), some_labels(rng, 20, model)
    U, b, *of_labels = weights(model)
    D = model.num_dims
    v, U, b = x.reshape(20, D) / (levels - 1), U.reshape(D, D, -1), b.reshape(D, -1)
    params = by_dimension(model, model.logits(x, labels))
    for d in range(D):
        expected = b[d] + v[:, :d] @ U[:d, d]
        if classes:
            expected = expected + of_labels[0].reshape(classes, D, -1)[labels, d]
        np.testing.assert_allclose(params[:, d], expected, atol=1e-5)


def test_fvbn_begins_at_the_uniform_distribution(rng):
    model = FVBN((3, 3, 1))
    log_p = numpy(model.log_prob(images(rng, 5, model)))
    np.testing.assert_allclose(log_p, -9 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("shape, levels, classes", CASES)
@pytest.mark.parametrize("block", [4, 100])
def test_nade_is_the_papers_loop(rng, monkeypatch, shape, levels, classes, block):
    monkeypatch.setattr(nade, "_BLOCK", block)  # 4: several blocks, the last not full
    model = randomised(NADE(shape, levels, classes, units=6))
    x, labels = images(rng, 20, model), some_labels(rng, 20, model)
    W, c, V, b, *of_labels = weights(model)
    v, a, b = x.reshape(20, -1) / (levels - 1), np.tile(c, (20, 1)), b[None]
    if classes:
        a = a + of_labels[0][labels]
        b = b + of_labels[1].reshape(classes, *b.shape[1:])[labels]
    params = by_dimension(model, model.logits(x, labels))
    for d in range(model.num_dims):
        expected = b[:, d] + expit(a) @ V[d]  # eq. 2
        np.testing.assert_allclose(params[:, d], expected, atol=1e-5)
        a = a + v[:, d : d + 1] * W[d]  # eq. 3


CAUSAL = {
    "nade": lambda shape: NADE(shape, units=6),
    "made-hidden-only": lambda shape: MADE(
        shape, hidden_units=(9, 9), direct=False, activation="tanh"
    ),
    "made-raster": lambda shape: MADE(shape, hidden_units=(9, 7), num_masks=3),
    "made-random": lambda shape: MADE(
        shape, hidden_units=(9, 7), num_masks=3, ordering="random", seed=4
    ),
}


@pytest.mark.parametrize("shape", [(2, 5, 1), (3, 1, 3)])
@pytest.mark.parametrize("name", CAUSAL)
def test_parameters_depend_on_all_earlier_dimensions_alone(
    rng, monkeypatch, name, shape
):
    monkeypatch.setattr(nade, "_BLOCK", 4)
    model = randomised(CAUSAL[name](shape))
    D = model.num_dims
    x = images(rng, 1, model).reshape(1, D)
    flipped = np.concatenate([x, x ^ np.eye(D, dtype="uint8")]).reshape(-1, *shape)
    for m in range(getattr(model, "num_masks", 1)):
        arguments = {"mask": m} if m else {}
        params = numpy(model.logits(flipped, **arguments)).reshape(D + 1, D)
        changed = params[1:] != params[0]  # (flipped dimension, parameter)
        degrees = model.degrees[0][m] if name.startswith("made") else np.arange(D)
        np.testing.assert_array_equal(changed, degrees[:, None] < degrees)


@pytest.mark.parametrize("cls", [NADE, MADE])
@pytest.mark.parametrize("shape, levels, classes", CASES)
def test_the_fast_sampler_is_the_naive_one(rng, cls, shape, levels, classes):
    size = {"units": 6} if cls is NADE else {"hidden_units": (9, 7)}
    model = randomised(cls(shape, levels, classes, **size))
    x = ops.convert_to_tensor(images(rng, 20, model))
    u = ops.convert_to_tensor(rng.uniform(size=x.shape).astype("float32"))
    labels = some_labels(rng, 20, model)
    labels = None if labels is None else ops.convert_to_tensor(labels.astype("int32"))
    rows = np.arange(20, dtype="int32") % (shape[0] + 1)
    given = x, u, ops.convert_to_tensor(rows), labels
    fast = numpy(model.fill(*given))
    np.testing.assert_array_equal(fast, numpy(naively_filled(model, *given)))
    kept = np.arange(shape[0]) < rows[:, None]
    np.testing.assert_array_equal(fast[kept], numpy(x)[kept])


@pytest.mark.parametrize("cls", [FVBN, NADE, MADE])
@pytest.mark.feature("half")
def test_half_precision(rng, cls):
    size = {FVBN: {}, NADE: {"units": 6}, MADE: {"hidden_units": (9, 7)}}[cls]
    full = randomised(cls((2, 5, 1), 4, **size))
    half = cls((2, 5, 1), 4, dtype="mixed_bfloat16", **size)
    half.set_weights(full.get_weights())
    x = images(rng, 20, full)
    log_p = numpy(half.log_prob(x))
    assert log_p.dtype == "float32"
    np.testing.assert_allclose(log_p, numpy(full.log_prob(x)), rtol=0.05)
    assert half.sample(3, seed=0, verbose=0).shape == (3, 2, 5, 1)
    params = half.params(ops.convert_to_tensor(x))
    assert keras.backend.standardize_dtype(params.dtype) == "bfloat16"


def test_masked_dense_keeps_its_configuration():
    layer = MaskedDense(3, strict=True, use_bias=False, kernel_initializer="ones")
    again = MaskedDense.from_config(layer.get_config())
    degrees = ops.convert_to_tensor([1, 2, 3])
    y = again(ops.convert_to_tensor([[1.0, 10.0, 100.0]]), degrees, degrees)
    np.testing.assert_array_equal(numpy(y), [[0, 1, 11]])


def test_nade_needs_units():
    with pytest.raises(ValueError, match="units must be a positive"):
        NADE((2, 2, 1), units=0)
