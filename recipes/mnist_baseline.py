"""The Frechet distance of real digits from real digits, over kgen's features of MNIST.

    python recipes/mnist_baseline.py --backend torch

What for: samples of a model are to be compared with the distance that as many training
    images have from the test images. One draw of them tells little, so this takes
    several, without replacement, and writes mean and standard deviation.
Data: mnist, training images against all test images, in gray and as Bernoulli draws.
    Trains and selects nothing.
"""

import argparse
import json
from pathlib import Path

from backend_flag import add_backend_flag

import numpy as np

import kgen
from kgen.data.images import bernoulli
from report import RESULTS


def main():
    recorded = RESULTS / "mnist_baseline.md"
    ours = recorded.read_text() if recorded.exists() else "not recorded yet.\n"
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nOurs, {recorded.name}:\n\n{ours}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_backend_flag(parser)
    parser.add_argument("--draws", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--data", default="mnist", help="28x28 gray images")
    parser.add_argument("--out", default="recipes/results/mnist_baseline.json")
    args = parser.parse_args()
    if args.draws < 2 or min(args.images) < 2:
        parser.error("--draws and --images must be at least 2")
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
            of = {"mean": mean, "stdev": deviation, "draws": args.draws}
            found[f"{kind}_{n}"] = of
            name = f"{n:,} {kind} training images, {args.draws} draws"
            lines.append(f"| {name} | {mean:.3f} | {deviation:.3f} |")
            print(lines[-1], flush=True)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    head = {"data": str(splits), "test_images": len(splits.test)}
    head["frechet_distance"] = found
    with kgen.files.atomic(out) as unfinished:
        unfinished.write_text(json.dumps(head, indent=1) + "\n")
    with kgen.files.atomic(out.with_suffix(".md")) as unfinished:
        unfinished.write_text("\n".join(lines) + "\n")
    print(out)


if __name__ == "__main__":
    main()
