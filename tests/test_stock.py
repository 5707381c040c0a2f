"""What Keras promises of `compile` and `fit` holds for kgen's own steps: a stock Keras
model that trains the same losses, by its own `train_step` and `compute_loss`, gets the
same weights, optimizer state and loss. On TensorFlow the gated PixelCNN's own step runs
fused functions, the stock model's does not."""

import itertools

import keras
import numpy as np
import pytest
import zoo
from keras import ops
from keras.optimizers import SGD
from zoo import numpy

from kgen import backend
from kgen.optimizers import Alternating


class Stock(keras.Model):
    """A stock model whose output is the loss of each image (B,), which it trains."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.built = True

    def call(self, x, training=False):
        return self.net._terms(x, None, training=training)["loss"]

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        weight = 1.0 if sample_weight is None else sample_weight
        return ops.mean(y_pred * ops.cast(weight, y_pred.dtype))


class StockDiscriminator(Stock):
    """A discriminator with a generator that stands still."""

    def __init__(self, net):
        net.generator.trainable = False
        super().__init__(net)

    def call(self, x, training=False):
        net, n = self.net, ops.shape(x)[0]
        made = net.make(net.prior.draw(n, net.seed_generator), training=training)
        real = net._logits(net._real(x), None, training)
        loss = net.kind.discriminator(real, net._logits(made, None, training))
        # the generator's step, which advances the random state
        made = net.make(net.prior.draw(n, net.seed_generator), training=training)
        return loss + 0.0 * net._logits(made, None, training)


def new(kind):
    if kind == "gated":
        return zoo.new(kind, num_classes=None, filters=4, num_blocks=1)
    if kind == "vae":
        return zoo.new(kind, beta=1.0)
    model = zoo.new("gan-critic", num_classes=None, loss="hinge", discriminator_steps=1)
    for v in model.discriminator.trainable_variables:
        v.assign(20.0 * v)  # the first weights give next to no gradients
    return model


def averaged():
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, 2, 0.5)
    return keras.optimizers.Adam(
        rate, global_clipnorm=1.0, weight_decay=1e-2, use_ema=True, ema_momentum=0.9
    )


def accumulated():
    return SGD(1e-2, momentum=0.9, gradient_accumulation_steps=2, clipvalue=0.02)


def clipped():
    return SGD(1e-2, clipnorm=0.5)


EAGER = None if backend.name == "jax" else "vae"  # JAX takes seven seconds for it

# The optimizer, arguments of our compile alone, whether images have weights, the kind
# of the default suite
CASES = {
    "average, schedule, clipping, decay": (averaged, {}, False, "vae"),
    "gradient accumulation": (accumulated, {}, False, "gan"),
    "steps_per_execution": (clipped, {"steps_per_execution": 3}, False, "vae"),
    "eager": (clipped, {"run_eagerly": True, "jit_compile": False}, False, EAGER),
    "sample_weight": (clipped, {}, True, "gated"),
}


def fit(model, digits, weighted):
    weight = np.linspace(0.0, 2.0, 192).astype("float32") if weighted else None
    kwargs = {"batch_size": 32, "epochs": 2, "shuffle": False, "verbose": 0}
    y = np.zeros(192, "int32")
    return model.fit(digits[:192], y, sample_weight=weight, **kwargs).history


@pytest.mark.parametrize(
    "kind, case",
    zoo.cases(
        [(usual, case) for case, (*_, usual) in CASES.items() if usual],
        itertools.product(("gated", "vae", "gan"), CASES),
    ),
)
def test_training_equals_that_of_a_stock_model(kind, case, digits):
    make_optimizer, compiling, weighted, _ = CASES[case]
    model, net = new(kind), new(kind)
    for v, w in zip(model.variables, net.variables, strict=True):
        v.assign(numpy(w))  # seeds too
    before = zoo.weights(model)
    optimizer = rule = make_optimizer()
    if kind == "gan":  # whose stock generator stands still
        rule = Alternating(generator=SGD(0.0), discriminator=optimizer)
    model.compile(rule, **compiling)
    if "steps_per_execution" in compiling and backend.name == "torch":
        with pytest.raises(ValueError, match="steps_per_execution"):  # Keras 3.15
            fit(model, digits, weighted)
        return
    stock = (StockDiscriminator if kind == "gan" else Stock)(net)
    stock.compile(make_optimizer(), loss=None)
    logs, expected = (fit(m, digits, weighted) for m in (model, stock))
    last = zoo.weights(net)
    pairs = [*zip(zoo.weights(model), last, strict=True)]
    pairs += zip(optimizer.variables, stock.optimizer.variables, strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(numpy(ours), numpy(theirs), rtol=1e-4, atol=2e-6)
    assert max(np.abs(a - b).max() for a, b in zip(last, before, strict=True)) > 2e-4
    if not weighted:  # Keras' loss is a sum over images; ours a weighted mean
        name = "loss" if kind != "gan" else "discriminator_loss"
        np.testing.assert_allclose(logs[name], expected["loss"], rtol=1e-4)
