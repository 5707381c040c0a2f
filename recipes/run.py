"""`run`: what every recipe does around its model. Flags, data, training, evaluation,
pictures, records.

A recipe imports this module before Keras, because --backend takes effect here (see
backend_flag.py).
"""

import argparse
import dataclasses
import os
import re
import shlex
import sys
import time
from pathlib import Path

from backend_flag import add_backend_flag

import keras
import numpy as np

import kgen
from kgen.callbacks import save_completions, save_grid, save_reconstructions
from records import parameters, prepare, rows_until, training, write_results
from report import describe_runs


def run(card, build, data, *, previews=2, samples=64, bound_samples=None, **settings):
    """Trains the model that `build` makes, evaluates it, draws samples and saves it.

    Args:
        card: the recipe's docstring, shown by --help.
        build: a function of the parsed flags and of the data's splits. Returns the
            model, not compiled, and its optimizer.
        data: the tfds name of the recipe's own data; see `parse_flags`.
        previews: how many times samples are drawn during training.
        samples: how many images are drawn at the end.
        bound_samples: k of the importance-weighted bound on log p(x) of the test
            images, for models that have one.
        settings: those of `parse_flags`.
    """
    args = parse_flags(card, data, **settings)
    keras.utils.set_random_seed(args.seed)
    splits = load(args)
    model, optimizer = build(args, splits)
    model.compile(optimizer)
    seconds = fit(args, model, splits, every=max(1, args.epochs // previews))
    finish(args, model, splits, seconds, samples, bound_samples)


def parse_flags(card, data, *, epochs, batch_size, lr, name=None, **sizes):
    """Parses the command line and chooses the devices.

    Args:
        card: the recipe's docstring, shown by --help.
        data, epochs, batch_size, lr: defaults of these flags. `lr` is the highest
            learning rate. A recipe whose default data are binarized_mnist is of binary
            images: it binarizes other data.
        name: of the run, and of its folders under runs/ and saved_models/; by default
            the file's. With other data their name takes the place of the default's,
            and --levels is added.
        sizes: of the network, positive integers; each has a flag.
    """
    script = Path(sys.argv[0])
    name = name or script.stem
    parser = argparse.ArgumentParser(
        description=f"{card}\n{describe_runs(script.name)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_backend_flag(parser)
    add("--epochs", type=int, default=epochs, help="default: %(default)s")
    add("--batch-size", type=int, default=batch_size, help="default: %(default)s")
    for size, default in sizes.items():
        flag = f"--{size.replace('_', '-')}"
        add(flag, type=int, default=default, help="default: %(default)s")
    add("--data", default=data, help="tfds name, 'digits' or a folder of images")
    add("--levels", type=int, help="gray levels to quantize to; default: the data's")
    add("--steps", type=int, help="optimizer steps, in place of --epochs")
    add("--lr", type=float, default=lr, help="highest learning rate, %(default)s")
    add("--name", help=f"of the run and of what is exported; default: {name}")
    add("--out", help="folder of the results; default: runs/<name>")
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--resume", action="store_true", help="continue the run in --out")
    add("--save-freq", type=int, help="batches between backups; default: each epoch")
    add("--devices", help="cpu, gpu, gpu:4 or a number; see kgen.distribute")
    add(
        "--smoke", action="store_true", help="two epochs on a few images, k at most 100"
    )
    args = parser.parse_args()
    args.binary = data == "binarized_mnist"
    if args.name is None:
        args.name = name
        if args.data != data:
            args.name = f"{name.removesuffix(f'_{data}')}_{Path(args.data).name}"
        if args.levels is not None:
            args.name = f"{args.name}_{args.levels}_levels"
    if not re.fullmatch(r"\w[\w.-]*", args.name):
        parser.error(f"--name {args.name}: expected letters, digits and _.-")
    if args.smoke:  # apart from a real run's folder and a served model's versions
        args.name, args.epochs = f"{args.name}_smoke", min(args.epochs, 2)
    args.out = args.out or f"runs/{args.name}"
    if not 0 <= args.seed < 2**31:
        parser.error("--seed must be in 0..2147483647")
    for flag in ("epochs", "batch_size", "steps", "save_freq", *sizes):
        value = getattr(args, flag)
        if value is not None and value < 1:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1")
    if args.levels is not None and not 2 <= args.levels <= 256:
        parser.error("--levels must be in 2..256")
    if not 0.0 < args.lr < 10.0:
        parser.error("--lr must be in 0..10")
    cluster = {"WORLD_SIZE", "TF_CONFIG", "KERAS_DISTRIBUTION_JOB_ADDRESSES"}
    cluster &= os.environ.keys()  # set for the backend's distribution engine
    args.distributed = bool(args.devices or cluster)
    if args.distributed:
        _use_devices(args.devices or 1, parser)
    return args


def _use_devices(devices, parser):
    """Chooses the devices before the backend works. Of several processes one prints."""
    try:
        kgen.distribute.use(devices)
    except ValueError as error:
        parser.error(f"--devices {devices}: {error}")
    if not kgen.files.writes():
        sys.stdout = open(os.devnull, "w")


def load(args, **kwargs):
    """`kgen.data.load(args.data)`, cut short for --smoke. For a recipe of binary images
    gray ones are binarized once."""
    kwargs = {"levels": args.levels} | kwargs
    if args.binary:
        if args.levels is not None:
            raise SystemExit(
                f"--levels {args.levels}: this recipe is of binary images, which it "
                "draws from gray ones by itself. For gray levels take vae_digits.py, "
                "pixel_cnn_pp_fashion_mnist.py or a GAN's recipe."
            )
        kwargs["binarize"] = None if args.data == "binarized_mnist" else "static"
    try:
        splits = kgen.data.load(args.data, batch_size=args.batch_size, **kwargs)
    except (ValueError, RuntimeError, ImportError) as error:
        levels = f" --levels {args.levels}" if args.levels else ""
        raise SystemExit(f"--data {args.data}{levels}: {error}") from error
    if not isinstance(splits.train, (np.ndarray, kgen.data.Batches)):
        raise SystemExit(
            f"--data {args.data} does not fit in memory as this recipe wants."
        )
    if args.smoke:
        few = {split: _shorten(getattr(splits, split)) for split in splits.sizes}
        sizes = {split: min(100, n) for split, n in splits.sizes.items()}
        splits = dataclasses.replace(splits, sizes=sizes, **few)
    if args.steps:
        args.epochs = -(-args.steps // -(-splits.sizes["train"] // args.batch_size))
    return splits


def _shorten(split, n=100):
    """The first images of a split, with their labels if there are any."""
    if isinstance(split, kgen.data.Batches):
        return kgen.data.Batches(split.images[:n], split.labels[:n])
    return split[:n]


def cosine(args, splits, warmup=0.05):
    """The learning rate of a whole run: up to `args.lr` in the first part, `warmup` of
    it, then down to 0 along a cosine."""
    steps = args.epochs * -(-len(splits.train) // args.batch_size)
    if not warmup:
        return keras.optimizers.schedules.CosineDecay(args.lr, steps)
    first = max(1, round(warmup * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - first), warmup_target=args.lr, warmup_steps=first
    )


def describe(args, model, splits):
    """Prints the settings of the run, before any work."""
    print(f"backend     {keras.backend.backend()}, keras {keras.__version__}")
    print(f"device      {kgen.backend.device()}")
    print(f"data        {splits}")
    print(f"model       {type(model).__name__}, {parameters(model):,} parameters")
    print(f"training    {args.epochs} epochs, batches of {args.batch_size}")
    print(f"seed        {args.seed}")
    print(f"results     {args.out}", flush=True)


def _describe_resumption(args, about):
    """Prints where a resumed run begins, and which setting has changed."""
    if about is None:
        print(f"--resume: there is no backup in {args.out}: the run begins anew")
        return
    at = f"epoch {about['epoch'] + 1}, batch {about['batch'] + 1}"
    if about["epoch"] >= args.epochs:
        at = f"its end, {args.epochs} epochs"
    print(f"resuming    at {at}", flush=True)
    before = (about.get("data") or {}).get("batch_size", args.batch_size)
    if before != args.batch_size:
        print(f"--resume: batches were of {before} images, now of {args.batch_size}")


def _make_state_callbacks(args, out, model, best, callbacks):
    """`callbacks`, and those that save weights and write history.csv."""
    backup = kgen.callbacks.BackupAndRestore(
        out / "backup", args.save_freq or "epoch", delete_checkpoint=False
    )
    try:
        _, about = backup.newest()
    except ValueError as error:
        raise SystemExit(f"--resume: {error}") from error
    if args.resume:
        _describe_resumption(args, about)
    least = rows_until(out / "history.csv", about["epoch"] if about else 0)
    made = [backup, *callbacks]
    if best:
        checkpoint = keras.callbacks.ModelCheckpoint(
            out / "best.weights.h5",
            save_best_only=True,
            save_weights_only=True,
            initial_value_threshold=least,
        )
        made.append(checkpoint)
    if model.optimizer.use_ema:  # the average is validated and saved
        made.insert(0, keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    if kgen.files.writes():
        log = keras.callbacks.CSVLogger(out / "history.csv", append=args.resume)
        made.append(log)
    return made


def _make_display_callbacks(out, model, splits, every):
    """The callbacks that draw samples and reconstructions and print progress."""
    n = 16 if hasattr(model, "complete") else 64  # those are drawn pixel by pixel
    made = [kgen.callbacks.SampleGrid(out / "epochs", n=n, every=every)]
    if hasattr(model, "reconstruct"):
        images, grid = splits.validation, kgen.callbacks.ReconstructionGrid
        made.append(grid(out / "epochs", images, every=every))
    names = ["loss", "val_loss", "val_kl_nats", "val_bits_per_dim"]
    return [*made, kgen.callbacks.Progress(names, every=max(1, every // 5))]


def fit(args, model, splits, *, every, best=True, callbacks=()):
    """Prints the settings, trains, and leaves in the model the weights that were best
    on the validation images. Returns the seconds it took.

    Samples are drawn each `every` epochs. Not `best`: the last epoch's weights, because
    a GAN's loss does not measure quality. `callbacks`: more of them, whose logs go into
    history.csv.

    The state is in `<out>/backup`, from where `--resume` continues.
    """
    out = Path(args.out)
    prepare(out, args.resume)
    describe(args, model, splits)
    start = time.time()
    data = kgen.data.Batches(
        splits.train,
        batch_size=args.batch_size,
        seed=args.seed,
        drop_remainder=args.distributed and kgen.backend.name == "jax",
    )
    callbacks = [
        *_make_state_callbacks(args, out, model, best, callbacks),
        *_make_display_callbacks(out, model, splits, every),
    ]
    try:
        model.fit(
            data,
            validation_data=splits.validation,
            epochs=args.epochs,
            verbose=0,
            callbacks=callbacks,
        )
    except KeyboardInterrupt:
        for callback in callbacks:  # Keras' CSVLogger leaves its file open
            if getattr(callback, "csv_file", None):
                callback.csv_file.close()
        words = [word for word in sys.argv if word != "--resume"]
        again = shlex.join(["python", *words, "--resume"])
        raise SystemExit(f"\nInterrupted. To go on: {again}") from None
    seconds = time.time() - start
    kgen.distribute.wait(model)  # the first process may be writing still
    if (out / "best.weights.h5").exists():
        model.load_weights(out / "best.weights.h5")
    return seconds


def finish(args, model, splits, seconds, samples, bound_samples):
    """Evaluates the model, once on the test images, draws, saves and exports it."""
    out = Path(args.out)
    results = training(args, seconds)
    for split in ("validation", "test"):
        images = getattr(splits, split)
        scores = model.evaluate(images, batch_size=250, verbose=0)
        results[f"{split}_images"] = len(images)
        results |= {f"{split}_{k}": v for k, v in scores.items() if k != "loss"}
    if bound_samples:
        k, test = min(bound_samples, 100) if args.smoke else bound_samples, splits.test
        print(f"importance-weighted bound, k={k}, {len(test)} test images:")
        bound = kgen.metrics.importance_weighted_bound(model, test, k)
        results |= {
            f"test_iw{k}_nats": float(bound.mean()),
            f"test_iw{k}_stderr": float(bound.std() / len(bound) ** 0.5),
            f"test_iw{k}_images": len(test),
        }
    start = time.time()
    pictures = draw(out, model, splits, samples)
    results["drawing_seconds"] = round(time.time() - start, 1)
    model.save(out / "model.keras")
    card = write_results(out / "metrics.json", args, model, splits, results)
    model.save_to_preset(out / "preset", card)
    version = kgen.export.next_version(Path("saved_models") / args.name)
    exported = model.export(version, card=card)
    for key, value in results.items():
        print(f"{key:32}{f'{value:.4f}' if isinstance(value, float) else value}")
    for path in pictures:
        print(path)
    print(f"{out / 'model.keras'}\n{out / 'preset'}/\n{exported}/")


def draw(out, model, splits, samples):
    """Samples; of a VAE their expectations E[x | z] and reconstructions of test images,
    of an exact family completions of them. Returns the paths."""
    images = model.sample(samples, seed=0, verbose=0)
    made = [save_grid(out / "samples.png", images, model.levels)]
    if hasattr(model, "sample_expected"):
        expected = model.sample_expected(samples, seed=0)
        made.append(save_grid(out / "samples_expected.png", expected, model.levels))
        path = out / "reconstructions.png"
        made.append(save_reconstructions(path, model, splits.test[:32]))
    if hasattr(model, "complete"):
        made.append(save_completions(out / "completions.png", model, splits.test[:8]))
    return made
