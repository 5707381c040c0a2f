"""CollapseGuard: when it ends the training of a GAN, and what it reports."""

import warnings

import keras
import numpy as np
import pytest
import zoo

from kgen.callbacks import CollapseGuard

pytestmark = pytest.mark.portable

CERTAIN = {"accuracy_real": 0.995, "accuracy_generated": 1.0}


def watch(guard, logs, model=None):
    """The epoch after which `guard` stops, of these logs, or None; and its warnings."""
    if model is None:
        model = keras.Sequential()
        model.discriminator = None  # as of a GAN, whose samples nobody asks for
    guard.set_model(model)
    guard.model.stop_training = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        guard.on_train_begin()
        for epoch, values in enumerate(logs):
            guard.on_train_batch_end(0, values)
            guard.on_epoch_end(epoch, values)
            if guard.model.stop_training:
                return epoch + 1, [str(w.message) for w in caught]
    return None, [str(w.message) for w in caught]


@pytest.mark.once
def test_a_saturated_discriminator_ends_after_patience():
    ended, warned = watch(CollapseGuard(patience=3, n=0), [CERTAIN] * 9)
    assert ended == 3 and len(warned) == 1
    for words in ("for 3 epochs", "99.5%", "Try"):
        assert words in warned[0]
    half = CERTAIN | {"accuracy_generated": 0.5}
    logs = [CERTAIN, CERTAIN, half, CERTAIN, CERTAIN]
    assert watch(CollapseGuard(patience=3, n=0), logs) == (None, [])
    ended, warned = watch(CollapseGuard(patience=2, n=0, stop=False), [CERTAIN] * 6)
    assert ended is None and len(warned) == 1


@pytest.mark.once
def test_a_value_that_is_not_finite_ends_at_once():
    for value in (np.nan, np.inf, -np.inf):
        ended, warned = watch(CollapseGuard(n=0), [{"generator_loss": value}])
        assert ended == 1 and "generator_loss is not finite at batch 1" in warned[0]


@pytest.mark.parametrize("name", zoo.GANS)
def test_nearly_identical_samples_end_it(name):
    """Those of the generator: an average begins as the new generator's gray image."""
    model = zoo.new(name, architecture="mlp", width=10)
    logs = [{"critic_difference": 100.0, "loss": 0.0}] * 4
    average = [] if model.ema is None else [model.average]
    for network in (*average, model.generator):
        assert watch(CollapseGuard(patience=2), logs, model) == (None, [])
        picture = np.random.default_rng(0).normal(0, 2, network.weights[-1].shape)
        network.set_weights([0.0 * w for w in zoo.weights(network)[:-1]] + [picture])
    ended, warned = watch(CollapseGuard(patience=2), logs, model)
    assert ended == 2 and "16 samples have been all but one image" in warned[0]


def test_fit_ends_where_a_value_is_not_finite(digits):
    """A gradient of NaN is reported as one: 0 is float16's overflow."""
    model = zoo.new("gan", architecture="mlp", width=10)
    model.compile("adam")
    x, callbacks = digits[:64], [CollapseGuard(n=2)]
    model.fit(x, epochs=2, verbose=0, callbacks=callbacks)
    weights = model.discriminator.trainable_variables[0]
    weights.assign(np.nan * weights)
    with pytest.warns(RuntimeWarning, match="is not finite at batch 1"):
        logs = model.fit(x, epochs=3, verbose=0, callbacks=callbacks).history
    assert len(logs["loss"]) == 1 and np.isnan(logs["generator_gradient_norm"][0])


@pytest.mark.once
def test_wrong_arguments_raise():
    for arguments in ({"accuracy": 0.3}, {"n": 1}, {"n": -1}, {"patience": 0}):
        with pytest.raises(ValueError):
            CollapseGuard(**arguments)
