"""Requests per second and latencies of a served model, per signature, over REST and
gRPC, at 1, 4 and 16 requests at a time.

    python tests/benchmarks/serving.py vae_digits                  # of a running server
    python tests/benchmarks/serving.py --start vae_digits          # starts one itself
    python tests/benchmarks/serving.py --start --batching --batch 4 vae_digits

A request has `--batch` images. Each cell is `--seconds` long, after one request that
is not counted. Prints a table; --out writes it to a file, with command and machine.
"""

import argparse
import datetime
import os
import platform
import shlex
import socket
import subprocess
import sys
import threading
import time

import numpy as np

from kgen.serving import Client, write_config
from kgen.serving.config import commands, found_server

HEAD = ["model", "signature", "over", "at a time", "requests/s", "images/s"]
HEAD += ["p50 ms", "p95 ms", "p99 ms", "failed"]


def inputs_of(described, batch, rng):
    """Random inputs that a signature takes, by the server's description of them."""
    inputs = {}
    for name, tensor in described["inputs"].items():
        sizes = [int(dim["size"]) for dim in tensor["tensor_shape"].get("dim", [])]
        shape = (batch, *sizes[1:])
        if name == "seed":
            inputs[name] = rng.integers(0, 2**62, shape)
        elif name == "z":
            inputs[name] = rng.normal(size=shape)
        else:  # images, labels, rows: all may be 0 or 1
            inputs[name] = rng.integers(0, 2, shape)
    return inputs


def load(client, signature, described, batch, concurrency, seconds):
    """(latencies in seconds, failures) of requests that go on for `seconds`."""
    latencies, failures, end = [], [], [0.0]

    def ask(seed):
        rng = np.random.default_rng(seed)
        while time.perf_counter() < end[0]:
            inputs = inputs_of(described, batch, rng)
            start = time.perf_counter()
            try:
                client.predict(signature, **inputs)
                latencies.append(time.perf_counter() - start)
            except (OSError, RuntimeError) as error:
                failures.append(error)

    client.predict(signature, **inputs_of(described, batch, np.random.default_rng(0)))
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(concurrency)]
    start = time.perf_counter()
    end[0] = start + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(latencies), failures, time.perf_counter() - start


def measure(args, name):
    """The rows of one model."""
    for url in (args.rest, args.grpc):
        over = url.split(":")[0]
        with Client(url, name, timeout=60) as client:
            client.wait_until_ready(args.wait)
            signatures = client.metadata()["signature_def"]["signature_def"]
            for signature in sorted(set(signatures) - {"limits", "serving_default"}):
                if signature.startswith("__"):
                    continue
                for n in args.concurrency:
                    described = signatures[signature]
                    latencies, failures, seconds = load(
                        client, signature, described, args.batch, n, args.seconds
                    )
                    rate = len(latencies) / seconds
                    some = latencies if len(latencies) else np.array([np.nan])
                    percentiles = 1e3 * np.percentile(some, [50, 95, 99])
                    row = [name, signature, over, n, f"{rate:.1f}"]
                    row += [f"{rate * args.batch:.1f}"]
                    row += [*(f"{p:.1f}" for p in percentiles), len(failures)]
                    print(*row, sep="\t", flush=True)
                    yield row


def started(args):
    """The server, on ports of its own, its log beside the models."""
    write_config(args.folder)
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    args.grpc, args.rest = (
        f"grpc://localhost:{ports[0]}",
        f"http://localhost:{ports[1]}",
    )
    command, _ = commands(args.folder, *ports, batching=args.batching)
    command = [sys.executable, *command] if command[0].endswith(".py") else command
    path = f"{args.folder}/server.log"
    with open(path, "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return process
    raise SystemExit(f"The server ended at once; its log is {path}.")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", help="of the served models")
    parser.add_argument("--rest", default="http://localhost:8501")
    parser.add_argument("--grpc", default="grpc://localhost:8500")
    parser.add_argument(
        "--start", action="store_true", help="the server, from --folder"
    )
    parser.add_argument("--folder", default="saved_models")
    parser.add_argument("--batching", action="store_true", help="with --start")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--batch", type=int, default=1, help="images of a request")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each cell")
    parser.add_argument("--wait", type=float, default=300.0, help="s, for the server")
    parser.add_argument("--out", help="a Markdown file for the table")
    args = parser.parse_args()
    process = None
    if args.start:
        if not found_server():
            raise SystemExit("No tensorflow_model_server: see TENSORFLOW_MODEL_SERVER.")
        process = started(args)
    try:
        print(*HEAD, sep="\t")
        rows = [row for name in args.names for row in measure(args, name)]
    finally:
        if process:
            process.terminate()
    if args.out:
        lines = [f"`{shlex.join(sys.argv)}`", ""]
        lines += [f"Server: `{found_server() or args.rest}`. {platform.machine()}, "]
        lines[-1] += f"{os.cpu_count()} cores, {datetime.date.today()}.\n"
        lines += [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
        with open(args.out, "w") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
