"""The watch over adversarial games."""

import warnings

import numpy as np
import pytest
from families import FAMILIES

from kgen.callbacks import CollapseGuard


def game(name="gan"):
    model = FAMILIES[name]()
    model.compile("adam")
    return model


def logs_of(epochs, **values):
    return [values] * epochs


def watched(guard, model, all_logs):
    """Epochs that `guard` lets pass, of these logs; and what it says."""
    guard.set_model(model)
    model.stop_training = False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RuntimeWarning)
        guard.on_train_begin()
        for epoch, logs in enumerate(all_logs):
            guard.on_train_batch_end(0, logs)
            guard.on_epoch_end(epoch, logs)
            if model.stop_training:
                return epoch + 1, [str(w.message) for w in said]
    return None, [str(w.message) for w in said]


SURE = {"accuracy_real": 0.995, "accuracy_generated": 1.0}


def test_a_saturated_discriminator_ends_the_game_after_patience():
    guard = CollapseGuard(patience=3, n=0)
    ended, said = watched(guard, game(), logs_of(9, **SURE))
    assert ended == 3 and len(said) == 1
    assert "for 3 epochs" in said[0] and "99.5%" in said[0] and "Try" in said[0]
    half = SURE | {"accuracy_generated": 0.5}
    epochs = logs_of(2, **SURE) + logs_of(1, **half) + logs_of(2, **SURE)
    assert watched(guard, game(), epochs) == (None, [])


def test_a_warning_alone_is_given_once():
    guard = CollapseGuard(patience=2, n=0, stop=False)
    ended, said = watched(guard, game(), logs_of(6, **SURE))
    assert ended is None and len(said) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_ends_it_at_once(value):
    ended, said = watched(CollapseGuard(n=0), game(), [{"generator_loss": value}])
    assert ended == 1 and "generator_loss is not finite at batch 1" in said[0]


@pytest.mark.parametrize("name", ["gan", "gan-critic"])
def test_samples_that_are_all_the_same_end_it(name):
    model = game(name)
    critic = logs_of(4, critic_difference=100.0, loss=0.0)
    assert watched(CollapseGuard(patience=2), model, critic) == (None, [])
    for v in model.generator.weights + getattr(model, "average", model).weights:
        v.assign(0.0 * v)
    ended, said = watched(CollapseGuard(patience=2), model, critic)
    assert ended == 2 and "16 samples have been all but one image" in said[0]


def test_an_average_that_has_just_begun_is_no_collapse():
    """It begins as the new generator's one grey image."""
    model = game()
    for v in model.average.weights:
        v.assign(0.0 * v)
    epochs = logs_of(4, loss=1.0)
    assert watched(CollapseGuard(patience=2), model, epochs) == (None, [])


def test_it_works_in_fit_and_says_where_a_nan_came_from(digits):
    model = game()
    model.fit(digits[:64], epochs=2, verbose=0, callbacks=[CollapseGuard()])
    model.discriminator.trainable_variables[0].assign(
        np.nan * model.discriminator.trainable_variables[0]
    )
    with pytest.warns(RuntimeWarning, match="is not finite at batch 1"):
        history = model.fit(
            digits[:64], epochs=3, verbose=0, callbacks=[CollapseGuard(n=0)]
        )
    assert len(history.epoch) == 1


def test_wrong_arguments_are_told():
    for arguments in ({"accuracy": 0.3}, {"n": 1}, {"n": -1}, {"patience": 0}):
        with pytest.raises(ValueError):
            CollapseGuard(**arguments)
