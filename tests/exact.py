"""Tiny exact models and what their tests share."""

import itertools

import numpy as np
from keras import ops

from kgen import models

TINY = {
    "fvbn": (models.FVBN, {}),
    "nade": (models.NADE, {"units": 7}),
    "made": (models.MADE, {"hidden_units": (40,)}),
    "made-ensemble": (models.MADE, {"hidden_units": (12, 12), "num_masks": 3}),
    "pixel-cnn": (models.PixelCNN, {"filters": 6, "num_blocks": 2}),
    "gated": (models.GatedPixelCNN, {"filters": 6, "num_blocks": 2}),
    "row-lstm": (models.RowLSTM, {"units": 6, "num_layers": 1}),
    "diagonal": (models.DiagonalBiLSTM, {"units": 6, "num_layers": 1}),
    # of one resolution where that will do: XLA compiles the whole for a long time
    "pp": (
        models.PixelCNNPlusPlus,
        {"filters": 4, "num_blocks": 1, "num_resolutions": 1},
    ),
}
DEEP = (
    models.PixelCNN,
    models.GatedPixelCNN,
    models.PixelCNNPlusPlus,
    models.RowLSTM,
    models.DiagonalBiLSTM,
)
ONE_PASS = [name for name in TINY if name != "made-ensemble"]  # one set of logits


def tiny(name, shape, levels=2, num_classes=None, scale=1.0, seed=0, **kwargs):
    """A model with random weights, biases too: far from uniform, nothing saturated."""
    kind, given = TINY[name]
    if issubclass(kind, DEEP):  # every layer multiplies by it
        scale = min(scale, 1.0)
    model = kind(shape, levels, num_classes, **given | kwargs)
    return randomized(model, scale, seed)


def randomized(model, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    for v in model.trainable_variables:
        fan_in = max(1, int(np.prod(v.shape[:-1])))
        v.assign(rng.normal(0, scale / np.sqrt(fan_in), v.shape))
    return model


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))


def every_image(shape, levels):
    """All images of a small grid: (levels ** D, H, W, C)."""
    values = itertools.product(range(levels), repeat=int(np.prod(shape)))
    return np.array(list(values), "uint8").reshape(-1, *shape)


def fixed_point(model, x, u, labels=(), temperature=1.0):
    """What would be drawn at each dimension, given that all before it are those of x:
    x itself, if it was drawn from the uniforms u."""
    params = model.logits(x, *labels)
    return numpy(model.likelihood.draw(params, ops.convert_to_tensor(u), temperature))


def sees(model, images):
    """[i, j]: whether the parameters of i change with j: a difference quotient for
    every pair. i and j are dimensions, or pixels if channels are not taken in turn."""
    shape, levels = model.image_shape, model.levels
    D = int(np.prod(shape))
    owners = D if model.channels_in_turn else D // shape[-1]
    total = np.zeros((owners, D), bool)
    for image in images:
        altered = np.repeat(image.reshape(1, D), D + 1, 0)
        where = np.arange(D)
        altered[where, where] = (altered[where, where] + 1) % levels
        out = numpy(model.logits(altered.reshape(-1, *shape).astype("uint8")))
        out = out.reshape(D + 1, owners, -1)
        size = np.abs(out).max()
        change = np.abs(out[:-1] - out[-1:]).max(-1)  # (altered j, parameters of i)
        total |= (change > 1e-6 * size).T
    if not model.channels_in_turn:
        total = total.reshape(owners, owners, -1).any(-1)
    return total
