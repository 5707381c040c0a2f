"""What the recipes of GANs share: train several, measure, sample, save.

A GAN has no likelihood, and its losses do not measure quality. So the
last epoch's weights are taken, 10,000 samples are measured against the test images by
distances over given features, beside the training images' own distance, the floor; and
several seeds are trained, as one alone tells little.
"""

import argparse
import functools
import json
import re
import statistics
import warnings
from pathlib import Path

from common import fit
from records import prepare, training, write_results

SAMPLES = 10_000


def prepare_runs(args, names, files=()):
    """Makes `args.out`; without --resume, what earlier runs of these names left there
    is moved to `earlier_1/`, with their record and such `files`."""
    out, earlier = Path(args.out), []
    if (out / "metrics.json").exists():  # of other seeds, for instance
        card = json.loads((out / "metrics.json").read_text())
        earlier = card.get("results", {}).get("runs", [])
    prepare(out, args.resume, [*names, *earlier, *files])


def train(args, splits, name, model, callbacks=(), seed=None):
    """Trains one model in `<out>/<name>`, its data in the order of `seed` (default:
    the run's). Returns the seconds it took."""
    import kgen

    seed = args.seed if seed is None else seed
    own = vars(args) | {"out": f"{args.out}/{name}", "seed": seed}
    own = argparse.Namespace(**own)
    watch = [kgen.callbacks.CollapseGuard(stop=False), *callbacks]
    if measurable(splits):
        distances = _distances(splits, splits.validation)
        n = min(1000, len(splits.validation))
        every = max(1, args.epochs // 5)
        watch.append(kgen.callbacks.SampleDistances(distances, n=n, every=every))
    every = max(1, args.epochs // 10)
    return fit(own, model, splits, every=every, best=False, callbacks=watch)


def measurable(splits):
    """Whether the features are of such images."""
    return tuple(splits.image_shape) == (28, 28, 1)


@functools.cache  # once in a run
def warn_of_other_data(name):
    """Warns if the features of MNIST are about to measure something else."""
    if re.split("[:/]", name)[0] not in ("mnist", "binarized_mnist"):
        warnings.warn(
            f"The distances of {name} are over the features of a classifier of MNIST's "
            "digits, which may not see what matters in other images: compare them with "
            "the floor, and with nothing but runs on the same data.",
            stacklevel=2,
        )


def _distances(splits, reference):
    import kgen

    warn_of_other_data(splits.name)
    features = kgen.metrics.mnist_features()
    levels = splits.levels
    return kgen.metrics.Distances(features, "mnist", reference, splits.train, levels)


def finish(args, splits, models, seconds, *, alike=True):
    """Measures, samples and saves each of the models, {name: model}; reads the test
    images, once. The first is exported. `alike`: they differ by their seed alone, so
    that a mean is meaningful."""
    import kgen

    out = Path(args.out)
    results = {"runs": list(models)} | training(args, seconds)
    measured = {}
    distances = _distances(splits, splits.test) if measurable(splits) else None
    for name, model in models.items():
        grid = model.sample(100, seed=0, verbose=0)
        print(kgen.callbacks.save_grid(out / f"{name}.png", grid, model.levels))
        model.save(out / name / "model.keras")
        if distances:
            images = model.sample(min(SAMPLES, len(splits.test)), seed=0, verbose=0)
            measured[name] = distances(images)
            results |= {f"{name}_{k}": v for k, v in measured[name].items()}
    if alike and len(measured) > 1:
        results |= _spread(list(measured.values()))
    model = next(iter(models.values()))
    card = write_results(out / "metrics.json", args, model, splits, results)
    model.save_to_preset(out / "preset", card)  # the first run's
    version = kgen.export.next_version(Path("saved_models") / args.name)
    exported = model.export(version, card=card)
    _print(measured, results)
    print(f"{out / 'metrics.json'}\n{exported}/")


def _spread(runs):
    """Mean and standard deviation over runs."""
    names = [k for k in runs[0] if not k.endswith(("_floor", "_images", "_se"))]
    values = {k: [run[k] for run in runs] for k in names}
    return {f"mean_{k}": statistics.mean(v) for k, v in values.items()} | {
        f"stdev_{k}": statistics.stdev(v) for k, v in values.items()
    }


def _print(measured, results):
    """A row for each measure: each run's, in brackets that of the data itself."""
    for measure in next(iter(measured.values()), {}):
        if measure.endswith(("_floor", "_images", "_se")):
            continue
        values = "  ".join(f"{run[measure]:.4g}" for run in measured.values())
        floor = next(iter(measured.values()))[f"{measure}_floor"]
        spread = ""
        if f"mean_{measure}" in results:
            mean, deviation = (results[f"{k}_{measure}"] for k in ("mean", "stdev"))
            spread = f"  mean {mean:.4g} +- {deviation:.2g}"
        print(f"{measure:28}{values}{spread}  ({floor:.4g})")


def train_seeds(args, make, splits):
    """Plays `make()` from `args.seeds` seeds, one after another: ({name: model},
    seconds)."""
    import keras

    models, seconds = {}, 0.0
    seeds = range(args.seed, args.seed + args.seeds)
    prepare_runs(args, [f"seed_{seed}" for seed in seeds])
    for seed in seeds:
        keras.utils.set_random_seed(seed)
        name, model = f"seed_{seed}", make()
        seconds += train(args, splits, name, model, seed=seed)
        models[name] = model
    return models, seconds
