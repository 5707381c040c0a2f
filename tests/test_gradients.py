"""Results of the models' methods carry no graph unless they are asked for one."""

import numpy as np
import pytest
import zoo
from zoo import CLASSES, LEVELS, SHAPE, numpy, shared

from kgen import backend

Z = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
METHODS = {
    "nade": ("log_prob", "logits"),
    "made": ("log_prob", "logits"),
    "vae-conditional": ("elbo", "log_prob", "encode", "decode", "reconstruct"),
    "gan-critic": ("generate", "discriminate"),
}
CASES = [(name, method) for name in METHODS for method in METHODS[name]]


def result(model, method, x, y, **kwargs):
    given = Z if method in ("decode", "generate") else x
    labels = {} if model.num_classes is None else {"labels": y}
    out = getattr(model, method)(given, **labels, **kwargs)
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.portable
@pytest.mark.parametrize("name, method", CASES)
def test_results_become_arrays(name, method, digits, digit_labels):
    model = shared(name, SHAPE, LEVELS, CLASSES if "-" in name else None)
    out = result(model, method, digits[:2], digit_labels[:2])
    assert np.isfinite(np.asarray(out)).all()


@pytest.mark.skipif(backend.name != "torch", reason="the graph is PyTorch's")
@pytest.mark.parametrize("name, method", CASES)
def test_graphs_are_kept_on_request(name, method, digits, digit_labels):
    """Under torch.no_grad() of the caller's, not even then."""
    import torch

    model = shared(name, SHAPE, LEVELS, CLASSES if "-" in name else None)
    x, y = digits[:2], digit_labels[:2]
    assert not result(model, method, x, y).requires_grad
    assert result(model, method, x, y, gradients=True).requires_grad
    with torch.no_grad():
        assert not result(model, method, x, y, gradients=True).requires_grad


def test_gradients_on_request_are_derivatives(digits):
    """d log p(x) / d bias by automatic and by finite differences."""
    model = zoo.tiny("fvbn", SHAPE, 2)
    x, bias = (digits[:4] > 7).astype("uint8"), model.trainable_variables[-1]

    def total():
        return model.log_prob(x, gradients=True).sum()

    if backend.name == "torch":
        import torch

        gradient = torch.autograd.grad(total(), bias.value)[0]
    elif backend.name == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            y = tf.reduce_sum(model.log_prob(x))
        gradient = tape.gradient(y, bias.value)
    else:
        import jax
        import keras

        def of_bias(value):
            with keras.StatelessScope([(bias, value)]):
                return model.log_prob(x).sum()

        gradient = jax.grad(of_bias)(bias.value)
    value, direction = numpy(bias), np.cos(np.arange(np.size(bias))).reshape(bias.shape)
    ends = []
    for step in (1e-2, -1e-2):
        bias.assign(value + step * direction)
        ends.append(float(numpy(model.log_prob(x)).sum()))
    slope = (ends[0] - ends[1]) / 2e-2
    assert slope == pytest.approx(float((numpy(gradient) * direction).sum()), rel=1e-3)
