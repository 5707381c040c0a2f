"""What every recipe does around its model: flags, data, fit, evaluate, draw, keep.

Importing this file imports no framework: `arguments` sets KERAS_BACKEND first.
"""

import argparse
import dataclasses
import os
import re
import shlex
import sys
import time
from pathlib import Path

from records import parameters, prepare, rows_until, training, write_results

sys.path.append(str(Path(__file__).resolve().parent.parent))  # kgen, if not installed


def arguments(card, name, *, data, epochs, batch_size, **sizes):
    """The command line, parsed; the environment variable KERAS_BACKEND, set.

    Args:
        card: the recipe's docstring, shown by --help.
        name: of the recipe, and of its folders under runs/ and saved_models/; with
            other data their name takes the place of the recipe's, and --levels is
            added.
        data, epochs, batch_size: the recipe's own.
        sizes: of the recipe's network, positive integers; each has a flag.
    """
    parser = argparse.ArgumentParser(
        description=card, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backend", choices=["tensorflow", "jax", "torch"], help="default: Keras' own")
    add("--epochs", type=int, default=epochs, help="default: %(default)s")
    add("--batch-size", type=int, default=batch_size, help="default: %(default)s")
    for size, default in sizes.items():
        flag = f"--{size.replace('_', '-')}"
        add(flag, type=int, default=default, help="default: %(default)s")
    add("--data", default=data, help="tfds name, 'digits' or a folder of images")
    add("--levels", type=int, help="gray levels to quantize to; default: the data's")
    add("--steps", type=int, help="optimizer steps, in place of --epochs")
    add("--lr", type=float, help="the highest learning rate; default: the recipe's")
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
    if args.lr is not None and not 0.0 < args.lr < 10.0:
        parser.error("--lr must be in 0..10")
    if args.backend:
        os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's start-up chatter
    several = {"WORLD_SIZE", "TF_CONFIG", "KERAS_DISTRIBUTION_JOB_ADDRESSES"}
    several &= os.environ.keys()  # as set for the backend's engine
    args.several = bool(args.devices or several)
    if args.several:
        _use(args.devices or 1, parser)
    return args


def _use(devices, parser):
    """Before all else that the backend does; of several processes, one prints."""
    import kgen

    try:
        kgen.distribute.use(devices)
    except ValueError as error:
        parser.error(f"--devices {devices}: {error}")
    if not kgen.files.writes():
        sys.stdout = open(os.devnull, "w")


def load(args, **kwargs):
    """`kgen.data.load(args.data)`, cut short for --smoke."""
    import numpy as np

    from kgen import data

    kwargs = {"levels": args.levels} | kwargs
    try:
        splits = data.load(args.data, batch_size=args.batch_size, **kwargs)
    except (ValueError, RuntimeError, ImportError) as error:
        levels = f" --levels {args.levels}" if args.levels else ""
        raise SystemExit(f"--data {args.data}{levels}: {error}") from error
    if not isinstance(splits.train, np.ndarray):
        raise SystemExit(
            f"--data {args.data} does not fit in memory as this recipe wants."
        )
    if args.smoke:
        few = {k: getattr(splits, k)[:100] for k in ("train", "validation", "test")}
        sizes = {k: len(v) for k, v in few.items()}
        splits = dataclasses.replace(splits, sizes=sizes, **few)
    if args.steps:
        args.epochs = -(-args.steps // -(-len(splits.train) // args.batch_size))
    return splits


def load_binary(args):
    """Images of two levels: as they are, or drawn from their grey levels once."""
    if args.levels is not None:
        raise SystemExit(
            f"--levels {args.levels}: this recipe is of binary images, which it draws "
            "from gray ones by itself. For gray levels take vae_digits.py, "
            "pixel_cnn_pp_fashion_mnist.py or a GAN's recipe."
        )
    already = args.data == "binarized_mnist"
    return load(args, binarize=None if already else "static")


def cosine(args, splits, rate, warmup=0.05):
    """The learning rate of a whole run: up to `rate` in its first part, then down to 0
    along a cosine."""
    import keras

    steps = args.epochs * -(-len(splits.train) // args.batch_size)
    rate = args.lr or rate
    first = max(1, round(warmup * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - first), warmup_target=rate, warmup_steps=first
    )


def describe(args, model, splits):
    """Prints what was resolved, before any work."""
    import keras

    from kgen import backend

    print(f"backend     {keras.backend.backend()}, keras {keras.__version__}")
    print(f"device      {backend.device()}")
    print(f"data        {splits}")
    print(f"model       {type(model).__name__}, {parameters(model):,} parameters")
    print(f"training    {args.epochs} epochs, batches of {args.batch_size}")
    print(f"seed        {args.seed}")
    print(f"results     {args.out}", flush=True)


def _say_where(args, about):
    """Prints where a resumed run begins, and what is other than it was."""
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


def _states(args, out, best, averaged, callbacks):
    """The callbacks that keep weights and numbers."""
    import keras

    import kgen

    backup = kgen.callbacks.BackupAndRestore(
        out / "backup", args.save_freq or "epoch", delete_checkpoint=False
    )
    try:
        _, about = backup.newest()
    except ValueError as error:
        raise SystemExit(f"--resume: {error}") from error
    if args.resume:
        _say_where(args, about)
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
    if averaged:
        made.insert(0, keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    if kgen.files.writes():
        log = keras.callbacks.CSVLogger(out / "history.csv", append=args.resume)
        made.append(log)
    return made


def _shown(out, model, splits, every):
    """The callbacks that show reconstructions and progress."""
    import kgen

    names = ["loss", "val_loss", "val_kl_nats", "val_bits_per_dim"]
    progress = kgen.callbacks.Progress(names, every=max(1, every // 5))
    if not hasattr(model, "reconstruct"):
        return [progress]
    images, grid = splits.validation, kgen.callbacks.ReconstructionGrid
    return [grid(out / "epochs", images, every=every), progress]


def fit(
    args, model, splits, *, every, samples=64, averaged=False, best=True, callbacks=()
):
    """Prints what is resolved, trains, and leaves in the model the weights that were
    best on the validation images. Returns the seconds it took.

    `every` so many epochs, pictures are drawn, with so many `samples`. `averaged`: the
    optimizer keeps a moving average of the weights, which is to be validated and kept.
    Not `best`: the last epoch's weights, because a GAN's loss does not measure quality.
    `callbacks`: more of them, whose logs go into history.csv.

    The state is in `<out>/backup`, from where `--resume` goes on.
    """
    import kgen

    out = Path(args.out)
    prepare(out, args.resume)
    describe(args, model, splits)
    start = time.time()
    data = kgen.data.Batches(
        splits.train,
        batch_size=args.batch_size,
        seed=args.seed,
        drop_remainder=args.several and kgen.backend.name == "jax",
    )
    callbacks = [
        *_states(args, out, best, averaged, callbacks),
        kgen.callbacks.SampleGrid(out / "epochs", n=samples, every=every),
        *_shown(out, model, splits, every),
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


def finish(
    args, model, splits, seconds, *, num_samples=None, test_images=None, samples=64
):
    """Reads the test images, once; draws; keeps the model; exports it.

    Args:
        num_samples: k of the importance-weighted bound, for models that have one.
        test_images: how many test images that bound is estimated on; None for all.
        samples: how many images to draw.
    """
    import kgen

    out = Path(args.out)
    results = training(args, seconds)
    for split in ("validation", "test"):
        images = getattr(splits, split)
        scores = model.evaluate(images, batch_size=250, verbose=0)
        results[f"{split}_images"] = len(images)
        results |= {f"{split}_{k}": v for k, v in scores.items() if k != "loss"}
    if num_samples:
        num_samples = min(num_samples, 100) if args.smoke else num_samples
        part = splits.test[:test_images]
        print(f"importance-weighted bound, k={num_samples}, {len(part)} test images:")
        bound = kgen.metrics.importance_weighted_bound(model, part, num_samples)
        results |= {
            f"test_iw{num_samples}_nats": float(bound.mean()),
            f"test_iw{num_samples}_stderr": float(bound.std() / len(bound) ** 0.5),
            f"test_iw{num_samples}_images": len(part),
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
        print(
            f"{key:32}{value:.4f}" if isinstance(value, float) else f"{key:32}{value}"
        )
    for made in pictures:
        print(made)
    print(f"{out / 'model.keras'}\n{out / 'preset'}/\n{exported}/")


def draw(out, model, splits, samples):
    """Samples; of a VAE their expectations E[x | z] and reconstructions of test images,
    of an exact family completions of them. Returns the paths."""
    from kgen.callbacks import save_completions, save_grid, save_reconstructions

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
