"""Prove that the tests catch deliberate mistakes in kgen, those of mutants.toml.

    python tests/mutants/run.py --jobs 2            # all of them, and a table
    python tests/mutants/run.py --only kl-misses-a-term --baseline
    python tests/mutants/run.py --check             # they still fit the code

Each mutant is applied to a copy of the tree, where its tests must fail. Exit status 1
if one survives, or if its tests do not run.
"""

import argparse
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = "kgen tests recipes pyproject.toml README.md saved_models/README.md".split()
NO_FAILURE = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError")
TIMEOUT = 900  # seconds


def load():
    text = (Path(__file__).parent / "mutants.toml").read_text()
    return [{"backend": "torch"} | m for m in tomllib.loads(text)["mutant"]]


def check(mutants):
    """What is wrong with the mutants, a list of sentences; needs no backend."""
    wrong, names = [], [m["name"] for m in mutants]
    wrong += [
        f"{n}: the name is taken twice." for n in set(names) if names.count(n) > 1
    ]
    for m in mutants:
        source = ROOT / "kgen" / m["file"]
        found = source.read_text().count(m["search"]) if source.is_file() else 0
        if found != 1:
            wrong.append(f"{m['name']}: its text occurs {found} times in {m['file']}.")
        for word in shlex.split(m["tests"]):
            path, _, test = word.partition("::")
            text = (ROOT / path).read_text() if (ROOT / path).is_file() else ""
            if path.endswith(".py") and f"def {test.split('[')[0]}" not in text:
                wrong.append(f"{m['name']}: there is no test {word}.")
    return wrong


def environment(folder, backend="torch"):
    """Of a test process. All processes of a run share one cache of XLA programs."""
    return os.environ | {
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(folder),  # before the editable kgen of site-packages
        "COLUMNS": "200",  # pytest cuts its summary to this width
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def copy_tree(folder):
    """A copy of what tests need, whose kgen is the one that is imported there."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pyc*"))
        else:
            shutil.copy2(source, target)
    find = "import importlib.util as u; print(u.find_spec('kgen').origin)"
    command, options = [sys.executable, "-c", find], {"text": True, "cwd": folder}
    found = subprocess.check_output(command, env=environment(folder), **options)
    if Path(found.strip()) != folder / "kgen" / "__init__.py":
        raise SystemExit(f"The copy's kgen is not imported, but {found.strip()}.")
    return folder


def run_tests(folder, mutant):
    """(verdict, the test that failed or what went wrong)."""
    words = [sys.executable, "-m", "pytest", *shlex.split(mutant["tests"])]
    suite = "not exhaustive"  # as `make test`, whose first backend is PyTorch
    suite += "" if mutant["backend"] == "torch" else " and not once and not portable"
    words += ["-x", "-p", "no:cacheprovider", "-m", suite]
    options = {"cwd": folder, "env": environment(folder, mutant["backend"])}
    options |= {"capture_output": True, "text": True, "timeout": TIMEOUT}
    try:
        done = subprocess.run(words, **options)
    except subprocess.TimeoutExpired:
        return "ERROR", f"no end within {TIMEOUT} s"
    lines = done.stdout.splitlines()
    failed = [x for x in lines if re.match(r"(FAILED|ERROR) .*::", x)]
    if done.returncode == 0 and re.search(r"\d+ passed", done.stdout):
        return "SURVIVED", ""
    if done.returncode == 1 and failed and not any(e in failed[0] for e in NO_FAILURE):
        return "caught", re.match(r"\w+ (.*?)( - |$)", failed[0])[1]
    last = (lines + done.stderr.splitlines() or ["no output"])[-1]
    return "ERROR", f"exit {done.returncode}: {(failed or [last])[0]}"


def try_mutant(folder, mutant, baseline):
    """`run_tests` of the mutated copy; `baseline` has those without a mutant."""
    if baseline is not None:
        kind = mutant["backend"], mutant["tests"]
        baseline[kind] = baseline.get(kind) or run_tests(folder, mutant)
        if baseline[kind][0] != "SURVIVED":
            return "ERROR", f"without the mutant: {baseline[kind][1]}"
    path = folder / "kgen" / mutant["file"]
    source = path.read_text()
    path.write_text(source.replace(mutant["search"], mutant["replace"]))
    try:
        return run_tests(folder, mutant)
    finally:
        path.write_text(source)


def run(mutants, jobs, baseline):
    """[(mutant, verdict, test or reason), ...], printed as they come."""
    with tempfile.TemporaryDirectory(prefix="kgen-mutants-") as folder:
        copies, results = queue.Queue(), []
        for i in range(jobs):
            copies.put(copy_tree(Path(folder) / str(i)))

        def one(m):
            copy, start = copies.get(), time.monotonic()
            verdict, why = try_mutant(copy, m, baseline)
            copies.put(copy)
            results.append((m, verdict, why))
            at = f"{len(results):4}/{len(mutants)} {time.monotonic() - start:4.0f} s"
            print(f"{at} {verdict:8} {m['name']}: {m['breaks']} [{why}]", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, mutants))
    return results


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants")
    parser.add_argument("--list", action="store_true", help="print them and end")
    parser.add_argument("--check", action="store_true", help="check texts and end")
    parser.add_argument("--baseline", action="store_true", help="first without mutants")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    args = parser.parse_args(words)
    mutants = load()
    unknown = set(args.only or []) - {m["name"] for m in mutants}
    wrong = check(mutants) + [f"{name}: no such mutant." for name in sorted(unknown)]
    if wrong:
        raise SystemExit("\n".join(wrong))
    mutants = [m for m in mutants if not args.only or m["name"] in args.only]
    row = "{name:40} {file:32} {backend:10} {tests}"
    if args.list:
        print(*(row.format(**m) for m in mutants), sep="\n")
    if args.list or args.check:
        return
    results = run(mutants, args.jobs, {} if args.baseline else None)
    print()
    for m, verdict, why in sorted(results, key=lambda result: result[1] == "caught"):
        print(f"{verdict:8} {row.format(**m)} {why if verdict == 'ERROR' else ''}")
    caught = sum(verdict == "caught" for _, verdict, _ in results)
    print(f"\n{caught} of {len(results)} mutants are caught.")
    raise SystemExit(caught < len(results))


if __name__ == "__main__":
    main()
