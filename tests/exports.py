"""Models for tests of exports, their own answers, and their SavedModels. As a script,
run with TensorFlow, exports saved models:

    python exports.py folder: <folder>/<name>.keras -> <folder>/<name>/1
"""

import sys
from pathlib import Path

import keras
import numpy as np
import zoo
from zoo import EXACT, GANS, numpy

import kgen


def randomized(name):
    """A model whose weights, averages and batch statistics are no initial ones."""
    model, rng = zoo.new(name), np.random.default_rng(1)
    if name not in GANS:
        zoo.randomize(model, 0.5)
    for v in model.non_trainable_variables:
        if "float" in v.dtype:
            v.assign(v + 0.2 * rng.uniform(size=v.shape))
    return model


def export(models, folder, warmup=None):
    """{name: model} to <folder>/<name>/1, in one TensorFlow process."""
    if kgen.backend.name == "tensorflow":
        for name, model in models.items():
            path = model.export(folder / name / "1", warmup=warmup)
            assert path == folder / name / "1" and (path / "saved_model.pb").exists()
        return
    folder.mkdir(exist_ok=True)
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    environment = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    zoo.run_python(__file__, folder, **environment)


def answers(name, model, x, labels):
    """{signature: ({input: array}, [the model's outputs])} of all but `sample`."""
    z = np.random.default_rng(0).normal(size=(len(x), 3)).astype("float32")
    rows = np.resize([0, 3, 8, 5, 1], len(x))
    if name in GANS:
        out = {
            "discriminate": ({"images": x}, [model.discriminate(x, labels)]),
            "generate": ({"z": z}, [model.generate(z, labels)]),
        }
    elif name in EXACT:
        done = model.complete(x, rows, seed=7, labels=labels)
        out = {
            "log_prob": ({"images": x}, [model.log_prob(x, labels)]),
            "complete": ({"images": x, "known_rows": rows}, [done]),
        }
    else:
        out = {
            "elbo": ({"images": x}, [model.elbo(x, labels)]),
            "encode": ({"images": x}, model.encode(x, labels)),
            "decode": ({"z": z}, [model.decode(z, labels)]),
            "reconstruct": ({"images": x}, [model.reconstruct(x, labels)]),
        }
    return {
        k: (inputs, [numpy(v) for v in values]) for k, (inputs, values) in out.items()
    }


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*.keras")):
        model = keras.models.load_model(path, compile=False)
        model.export(path.with_suffix("") / "1")
