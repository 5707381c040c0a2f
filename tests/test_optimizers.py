"""An optimizer per network behind one: learning rates, Keras' callbacks, wrong use. Its
updates are compared with Keras' own in test_stock.py, that a file keeps its members is
in test_gan.py, loss scaling in test_precision.py, resuming in test_journey.py."""

import keras
import numpy as np
import pytest
import zoo
from keras.optimizers import Adam
from zoo import numpy

from kgen.optimizers import Alternating

NETWORKS = "generator", "discriminator"


def gan(optimizer):
    model = zoo.new(
        "gan-critic", num_classes=None, loss="non_saturating", discriminator_steps=1
    )
    model.compile(optimizer)
    return model


def test_each_network_follows_its_own_optimizer(digits):
    """The generator's accumulates two steps; then one rate is zero, then the other."""
    slow = Adam(1e-2, gradient_accumulation_steps=2, clipnorm=1.0)
    model = gan(Alternating(generator=slow, discriminator=Adam(1e-2)))

    def changed():
        """The networks that a step changes, all of their weights or none."""
        before = {k: zoo.weights(getattr(model, k)) for k in NETWORKS}
        model.fit(digits[:32], verbose=0)
        moved = []
        for name in NETWORKS:
            pairs = zip(zoo.weights(getattr(model, name)), before[name], strict=True)
            (one,) = {bool(np.any(v != b)) for v, b in pairs}
            moved += [name] * one
        return moved

    assert changed() == ["discriminator"]
    assert changed() == ["generator", "discriminator"]
    members = model.optimizer.members
    members["discriminator"].learning_rate = 0.0
    assert [changed(), changed()] == [[], ["generator"]]
    members["generator"].learning_rate = 0.0
    members["discriminator"].learning_rate = 1e-2
    assert [changed(), changed()] == [["discriminator"]] * 2


def test_members_keep_their_state_and_follow_keras_callbacks(digits):
    model = gan(Adam(1e-3, use_ema=True, ema_momentum=0.5))
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
    ]
    model.fit(digits[:64], epochs=3, verbose=0, callbacks=callbacks)
    members = model.optimizer.optimizers
    assert model.optimizer.variables == members[0].variables + members[1].variables
    assert int(model.optimizer.iterations) == 6
    # moments and averages of each network's variables, in its own member, all moved
    for member, name in zip(members, NETWORKS, strict=True):
        assert int(member.iterations) == 6
        assert float(member.learning_rate) == pytest.approx(1e-3 / 8, rel=1e-5)
        variables = getattr(model, name).trainable_variables
        assert len(member.variables) == 2 + 3 * len(variables)
        assert all(np.any(numpy(v) != 0) for v in member.variables)


def test_wrong_members_raise():
    one = Adam()
    for words, members in (
        ("a member for each network", {}),
        ("share one optimizer instance", {"generator": one, "discriminator": one}),
        ("of 'a' scales the loss", {"a": Adam(loss_scale_factor=8.0)}),
        ("has no such network", {"generator": "adam", "critic": "adam"}),
        ("belongs to no network", {"generator": "adam"}),
    ):
        with pytest.raises(ValueError, match=words):
            gan(Alternating(**members))
