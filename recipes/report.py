"""What the recipes measured, as tables and a picture, from the records that they left.

    python recipes/report.py                    # of recipes/results
    python recipes/report.py runs               # of your own runs
    python recipes/report.py --readme README.md --picture recipes/results/families.png

Each `metrics.json` is one run; runs that differ by their seed alone become a mean and a
standard deviation. `published.json` has the systems' names and the papers' numbers.
`describe_runs` is what --help of a recipe prints of its runs.
"""

import argparse
import json
import re
import shlex
import statistics
from pathlib import Path

import numpy as np

from kgen import files

RESULTS = Path(__file__).parent / "results"
SAMPLES = 10_000  # of a GAN, unless its row has another number
BEGIN, END = "<!-- results: make results -->", "<!-- /results -->"
_LIKELIHOODS = (
    "on the test split",
    "ours, nats",
    "bits/dim",
    "published, nats",
    "kind of number",
    "parameters",
    "trained",
    "`python recipes/`...",
)
_DISTANCES = (
    f"{SAMPLES:,} samples, test images",
    "Fréchet distance",
    "kernel distance",
    "precision",
    "recall",
    "coverage",
    "trained, each",
    "`python recipes/`...",
)
_MEASURES = ("frechet_distance", "kernel_distance", "precision", "recall", "coverage")
_IDLE = ("--resume", "--save-freq")  # flags that no number depends on
_KEYS = ("recipe", "command", "data", "parameters", "backend", "machine", "date")
_BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
# In pixels: side of an image, space between images, around captions, between columns;
# and the captions' font, which at 10 leaves no space between words.
_SIDE, _SPACE, _MARGIN, _GUTTER, _FONT = 56, 2, 6, 24, 14


def records(folder):
    """The cards of all runs in `folder`, in lists of those that differ by their seed
    alone, [[card, ...], ...]; of runs with the same seed the newest."""
    found = {}
    settings = ("recipe", "data", "epochs", "batch_size", "parameters")
    settings += ("backend", "device")
    for path in sorted(Path(folder).rglob("metrics.json")):
        try:
            card = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is no JSON: {error}") from error
        if "results" not in card:
            continue
        missing = [key for key in _KEYS if key not in card]
        missing += [k for k in ("training_seconds",) if k not in card["results"]]
        if missing:
            raise ValueError(f"{path} is no recipe's record: it lacks {missing}.")
        # further settings of the command, such as the network's size or the backend
        of = [card.get(name) for name in settings]
        of = found.setdefault((*of, *_flags(card, "--seed", "--out")), {})
        old = of.get(card.get("seed"))
        if old is None or old["date"] <= card["date"]:
            of[card.get("seed")] = card | {"path": path}
    return [list(of.values()) for of in found.values()]


def _flags(card, *but):
    """The flags of a run's command, (flag and its value, ...), without those `but`."""
    words = " ".join(shlex.split(card["command"])[2:])
    flags = (flag.strip() for flag in re.split(r" (?=--)", f" {words}") if flag.strip())
    return [f for f in flags if re.split("[ =]", f)[0] not in (*but, *_IDLE)]


def _system_name(card, known):
    """The system that a run was of: its name, and what it was set to, by the recipe or
    else by the command's own flags."""
    of = known.get(card["recipe"], {})
    own = _flags(card, "--seed", "--seeds", "--out", "--backend", "--data", "--devices")
    own = own or ([of["setting"]] if "setting" in of else [])
    return ", ".join([of.get("system", card["recipe"]), *own])


def nats(results):
    """(negative log-likelihood in nats, standard error or None, kind of number) of a
    run's results, or None for those of a GAN."""
    if "test_nll_nats" in results:
        return results["test_nll_nats"], None, "exact"
    for key, value in results.items():
        bound = re.fullmatch(r"test_iw(\d+)_nats", key)
        if bound:
            error = results[f"test_iw{bound[1]}_stderr"]
            return -value, error, f"bound, k = {bound[1]}"
    if "test_elbo_nats" in results:
        return -results["test_elbo_nats"], None, "ELBO"
    return None


def _time(seconds):
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _run_columns(cards, runs=1):
    """The columns about training: a run's mean time, backend, and the first seed's
    command."""
    seconds = statistics.mean(c["results"]["training_seconds"] for c in cards) / runs
    least = "over " if any(c["results"].get("resumed") for c in cards) else ""
    backend = _BACKENDS.get(cards[0]["backend"], cards[0]["backend"])
    command = cards[0]["command"].removeprefix("python recipes/")
    return [f"{least}{_time(seconds)}, {backend}", f"`{command}`"]


def machines(found):
    """A sentence on where and when the runs were: "x86_64, 2 cores, CPU (...)"."""
    where = {}
    for card in (card for cards in found for card in cards):
        machine = f"{card['machine']}, {card.get('device', 'CPU')}"
        where.setdefault(machine, set()).add(card["date"])
    parts = [f"{m} ({', '.join(sorted(dates))})" for m, dates in where.items()]
    return _one_line(f"Measured on: {'; '.join(parts)}.")


def likelihood_rows(found, systems):
    """Rows of the table of likelihoods, by data set and by the number."""
    rows = []
    for cards in found:
        recipe, ours = cards[0]["recipe"], [nats(card["results"]) for card in cards]
        if None in ours:
            continue
        values, (_, error, kind) = [value for value, _, _ in ours], ours[0]
        number = f"**{statistics.mean(values):.2f}**"
        if len(values) > 1:
            number += f" ± {statistics.stdev(values):.2f}, {len(values)} seeds"
        elif error:
            number += f" (± {error:.2f})"
        dims = np.prod([int(n) for n in _shape(cards[0]["data"])])
        known = systems.get(recipe, {})
        same = cards[0]["data"].split()[0] == known.get("data")  # to be compared
        theirs = known.get("published", "") if same else ""
        theirs += f" ({known['source']})" if theirs else ""
        row = [_system_name(cards[0], systems), number]
        row += [f"{statistics.mean(values) / dims / np.log(2):.3f}", theirs, kind]
        row += [f"{cards[0]['parameters']:,}", *_run_columns(cards)]
        rows.append((cards[0]["data"], statistics.mean(values), row))
    return _by_data(rows)


def runs_of(results):
    """The names of the training runs that were measured."""
    found = (re.fullmatch(r"(\w+)_mnist_frechet_distance", key) for key in results)
    return [match[1] for match in found if match and match[1] not in ("mean", "stdev")]


def _pools(cards):
    """What was measured of each run, {its name: [measures, ...]}; runs that differ by
    their seed alone are one, "", with each seed once."""
    pools = {}
    for card in cards:
        results = card["results"]
        for name in runs_of(results):
            keys = {m: f"{name}_mnist_{m}" for m in (*_MEASURES, "images")}
            measures = {m: results[key] for m, key in keys.items()}
            alike = re.fullmatch(r"seed_(\d+)", name)
            one, seed = ("", int(alike[1])) if alike else (name, card.get("seed"))
            pools.setdefault(one, {})[seed] = measures
    return {name: list(by_seed.values()) for name, by_seed in pools.items()}


def distance_rows(found, systems):
    """Rows of the table of distances: means over seeds. In brackets what the training
    images get."""
    rows = []
    for cards in found:
        cards = [card for card in cards if runs_of(card["results"])]
        for run_name, runs in _pools(cards).items():
            cells = []
            for measure in _MEASURES:
                values = [run[measure] for run in runs]
                results = cards[0]["results"]
                floor = results[f"{runs_of(results)[0]}_mnist_{measure}_floor"]
                spread = statistics.stdev(values) if len(values) > 1 else 0
                spread = f" ± {spread:.2g}" if spread else ""
                cells.append(f"{statistics.mean(values):.3g}{spread} ({floor:.2g})")
            seeds = f"{len(runs)} seeds" if len(runs) > 1 else ""
            few = {int(run["images"]) for run in runs} - {SAMPLES}
            few = f"of {min(few):,} samples" if few else ""
            parts = [
                _system_name(cards[0], systems),
                run_name.replace("_", " "),
                seeds,
                few,
            ]
            name = ", ".join(filter(None, parts))
            first = statistics.mean(run[_MEASURES[0]] for run in runs)
            each = _run_columns(cards, len(runs_of(results)))
            rows.append((cards[0]["data"], first, [name, *cells, *each]))
    return _by_data(rows)


def distance_lines(results):
    """A line for each measure of GANs: that of each run, in brackets that of the
    training images."""
    names, lines = runs_of(results), []
    for key in results:
        measure = key.removeprefix(f"{names[0]}_") if names else key
        if measure == key or measure.endswith(("_floor", "_images", "_se")):
            continue
        values = "  ".join(f"{results[f'{name}_{measure}']:.4g}" for name in names)
        floor, spread = results[f"{names[0]}_{measure}_floor"], ""
        if f"mean_{measure}" in results:
            mean, deviation = (results[f"{k}_{measure}"] for k in ("mean", "stdev"))
            spread = f"  mean {mean:.4g} +- {deviation:.2g}"
        lines.append(f"{measure:28}{values}{spread}  ({floor:.4g})")
    return lines


def describe_runs(script, folder=RESULTS):
    """The recorded runs of a recipe's file, for its --help."""
    cards = [json.loads(p.read_text()) for p in sorted(folder.glob("*/metrics.json"))]
    cards = [c for c in cards if c["command"].split()[1] == f"recipes/{script}"]
    return "\n".join(map(_describe_run, cards)) or "Ours: not recorded yet.\n"


def _describe_run(card):
    """A run's settings and numbers, in lines."""
    results, names = card["results"], runs_of(card["results"])
    backend = _BACKENDS.get(card["backend"], card["backend"])
    lines = [
        f"{card['command']}, seed {card['seed']}, {card['date']}",
        card["data"],
        f"{card['parameters']:,} parameters, {_time(results['training_seconds'])} of "
        f"training, {backend}, {card['machine']}, {card['device']}",
    ]
    if names:
        images = f"{results[f'{names[0]}_mnist_images']:,.0f} samples"
        lines += [f"{images} of {', '.join(names)} (of as many training images)"]
        lines += distance_lines(results)
    else:
        ends = ("_nats", "_bits_per_dim", "_stderr", "_accuracy")
        lines += [f"{k:32}{v:.4f}" for k, v in results.items() if k.endswith(ends)]
    head = f"Ours, recipes/results/{card['recipe']}/metrics.json:"
    return "\n  ".join([head, *lines]) + "\n"


def _shape(data):
    return re.search(r" (\d+)x(\d+)x(\d+)", data).groups()


def _by_data(rows):
    """Rows in the order of their numbers, under a line for each data set."""
    lines, sets = [], sorted({data for data, _, _ in rows})
    for data in sorted(sets, key=lambda d: -sum(row[0] == d for row in rows)):
        lines.append([f"*{data.split(' / ')[0]}*"])
        of = sorted((row for row in rows if row[0] == data), key=lambda r: r[1])
        lines += [row for _, _, row in of]
    return lines


def known_systems(published):
    """What is known beside the records, {recipe: {"system": its name, ...}}."""
    return json.loads(Path(published).read_text()) if Path(published).exists() else {}


def _one_line(text):
    """Records may be of others: no line breaks, no HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def table(head, rows):
    """Markdown; a row of one cell is a heading. What a cell holds stays within it."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        # a backslash before the one that escapes the bar would undo it
        cells = [re.sub(r"\\*\|", r"\\|", _one_line(cell)) for cell in row]
        lines.append(f"| {' | '.join(cells + [''] * (len(head) - len(row)))} |")
    return "\n".join(lines)


def tables(folder, published):
    """Both tables of a folder's runs, in Markdown."""
    found, known = records(folder), known_systems(published)
    parts = [
        table(head, rows)
        for head, rows in (
            (_LIKELIHOODS, likelihood_rows(found, known)),
            (_DISTANCES, distance_rows(found, known)),
        )
        if rows
    ]
    return "\n\n".join([machines(found), *parts] if parts else [])


# A row of samples for each recipe that left some, on one picture


def tiles(path):
    """The images of a grid that `kgen.callbacks.save_grid` drew: (N, height, width, 3)
    uint8, row by row. A grey line ends each.

    Raises:
        ValueError: it is no such grid.
    """
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB"))
    steps = []
    for axis in (0, 1):
        grey = (pixels == 90).all(axis=(1 - axis, 2))  # a whole line
        if not grey.any():
            raise ValueError(f"{path} has no grey lines between images, as a grid has.")
        first = int(np.argmax(grey))
        steps.append(first + int(np.argmin(grey[first:])))
        steps[-1] = steps[-1] if not grey[first:].all() else len(grey)
    height, width = steps
    rows, columns = pixels.shape[0] // height, pixels.shape[1] // width
    cells = pixels.reshape(rows, height, columns, width, 3).swapaxes(1, 2)
    return cells.reshape(-1, height, width, 3)


def _in_order(found, known):
    """(recipe, its first run's card), those that are known first and in their order."""
    first = {}
    for cards in found:
        first.setdefault(cards[0]["recipe"], cards[0])
    order = [*(r for r in known if r in first), *sorted(set(first) - set(known))]
    return [(recipe, first[recipe]) for recipe in order]


def _sample_rows(found, known):
    """(name, path of the samples' grid) of each row."""
    rows = []
    for recipe, card in _in_order(found, known):
        runs = runs_of(card["results"]) or card["results"].get("runs", [])
        alike = runs and runs[0].startswith("seed_")
        for grid in ["samples", *(runs[:1] if alike else runs)]:
            file = card["path"].parent / f"{grid}.png"
            if file.exists():
                own = "" if alike or grid == "samples" else f"\n{grid}"
                name = known.get(recipe, {}).get("system", recipe).replace(", ", "\n")
                name += f"{own.replace('_', ' ')}\n{card['data'].split()[0]}"
                rows.append((name, file))
    return rows


def _extent(name, pen, font):
    """Right and lower end of a caption that is drawn at (0, 0)."""
    return pen.multiline_textbbox((0, 0), name, font, spacing=_SPACE)[2:]


def draw_samples(found, known, path, n=8, columns=2):
    """Draws the picture, a PNG, and returns its path. Captions, to the left of their
    row, have the width of the longest.

    Args:
        found: the runs' cards, as of `records`.
        known: {recipe: {"system": its name, ...}}, in the order of the rows.
        path: of the picture.
        n: images a row.
        columns: rows beside one another; they are read downwards.

    Raises:
        ValueError: there are no samples.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = _sample_rows(found, known)
    if not rows:
        raise ValueError("No samples.png beside a metrics.json.")
    font = ImageFont.load_default(_FONT)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    extents = [_extent(name, pen, font) for name, _ in rows]
    caption = 2 * _MARGIN + int(np.ceil(max(right for right, _ in extents)))
    tall = max(_SIDE + 4, _MARGIN + int(np.ceil(max(low for _, low in extents))))
    columns = min(columns, len(rows))
    high, wide = -(-len(rows) // columns), caption + n * (_SIDE + _SPACE)
    size = columns * wide + (columns - 1) * _GUTTER, high * tall
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for row, (name, file) in enumerate(rows):
        left, top = row // high * (wide + _GUTTER), row % high * tall
        at = left + _MARGIN, top + 2
        pen.multiline_text(at, name, "black", font, spacing=_SPACE)
        for i, cell in enumerate(tiles(file)[:n]):
            cell = Image.fromarray(cell).resize((_SIDE,) * 2, Image.Resampling.NEAREST)
            page.paste(cell, (left + caption + i * (_SIDE + _SPACE), top))
    with files.atomic(path) as unfinished:
        page.save(unfinished)
    return Path(path)


def main(words=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="recipes/results")
    parser.add_argument("--published", default="recipes/published.json")
    parser.add_argument("--readme", help="a file with the two markers for the tables")
    parser.add_argument("--picture", help="a PNG to write")
    args = parser.parse_args(words)
    try:
        made = tables(args.folder, args.published)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not made:
        raise SystemExit(f"No metrics.json with results in '{args.folder}'.")
    print(made)
    if args.readme:
        text = Path(args.readme).read_text()
        if BEGIN not in text or END not in text:
            raise SystemExit(f"{args.readme} lacks the markers '{BEGIN}' and '{END}'.")
        first, last = text.index(BEGIN) + len(BEGIN), text.index(END)
        with files.atomic(args.readme) as unfinished:
            unfinished.write_text(f"{text[:first]}\n\n{made}\n\n{text[last:]}")
    if args.picture:
        try:
            known = known_systems(args.published)
            print(draw_samples(records(args.folder), known, args.picture))
        except ValueError as error:
            raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
