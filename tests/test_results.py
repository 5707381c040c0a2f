"""The tables and the picture that recipes/report.py makes of the recipes' records."""

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kgen
import report

pytestmark = pytest.mark.once

ROOT = Path(__file__).parent.parent
CARD = {
    "command": "python recipes/some.py",
    "data": "binarized_mnist 28x28x1, 2 levels, 50,000 train / 10,000 validation",
    "parameters": 12345,
    "backend": "jax",
    "device": "CPU",
    "machine": "x86_64, 2 cores",
    "date": "2026-11-23",
}


@pytest.fixture
def record(tmp_path):
    """Writes a run's metrics.json; the runs' seeds are 0, 1, ... by default."""

    def write(recipe, seed=None, epochs=5, flags="", backend="jax", **measured):
        n = len(list(tmp_path.rglob("metrics.json")))
        path = tmp_path / recipe / str(n)
        path.mkdir(parents=True)
        card = CARD | {"recipe": recipe, "epochs": epochs, "backend": backend}
        card |= {"seed": n if seed is None else seed}
        card |= {"results": {"training_seconds": 120.0} | measured}
        card["command"] += f" --seed {card['seed']}{flags}"
        (path / "metrics.json").write_text(json.dumps(card))
        return path

    return write


def tables(folder, known=None):
    (folder / "published.json").write_text(json.dumps(known or {}))
    return report.tables(folder, folder / "published.json")


def row(text, name):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_likelihood_table_has_means_of_seeds_and_bounds(record, tmp_path):
    for nats in (90.0, 91.0, 95.0):
        record("made", test_nll_nats=nats, validation_nll_nats=1.0)
    bound = {"test_iw5000_nats": -88.5, "test_iw5000_stderr": 0.24}
    record("iwae", test_elbo_nats=-96.0, **bound)
    record("vae", test_elbo_nats=-93.25)
    made = {"system": "MADE", "published": "88.4", "source": "them"}
    text = tables(tmp_path, {"made": made | {"data": "binarized_mnist"}})
    spread, bits = statistics.stdev([90.0, 91.0, 95.0]), 92 / 784 / np.log(2)
    made = ["MADE", f"**92.00** ± {spread:.2f}, 3 seeds", f"{bits:.3f}", "88.4 (them)"]
    made += ["exact", "12,345", "2 min, JAX", "`some.py --seed 0`"]
    assert row(text, "MADE") == made
    iwae = ["**88.50** (± 0.24)", "0.163", "", "bound, k = 5000"]
    assert row(text, "iwae")[1:5] == iwae
    assert row(text, "vae")[1] == "**93.25**" and row(text, "vae")[4] == "ELBO"
    order = [text.index(f"| {name} |") for name in ("iwae", "MADE", "vae")]
    assert order == sorted(order)
    assert "x86_64, 2 cores, CPU (2026-11-23)" in text


def test_gan_table_has_distances_beside_the_baseline(record, tmp_path):
    values = {"frechet_distance": 11.7, "kernel_distance": 14.6, "precision": 0.5}
    values |= {"recall": 0.75, "coverage": 0.5}

    def measure(run, factor=1, images=10_000.0):
        found = {f"{run}_mnist_{k}": factor * v for k, v in values.items()}
        found |= {f"{run}_mnist_{k}_floor": v / 10 for k, v in values.items()}
        return found | {f"{run}_mnist_images": images}

    record("one", **measure("seed_0"))
    record("one", flags=" --smoke", **measure("seed_0", images=100.0))
    for other in ("seed_1", "seed_2"):  # seed 0 is in two records, and counts once
        record("two", **measure("seed_0"), **measure(other, 3), **measure("mean", 2))
    for factor in (1, 2):
        record("other", **measure("wgan", factor))
    text = tables(tmp_path)
    assert row(text, "one")[1] == "11.7 (1.2)" and row(text, "one")[6] == "2 min, JAX"
    assert row(text, "one, --smoke, of 100 samples")[1] == "11.7 (1.2)"
    three = row(text, "two, 3 seeds")
    spread = statistics.stdev([11.7, 35.1, 35.1])
    assert three[1] == f"27.3 ± {spread:.2g} (1.2)"
    assert three[5] == "1.17 ± 0.58 (0.05)" and three[6] == "60 s, JAX"
    mean = f"{statistics.mean([11.7, 23.4]):.3g}"
    assert row(text, "other, wgan, 2 seeds")[1] == f"{mean} ± 8.3 (1.2)"


def test_runs_are_joined_if_only_their_seeds_differ(record, tmp_path):
    record("made", seed=0, test_nll_nats=90.0)
    record("made", seed=1, test_nll_nats=92.0, flags=" --out elsewhere")
    record("made", seed=1, test_nll_nats=94.0, flags=" --resume")
    record("made", epochs=60, test_nll_nats=80.0)
    record("made", test_nll_nats=70.0, flags=" --units 3")
    for backend, nats in (("tensorflow", 60.0), ("jax", 50.0)):  # no flag tells them
        record("other", seed=0, backend=backend, test_nll_nats=nats)
    # published for other data: not to be put beside ours
    text = tables(tmp_path, {"made": {"published": "1.5", "data": "mnist"}})
    assert "1.5" not in text
    ours = [line.split(" | ")[1] for line in text.splitlines() if "| made |" in line]
    assert ours == ["**80.00**", "**92.00** ± 2.83, 2 seeds"]
    assert row(text, "made, --units 3")[1] == "**70.00**"
    assert "**60.00**" in text and "**50.00**" in text


def test_rows_are_named_by_settings_or_flags(record, tmp_path):
    record("iwae", seed=0, test_nll_nats=2.0, flags=" --out 'my runs'")
    record("iwae", test_nll_nats=1.0, flags=" --num-samples 50 --save-freq 9")
    record("fvbn", test_nll_nats=3.0, resumed=True)
    text = tables(tmp_path, {"iwae": {"system": "IWAE", "setting": "k = 5"}})
    assert row(text, "IWAE, k = 5")[1] == "**2.00**"
    assert row(text, "IWAE, --num-samples 50")[1] == "**1.00**"
    assert row(text, "fvbn")[6] == "over 2 min, JAX"  # those of its last part


def test_picture_has_a_row_for_each_recipe(record, tmp_path, rng):
    """Captions end before the images, whatever their length."""
    for recipe in ("b", "a", "c"):
        path = record(recipe, test_nll_nats=1.0)
        images = rng.integers(0, 2, (16, 28, 28, 1))
        kgen.callbacks.save_grid(path / "samples.png", images, 2)
    record("without", test_nll_nats=1.0)
    found = report.records(tmp_path)
    tiles = report.tiles(tmp_path / "b/0/samples.png")[:3]
    assert np.ptp(tiles, axis=(1, 2)).min() > 0
    captions = []
    for name in ("B", "a long name that is wider than it was, two lines"):
        known = {"a": {}, "b": {"system": name}}
        for columns, across, down, (column, row) in (  # where b is: below a, or beside
            (1, 1, 3, (0, 1)),
            (2, 2, 2, (0, 1)),
            (4, 3, 1, (1, 0)),
        ):
            made = report.draw_samples(found, known, tmp_path / "all.png", 3, columns)
            page = np.asarray(Image.open(made))
            wide, tall = page.shape[1] - 24 * (across - 1), page.shape[0] // down
            caption = wide // across - 3 * 58
            left = column * (wide // across + 24) + caption
            shown = page[row * tall :][:56]
            for i, tile in enumerate(tiles):
                tile = Image.fromarray(tile).resize((56, 56), Image.Resampling.NEAREST)
                np.testing.assert_array_equal(shown[:, left + i * 58 :][:, :56], tile)
            assert shown[:, left - caption : left].min() < 128  # something is written
            assert shown[:, left - 5 : left].min() == 255
        captions.append(caption)
    assert captions[1] > captions[0] + 100


@pytest.mark.parametrize("side, n", [(28, 64), (8, 9), (28, 5), (32, 100)])
def test_tiles_are_the_images_of_a_grid(side, n, tmp_path, rng):
    images = rng.integers(0, 2, (n, side, side, 1))
    path = kgen.callbacks.save_grid(tmp_path / "grid.png", images, 2)
    cells = report.tiles(path)
    factor = cells.shape[1] // (side + 1)
    assert cells.shape[1:] == (factor * (side + 1),) * 2 + (3,)
    inside = cells[:n, : factor * side : factor, : factor * side : factor, :1]
    np.testing.assert_array_equal(inside, 255 * images)


def test_strings_of_records_stay_in_their_cell(record, tmp_path):
    """`|`, line breaks and HTML in what others wrote."""
    evil = "x \\| y | z\n\r\n| <img src=x onerror=alert(1)> <!-- "
    path = record("some", test_nll_nats=90.0) / "metrics.json"
    card = json.loads(path.read_text())
    shape = CARD["data"].removeprefix("binarized_mnist")
    card |= {"recipe": f"recipe {evil}", "data": f"data {evil}{shape}"}
    card |= {"backend": f"backend {evil}", "machine": f"machine {evil}"}
    card |= {"command": f"python recipes/some.py '--flag {evil}'", "date": f"{evil}"}
    path.write_text(json.dumps(card))
    text = tables(tmp_path)
    assert "<" not in text and text.count("&lt;img") >= 6
    _, empty, *lines = text.splitlines()  # the sentence on machines is one line
    assert empty == "" and len(lines) == 4  # head, rule, data set, run
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert columns == {len(report._LIKELIHOODS) + 1}


def test_wrong_files_raise(record, tmp_path):
    def assert_main_ends(words, *flags):
        with pytest.raises(SystemExit, match=words):
            report.main([str(tmp_path), *map(str, flags)])

    assert_main_ends("No metrics.json")
    folder, readme = record("made", test_nll_nats=1.0), tmp_path / "README.md"
    assert_main_ends("No samples.png", "--picture", tmp_path / "x.png")
    readme.write_text("no markers")
    assert_main_ends("lacks the markers", "--readme", readme)
    Image.new("L", (20, 20)).save(folder / "samples.png")
    with pytest.raises(ValueError, match="samples.png has no grey lines"):
        report.tiles(folder / "samples.png")
    path = folder / "metrics.json"
    card = json.loads(path.read_text())
    del card["machine"], card["results"]["training_seconds"]
    path.write_text(json.dumps(card))
    lacks = r"metrics.json is no .*: it lacks \['machine', 'training_seconds'\]"
    assert_main_ends(lacks)
    path.write_text("{")
    assert_main_ends("metrics.json is no JSON")


def test_readme_has_the_tables_of_the_records():
    text = (ROOT / "README.md").read_text()
    written = text.split(report.BEGIN)[1].split(report.END)[0].strip()
    recipes = ROOT / "recipes"
    assert written == report.tables(recipes / "results", recipes / "published.json")
