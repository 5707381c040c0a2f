"""The flag --backend, which takes effect when this module is imported.

Keras reads KERAS_BACKEND once, while it is imported, and a script that imports Keras at
its top parses its flags later. So this module reads --backend from the command line by
itself, and is imported before Keras: `run` and `adversarial` import it first, recipes
import those first, and the order of imports in pyproject.toml keeps it so.
"""

import argparse
import importlib.util
import os

BACKENDS = ("tensorflow", "jax", "torch")


def add_backend_flag(parser):
    """Adds --backend to the flags of a script, which --help lists and errors name."""
    parser.add_argument("--backend", choices=BACKENDS, help="default: Keras' own")


def set_backend():
    """Sets KERAS_BACKEND from --backend; the other flags are parsed later."""
    parser = argparse.ArgumentParser(add_help=False)
    add_backend_flag(parser)
    backend = parser.parse_known_args()[0].backend
    if backend:
        os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up messages


if importlib.util.find_spec("kgen") is None:
    raise SystemExit(
        "kgen is not installed in this Python. Run `pip install -e .` in the checkout, "
        "or `make demo` and then .venv/bin/python."
    )
set_backend()
