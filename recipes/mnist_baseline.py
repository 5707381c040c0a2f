"""The Frechet distance of real digits from real digits, over kgen's features of MNIST.

    python recipes/mnist_baseline.py --backend torch

What for: samples of a model are to be compared with the distance that as many training
    images have from the test images. One draw of them tells little, so this takes
    several, without replacement, and writes mean and standard deviation.
Data: mnist, 54,000 train (of which the images are drawn), 10,000 test, in gray and as
    Bernoulli draws. Trains and chooses nothing.
Ours: 2.89 (standard deviation 0.39) for 1,000 gray images, 0.964 (0.081) for 10,000; of
    binary ones 2.82 (0.38) and 0.911 (0.076); 20 draws, PyTorch, a minute on two cores;
    recipes/results/mnist_baseline.md.
"""

import argparse
import json
import os
from pathlib import Path

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"])
parser.add_argument("--draws", type=int, default=20, help="default: %(default)s")
parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000])
parser.add_argument("--data", default="mnist", help="28x28 gray images")
parser.add_argument("--out", default="recipes/results/mnist_baseline.json")
args = parser.parse_args()
if args.draws < 2 or min(args.images) < 2:
    parser.error("--draws and --images must be at least 2")
if args.backend:
    os.environ["KERAS_BACKEND"] = args.backend
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import kgen
from kgen.data.images import bernoulli

try:
    splits = kgen.data.load(args.data)
except (ValueError, RuntimeError, ImportError) as error:
    raise SystemExit(f"--data {args.data}: {error}") from error
if max(args.images) > len(splits.train):
    parser.error(f"--images: there are {len(splits.train):,} training images")
features, found = kgen.metrics.mnist_features(), {}
lines = ["| Frechet distance from the test images | mean | standard deviation |"]
lines.append("|---|---|---|")
for kind in ("gray", "binary"):
    train, test, levels = splits.train, splits.test, splits.levels
    if kind == "binary":
        train, test = (
            bernoulli(x, levels, np.random.default_rng(i))
            for i, x in enumerate((train, test))
        )
        levels = 2
    distances = kgen.metrics.Distances(features, "mnist", test, train, levels)
    for n in args.images:
        mean, deviation = distances.frechet_baseline(n, args.draws)
        found[f"{kind}_{n}"] = {"mean": mean, "stdev": deviation, "draws": args.draws}
        name = f"{n:,} {kind} training images, {args.draws} draws"
        lines.append(f"| {name} | {mean:.3f} | {deviation:.3f} |")
        print(lines[-1], flush=True)
out = Path(args.out)
out.parent.mkdir(parents=True, exist_ok=True)
head = {"data": str(splits), "test_images": len(splits.test), "frechet_distance": found}
with kgen.files.atomic(out) as unfinished:
    unfinished.write_text(json.dumps(head, indent=1) + "\n")
with kgen.files.atomic(out.with_suffix(".md")) as unfinished:
    unfinished.write_text("\n".join(lines) + "\n")
print(out)
