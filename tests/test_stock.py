"""What Keras promises of `compile` and `fit` holds for kgen's own steps: a stock Keras
model that trains the same losses, by its own `train_step` and `compute_loss`, gets the
same weights, optimizer state and loss."""

import keras
import numpy as np
import pytest
from families import LEVELS, SHAPE
from keras import ops

from kgen import backend
from kgen.models import GAN, VAE, GatedPixelCNN
from kgen.optimizers import Alternating


def numpy(x):
    return ops.convert_to_numpy(x)


class Stock(keras.Model):
    """A stock model whose output is the loss of each image, and trains that."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.built = True

    def call(self, x, training=False):
        return self.per_image(x, training)

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        if sample_weight is not None:
            y_pred = y_pred * ops.cast(sample_weight, y_pred.dtype)
        return ops.mean(y_pred)


class StockModel(Stock):
    def per_image(self, x, training):
        return self.net._terms(x, None, training=training)["loss"]


class StockDiscriminator(Stock):
    """D against a generator that stands still."""

    def __init__(self, net):
        net.generator.trainable = False
        super().__init__(net)

    def per_image(self, x, training):
        net, n = self.net, ops.shape(x)[0]
        made = net.make(net.prior.draw(n, net.seed_generator), training=training)
        loss = net.kind.discriminator(net._logits(net._real(x), None, training),
                                      net._logits(made, None, training))  # fmt: skip
        # G's turn, which moves on what is random
        made = net.make(net.prior.draw(n, net.seed_generator), training=training)
        return loss + 0.0 * net._logits(made, None, training)


def gan():
    """With larger weights than at first: those give next to no gradients."""
    model = GAN(SHAPE, LEVELS, latent_dim=3, architecture="mlp", width=10, loss="hinge")
    for v in model.trainable_variables:
        v.assign(20.0 * v)
    return model


FAMILIES = {
    "gated": (
        lambda: GatedPixelCNN(SHAPE, LEVELS, filters=4, num_blocks=1),
        StockModel,
    ),
    "vae": (lambda: VAE(SHAPE, LEVELS, latent_dim=3, hidden_units=(8,)), StockModel),
    "gan": (gan, StockDiscriminator),
}


def averaged():
    rate = keras.optimizers.schedules.ExponentialDecay(1e-2, 2, 0.5)
    return keras.optimizers.Adam(
        rate, global_clipnorm=1.0, weight_decay=1e-2, use_ema=True, ema_momentum=0.9
    )


def accumulated():
    return keras.optimizers.SGD(
        1e-2, momentum=0.9, gradient_accumulation_steps=2, clipvalue=0.02
    )


def clipped():
    return keras.optimizers.SGD(1e-2, clipnorm=0.5)


# The optimizer, arguments of compile, whether images have weights
CASES = {
    "ema, schedule, clipping, weight decay": (averaged, {}, False),
    "gradient accumulation": (accumulated, {}, False),
    "steps_per_execution": (clipped, {"steps_per_execution": 3}, False),
    "run_eagerly": (clipped, {"run_eagerly": True}, False),
    "sample_weight": (clipped, {}, True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.feature("stock")
def test_as_a_stock_model(kind, case, digits):
    optimizer, compiling, weighted = CASES[case]
    if "steps_per_execution" in compiling and backend.name == "torch":
        pytest.skip("Keras 3.15 raises: steps_per_execution is not for PyTorch")
    make, wrap = FAMILIES[kind]
    ours = make()
    theirs = type(ours).from_config(ours.get_config())
    theirs.set_weights(ours.get_weights())
    for v, w in zip(ours.variables, theirs.variables, strict=True):  # seeds too
        w.assign(numpy(v))
    stock = wrap(theirs)
    stock.compile(optimizer(), loss=None, **compiling)
    rule = optimizer()
    if kind == "gan":
        rule = Alternating(generator=keras.optimizers.SGD(0.0), discriminator=rule)
    ours.compile(rule, **compiling)
    fitting = dict(batch_size=32, epochs=2, shuffle=False, verbose=0)
    if weighted:
        weight = np.linspace(0.0, 2.0, 192).astype("float32")
        fitting["sample_weight"] = weight
    x, y = digits[:192], np.zeros(192, "int32")
    part, other = ours, theirs
    if kind == "gan":
        part, other = ours.discriminator, theirs.discriminator
    before = [numpy(v).copy() for v in part.trainable_variables]
    logs = [model.fit(x, y, **fitting).history for model in (ours, stock)]
    own = rule if kind != "gan" else rule.members["discriminator"]
    for v, w in zip(
        [*own.variables, *part.trainable_variables],
        [*stock.optimizer.variables, *other.trainable_variables],
        strict=True,
    ):
        np.testing.assert_allclose(numpy(v), numpy(w), rtol=1e-4, atol=2e-6)
    after = [numpy(v) for v in part.trainable_variables]
    assert max(np.abs(a - b).max() for a, b in zip(after, before, strict=True)) > 2e-4
    if not weighted:  # Keras' loss is a sum over images; ours a weighted mean
        name = "loss" if kind != "gan" else "discriminator_loss"
        np.testing.assert_allclose(logs[0][name], logs[1]["loss"], rtol=1e-4)
