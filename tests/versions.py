"""Runs fast tests on PyTorch with the lowest or the highest versions that kgen allows.

    python tests/versions.py lowest     (or: make test-versions RESOLUTION=lowest)

Makes runs/versions/lowest, an environment of the packages in requirements-light.txt,
PyTorch and the tools of these tests, each of the lowest (highest) version there is
within the bounds of pyproject.toml, and prints the versions.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOOLS = ("pytest", "scipy", "matplotlib")
TESTS = "exact files likelihoods optimizers presets random train_step vae".split()


def requirements(resolution):
    """Of pip, with >= of each bound as == for the lowest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    allowed = {
        re.match(r"[\w-]+", line)[0]: line
        for line in (*project["dependencies"], *extras["torch"], *extras["dev"])
    }
    light = (ROOT / "requirements-light.txt").read_text().splitlines()
    light = [re.match(r"[\w-]+", line)[0] for line in light if line[0] != "#"]
    lines = [allowed[name] for name in (*light, "torch", *TOOLS)]
    if resolution == "lowest":
        lines = [re.sub(r">=([\d.]+).*", r"==\1", line) for line in lines]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("resolution", choices=("lowest", "highest"))
    parser.add_argument("--folder", type=Path, help="of the environment")
    args = parser.parse_args()
    folder = args.folder or ROOT / "runs" / "versions" / args.resolution
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    python, lines = folder / "bin" / "python", requirements(args.resolution)
    print(sys.version.split()[0], *lines, flush=True)
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade"]
    subprocess.run([*install, *lines], check=True)
    tests = [f"tests/test_{name}.py" for name in TESTS]
    # Keras' TensorBoard callback, exports and tfds need TensorFlow, which is not here.
    left_out = "follow_keras_callbacks or exporting_child or card_numbers"
    select = ["-m", "not exhaustive", "-k", f"not ({left_out})"]
    command = [python, "-m", "pytest", "-q", *select, *tests]
    environment = {"KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment).returncode


if __name__ == "__main__":
    sys.exit(main())
