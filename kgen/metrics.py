"""Numbers about models: bits per dimension, the importance-weighted bound, distances of
what they draw from what they should."""

from pathlib import Path

import keras
import numpy as np
from keras import ops

from kgen import backend, random
from kgen.checks import positive
from kgen.distances import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from kgen.tensor_checks import check_images

__all__ = [
    "Distances",
    "bits_per_dim",
    "density_coverage",
    "frechet_distance",
    "importance_weighted_bound",
    "kernel_distance",
    "log_mean_weight",
    "mnist_features",
    "precision_recall",
]

_MAX_ROWS = 8192  # decoder rows at once
_MNIST = Path(__file__).parent / "assets" / "mnist_features.keras"


def bits_per_dim(nats, image_shape):
    """Nats per image, of either sign -> bits per dimension: nats / (H W C ln 2)."""
    return nats / (float(np.prod(image_shape)) * float(np.log(2.0)))


def log_mean_weight(log_weights, num_samples, seed, x, *labels, size_of=None):
    """log 1/k sum_i w_i, the k-sample bound of Burda et al. 2016 (eq. 8): (B,) nats.

    The noise of sample i is a function of the image, `seed` and i, so an image's bound
    is the same in any batch.

    Args:
        log_weights: function (x, keys, streams[, labels]) -> (B, len(streams)) nats.
        num_samples: k.
        seed: int, for another draw.
        x: images (B, H, W, C).
        *labels: (B,), for conditional models.
        size_of: function of a number of samples, to how many to compute at once in its
            place (`backend.program_sizes`); what is too many is not counted.
    """
    positive(num_samples=num_samples)
    keys = random.image_keys(x, seed)  # (B, 2)
    chunk = max(1, min(num_samples, _MAX_ROWS // int(x.shape[0])))
    total = None
    for start in range(0, num_samples, chunk):
        count = min(chunk, num_samples - start)
        computed = count if size_of is None else size_of(count)
        streams = np.arange(start, start + computed, dtype="int32")
        weights = log_weights(x, keys, ops.convert_to_tensor(streams), *labels)
        if computed > count:
            weights = ops.where(streams < start + count, weights, -float("inf"))
        part = ops.logsumexp(weights, axis=1)  # (B,)
        total = part if total is None else ops.logaddexp(total, part)
    return total - float(np.log(num_samples))


def importance_weighted_bound(
    model, x, num_samples=5000, labels=None, batch_size=100, seed=0, verbose="auto"
):
    """`model.log_prob(x, num_samples)` for a whole data set, compiled, with progress.

    The custom for VAEs is 5000 samples on the test set.

    Args:
        model: a model with `log_weights`, such as VAE.
        x: integer images (N, H, W, C).
        labels: (N,), for conditional models.
        verbose: 0 for no progress bar.

    Returns: NumPy float32 (N,), nats.
    """
    images, *labels = model.prepare_inputs(x, labels)
    log_weights = backend.compile_function(model, model.log_weights)
    bar = keras.utils.Progbar(len(x), unit_name="image") if verbose else None
    out = []
    for start in range(0, len(x), batch_size):
        part = slice(start, start + batch_size)
        bound = log_mean_weight(
            log_weights, num_samples, seed, images[part], *[y[part] for y in labels]
        )
        out.append(ops.convert_to_numpy(bound))
        if bar:
            bar.add(len(out[-1]))
    return np.concatenate(out)


def mnist_features():
    """A feature model of handwritten digits: the last hidden layer, 64 rectified
    units, of a small classifier of MNIST.

    Trained by recipes/mnist_features.py on grey images and on Bernoulli draws of them,
    so that it takes images of 256 and of 2 levels. It sees digits, and hardly grey
    levels: a binarised image is not far from its grey original. What is measured over
    it compares with nothing over another model, such as Inception.

    Returns: keras.Model, from float images (B, 28, 28, 1) in 0..1 to (B, 64).
    """
    return keras.saving.load_model(_MNIST, compile=False)


class Distances:
    """Distances of generated images from a data set's, over the features of a model.

    `distances(images)` returns a dict of floats, of which each name begins with the
    feature model's and has another beside it that ends in `_floor`: what the same
    number of images of the data itself get against the same reference.

        mnist_images              how many generated images were measured
        mnist_frechet_distance    squared units of the features; see `frechet_distance`
        mnist_kernel_distance     squared discrepancy; see `kernel_distance`
        mnist_kernel_distance_se  its standard error
        mnist_precision, mnist_recall      k = 3; see `precision_recall`
        mnist_density, mnist_coverage      k = 5; see `density_coverage`

    The last four are of equal numbers of generated and reference images (the floor is
    then what could be reached, a ceiling), the others of the whole reference. Frechet
    distances fall with the number of images: compare those of one `mnist_images`. If
    there are too few floor images, all are taken, and `mnist_images_floor` is their
    number. The floor is of one draw; `frechet_baseline` gives mean and deviation of
    several.

    Args:
        features: keras.Model, from float images (B, H, W, C) in 0..1 to (B, d).
        name: of the feature model.
        reference: images to compare with, such as the test split: integers
            (N, H, W, C) in 0..levels-1. Their features are computed at once.
        floor: other images of the same data, such as the train split.
        levels: number of integer values a pixel can take.

    Raises:
        ValueError: images are not as said, or do not suit the feature model.
    """

    _MEASURES = (
        "images",
        "frechet_distance",
        "kernel_distance",
        "kernel_distance_se",
        "precision",
        "recall",
        "density",
        "coverage",
    )

    def __init__(self, features, name, reference, floor, levels=256):
        self.features, self.name, self.levels = features, name, int(levels)
        self.image_shape = tuple(getattr(reference, "shape", ())[1:])
        if not hasattr(reference, "shape"):
            raise ValueError(
                "reference: expected an array of integer images (N, H, W, C); got "
                f"{type(reference).__name__}."
            )
        self._check_features()
        self._check(reference, "reference")
        self._check(floor, "floor")
        # In a fixed random order, for the first few may be of one class.
        self._reference = self._of(_shuffle(reference))  # (N, d)
        self._own, self._floors = _shuffle(floor), {}

    @property
    def names(self):
        """The names of all that is measured, in order."""
        names = [f"{self.name}_{measure}" for measure in self._MEASURES]
        return names + [f"{name}_floor" for name in names]

    def __call__(self, images):
        """Integer images (n, H, W, C), 6 or more -> {name: float}."""
        self._check(images, "images")
        measured = self._measure(self._of(images))
        names = self.names[: len(measured)]
        return dict(zip(names, measured, strict=True)) | self.floor(len(images))

    def floor(self, n):
        """What the first n of the floor images get, {name ending in _floor: float}."""
        if n not in self._floors:
            self._floors[n] = self._measure(self._of(self._own[:n]))
        names = self.names[len(self._MEASURES) :]
        return dict(zip(names, self._floors[n], strict=True))

    def frechet_baseline(self, n, draws=20, seed=0):
        """Mean and standard deviation of the Frechet distance of n of the floor images
        from the reference, over so many draws, each without replacement.

        Raises:
            ValueError: n is below 2 or above the number of floor images, or `draws` is
                below 2.
        """
        positive(n=n, draws=draws)
        if not 2 <= n <= len(self._own) or draws < 2:
            raise ValueError(
                f"n must be in 2..{len(self._own)}, the number of floor images, and "
                f"draws at least 2; got n={n}, draws={draws}."
            )
        rng = np.random.default_rng(seed)
        chosen = [rng.choice(len(self._own), n, replace=False) for _ in range(draws)]
        which, index = np.unique(chosen, return_inverse=True)
        features = self._of(self._own[which])  # of each image once
        values = [
            frechet_distance(features[rows], self._reference)
            for rows in index.reshape(draws, n)
        ]
        return float(np.mean(values)), float(np.std(values, ddof=1))

    def check_model(self, model):
        """A ValueError if the model's images are not of the reference's kind."""
        kind, ours = (self.image_shape, self.levels), (model.image_shape, model.levels)
        if kind != ours:
            raise ValueError(
                f"{self.name} distances: the reference is of images {kind[0]} with "
                f"{kind[1]} levels, the model draws {ours[0]} with {ours[1]}. Give "
                "`Distances` the data that the model is trained on."
            )

    def _measure(self, generated):
        """The values of `_MEASURES` for features (n, d)."""
        n = min(len(generated), len(self._reference))
        if n < 6:  # a 5th neighbour and the image itself
            raise ValueError(
                f"{self.name} distances: expected 6 images or more of each; got {n}."
            )
        pair = self._reference[:n], generated[:n]
        return [
            float(len(generated)),
            frechet_distance(generated, self._reference),
            *kernel_distance(generated, self._reference),
            *precision_recall(*pair, k=3),
            *density_coverage(*pair, k=5),
        ]

    def _of(self, images):
        """The features of integer images: (n, H, W, C) -> (n, d)."""
        x = np.asarray(images, "float32") / (self.levels - 1)
        return self.features.predict(x, batch_size=250, verbose=0)

    def _check(self, images, what):
        check_images(images, self.image_shape, self.levels, what)

    def _check_features(self):
        takes = getattr(self.features, "input_shape", None)
        gives = getattr(self.features, "output_shape", None)
        if takes and not _suits(self.image_shape, takes[1:]):
            raise ValueError(
                f"reference: expected images {takes[1:]}, which the feature model "
                f"{self.name} takes; got {self.image_shape}."
            )
        if gives and len(gives) != 2:
            raise ValueError(
                f"features: expected a model that gives (batch, d); {self.name} gives "
                f"{gives}."
            )


def _suits(shape, known):
    """Whether `shape` is the `known` one, in which None stands for any size."""
    return len(shape) == len(known) and all(
        size in (None, given) for given, size in zip(shape, known, strict=True)
    )


def _shuffle(images):
    images = np.asarray(images)
    return images[np.random.default_rng(0).permutation(len(images))]
