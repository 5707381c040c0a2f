"""`load`: one call from a data set's name to what `fit` and `evaluate` take."""

import dataclasses
import functools
import os

import numpy as np

from kgen.checks import boolean, is_integer, is_number, not_negative, positive
from kgen.data.batches import Batches
from kgen.data.images import (
    bernoulli,
    bernoulli_once,
    check_levels,
    need,
    quantize,
    threshold,
)
from kgen.data.sources import _tensorflow, open_source

SPLITS = ("train", "validation", "test")
MODES = (None, "static", "dynamic", "threshold")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Splits:
    """A loaded data set: three splits, each as `fit` and `evaluate` take it.

    Attributes:
        name: of the data set.
        train, validation, test: (N, H, W, C) uint8 array, `Batches`, or batched
            tf.data.Dataset, see `load`; validation is None if there is none.
        image_shape: (H, W, C).
        levels: the images are integers in 0..levels-1.
        num_classes: None without labels.
        binarize: None, "static", "dynamic" or "threshold".
        sizes: dict of the number of images of each split there is.
    """

    name: str
    train: object
    validation: object
    test: object
    image_shape: tuple
    levels: int
    num_classes: int | None
    binarize: str | None
    sizes: dict

    def describe(self):
        """One line: name, shape, levels, binarisation, classes and sizes."""
        shape = "x".join(map(str, self.image_shape))
        drawn = f" ({self.binarize} binarisation)" if self.binarize else ""
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        sizes = " / ".join(f"{n:,} {split}" for split, n in self.sizes.items())
        return f"{self.name} {shape}, {self.levels} levels{drawn}{classes}, {sizes}"

    __str__ = __repr__ = describe


def load(
    source,
    *,
    image_size=None,
    channels=None,
    levels=None,
    binarize=None,
    labels=False,
    validation=0.1,
    batch_size=128,
    seed=0,
    data_dir=None,
    augment=None,
    max_bytes=2**30,
):
    """Loads integer images, split into train, validation and test.

    A split is one object that `fit(x)` and `evaluate(x)` take as it is: a uint8
    array (N, H, W, C); `Batches` if there are labels or the train images are
    binarised anew every epoch; or, with `augment` (train only) or if the decoded
    split exceeds `max_bytes`, a batched tf.data.Dataset. With labels, batches are
    (images, labels (B,) int32).

    A set's own test and validation splits are used. Otherwise the test images (10 %,
    360 of the digits) and then the validation images are the last of train: tfds
    sets are stored shuffled, others get a fixed order that `seed` does not change.

    Args:
        source: "digits" (scikit-learn's 1,797 of 8x8, 17 levels); the name of a
            tfds image set; a folder of images, with sub-folders train/,
            validation/ (or val/) and test/, or one sub-folder a class, or neither;
            an integer array (N, H, W[, C]); or a tuple (images, labels (N,)).
        image_size: int or (H, W): resize and crop the centre, keeping the aspect.
        channels: 1 (grey) or 3 (RGB): convert.
        levels: quantise to that many. An array with all values below `levels` is
            taken as it is; else an array counts as 8-bit, or binary if all 0 and 1.
        binarize: None; "static": Bernoulli with the grey level as probability,
            drawn once; "dynamic": train drawn anew every epoch; "threshold".
            Validation and test are drawn once, the same for every `seed`.
        labels: give class labels too.
        validation: share (below 1) or number of images; 0 for no validation split.
            A set's own validation split is used whatever its size.
        batch_size: of Batches and tf.data.Dataset.
        seed: of the order, the binarisation of train and the augmentation.
        data_dir: where tfds sets are; None: TFDS_DATA_DIR or tfds' default.
        augment: True (random horizontal flips) or a list of keras_cv or keras
            layers, for RGB train images in 0..255, before they are quantised.
        max_bytes: a larger decoded split of a tfds set or folder is streamed.

    Returns:
        Splits.

    Raises:
        ValueError: an argument, a file or an array is not what is said above.
        RuntimeError: the tfds set is not prepared and cannot be downloaded.
        ImportError: a package this source needs is missing.
    """
    boolean(labels=labels)
    not_negative(max_bytes=max_bytes)
    _check(binarize, levels, channels, batch_size, data_dir, seed)
    size = _image_size(image_size)
    src = open_source(source, size, channels, levels, data_dir)
    if binarize and src.levels == 2:
        raise ValueError(
            f"expected grey images to binarize, but {src.name} is binary already: "
            "leave binarize=None"
        )
    if labels and src.num_classes is None:
        raise ValueError(
            f"expected {src.name} to have class labels, it has none: leave "
            "labels=False, or pass (images, labels) or a folder with class sub-folders"
        )
    layers = _layers(augment, src, seed)
    levels = 2 if binarize else src.levels if levels is None else levels
    check_levels(levels, src.levels)
    parts = _partition(src, validation)
    make = functools.partial(
        _split, src, layers, labels, levels, binarize, batch_size, seed, max_bytes
    )
    made = {split: make(split, *part) for split, part in parts.items()}
    return Splits(
        name=src.name,
        **{s: made.get(s) for s in SPLITS},
        image_shape=tuple(int(n) for n in src.shape),
        levels=int(levels),
        num_classes=src.num_classes if labels else None,
        binarize=binarize,
        sizes={s: len(parts[s][1]) for s in SPLITS if s in parts},
    )


def _check(binarize, levels, channels, batch_size, data_dir, seed):
    if not isinstance(binarize, (str, type(None))) or binarize not in MODES:
        raise ValueError(f"expected binarize to be one of {MODES}, got {binarize!r}")
    if levels is not None:
        check_levels(levels, 256)
    if binarize and levels not in (None, 2):
        raise ValueError(
            f"binarize={binarize!r} gives 2 levels, got levels={levels}: leave one out"
        )
    if channels is not None and not (is_integer(channels) and channels in (1, 3)):
        raise ValueError(f"expected channels to be None, 1 or 3, got {channels!r}")
    positive(batch_size=batch_size)
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"expected a seed of 0 or more, an integer, got {seed!r}")
    named = isinstance(data_dir, (str, os.PathLike))
    if data_dir is not None and not (named and os.path.isdir(data_dir)):
        raise ValueError(f"data_dir: there is no folder {data_dir}")


def _image_size(image_size):
    """(H, W) or None."""
    if image_size is None:
        return None
    size = (image_size, image_size) if is_integer(image_size) else image_size
    pair = isinstance(size, (tuple, list)) and len(size) == 2
    if not pair or not all(is_integer(n) and n >= 1 for n in size):
        raise ValueError(f"expected image_size to be int or (H, W), got {image_size!r}")
    return tuple(int(n) for n in size)


def _layers(augment, src, seed):
    """The augmentation layers, a list; empty for none."""
    if augment is None or augment is False:
        return []
    if src.shape[-1] != 3 or src.levels != 256:
        raise ValueError(
            "augment= is for RGB images with values 0..255, but those of "
            f"{src.name} have {src.shape[-1]} channel(s) and {src.levels} levels: "
            "pass channels=3 or leave augment out"
        )
    if augment is not True:
        return list(augment)
    tf = _tensorflow()
    keras_cv = need("keras_cv", "keras-cv")
    with tf.device("CPU:0"):  # its generator's state must be where tf.data runs
        # and keras_cv takes the seed 0 for none
        return [keras_cv.layers.RandomFlip("horizontal", seed=seed + 1)]


def _partition(src, validation):
    """Which images make each split: {split: (the source's split, index (N,))}."""
    count = src.counts["train"]
    order = np.arange(count)
    if not src.shuffled:
        order = np.random.default_rng(0).permutation(count)
    parts = {}
    for split, share in (("test", src.test), ("validation", validation)):
        none = share is None or (is_number(share) and share == 0)
        if split == "validation" and none:
            continue
        if split in src.counts:
            parts[split] = (split, np.arange(src.counts[split]))
            continue
        held = share
        if not is_number(share) or not (
            0 <= share and (share < 1 or is_integer(share))
        ):
            held = -1
        elif share < 1:
            held = max(1, round(share * len(order)))
        if held != int(held) or not 0 < held < len(order):
            raise ValueError(
                f"expected {split} to be a share below 1 or a number of images that "
                f"leaves some of the {len(order)} to train on, got {share!r}"
            )
        held = int(held)
        order, parts[split] = order[:-held], ("train", order[-held:])
    parts["train"] = ("train", order)
    return parts


def _split(
    src, layers, labels, levels, mode, batch_size, seed, max_bytes, split, origin, index
):
    """One split as `fit` takes it."""
    train = split == "train"
    dynamic = train and mode == "dynamic"

    def reduce(images, index):
        """(B, H, W, C) uint8 at the source's levels -> at the wanted levels."""
        if mode == "threshold":
            return threshold(images, src.levels)
        if mode:
            key = [seed if train else 0, SPLITS.index(origin)]
            return bernoulli_once(images, src.levels, key, index)
        return quantize(images, levels, src.levels)

    decoded = len(index) * int(np.prod(src.shape))
    if train and layers or not src.in_memory and decoded > max_bytes:
        tf = _tensorflow()
        data = src.stream(tf, origin, index, seed if train else None, max_bytes)
        data = data.batch(batch_size)
        if train and layers:
            data = data.map(functools.partial(_augment, tf, layers))
        redraw = functools.partial(_redraw, src.levels, seed) if dynamic else None
        return _finish(tf, data, reduce, redraw, labels, seed)
    images, targets = src.read(origin, index)
    targets = targets if labels else None
    if dynamic:
        return Batches(images, targets, batch_size, True, True, src.levels, seed)
    images = reduce(images, index)
    if labels:
        return Batches(images, targets, batch_size, shuffle=train, seed=seed)
    return images


def _augment(tf, layers, index, images, labels):
    """Runs the layers on a batch of a tf.data.Dataset, images uint8 in and out."""
    x = tf.cast(images, tf.float32)  # (B, H, W, 3)
    for layer in layers:
        x = layer(x, training=True)
    x = tf.clip_by_value(tf.round(tf.cast(x, tf.float32)), 0.0, 255.0)
    return index, tf.ensure_shape(tf.cast(x, tf.uint8), images.shape), labels


def _redraw(source_levels, seed, images, number):
    """Binarises a batch; `number` is another random one at every batch and epoch."""
    return bernoulli(images, source_levels, np.random.default_rng([seed, int(number)]))


def _finish(tf, data, reduce, redraw, labels, seed):
    """Reduces a batched tf.data.Dataset to the wanted levels, and prefetches."""

    def apply(function, images, number):
        x = tf.numpy_function(function, [images, number], tf.uint8)
        return tf.ensure_shape(x, images.shape)  # (B, H, W, C)

    if redraw:
        numbers = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
        data = tf.data.Dataset.zip((data, numbers)).map(
            lambda batch, number: (apply(redraw, batch[1], number), batch[2])
        )
    else:
        data = data.map(lambda i, x, y: (apply(reduce, x, i), y))
    if not labels:
        data = data.map(lambda x, y: x)
    return data.prefetch(tf.data.AUTOTUNE)
