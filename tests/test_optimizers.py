"""An optimizer per network behind one: state, learning rates, Keras' callbacks, wrong
use. Its updates are compared with Keras' own in test_stock.py, loss scaling is in
test_precision.py, and that a run resumes exactly in test_journey.py."""

import keras
import numpy as np
import pytest
import zoo
from zoo import numpy

from kgen.optimizers import Alternating

Adam, SGD = keras.optimizers.Adam, keras.optimizers.SGD
NETWORKS = "generator", "discriminator"


def gan(*args, **kwargs):
    model = zoo.new(
        "gan-critic", num_classes=None, loss="non_saturating", discriminator_steps=1
    )
    if args or kwargs:
        model.compile(*args, **kwargs)
    return model


def test_each_network_follows_its_own_optimizer(digits):
    """The generator's accumulates two steps; then one rate is zero, then the other."""
    model = gan(
        Alternating(
            generator=Adam(1e-2, gradient_accumulation_steps=2, clipnorm=1.0),
            discriminator=Adam(1e-2),
        )
    )

    def changed():
        """The networks that a step changes."""
        before = {k: zoo.weights(getattr(model, k)) for k in NETWORKS}
        model.fit(digits[:32], verbose=0)
        moved = {
            k: [np.any(v != b) for v, b in zip(after, before[k], strict=True)]
            for k, after in ((k, zoo.weights(getattr(model, k))) for k in NETWORKS)
        }
        assert all(all(m) or not any(m) for m in moved.values())
        return [k for k in NETWORKS if all(moved[k])]

    assert changed() == ["discriminator"]
    assert changed() == ["generator", "discriminator"]
    members = model.optimizer.members
    members["discriminator"].learning_rate = 0.0
    assert [changed(), changed()] == [[], ["generator"]]
    members["generator"].learning_rate = 0.0
    members["discriminator"].learning_rate = 1e-2
    assert [changed(), changed()] == [["discriminator"]] * 2


def test_members_keep_their_state_and_follow_keras_callbacks(digits, tmp_path):
    model = gan(Adam(1e-3, use_ema=True, ema_momentum=0.5))
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5),
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=100),
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        keras.callbacks.TensorBoard(tmp_path, update_freq=1),
        keras.callbacks.EarlyStopping(patience=100),
    ]
    x = digits[:64]
    logs = model.fit(x, validation_data=x, epochs=3, verbose=0, callbacks=callbacks)
    assert list(tmp_path.rglob("events*")) and len(logs.history["val_loss"]) == 3
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


def test_config_round_trip():
    optimizer = Alternating(a=Adam(1e-3), b=SGD(0.1, momentum=0.9))
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert list(copy.members) == ["a", "b"] and copy.name == optimizer.name
    assert isinstance(copy.members["a"], Adam) and isinstance(copy.members["b"], SGD)
    assert copy.members["b"].momentum == 0.9


def test_wrong_members_raise():
    with pytest.raises(ValueError, match="a member for each network"):
        Alternating()
    one = Adam()
    with pytest.raises(ValueError, match="share one optimizer instance"):
        Alternating(a=one, b=one)
    with pytest.raises(ValueError, match="optimizer of 'a' scales the loss"):
        Alternating(a=Adam(loss_scale_factor=8.0))
    with pytest.raises(ValueError, match="has no such network"):
        gan(Alternating(generator="adam", critic="adam"))
    with pytest.raises(ValueError, match="belongs to no network"):
        gan(Alternating(generator="adam"))
