"""Where images come from: arrays, the user's folders, TensorFlow Datasets.

A source has `name`, `shape` (H, W, C), `levels`, `num_classes` (None without
labels), `counts` (its own splits and their sizes, "train" among them),
`in_memory`, `shuffled` (its order is random already) and `test` (how many images
to hold out when it has no test split: a count or a share). Its images are read by
`read(split, index)` into arrays or by `stream(tf, split, index, ...)`.
"""

import difflib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np

from kgen.data.images import as_images, as_labels, fit_image, need, read_image, scan
from kgen.data.network import check_reachable

SUFFIXES = set(".png .jpg .jpeg .bmp .gif .webp .tif .tiff .ppm .pgm .pbm".split())
# Zeros and ones stored as 8-bit images: no feature of these tfds sets tells it.
BINARY_SETS = ("binarized_mnist",)


def _tensorflow():
    """TensorFlow, without the GPUs unless it is Keras' backend.

    TensorFlow would take all GPU memory, only to feed another framework data.
    """
    tf = need("tensorflow", "tensorflow")
    if keras.backend.backend() != "tensorflow":
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:
            pass  # its devices are set up already, and cannot be changed
    return tf


class _Indexed:
    """What the sources with random access share: `image(split, i)` gives one."""

    shuffled, test, in_memory = False, 0.1, False

    def stream(self, tf, split, index, seed=None, max_bytes=None):
        """tf.data.Dataset of (index, image (H, W, C) uint8, label int32)."""
        data = tf.data.Dataset.from_tensor_slices((index, self._labels(split, index)))
        if seed is not None:
            data = data.shuffle(len(index), seed=seed)  # no image is in this buffer

        def fetch(i, label):
            x = tf.numpy_function(lambda i: self.image(split, i), [i], tf.uint8)
            return i, tf.ensure_shape(x, self.shape), label

        return data.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)

    def _labels(self, split, index):
        labels = self.labels[split]
        return np.zeros(len(index), np.int32) if labels is None else labels[index]


class ArraySource(_Indexed):
    """Images in memory; `levels` is how many levels an array has; None: find out."""

    in_memory = True

    def __init__(self, name, images, labels, levels, size, channels, test=0.1):
        images = as_images(images)  # (N, H, W, C)
        labels = None if labels is None else as_labels(labels, len(images))
        self.name, self.test = name, test
        self.levels = levels or (2 if images.max() <= 1 else 256)
        have = images.shape[-1]
        if (size and size != images.shape[1:3]) or (channels and channels != have):
            if have not in (1, 3, 4):
                raise ValueError(
                    f"expected images of 1, 3 or 4 channels to convert, got {have}: "
                    "leave image_size= and channels= out"
                )
            channels = channels or min(have, 3)
            images = np.stack([fit_image(x, size, channels) for x in images])
            images = np.minimum(images, self.levels - 1)  # bicubic overshoots
        self.images, self.labels = images, {"train": labels}
        self.shape = images.shape[1:]
        self.num_classes = None if labels is None else int(labels.max()) + 1
        self.counts = {"train": len(images)}

    def image(self, split, i):
        return self.images[i]

    def read(self, split, index):
        return self.images[index], self._labels(split, index)


class FolderSource(_Indexed):
    """A folder of images: train/ [validation/] [test/], classes/, or flat."""

    levels = 256

    def __init__(self, folder, size, channels):
        folder = Path(folder)
        self.name = folder.resolve().name
        roots = {"train": folder}
        if (folder / "train").is_dir():
            roots["train"] = folder / "train"
            for name in ("val", "validation", "test"):
                if (folder / name).is_dir():
                    roots["test" if name == "test" else "validation"] = folder / name
        found = {split: _list_images(root) for split, root in roots.items()}
        classes = found["train"][1]
        self.files = {split: files for split, (files, _) in found.items()}
        self.labels = {s: _folder_labels(roots[s], *found[s], classes) for s in found}
        self.num_classes = len(classes) if classes else None
        self.counts = {split: len(files) for split, files in self.files.items()}
        self.size, grey = scan([f for fs in self.files.values() for f in fs], size)
        self.channels = channels or (1 if grey else 3)
        self.shape = (*self.size, self.channels)

    def image(self, split, i):
        return read_image(self.files[split][i], self.size, self.channels)

    def read(self, split, index):
        with ThreadPoolExecutor(8) as pool:  # Pillow decodes outside the GIL
            images = list(pool.map(lambda i: self.image(split, i), index))
        return np.stack(images), self._labels(split, index)


def _list_images(root):
    """Sorted image files under `root`, and the names of its class sub-folders."""
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(p.startswith((".", "__")) for p in path.relative_to(root).parts)
    )
    flat = [path for path in files if path.parent == root]
    if not files:
        raise ValueError(
            f"expected images in the folder {root}, found none: images end in "
            f"{' '.join(sorted(SUFFIXES))}"
        )
    if flat and len(flat) < len(files):
        raise ValueError(
            f"expected images either in {root} itself or in one sub-folder a class, "
            f"found both ({flat[0].name} lies beside the sub-folders): move them"
        )
    names = {path.relative_to(root).parts[0] for path in files}
    return files, [] if flat else sorted(names)


def _folder_labels(root, files, names, classes):
    """(N,) int32 labels by sub-folder name, or None for a flat folder."""
    if not set(names) <= set(classes) or bool(names) != bool(classes):
        raise ValueError(
            f"expected {root} to have the classes of the train folder, {classes}, "
            f"found {names}"
        )
    if not names:
        return None
    return np.array(
        [classes.index(path.relative_to(root).parts[0]) for path in files], np.int32
    )


class TfdsSource:
    """An image data set of TensorFlow Datasets, prepared on first use."""

    in_memory, shuffled, test = False, True, 0.1

    def __init__(self, name, size, channels, data_dir):
        _tensorflow()
        self.name, self.builder = name, _builder(name, data_dir)
        info = self.builder.info
        features = dict(getattr(info.features, "items", dict)())
        feature, label = features.get("image"), features.get("label")
        if len(getattr(feature, "shape", ())) != 3 or feature.np_dtype != np.uint8:
            raise ValueError(
                "expected a tfds data set with 8-bit images under 'image', but "
                f"{name!r} has the features {features}"
            )
        if None in feature.shape[:2] and not size:
            raise ValueError(
                f"the images of {name!r} differ in size ({feature}): pass image_size= "
                "to resize and crop them all"
            )
        _prepare(self.builder)
        self.counts = {s: info.splits[s].num_examples for s in info.splits}
        if "train" not in self.counts:
            raise ValueError(
                f"expected {name!r} to have a split 'train', it has {list(self.counts)}"
            )
        self.levels = 2 if info.name in BINARY_SETS else 256
        self.num_classes = getattr(label, "num_classes", None)
        height, width = size or feature.shape[:2]
        have = feature.shape[2]
        self.shape = (height, width, channels or min(have or 3, 3))
        self.convert = self.shape != tuple(feature.shape)

    def stream(self, tf, split, index, seed=None, max_bytes=2**30):
        """tf.data.Dataset of (index, image (H, W, C) uint8, label int32).

        `index` is a range without gaps. The order is random within a buffer of a
        quarter of `max_bytes`; the sets are stored in random order already.
        """
        tfds = need("tensorflow_datasets", "tensorflow-datasets")
        start, stop = int(index[0]), int(index[-1]) + 1
        data = self.builder.as_dataset(
            split=f"{split}[{start}:{stop}]",
            read_config=tfds.ReadConfig(try_autocache=False),
        ).enumerate(start)

        def fetch(i, example):
            x = example["image"]
            if self.convert:
                x = tf.numpy_function(self._fit, [x], tf.uint8)
            label = example["label"] if self.num_classes else 0
            return i, tf.ensure_shape(x, self.shape), tf.cast(label, tf.int32)

        data = data.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)
        data = data.apply(tf.data.experimental.assert_cardinality(len(index)))
        if seed is not None:
            buffer = max(1024, max_bytes // 4 // int(np.prod(self.shape)))
            data = data.shuffle(min(len(index), buffer), seed=seed)
        return data

    def _fit(self, image):
        image = fit_image(image, self.shape[:2], self.shape[2])
        return np.minimum(image, self.levels - 1)  # bicubic overshoots

    def read(self, split, index):
        """Images (N, H, W, C) uint8 and labels (N,) int32, zeros without labels."""
        images = np.empty((len(index), *self.shape), np.uint8)  # (N, H, W, C)
        labels = np.empty(len(index), np.int32)  # (N,)
        start = 0
        data = self.stream(_tensorflow(), split, index).batch(256).prefetch(2)
        for _, x, y in data.as_numpy_iterator():
            images[start : start + len(x)], labels[start : start + len(x)] = x, y
            start += len(x)
        return images, labels


def _builder(name, data_dir):
    """The tfds builder of that name; ValueError with near names if there is none."""
    tfds = need("tensorflow_datasets", "tensorflow-datasets")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError, AssertionError) as e:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], known)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            "expected 'digits', the name of a tfds image data set, an existing folder "
            f"of images, or an array of integer images, got {name!r}{hint} (tfds says: "
            f"{str(e).splitlines()[0]})"
        ) from e


def _prepare(builder):
    """Downloads and prepares a tfds set that is not on this machine yet."""
    if builder.data_path.exists():
        return
    try:
        urls = builder.url_infos or {}
        if not _has_downloads(builder, urls):
            check_reachable(urls)
        builder.download_and_prepare()
    except Exception as error:  # tfds raises whatever its sources raise
        raise RuntimeError(
            f"the tfds data set {builder.name!r} is not prepared in "
            f"{builder.data_path} and downloading it failed ({error}): set data_dir= "
            "or the environment variable TFDS_DATA_DIR to a folder that has it, or "
            "connect to the network"
        ) from error


def _has_downloads(builder, urls):
    """Whether tfds keeps a file of one of the addresses: it may need no network."""
    root = Path(builder.data_path).parents[len(Path(builder.info.full_name).parts) - 1]
    kept = (root / "downloads").rglob("*.INFO")  # one beside each file
    return any(url in info for info in map(Path.read_text, kept) for url in urls)


def open_source(source, size, channels, levels, data_dir):
    """The source object for what the user passed to `load`."""
    if isinstance(source, str) and source == "digits":
        bunch = need("sklearn.datasets", "scikit-learn").load_digits()
        images = bunch.images.astype(np.uint8)  # (1797, 8, 8)
        return ArraySource("digits", images, bunch.target, 17, size, channels, 360)
    if isinstance(source, str) and Path(source).suffix in (".npz", ".npy"):
        raise ValueError(
            f"got the file {source!r}: load its arrays by numpy.load and pass them, "
            "images or (images, labels)"
        )
    path = isinstance(source, Path)
    if isinstance(source, str):  # names of tfds do not begin so
        path = source.startswith(("/", ".", "~")) or os.path.isdir(source)
    if path:
        if not os.path.isdir(source):
            raise ValueError(
                "expected 'digits', the name of a tfds image data set, an existing "
                f"folder of images, or an array of integer images, got {str(source)!r}"
            )
        return FolderSource(source, size, channels)
    if isinstance(source, str):
        return TfdsSource(source, size, channels, data_dir)
    labels = None
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ValueError(
                f"expected a tuple (images, labels), got a tuple of {len(source)}"
            )
        source, labels = source
    images = as_images(source)
    own = levels if levels and images.max() < levels else None
    return ArraySource("array", images, labels, own, size, channels)
