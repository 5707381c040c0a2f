"""`run` of the recipes of GANs: trains several, measures, samples, saves.

A GAN has no likelihood, and its losses do not measure quality. So the last epoch's
weights are taken; 10,000 samples are measured against the test images by distances over
given features, beside the training images' own distance, the real-data baseline; and
several networks are trained, each from its own seed or with its own loss.
"""

import argparse
import functools
import json
import re
import statistics
import warnings
from pathlib import Path

from run import fit, load, parse_flags

import keras

import kgen
from records import prepare, training, write_results
from report import SAMPLES, distance_lines


def run(card, build, data, *, losses=(), callbacks=None, plot=None, **settings):
    """Trains a GAN from each of `--seeds` seeds, or with each of `losses`, in
    `<out>/<its name>`, then measures, samples and saves all of them.

    Args:
        card: the recipe's docstring, shown by --help.
        build: a function of the parsed flags, of the data's splits, and of the loss
            where there are `losses`. Returns the model, not compiled, and its
            optimizer.
        data: the tfds name of the recipe's own data.
        losses: names. Without them the recipe has a size `seeds`.
        callbacks: a function of the flags and of a name, which returns further
            callbacks for that training.
        plot: a function of the flags, called after all training.
        settings: those of `run.parse_flags`.
    """
    args = parse_flags(card, data, **settings)
    splits = load(args)
    if losses:
        builds = {name: functools.partial(build, loss=name) for name in losses}
        seeds = dict.fromkeys(losses, args.seed)
    else:
        seeds = range(args.seed, args.seed + args.seeds)
        seeds = {f"seed_{seed}": seed for seed in seeds}
        builds = dict.fromkeys(seeds, build)
    prepare_runs(args, seeds)
    models, seconds = {}, 0.0
    for name, seed in seeds.items():
        keras.utils.set_random_seed(seed)
        model, optimizer = builds[name](args, splits)
        model.compile(optimizer)
        more = callbacks(args, name) if callbacks else []
        seconds += train(args, splits, name, model, seed, more)
        models[name] = model
    if plot:
        plot(args)
    finish(args, splits, models, seconds, alike=not losses)


def prepare_runs(args, names):
    """Makes `args.out`; without --resume, what earlier runs of these names left there
    is moved to `earlier_1/`, with their record."""
    out, earlier = Path(args.out), []
    if (out / "metrics.json").exists():  # of other seeds, for instance
        card = json.loads((out / "metrics.json").read_text())
        earlier = card.get("results", {}).get("runs", [])
    prepare(out, args.resume, [*names, *earlier])


def train(args, splits, name, model, seed, callbacks):
    """Trains one model in `<out>/<name>`, its data in the order of `seed`. Returns the
    seconds it took."""
    settings = vars(args) | {"out": f"{args.out}/{name}", "seed": seed}
    callbacks = [kgen.callbacks.CollapseGuard(stop=False), *callbacks]
    if measurable(splits):
        distances = make_distances(splits, splits.validation)
        n = min(1000, len(splits.validation))
        every = max(1, args.epochs // 5)
        callbacks.append(kgen.callbacks.SampleDistances(distances, n=n, every=every))
    return fit(
        argparse.Namespace(**settings),
        model,
        splits,
        every=max(1, args.epochs // 10),
        best=False,
        callbacks=callbacks,
    )


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


def make_distances(splits, reference):
    """Distances of images from `reference` over the features of MNIST."""
    warn_of_other_data(splits.name)
    features = kgen.metrics.mnist_features()
    levels = splits.levels
    return kgen.metrics.Distances(features, "mnist", reference, splits.train, levels)


def finish(args, splits, models, seconds, alike):
    """Measures, samples and saves each of the models, {name: model}; reads the test
    images, once. The first is exported. `alike`: they differ by their seed alone, so
    that a mean is meaningful."""
    out = Path(args.out)
    results = {"runs": list(models)} | training(args, seconds)
    measured = {}
    distances = make_distances(splits, splits.test) if measurable(splits) else None
    for name, model in models.items():
        grid = model.sample(100, seed=0, verbose=0)
        print(kgen.callbacks.save_grid(out / f"{name}.png", grid, model.levels))
        model.save(out / name / "model.keras")
        if distances:
            images = model.sample(min(SAMPLES, len(splits.test)), seed=0, verbose=0)
            measured[name] = distances(images)
            results |= {f"{name}_{k}": v for k, v in measured[name].items()}
    if alike and len(measured) > 1:
        results |= _average(list(measured.values()))
    model = next(iter(models.values()))
    card = write_results(out / "metrics.json", args, model, splits, results)
    model.save_to_preset(out / "preset", card)  # the first run's
    version = kgen.export.next_version(Path("saved_models") / args.name)
    exported = model.export(version, card=card)
    for line in distance_lines(results):
        print(line)
    print(f"{out / 'metrics.json'}\n{exported}/")


def _average(runs):
    """Mean and standard deviation over runs."""
    names = [k for k in runs[0] if not k.endswith(("_floor", "_images", "_se"))]
    values = {k: [run[k] for run in runs] for k in names}
    return {f"mean_{k}": statistics.mean(v) for k, v in values.items()} | {
        f"stdev_{k}": statistics.stdev(v) for k, v in values.items()
    }
