"""A small classifier of MNIST; its last hidden layer is kgen.metrics.mnist_features().

    python recipes/mnist_features.py --backend tensorflow

What for: distances of generated digits, which need features that know digits; those of
    Inception, a model of photographs, do not (and are not to be had everywhere).
Data: mnist (LeCun, Bottou, Bengio and Haffner 1998), by its tfds name. Each batch holds
    its images in grey and drawn as Bernoulli variables, anew each epoch, for models of
    either kind of image are to be measured. Nothing is selected on validation; test is
    evaluated once.
Published: 99.05 % test accuracy of LeNet-5, trained without distortions (LeCun et al.
    1998, 60,000 parameters), on grey images.

Writes <out>/mnist_features.keras, float images (B, 28, 28, 1) in 0..1 -> (B, 64), of
which kgen/assets/mnist_features.keras is a copy, and the distances of training images
from test images over these features, by the number of images, one draw of them: the
real-data baseline. recipes/mnist_baseline.py has its mean and deviation.
"""

import time
from pathlib import Path

from run import describe, load, parse_flags

import keras
import numpy as np
from keras import layers

import kgen
from kgen.data.images import bernoulli
from records import prepare, write_results


def classifier(image_shape, num_classes):
    return keras.Sequential(
        [
            layers.Input(image_shape),
            layers.Conv2D(16, 5, 2, "same", activation="relu"),
            layers.Conv2D(32, 3, 2, "same", activation="relu"),
            layers.Conv2D(32, 3, 2, "same", activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="features"),
            layers.Dense(num_classes),
        ],
        name="mnist_classifier",
    )


class GreyAndBinary(keras.utils.PyDataset):
    """Batches of images in grey and, beside them, as Bernoulli draws: (2 B, H, W, C)
    floats in 0..1, labels (2 B,)."""

    def __init__(self, grey, levels, batch_size, seed):
        super().__init__()
        self.levels = levels
        images, labels = grey.images, grey.labels
        self.grey = kgen.data.Batches(images, labels, batch_size, seed=seed)
        self.binary = kgen.data.Batches(
            images, labels, batch_size, binarize=True, source_levels=levels, seed=seed
        )

    def set_epoch(self, epoch):
        self.grey.set_epoch(epoch)
        self.binary.set_epoch(epoch)

    def __len__(self):
        return len(self.grey)

    def __getitem__(self, i):
        (grey, y), (binary, _) = self.grey[i], self.binary[i]  # in the same order
        x = np.concatenate([grey / (self.levels - 1), binary]).astype("float32")
        return x, np.concatenate([y, y])


def fit(args, model, splits):
    """Trains; every epoch's state is in <out>/backup. Returns the seconds it took."""
    data = GreyAndBinary(splits.train, splits.levels, args.batch_size, args.seed)
    steps = args.epochs * len(data)
    rate = keras.optimizers.schedules.CosineDecay(args.lr, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    validation, out = splits.validation, Path(args.out)
    start = time.time()
    model.fit(
        data,
        validation_data=(
            (validation.images / (splits.levels - 1)).astype("float32"),
            validation.labels,
        ),
        epochs=args.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[
            kgen.callbacks.SetEpoch(data),
            keras.callbacks.CSVLogger(out / "history.csv", append=args.resume),
            kgen.callbacks.Progress(["loss", "accuracy", "val_accuracy"]),
            keras.callbacks.BackupAndRestore(
                out / "backup",
                args.save_freq or "epoch",
                double_checkpoint=True,
                delete_checkpoint=False,
            ),
        ],
    )
    return time.time() - start


def measure(model, features, splits):
    """Accuracies on the test images, and the distances of training images from them."""
    results = {}
    train, test = splits.train.images, splits.test.images
    draws = [
        bernoulli(x, splits.levels, np.random.default_rng(i))
        for i, x in enumerate((train, test))
    ]
    kinds = {"grey": (train, test, splits.levels), "binary": (*draws, 2)}
    for kind, (ours, reference, levels) in kinds.items():
        x = (reference / (levels - 1)).astype("float32")
        scores = model.evaluate(x, splits.test.labels, 250, verbose=0, return_dict=True)
        results[f"{kind}_test_accuracy"] = scores["accuracy"]
        distances = kgen.metrics.Distances(features, "mnist", reference, ours, levels)
        for n in sorted({min(n, len(ours)) for n in (1000, 10000)}):
            for name, value in distances.floor(n).items():
                results[f"{kind}_{n}_{name}"] = value
    return results


def main():
    args = parse_flags(__doc__, "mnist", epochs=6, batch_size=64, lr=2e-3)
    keras.utils.set_random_seed(args.seed)
    out = Path(args.out)
    prepare(out, args.resume, ["mnist_features.keras"])
    splits = load(args, labels=True, validation=1 / 12)
    model = classifier(splits.image_shape, splits.num_classes)
    describe(args, model, splits)
    seconds = fit(args, model, splits)
    features = keras.Model(
        model.inputs, model.get_layer("features").output, name="mnist_features"
    )
    path = out / "mnist_features.keras"
    with kgen.files.atomic(path) as unfinished:
        features.save(unfinished)
    results = {"training_seconds": round(seconds, 1), "resumed": args.resume}
    results |= {"test_images": len(splits.test.images)}
    results |= measure(model, features, splits)
    write_results(out / "metrics.json", args, model, splits, results)
    for key, value in results.items():
        print(
            f"{key:48}{value:.4f}" if isinstance(value, float) else f"{key:48}{value}"
        )
    print(path)


if __name__ == "__main__":
    main()
