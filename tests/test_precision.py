"""Half precision in an exact model, a VAE and a GAN: training ends near float32, sums
are in float32, losses are scaled, overflowing steps are skipped. And NaN ends `fit`."""

import functools

import keras
import numpy as np
import pytest
import zoo
from keras import ops
from sklearn.datasets import load_digits
from zoo import numpy

import kgen
from kgen import backend
from kgen.callbacks import StopOnNaN

BFLOAT16, FLOAT16 = "mixed_bfloat16", "mixed_float16"
slow = pytest.mark.exhaustive

# Variants and arguments: two exact models, a VAE, two GANs
KINDS = {
    "made": {},
    "gated": {"filters": 4, "num_blocks": 1},
    "vae": {"latent_dim": 200},
    "gan-critic": {"loss": "non_saturating", "discriminator_steps": 1},
    "gan": {},
}
DEFAULT = {("made", BFLOAT16), ("vae", FLOAT16), ("gan-critic", FLOAT16)}


@functools.cache
def data(kind):
    digits = load_digits()
    images = digits.images[:320].astype("uint8")[..., None]
    labels = digits.target[:320]
    return (images,) if kind in ("made", "vae", "gan") else (images, labels)


def check_kl(model, x):
    """Of 200 latents: summed in half precision it would be off by a thousandth."""
    mean, log_var = (numpy(v).astype("float64") for v in model.encode(x))
    kl = 0.5 * (mean**2 + np.exp(log_var) - log_var - 1.0).sum(axis=-1)
    reported = model.evaluate(x, verbose=0)["kl_nats"]
    assert reported == pytest.approx(kl.mean(), rel=2e-5)


def changed(model, before):
    """Whether each trainable variable differs from its earlier value."""
    pairs = zip(model.trainable_variables, before, strict=True)
    return [np.any(numpy(v) != b) for v, b in pairs]


def train(kind, policy):
    """A model after three epochs of ten batches, and its scores."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    model = zoo.new(kind, **KINDS[kind])
    before = [numpy(v).copy() for v in model.trainable_variables]
    optimizer = keras.optimizers.Adam(3e-3)
    if policy == FLOAT16 and not kind.startswith("gan"):
        # By default the first steps of 2**15 overflow, and training begins after them.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**7)
    model.compile(optimizer)
    if kind == "vae":
        check_kl(model, *data(kind))
    fitting = {"batch_size": 32, "shuffle": False, "verbose": 0}
    model.fit(*data(kind), epochs=3, **fitting)
    assert all(changed(model, before))
    return model, model.evaluate(*data(kind), verbose=0)


@functools.cache
def float32_scores(kind):
    return train(kind, "float32")[1]


@pytest.mark.parametrize(
    "kind, policy",
    [
        pytest.param(*pair, marks=() if pair in DEFAULT else slow)
        for pair in ((kind, policy) for kind in KINDS for policy in (BFLOAT16, FLOAT16))
    ],
)
def test_half_precision_training_ends_near_float32(kind, policy):
    """A VAE also sums its KL in float32; steps that overflow float16 are skipped."""
    expected = float32_scores(kind)
    model, scores = train(kind, policy)
    assert model.compute_dtype == policy.removeprefix("mixed_")
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    if kind.startswith("gan"):  # its networks are in half precision, its losses are not
        limits = {"discriminator_loss": 0.02, "generator_loss": 0.02}
    else:
        limits = {"loss": 0.005, "bits_per_dim": 0.005}
    for name, relative in limits.items():
        assert scores[name] == pytest.approx(expected[name], rel=relative)
    if policy == FLOAT16:
        check_overflow(model, *data(kind))


def check_overflow(model, *data):
    """A step whose scaled loss overflows is skipped, and the scale is halved."""
    batch, optimizer = [a[:32] for a in data], model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    members = getattr(optimizer.inner_optimizer, "optimizers", [])
    assert all(int(m.iterations) >= 27 for m in members)  # of 30: the first overflow
    before = [numpy(v).copy() for v in model.trainable_variables]
    optimizer.dynamic_scale.assign(2.0**60)
    model.fit(*batch, verbose=0)
    assert not any(changed(model, before))
    steps = max(1, len(members))  # in a batch, one for each network
    assert float(optimizer.dynamic_scale) == 2.0 ** (60 - steps)
    optimizer.dynamic_scale.assign(2.0**5)
    model.fit(*batch, verbose=0)
    assert any(changed(model, before))
    assert all(np.all(np.isfinite(numpy(v))) for v in model.trainable_variables)


class SmallGradient(kgen.models.GenerativeModel):
    """Minimizes 1e-7 sum(w) / 100, the quotient in half precision."""

    def __init__(self):
        super().__init__((1, 1, 1))
        self.w = self.add_weight(shape=(2,), initializer="ones", dtype="float32")
        self.seen = keras.metrics.Mean("seen")
        self.built = True

    @backend.step
    def train_step(self, data):
        def loss():
            small = ops.cast(self.w, "float16") * 1e-2
            return ops.sum(ops.cast(small, "float32")) * 1e-7, ops.zeros(())

        self.seen.update_state(self.minimize(loss)[0])
        return self.get_metrics_result()

    def call(self, x):
        return x


def test_losses_are_scaled_before_differentiation():
    """In float16 a gradient of 1e-7 times 1e-2 is zero, unless the loss is scaled."""
    keras.config.set_dtype_policy(FLOAT16)
    model = SmallGradient()
    model.compile(keras.optimizers.SGD(1e9))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    logs = model.fit(np.zeros((4, 1, 1, 1), "uint8"), verbose=0).history
    np.testing.assert_allclose(numpy(model.w), 1.0 - 1e9 * 1e-2 * 1e-7, atol=2e-2)
    assert logs["seen"][0] == pytest.approx(2e-2 * 1e-7, rel=2e-2)  # reported unscaled


# NaN


FIRST_BAD = {"gated": "nll_nats", "vae": "elbo_nats", "gan": "discriminator_loss"}


@pytest.mark.parametrize(
    "kind", ["vae", pytest.param("gated", marks=slow), pytest.param("gan", marks=slow)]
)
def test_nan_ends_fit_with_the_name_of_the_metric(kind):
    """Keras' own TerminateOnNaN, where given, ends it without an error."""
    model, weight = zoo.new(kind, **KINDS[kind]), np.ones(96, "float32")
    model.compile(keras.optimizers.SGD(1e-4))
    weight[40] = np.nan  # of the second batch
    fitting = {"sample_weight": weight, "batch_size": 32, "shuffle": False}
    fitting |= {"epochs": 3, "verbose": 0}
    x, before = [a[:96] for a in data(kind)], model.get_weights()
    quiet = [keras.callbacks.TerminateOnNaN()]
    assert len(model.fit(*x, callbacks=quiet, **fitting).history["loss"]) == 1
    model.set_weights(before)
    with pytest.raises(FloatingPointError) as error:
        model.fit(*x, **fitting)
    message = str(error.value)
    assert "is nan after batch 2 of epoch 1" in message and "sample weights" in message
    assert FIRST_BAD[kind] in message and not message.startswith("loss")


def test_a_diverging_run_raises():
    model = zoo.new("vae")
    model.compile(keras.optimizers.SGD(1e18))
    with pytest.raises(FloatingPointError, match="elbo_nats|reconstruction_nats"):
        model.fit(*data("vae"), epochs=20, batch_size=32, verbose=0)


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
