"""The README's table of what is proved for which family on which backend: gathered from
the tests' results, never typed.

Tests carry `@pytest.mark.feature("resume")`; the family is that of their parameters.
A whole `make test` leaves runs/features/<backend>.json, and

    python tests/features.py        (or `make features`)

puts the three together in tests/features.json and in the README.
"""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS, RECORD = ROOT / "runs" / "features", ROOT / "tests" / "features.json"
BACKENDS = {"tensorflow": "T", "jax": "J", "torch": "P"}
BEGIN, END = "<!-- features: python tests/features.py -->", "<!-- /features -->"

# Parameters of tests -> the family they are of
FAMILY = {
    "fvbn": "FVBN",
    "nade": "NADE",
    "made": "MADE",
    "pixel-cnn": "PixelCNN",
    "gated": "GatedPixelCNN",
    "pp": "PixelCNNPlusPlus",
    "row-lstm": "RowLSTM",
    "diagonal": "DiagonalBiLSTM",
    "vae": "VAE",
    "iwae": "IWAE",
    "gan": "GAN",
}
FEATURES = {
    "fit": "`fit`, `evaluate`, any data",
    "save": "`.keras`, weights, presets",
    "callbacks": "Keras' callbacks",
    "resume": "resume",
    "kill": "resume after SIGKILL",
    "half": "half precision",
    "nan": "NaN stops it",
    "stock": "EMA, clipping, ...",
    "devices": "two devices",
    "export": "SavedModel",
}
ORDER = ("skipped", "passed", "failed")  # of a cell's tests the last in this order


def family_of(item):
    """Of a collected test: the first of its parameters that names a family."""
    parameters = getattr(item, "callspec", None)
    for value in parameters.params.values() if parameters else ():
        name = str(getattr(value, "__name__", value)).lower()
        if name in FAMILY:
            return FAMILY[name]
    return None


class Recorder:
    """A pytest plugin: notes the outcome of the marked tests."""

    def __init__(self, backend):
        self.backend, self.cells, self.of = backend, {}, {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            marks = item.iter_markers("feature")
            cells = [(mark.args[0], family_of(item)) for mark in marks]
            self.of[item.nodeid] = [cell for cell in cells if cell[1]]

    def pytest_runtest_logreport(self, report):
        if report.passed and report.when != "call":
            return
        for feature, family in self.of.get(report.nodeid, ()):
            row = self.cells.setdefault(feature, {})
            before = row.get(family, report.outcome)
            row[family] = max(before, report.outcome, key=ORDER.index)

    def pytest_sessionfinish(self, session):
        """Kept where all features were run; what the record claims must be so."""
        if set(self.cells) == set(FEATURES):
            RESULTS.mkdir(parents=True, exist_ok=True)
            path = RESULTS / f"{self.backend}.json"
            path.write_text(json.dumps(self.cells, indent=1, sort_keys=True))
        untrue = [
            f"{feature} of {family}"
            for feature, row in recorded().get(self.backend, {}).items()
            for family, outcome in row.items()
            if outcome == "passed"
            and self.cells.get(feature, {}).get(family, outcome) == "failed"
        ]
        if untrue:
            print(f"\nThe README's table is not true of {', '.join(untrue)}.")


def recorded():
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def cell(record, feature, family):
    """Letters of the backends where it passed; those where it failed, struck out."""
    letters = []
    for backend, letter in BACKENDS.items():
        outcome = record.get(backend, {}).get(feature, {}).get(family)
        if outcome == "failed":
            letters.append(f"~~{letter}~~ fails")
        elif outcome == "passed":
            letters.append(letter)
    return " ".join(letters)


def table(record):
    lines = [
        f"| | {' | '.join(FEATURES.values())} |",
        "|---" * (len(FEATURES) + 1) + "|",
    ]
    for family in FAMILY.values():
        cells = [cell(record, feature, family) for feature in FEATURES]
        lines.append(f"| `{family}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    record = {b: json.loads((RESULTS / f"{b}.json").read_text()) for b in BACKENDS}
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    readme = ROOT / "README.md"
    text = readme.read_text()
    first, last = text.index(BEGIN) + len(BEGIN), text.index(END)
    readme.write_text(f"{text[:first]}\n\n{table(record)}\n\n{text[last:]}")
    print(table(record))


if __name__ == "__main__":
    main()
