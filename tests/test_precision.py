"""Half precision in an exact model, a VAE and a GAN: training ends near float32, sums
are in float32, overflowing steps are skipped. And NaN ends `fit`. That a loss is scaled
before it is differentiated is in test_train_step.py too."""

import itertools

import keras
import numpy as np
import pytest
import zoo
from keras.optimizers import SGD, LossScaleOptimizer
from zoo import cases, numpy

from kgen.callbacks import StopOnNaN

BFLOAT16, FLOAT16 = "mixed_bfloat16", "mixed_float16"
FIT = {"batch_size": 32, "epochs": 3, "shuffle": False, "verbose": 0}

KINDS = {
    "made": {},
    "gated": {"filters": 4, "num_blocks": 1},
    "vae": {"latent_dim": 200},
    "gan-critic": {"loss": "non_saturating", "discriminator_steps": 1},
    "gan": {},
}
DEFAULT = [("made", BFLOAT16), ("vae", FLOAT16), ("gan-critic", FLOAT16)]
FURTHER = itertools.product(KINDS, (BFLOAT16, FLOAT16))


def check_kl(model, x):
    """Of 200 latents: summed in half precision it would be off by a thousandth."""
    mean, log_var = (numpy(v).astype("float64") for v in model.encode(x))
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0).sum(axis=-1)
    reported = model.evaluate(x, verbose=0)["kl_nats"]
    assert reported == pytest.approx(kl.mean(), rel=2e-5)


def fit(model, *data, **options):
    """Whether `fit` changes each trainable variable."""
    before = [numpy(v) for v in model.trainable_variables]
    model.fit(*data, **options)
    pairs = zip(model.trainable_variables, before, strict=True)
    return [np.any(numpy(v) != b) for v, b in pairs]


def train(kind, policy, images, labels):
    """A model after three epochs of ten batches, its data, and its scores."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    model = zoo.new(kind, **KINDS[kind])
    data = zoo.inputs(model, images, labels)
    optimizer = keras.optimizers.Adam(3e-3)
    if policy == FLOAT16 and not kind.startswith("gan"):
        # By default the first steps of 2**15 overflow, and training begins after them.
        optimizer = LossScaleOptimizer(optimizer, initial_scale=2.0**7)
    model.compile(optimizer)
    if kind == "vae":
        check_kl(model, *data)
    assert all(fit(model, *data, **FIT))
    return model, data, model.evaluate(*data, verbose=0)


@pytest.mark.parametrize("kind, policy", cases(DEFAULT, FURTHER))
def test_half_precision_training_ends_near_float32(kind, policy, digits, digit_labels):
    """A VAE also sums its KL in float32; steps that overflow float16 are skipped."""
    *_, expected = train(kind, "float32", digits, digit_labels)
    model, data, scores = train(kind, policy, digits, digit_labels)
    assert model.compute_dtype == policy.removeprefix("mixed_")
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    if kind.startswith("gan"):  # its networks are in half precision, its losses are not
        limits = {"discriminator_loss": 0.02, "generator_loss": 0.02}
    else:
        limits = {"loss": 0.005, "bits_per_dim": 0.005}
    for name, relative in limits.items():
        assert scores[name] == pytest.approx(expected[name], rel=relative)
    if policy == FLOAT16:
        check_overflow(model, *(a[:32] for a in data))


def check_overflow(model, *batch):
    """A step whose scaled loss overflows is skipped, and the scale is halved."""
    optimizer = model.optimizer
    members = getattr(optimizer.inner_optimizer, "optimizers", [])
    assert all(int(m.iterations) >= 27 for m in members)  # of 30: the first overflow
    optimizer.dynamic_scale.assign(2.0**60)
    assert not any(fit(model, *batch, verbose=0))
    steps = max(1, len(members))  # in a batch, one for each network
    assert float(optimizer.dynamic_scale) == 2.0 ** (60 - steps)
    optimizer.dynamic_scale.assign(2.0**5)
    assert any(fit(model, *batch, verbose=0))
    assert all(np.all(np.isfinite(numpy(v))) for v in model.trainable_variables)


FURTHER = [("gated", "nll_nats"), ("gan", "discriminator_loss")]


@pytest.mark.parametrize("kind, first", cases([("vae", "elbo_nats")], FURTHER))
def test_nan_ends_fit_with_the_name_of_the_metric(kind, first, digits, digit_labels):
    """Keras' own TerminateOnNaN, which ends it quietly, is in test_resume.py."""
    model, weight = zoo.new(kind, **KINDS[kind]), np.ones(96, "float32")
    model.compile(SGD(1e-4))
    weight[40] = np.nan  # of the second batch
    x = zoo.inputs(model, digits[:96], digit_labels[:96])
    with pytest.raises(FloatingPointError) as error:
        model.fit(*x, sample_weight=weight, **FIT)
    message = str(error.value)
    assert "is nan after batch 2 of epoch 1" in message and "sample weights" in message
    assert first in message and not message.startswith("loss")


@pytest.mark.once
def test_the_metric_that_is_not_finite_is_named():
    """An infinite KL beside a finite reconstruction; metrics may be of any shape."""
    guard = StopOnNaN(first_batch=6)
    guard.on_train_begin()
    guard.on_epoch_begin(2)
    guard.on_train_batch_end(0, {"loss": 1.0, "f1": np.ones(3)})
    bad = {"loss": 1.0, "f1": np.array([1.0, np.nan, 0.0])}
    with pytest.raises(FloatingPointError, match="f1 is .* after batch 8 of epoch 3"):
        guard.on_train_batch_end(1, bad)
    bad = {"loss": np.nan, "kl_nats": np.inf, "reconstruction_nats": 1.0}
    with pytest.raises(FloatingPointError, match=r"^kl_nats is inf.*\(and loss\)"):
        guard.on_train_batch_end(1, bad)
