"""Densities of batches of many sizes: few programs, the same numbers."""

import numpy as np
import pytest
import zoo
from keras import backend
from scipy.special import logsumexp
from zoo import numpy, tensor

import kgen

SIZES = 1, 2, 3, 5, 6, 7, 9, 10, 14, 15


def count_calls(model, name):
    """A list that grows by each call of a method, which a compiled one is traced by."""
    calls, method = [], getattr(model, name)

    def counted(*args, **kwargs):
        calls.append(name)
        return method(*args, **kwargs)

    object.__setattr__(model, name, counted)
    return calls


def assert_few(calls):
    if backend.backend() != "torch":  # nothing is compiled
        assert len(calls) <= 4 + 2  # and the powers of two, 8 and 16


@pytest.mark.parametrize(
    "name, method, traced",
    zoo.cases(
        [
            ("fvbn", "log_prob", "params"),
            ("vae-conditional", "log_prob", "posterior"),
        ],
        [
            ("made", "logits", "params"),
            ("vae-conditional", "elbo", "posterior"),
            ("gan", "generate", "make"),
        ],
    ),
)
def test_many_batch_sizes_need_few_programs(name, method, traced, digits, digit_labels):
    model = zoo.randomize(zoo.new(name))
    calls, fn = count_calls(model, traced), getattr(model, method)
    rows = zoo.inputs(model, digits[:16], digit_labels[:16])
    if method == "generate":
        rows = (np.linspace(-2.0, 2.0, 48, dtype="float32").reshape(16, 3),)

    def labels(n):
        return {} if len(rows) == 1 else {"labels": rows[1][:n]}

    def result(n):
        return numpy(fn(rows[0][:n], **labels(n)))

    whole = result(16)
    for n in SIZES:
        np.testing.assert_allclose(result(n), whole[:n], rtol=1e-5, atol=1e-4)
    assert_few(calls)


def test_many_numbers_of_samples_need_few_programs(digits, monkeypatch):
    monkeypatch.setattr(kgen.metrics, "_MAX_ROWS", 12)  # six samples at once
    model = zoo.randomize(zoo.new("vae"))
    calls = count_calls(model, "_log_px")
    x = tensor(digits[:2], "int32")
    keys, streams = kgen.random.image_keys(x), tensor(np.arange(16), "int32")
    weights = numpy(model.log_weights(x, keys, streams))  # (2, 16)
    for k in SIZES:
        expected = logsumexp(weights[:, :k], axis=1) - np.log(k)
        np.testing.assert_allclose(numpy(model.log_prob(x, k)), expected, rtol=1e-5)
    assert_few(calls[1:])
