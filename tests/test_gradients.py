"""Results of the models' methods carry no graph unless they are asked for one."""

import numpy as np
import pytest
import zoo
from scipy.special import expit
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
def test_results_have_a_graph_on_request_alone(name, method, digits, digit_labels):
    """Arrays without one. Under torch.no_grad() of the caller's, not even then."""
    model = shared(name, SHAPE, LEVELS, CLASSES if "-" in name else None)
    given = model, method, digits[:2], digit_labels[:2]
    assert np.isfinite(np.asarray(result(*given))).all()  # raises if it has a graph
    if backend.name == "torch":
        import torch

        assert result(*given, gradients=True).requires_grad
        with torch.no_grad():
            assert not result(*given, gradients=True).requires_grad


def test_gradients_on_request_are_derivatives(binary):
    """d log p(x) / d bias is x - p, with p the probability of 1."""
    model = zoo.tiny("fvbn", SHAPE, 2)
    x, bias = binary[:4], model.trainable_variables[-1]

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
    expected = (x - expit(numpy(model.logits(x)))).sum(0).reshape(bias.shape)
    np.testing.assert_allclose(numpy(gradient), expected, rtol=1e-4, atol=1e-5)
