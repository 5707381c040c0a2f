"""One tiny variant of every model, and the helpers that tests share.

`MODELS` is the registry: a line for each variant, its class and its arguments. Every
test that is parametrized over models reads it.

    new(name, ...)      a model of the test's own, to train or to change
    shared(name, ...)   one model per process, with random weights: read it, never
                        change it. Its functions are compiled once for all tests
"""

import functools
import itertools
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import stats

from kgen import backend
from kgen.models import (
    FVBN,
    GAN,
    IWAE,
    MADE,
    NADE,
    VAE,
    DiagonalBiLSTM,
    GatedPixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
)

TESTS = Path(__file__).parent
SHAPE, LEVELS, CLASSES = (8, 8, 1), 17, 10


@keras.saving.register_keras_serializable(package="tests")
class Center(layers.Layer):
    """A user's layer: other processes find it by importing this module."""

    def call(self, x):
        return 2.0 * x - 1.0


def sequential(shape, *parts):
    return keras.Sequential([layers.Input(shape), *parts])


def user_networks():
    """An encoder and a decoder that a user would pass to a VAE."""
    encoder = Center(), layers.Conv2D(4, 3, 2), layers.Flatten(), layers.Dense(6)
    decoder = layers.Dense(128), layers.Reshape((8, 8, 2))
    return {
        "encoder": sequential(SHAPE, *encoder),
        "decoder": sequential((3,), *decoder),
        "latent_dim": 3,
    }


# name: (class, arguments beside image_shape and levels)
MODELS = {
    "fvbn": (FVBN, {}),
    "nade": (NADE, {"units": 7}),
    "made": (MADE, {"hidden_units": (40,)}),
    "made-ensemble": (MADE, {"hidden_units": (12, 12), "num_masks": 3}),
    "pixel-cnn": (PixelCNN, {"filters": 6, "num_blocks": 2}),
    "gated": (GatedPixelCNN, {"num_classes": CLASSES, "filters": 6, "num_blocks": 2}),
    "row-lstm": (RowLSTM, {"units": 6, "num_layers": 1}),
    "diagonal": (DiagonalBiLSTM, {"num_classes": CLASSES, "units": 6, "num_layers": 1}),
    "pp": (
        PixelCNNPlusPlus,
        {"filters": 4, "num_blocks": 1, "num_resolutions": 1, "num_mixtures": 2},
    ),
    "vae": (VAE, {"latent_dim": 3, "hidden_units": (8,), "beta": 2.0}),
    "vae-conv": (VAE, {"latent_dim": 3, "filters": (4,), "likelihood": "categorical"}),
    "vae-conditional": (
        VAE,
        {"num_classes": CLASSES, "latent_dim": 3, "hidden_units": (8,)},
    ),
    "vae-user-networks": (VAE, user_networks),
    "iwae": (
        IWAE,
        {
            "latent_dim": (3, 2),
            "num_samples": 3,
            "hidden_units": (8,),
            "upper_units": (4,),
        },
    ),
    "gan": (GAN, {"latent_dim": 3, "width": 4, "ema": 0.9, "gradient_norms": True}),
    "gan-critic": (
        GAN,
        {
            "num_classes": CLASSES,
            "latent_dim": 3,
            "architecture": "mlp",
            "width": 10,
            "loss": "wasserstein",
            "discriminator_steps": 2,
        },
    ),
}
EXACT = tuple(name for name in MODELS if not name.startswith(("vae", "iwae", "gan")))
GANS = ("gan", "gan-critic")
ONE_PASS = tuple(name for name in EXACT if name != "made-ensemble")  # one set of logits
DEEP = ("pixel-cnn", "gated", "row-lstm", "diagonal", "pp")


# Models


def new(name, shape=SHAPE, levels=LEVELS, **kwargs):
    """A model of this variant with its initial weights; `kwargs` replace arguments."""
    kind, arguments = MODELS[name]
    arguments = arguments() if callable(arguments) else arguments
    model = kind(shape, levels, **arguments | kwargs)
    if kind is GAN:  # a new generator's images are all the same gray
        for v in model.generator.trainable_variables:
            if len(v.shape) > 1:
                v.assign(15.0 * v)
        if model.ema is not None:
            model.average.set_weights(model.generator.get_weights())
    return model


def tiny(name, shape, levels=2, num_classes=None, scale=1.0, seed=0, **kwargs):
    """An exact model of this variant with random weights, biases too: far from uniform,
    nothing saturated."""
    if name in DEEP:  # every layer multiplies by it
        scale = min(scale, 1.0)
    model = new(name, shape, levels, num_classes=num_classes, **kwargs)
    return randomize(model, scale, seed)


shared = functools.cache(tiny)  # the same arguments, the same model: never change it


def randomize(model, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    for v in model.trainable_variables:
        fan_in = max(1, int(np.prod(v.shape[:-1])))
        v.assign(rng.normal(0, scale / np.sqrt(fan_in), v.shape))
    return model


def inputs(model, digits, labels):
    """The data that `fit` takes for this model: (images,) or (images, labels)."""
    return (digits,) if model.num_classes is None else (digits, np.asarray(labels))


# Values


def numpy(x):
    """A tensor of any backend as NumPy, without its graph."""
    if isinstance(x, np.ndarray):
        return x
    return ops.convert_to_numpy(ops.stop_gradient(x))


def tensor(x, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(x), dtype)


def weights(model):
    return [numpy(v).copy() for v in model.weights]


def flat(variables):
    """All values in one vector."""
    return np.concatenate([numpy(v).ravel() for v in variables]).astype("float64")


def assert_same(a, b, atol=0.0):
    """Two models, or two lists of arrays, are equal within `atol`."""
    a, b = (weights(m) if isinstance(m, keras.Model) else m for m in (a, b))
    for v, w in zip(a, b, strict=True):
        np.testing.assert_allclose(numpy(v), numpy(w), atol=atol, rtol=0)


def every_image(shape, levels):
    """All images of a small grid: uint8 (levels ** D, H, W, C)."""
    values = itertools.product(range(levels), repeat=int(np.prod(shape)))
    return np.array(list(values), "uint8").reshape(-1, *shape)


def image_index(x, levels=2):
    """The place of each image in `every_image`."""
    x = np.asarray(x, "int64").reshape(len(x), -1)
    return x @ levels ** np.arange(x.shape[1])[::-1]


def chi_square(counts, p):
    """The p-value of counts in cells of these probabilities; cells that expect fewer
    than 5 are joined to the likeliest."""
    p = np.asarray(p, "float64") / np.sum(p, dtype="float64")
    expected = counts.sum() * p
    cell = np.where(expected < 5, p.argmax(), np.arange(len(p)))
    counts, expected = np.bincount(cell, counts), np.bincount(cell, expected)
    return stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue


# Other processes and data


def run_python(*arguments, cwd=None, **environment):
    """A Python process, to its end; its error output if it failed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["kgen.models"])  # once for all that `start` starts


def start(function, *arguments):
    """Calls a function of a test file in another process, which can be killed."""
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    return process


def flip_bit(path, seed=0):
    """Changes a bit of a file; a second time it is back."""
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def free_ports(n):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def prepared(name):
    """Whether tfds can read this set without a network."""
    root = os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets"))
    return any(Path(root, name).glob("*/dataset_info.json"))


# Derivatives


def derivative(fn, x):
    """d sum(fn(x)) / dx, by the backend."""
    model = keras.Sequential()  # the backends carry a model's state along
    slopes = functools.partial(backend.input_gradient, model, fn)
    return numpy(backend.compile_function(model, slopes, gradients=True)(tensor(x)))


def check_step(model, objective, *data, rate=1e-2, epsilon=1e-2):
    """A step of plain gradient descent goes along the gradient of `objective()`, by
    central differences along that step."""
    variables = model.trainable_variables
    before = [numpy(v).astype("float64") for v in variables]
    model.compile(keras.optimizers.SGD(rate))
    model.fit(*data, batch_size=len(data[0]), shuffle=False, verbose=0)
    gradient = [(b - numpy(v)) / rate for b, v in zip(before, variables, strict=True)]
    norm = np.linalg.norm(flat(gradient))
    assert norm > 0.1

    def after(step):
        for v, b, g in zip(variables, before, gradient, strict=True):
            v.assign(b + step * g / norm)
        return objective()

    slope = (after(epsilon) - after(-epsilon)) / (2 * epsilon)
    assert slope == pytest.approx(norm, rel=5e-3)


# Parameters of tests


def cases(default, further):
    """The cases of a test, and further ones that `make test-all` alone runs."""
    more = [c if isinstance(c, tuple) else (c,) for c in further if c not in default]
    return [*default, *(pytest.param(*c, marks=pytest.mark.exhaustive) for c in more)]
