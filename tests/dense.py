"""What the tests of FVBN, NADE and MADE share."""

import numpy as np
from keras import ops

# shape, levels, num_classes: small ones, again and again, as each shape is compiled
CASES = [((2, 5, 1), 2, None), ((3, 1, 3), 4, 3)]


def numpy(x):
    return ops.convert_to_numpy(x)


def randomised(model, scale=1.0):
    """The model with all of its weights far from zero, biases too."""
    rng = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(rng.normal(0, scale, v.shape))
    return model


def weights(model):
    """Weights as float64, by the order of `trainable_variables`."""
    return [numpy(v).astype("float64") for v in model.trainable_variables]


def images(rng, n, model):
    return rng.integers(0, model.levels, (n, *model.image_shape)).astype("uint8")


def some_labels(rng, n, model):
    return rng.integers(0, model.num_classes, n) if model.num_classes else None


def by_dimension(model, params):
    """(B, H, W, C P) -> (B, D, P)."""
    return numpy(params).reshape(len(params), model.num_dims, -1)
