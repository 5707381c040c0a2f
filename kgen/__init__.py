"""kgen: classic image generative models for Keras 3, on TensorFlow, JAX and PyTorch.

The way the data goes, a file per arrow:

    a name, a folder, an array
      --data-->                integer images 0..levels-1, (B, H, W, C)
      --models, likelihoods--> log-probabilities, bounds, draws; in nats
      --backend, optimizers--> trained weights, by one `train_step` on three backends
      --metrics, callbacks-->  nats, bits per dimension, distances, pictures
      --files, presets-->      weights and configurations that can be loaded again
      --export, serving-->     a SavedModel that TensorFlow Serving serves; a client

`kgen.random` turns seeds into the same noise everywhere, `kgen.distribute` chooses the
devices.

Each of these modules is imported on its first use: a client of a server
(`kgen.serving`) needs no framework. `keras.saving.load_model` needs the models' classes
registered: they are where Keras is imported before kgen, and from the first use of
`kgen.models` on.
"""

import importlib
import sys

from kgen.version import __version__ as __version__

__all__ = [
    "backend",
    "callbacks",
    "data",
    "distribute",
    "export",
    "files",
    "layers",
    "likelihoods",
    "metrics",
    "models",
    "optimizers",
    "presets",
    "random",
    "serving",
]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module 'kgen' has no attribute {name!r}")
    return importlib.import_module(f"kgen.{name}")


def __dir__():
    return sorted({*globals(), *__all__})


if sys.modules.get("keras"):  # for `keras.saving.load_model` without another import
    importlib.import_module("kgen.models")
