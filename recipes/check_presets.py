"""Whether the packaged presets still have the test numbers of their cards.

    python recipes/check_presets.py --backend jax
    python recipes/check_presets.py --backend jax --presets vae_binarized_mnist

Loads each by its name and measures its `headline` on the whole test split, of a GAN the
Frechet distance of 10,000 samples. Writes recipes/results/presets.md,
with a column for each backend that was asked so far, and ends with an error if a number
is not its card's. Chooses nothing.
"""

import argparse
import json
import time
from pathlib import Path

from backend_flag import BACKENDS, add_backend_flag

import kgen
from report import SAMPLES, runs_of


def measure(model, card):
    """(key of the card's results, the number now)."""
    splits = kgen.data.load(card["data"].split()[0])
    metric = model.headline.metric
    if model.headline.kind != "distance":
        scores = model.evaluate(splits.test, batch_size=250, verbose=0)
        return f"test_{metric}", scores[metric]
    features, run = kgen.metrics.mnist_features(), runs_of(card["results"])[0]
    of = kgen.metrics.Distances(
        features, "mnist", splits.test, splits.train, splits.levels
    )
    distances = of(model.sample(SAMPLES, seed=0, verbose=0))
    return f"{run}_mnist_{metric}", distances[f"mnist_{metric}"]


def table(found):
    lines = [f"| preset | number | card | {' | '.join(BACKENDS)} |", "|---" * 6 + "|"]
    for name, row in sorted(found.items()):
        cells = [f"{row[b]:.3f}" if b in row else "" for b in ("card", *BACKENDS)]
        lines.append(f"| `{name}` | {row['number']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_backend_flag(parser)
    parser.add_argument("--presets", nargs="*", help="names; default: all")
    parser.add_argument("--out", default="recipes/results/presets.json")
    args = parser.parse_args()
    out, wrong = Path(args.out), []
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.presets or kgen.presets.list():
        start, card = time.time(), kgen.presets.card(name)
        model = kgen.models.GenerativeModel.from_preset(name)
        model.compile()
        key, value = measure(model, card)
        old = {"number": key, "card": card["results"][key]}
        found = json.loads(out.read_text()) if out.exists() else {}
        same = found.get(name, {}).get("card") == old["card"]  # else of other weights
        before = found[name] if same else {}
        found[name] = before | old | {kgen.backend.name: value}
        off, seconds = value - card["results"][key], time.time() - start
        wrong += [name] if abs(off) > 1e-4 * abs(value) else []
        print(f"{name:36} {value:10.4f} {off:+.4f} {seconds:6.0f} s", flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
        out.with_suffix(".md").write_text(table(found))
    if wrong:
        raise SystemExit(f"Not the numbers of their cards: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
