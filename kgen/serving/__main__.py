"""Serve what was exported, and draw from it.

python -m kgen.serving serve              # all models in saved_models/
python -m kgen.serving sample vae_digits  # a picture, from the server
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from kgen.pictures import save_grid
from kgen.serving import Client, ServingError, write_config
from kgen.serving.config import commands, found_server


def _docker_runs():
    """Its engine, too, which the command alone cannot do without."""
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _serve(args):
    """Runs TensorFlow Serving, or Docker's image of it; else prints how to start it."""
    try:
        print(write_config(args.folder))
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    server, docker = commands(args.folder, args.port, args.rest_port, args.batching)
    if found_server():
        found = server
    elif _docker_runs():
        found = docker
    else:
        print("Neither tensorflow_model_server nor Docker runs here. Where one does:\n")
        print(f"  {shlex.join(server)}\n\n  {shlex.join(docker)}", flush=True)
        raise SystemExit(1)  # nothing is served
    print(shlex.join(found), flush=True)
    os.execvp(found[0], found)


def _sample(args):
    try:
        with Client(args.url, args.name, timeout=args.timeout) as client:
            asked = f"'{args.name}' at {args.url}, for {args.wait:g} s at most"
            print(f"waiting for {asked}", file=sys.stderr, flush=True)
            client.wait_until_ready(args.wait)
            images = client.sample(args.n, args.seed, args.label)
            limits = client.limits()
    except (ServingError, OSError, ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error
    card = Path(args.folder) / args.name / "model_card.json"
    known = limits or (json.loads(card.read_text()) if card.is_file() else {})
    levels = known.get("levels") or max(2, int(images.max()) + 1)
    print(save_grid(args.out or f"served_{args.name}.png", images, levels))


def main(words=None):
    parser = argparse.ArgumentParser(prog="python -m kgen.serving")
    kinds = parser.add_subparsers(required=True)
    serve = kinds.add_parser("serve", help="start a server of all exported models")
    serve.add_argument("--port", type=int, default=8500, help="gRPC: %(default)s")
    serve.add_argument("--rest-port", type=int, default=8501, help="%(default)s")
    serve.add_argument("--batching", action="store_true", help="requests jointly")
    serve.set_defaults(run=_serve)
    sample = kinds.add_parser("sample", help="draw a picture from a server")
    sample.add_argument("name", help="of the served model")
    sample.add_argument("--url", default="http://localhost:8501", help="%(default)s")
    sample.add_argument("--n", type=int, default=64, help="images: %(default)s")
    sample.add_argument("--seed", type=int, default=7, help="%(default)s")
    sample.add_argument("--label", type=int, help="for models that want one")
    sample.add_argument("--timeout", type=float, default=30.0, help="s: %(default)s")
    why = "for the server, which loads all models before it answers; s: %(default)s"
    sample.add_argument("--wait", type=float, default=300.0, help=why)
    sample.add_argument("--out", help="the picture; default: served_<name>.png")
    sample.set_defaults(run=_sample)
    for kind in (serve, sample):
        kind.add_argument("--folder", default="saved_models", help="%(default)s")
    args = parser.parse_args(words)
    args.run(args)


if __name__ == "__main__":
    main()
