"""Half precision, for an exact model, a VAE and a GAN: sums in float32, losses scaled,
overflowing steps skipped; and training that ends where numbers do."""

import keras
import numpy as np
import pytest
from families import FAMILIES, arguments
from keras import ops

import kgen

POLICIES = ["mixed_bfloat16", "mixed_float16"]
KINDS = ["gated", "vae", "gan"]


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


def trained(kind, policy, digits, labels):
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    model = FAMILIES[kind]()
    rule = keras.optimizers.Adam(3e-3)
    if policy == "mixed_float16" and kind != "gan":
        # By default the first steps of 2**15 overflow, and training begins after them.
        rule = keras.optimizers.LossScaleOptimizer(rule, initial_scale=2.0**7)
    model.compile(rule)
    data = arguments(model, digits, labels)
    model.fit(*data, epochs=3, batch_size=32, shuffle=False, verbose=0)
    return model, model.evaluate(*data, verbose=0)


@pytest.fixture(scope="module")
def in_float32(digits, digit_labels):
    results = {k: trained(k, "float32", digits, digit_labels)[1] for k in KINDS}
    keras.config.set_dtype_policy("float32")
    return results


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.feature("half")
def test_training_ends_near_float32(kind, policy, digits, digit_labels, in_float32):
    if kind == "gan":  # whose networks are in half precision, its losses are not
        limit = {"discriminator_loss": 0.02, "generator_loss": 0.02}
    else:
        limit = {"loss": 0.005, "bits_per_dim": 0.005}
    model, scores = trained(kind, policy, digits, digit_labels)
    assert model.compute_dtype == policy.removeprefix("mixed_")
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    for name, relative in limit.items():
        assert scores[name] == pytest.approx(in_float32[kind][name], rel=relative)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_kl_is_summed_in_float32(policy, digits):
    """200 latents: summed in half precision it would be off by a thousandth."""
    keras.config.set_dtype_policy(policy)
    model = kgen.models.VAE((8, 8, 1), 17, latent_dim=200, hidden_units=(8,))
    model.compile("sgd")
    mean, log_var = (numpy(v).astype("float64") for v in model.encode(digits))
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0).sum(axis=-1)
    reported = model.evaluate(digits, verbose=0)["kl_nats"]
    assert reported == pytest.approx(kl.mean(), rel=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.feature("half")
def test_overflowing_steps_are_skipped(kind, digits, digit_labels):
    """Too large a scale: nothing is learned from such a step, and the scale halves."""
    keras.config.set_dtype_policy("mixed_float16")
    model = FAMILIES[kind]()
    model.compile(keras.optimizers.SGD(1e-3))
    data = [a[:32] for a in arguments(model, digits, digit_labels)]
    model.optimizer.dynamic_scale.assign(2.0**60)
    before = [numpy(v) for v in model.trainable_variables]
    model.fit(*data, verbose=0)
    for v, b in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(numpy(v), b)
    assert 2.0**58 <= float(model.optimizer.dynamic_scale) < 2.0**60
    model.optimizer.dynamic_scale.assign(2.0**5)
    model.fit(*data, verbose=0)
    after = [numpy(v) for v in model.trainable_variables]
    assert all(np.all(np.isfinite(v)) for v in after)
    assert any(np.any(v != b) for v, b in zip(after, before, strict=True))


FIRST_BAD = {"gated": "nll_nats", "vae": "elbo_nats", "gan": "discriminator_loss"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.feature("nan")
def test_nan_in_data_stops_and_names_the_metric(kind, digits, digit_labels):
    model = FAMILIES[kind]()
    model.compile(keras.optimizers.SGD(1e-4))
    weight = np.ones(96, "float32")
    weight[40] = np.nan  # of the second batch
    data = [a[:96] for a in arguments(model, digits, digit_labels)]
    with pytest.raises(FloatingPointError) as error:
        model.fit(*data, sample_weight=weight, batch_size=32, shuffle=False, verbose=0)
    words = str(error.value)
    assert "is nan after batch 2 of epoch 1" in words and "sample weights" in words
    assert FIRST_BAD[kind] in words and not words.startswith("loss")


def test_the_metric_named_is_the_one_that_is_bad(digits):
    """An infinite KL beside a finite reconstruction."""
    model = FAMILIES["vae"]()
    model.compile("sgd")

    class Broken(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            logs |= {"kl_nats": np.inf, "loss": np.nan}

    guard = kgen.callbacks.StopOnNaN()
    with pytest.raises(FloatingPointError, match=r"^kl_nats is inf.*\(and loss\)"):
        model.fit(digits, verbose=0, callbacks=[Broken(), guard])


def test_metrics_of_ones_own_layers_may_be_of_any_shape(digits):
    guard = kgen.callbacks.StopOnNaN(first_batch=6)
    guard.on_train_begin()
    guard.on_epoch_begin(2)
    guard.on_train_batch_end(0, {"loss": 1.0, "f1": np.ones(3)})
    bad = {"loss": 1.0, "f1": np.array([1.0, np.nan, 0.0])}
    with pytest.raises(FloatingPointError, match="f1 is .* after batch 8 of epoch 3"):
        guard.on_train_batch_end(1, bad)


def test_a_diverging_run_stops(digits):
    model = FAMILIES["pixel-cnn"]()
    model.compile(keras.optimizers.SGD(1e18))
    with pytest.raises(FloatingPointError, match=r"nll_nats|bits_per_dim"):
        model.fit(digits, epochs=20, batch_size=32, verbose=0)


def test_whoever_sees_to_it_is_left_to(digits):
    """Keras' own callback ends the training without an error."""
    model = FAMILIES["vae"]()
    model.compile("sgd")
    weight = np.full(len(digits), np.nan, "float32")
    logs = model.fit(
        digits,
        sample_weight=weight,
        epochs=3,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN()],
    ).history
    assert len(logs["loss"]) == 1
