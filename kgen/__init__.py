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
"""

from kgen import (
    backend,
    callbacks,
    data,
    distribute,
    export,
    files,
    layers,
    likelihoods,
    metrics,
    models,
    optimizers,
    presets,
    random,
    serving,
)

__version__ = "0.1.0"

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
