"""Several optimizers behind one (trap 2): state, resume, Keras' callbacks."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny_gan import TinyGAN, compiled, weights

from kgen.optimizers import Alternating

Adam = keras.optimizers.Adam


def numpy(x):
    return ops.convert_to_numpy(x)


def state(model):
    return [numpy(v).copy() for v in model.optimizer.variables]


def test_both_members_state_is_the_composites(digits):
    model = compiled()
    model.fit(digits[:64], batch_size=32, verbose=0)
    generator, discriminator = model.optimizer.optimizers
    assert model.optimizer.variables == generator.variables + discriminator.variables
    assert int(generator.iterations) == int(discriminator.iterations) == 2
    assert int(model.optimizer.iterations) == 2
    # moments of each network's variables, in the network's own member, all moved
    for member, network in zip(
        (generator, discriminator), (model.generator, model.discriminator), strict=True
    ):
        assert len(member.variables) == 2 + 2 * len(network.trainable_variables)
        assert all(np.any(numpy(v) != 0) for v in member.variables)


def test_each_member_is_its_own_optimizer(digits):
    """A rate of zero for one network leaves it as it was, and the other trains."""
    for still in ("generator", "discriminator"):
        rates = {"generator": 1e-2, "discriminator": 1e-2} | {still: 0.0}
        model = TinyGAN()
        model.compile(
            Alternating(**{k: keras.optimizers.SGD(v) for k, v in rates.items()})
        )
        before = {k: [numpy(v).copy() for v in getattr(model, k).trainable_variables]
                  for k in rates}  # fmt: skip
        model.fit(digits[:64], verbose=0)
        for k in rates:
            after = [numpy(v) for v in getattr(model, k).trainable_variables]
            same = [np.array_equal(a, b) for a, b in zip(after, before[k], strict=True)]
            assert all(same) if k == still else not any(same)


def test_saved_models_load_with_both_optimizers(digits, tmp_path):
    model = compiled()
    model.fit(digits, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.compiled and isinstance(loaded.optimizer, Alternating)
    for a, b in zip(state(model), state(loaded), strict=True):
        np.testing.assert_array_equal(a, b)
    for m in (model, loaded):
        m.fit(digits[:64], shuffle=False, verbose=0)
    for a, b in zip(weights(model), weights(loaded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_interrupted_run_resumes_both_optimizers(digits, tmp_path):
    """Two epochs, a new process's model, two more: as four uninterrupted ones."""
    from kgen.data import Batches

    def fit(model, epochs, **kwargs):
        model.fit(
            Batches(digits, batch_size=64, seed=1), epochs=epochs, verbose=0, **kwargs
        )

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    whole = compiled()
    fit(whole, 4)
    keras.utils.set_random_seed(0)
    fit(compiled(), 2, callbacks=[backup()])
    keras.utils.set_random_seed(9)
    resumed = compiled()
    fit(resumed, 4, callbacks=[backup()])
    for a, b in zip(state(whole), state(resumed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_keras_callbacks_take_it(digits, tmp_path):
    config = Adam(1e-3, use_ema=True, ema_momentum=0.5)
    model = compiled(config)
    logs = model.fit(
        digits,
        validation_data=digits[:64],
        epochs=3,
        verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch, lr: lr * 0.5),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=100),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            keras.callbacks.TensorBoard(tmp_path / "tb", update_freq=1),
            keras.callbacks.EarlyStopping(patience=100),
        ],
    ).history
    rates = [float(numpy(o.learning_rate)) for o in model.optimizer.optimizers]
    np.testing.assert_allclose(rates, 1e-3 / 8, rtol=1e-5)
    assert list((tmp_path / "tb").rglob("events*")) and len(logs["val_loss"]) == 3
    averages = [
        a for o in model.optimizer.optimizers for a in o._model_variables_moving_average
    ]
    trainable = model.generator.trainable_variables
    trainable = trainable + model.discriminator.trainable_variables
    assert len(averages) == len(trainable)


def test_mixed_float16_scales_the_loss_of_both(digits):
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled()
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = weights(model)
    model.fit(digits, epochs=2, verbose=0)
    moved = [np.any(a != b) for a, b in zip(weights(model), before, strict=True)]
    assert all(moved)
    steps = [int(o.iterations) for o in model.optimizer.inner_optimizer.optimizers]
    assert min(steps) >= 18  # of 20; too large a scale skips the first


def test_gradient_accumulation_and_clipping_stay_each_members(digits):
    model = compiled(Adam(1e-2, gradient_accumulation_steps=2, clipnorm=1.0))
    before = weights(model)
    model.fit(digits[:32], verbose=0)
    trainable = [v.trainable for v in model.weights]
    for a, b, t in zip(weights(model), before, trainable, strict=True):
        assert not t or np.array_equal(a, b)  # one of two steps: nothing applied yet
    model.fit(digits[:32], verbose=0)
    assert all(
        np.any(a != b)
        for a, b, t in zip(weights(model), before, trainable, strict=True)
        if t
    )


def test_config_round_trip():
    optimizer = Alternating(a=Adam(1e-3), b=keras.optimizers.SGD(0.1, momentum=0.9))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert list(again.members) == ["a", "b"] and again.name == optimizer.name
    assert isinstance(again.members["a"], Adam)
    assert isinstance(again.members["b"], keras.optimizers.SGD)
    assert again.members["b"].momentum == 0.9


def test_wrong_use_is_told():
    with pytest.raises(ValueError, match="a member for each network"):
        Alternating()
    one = Adam()
    with pytest.raises(ValueError, match="share one optimizer instance"):
        Alternating(a=one, b=one)
    with pytest.raises(ValueError, match="optimizer of 'a' scales the loss"):
        Alternating(a=Adam(loss_scale_factor=8.0))
    with pytest.raises(ValueError, match="has no such network"):
        TinyGAN().compile(Alternating(generator="adam", critic="adam"))
    with pytest.raises(ValueError, match="belongs to no network"):
        model = TinyGAN()
        model.compile(Alternating(generator="adam"))
        model.optimizer.build(model.trainable_variables)
