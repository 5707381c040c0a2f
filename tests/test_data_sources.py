"""kgen.data from files and folders of images and TensorFlow Datasets, in memory or as
streams."""

import os
import socket
import threading
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from test_data import gather, multiset
from zoo import prepared

import kgen.data as data
from kgen.data import network
from kgen.data.images import read_image
from kgen.data.network import check_reachable

pytestmark = [
    pytest.mark.once,
    # tfds, keras_cv and their dependencies still use what others deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(folder, *colors, size=(6, 6)):
    """Pictures of one color each, gray if that is a number: 000.png, 001.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, color in enumerate(colors):
        mode = "L" if isinstance(color, int) else "RGB"
        Image.new(mode, size[::-1], color).save(folder / f"{i:03}.png")


def every_image(splits):
    return np.concatenate([splits.train, splits.validation, splits.test])


# Folders


def test_subfolders_are_classes(tmp_path):
    for k, color in enumerate((RED, GREEN, BLUE)):
        save(tmp_path / f"class{k}", *[color] * 10)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "class0" / "notes.txt").write_text("not an image")
    splits = data.load(tmp_path, labels=True, batch_size=5)
    assert splits.name == tmp_path.name and splits.num_classes == 3
    assert splits.sizes == {"train": 24, "validation": 3, "test": 3}
    x, y = gather(map(gather, (splits.train, splits.validation, splits.test)))
    np.testing.assert_array_equal(x[:, 3, 3].argmax(-1), y)
    assert x.shape == (30, 6, 6, 3) and np.bincount(y).tolist() == [10, 10, 10]


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_folders_of_splits_are_used(tmp_path, validation):
    save(tmp_path / "train" / "a", *range(20))
    splits = data.load(tmp_path)  # train alone is split
    assert splits.sizes == {"train": 16, "validation": 2, "test": 2}
    assert sorted(every_image(splits)[:, 0, 0, 0]) == list(range(20))
    save(tmp_path / validation / "a", 20, 20, 20)
    save(tmp_path / "test" / "a", 30, 30, 30)
    splits = data.load(str(tmp_path))
    assert sorted(splits.train[:, 0, 0, 0]) == list(range(20))
    for x, level in ((splits.validation, 20), (splits.test, 30)):
        np.testing.assert_array_equal(x, np.full((3, 6, 6, 1), level))
    save(tmp_path / "test" / "b", 5)
    with pytest.raises(ValueError, match=r"classes of the train folder, \['a'\]"):
        data.load(tmp_path)


def test_images_are_resized_and_cropped_at_the_center(tmp_path):
    wide = np.uint8([RED, GREEN, BLUE]).repeat(8, 0)[None].repeat(8, 0)  # three squares
    tall = wide.transpose(1, 0, 2).repeat(2, 0).repeat(2, 1)  # twice as large
    for i in range(4):
        Image.fromarray(wide).save(tmp_path / f"wide{i}.png")
        Image.fromarray(tall).save(tmp_path / f"tall{i}.png")
    words = r"tall0.png is 48x16 and wide0.png is 8x24 .*image_size="
    with pytest.raises(ValueError, match=words):
        data.load(tmp_path)
    every = every_image(data.load(tmp_path, image_size=8))
    assert every.shape == (8, 8, 8, 3)
    np.testing.assert_array_equal(every[:, 1:-1, 1:-1], np.full((8, 6, 6, 3), GREEN))
    train = data.load(tmp_path, image_size=(8, 24)).train  # wide ones stay as they are
    assert any(np.array_equal(x, wide) for x in train)


def test_every_image_mode_is_read(tmp_path):
    """16-bit, gray, alpha, bilevel, palette and JPEG: each file alone, and all."""
    blue, deep = (10, 20, 200), np.full((6, 6), 200 * 256 + 17, "uint16")
    pictures = {
        "a.png": (Image.fromarray(deep), 200),
        "b.png": (Image.new("L", (6, 6), 200), 200),
        "c.png": (Image.new("LA", (6, 6), (200, 10)), 200),  # nearly transparent
        "d.jpg": (Image.new("L", (6, 6), 200), 200),
        "e.png": (Image.new("1", (6, 6), 1), 255),
        "f.png": (Image.new("RGB", (6, 6), blue).quantize(4), blue),
        "g.png": (Image.new("RGBA", (6, 6), (*blue, 3)), blue),
    }
    for name, (picture, level) in pictures.items():
        picture.save(tmp_path / name)
        got, want = read_image(tmp_path / name, None, np.size(level)), np.array(level)
        assert got.shape == (6, 6, want.size) and got.dtype == np.uint8
        assert np.abs(got.astype(int) - want).max() <= name.endswith("jpg")
        if name >= "c":  # three images or more, gray up to "e"
            assert data.load(tmp_path).image_shape == got.shape
    assert data.load(tmp_path, channels=1).image_shape == (6, 6, 1)


RAMP = np.arange(64, dtype="uint16").reshape(8, 8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_images_of_16_bits_keep_the_upper_8(suffix, tmp_path):
    path, values = tmp_path / f"x.{suffix}", RAMP * 1040
    if suffix == "pgm":
        path.write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    np.testing.assert_array_equal(read_image(path, None, 1)[..., 0], values >> 8)


def test_photos_are_turned_upright(tmp_path):
    picture = np.uint8([[255, 255, 255, 0, 0, 0]] * 4)  # white left, black right
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    for i in range(3):
        Image.fromarray(picture).save(tmp_path / f"{i}.png", exif=exif)
    np.testing.assert_array_equal(data.load(tmp_path).train[0, ..., 0], picture.T)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "identify image"),
        (b"", "cannot identify image file"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 99, "cannot identify"),
        (b"P5 12000 12000 255\n", "144000000 pixels.*MAX_IMAGE_PIXELS"),
        (b"P5 60000 60000 255\n", "3600000000 pixels.*MAX_IMAGE_PIXELS"),
        (np.float32(RAMP / 64), "32 bits"),
        (np.int32(RAMP * 1000), "32 bits"),
        (RAMP * 64, "16-bit values that end at 4032"),
    ],
)
def test_files_of_other_contents_raise(content, words, tmp_path, monkeypatch):
    """PostScript too, which Pillow would hand to Ghostscript."""
    monkeypatch.setattr("subprocess.Popen", None)  # no program is started
    path = tmp_path / ("x.png" if isinstance(content, bytes) else "x.tiff")
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)
    with pytest.raises(ValueError, match=f"(?s)cannot read the image .*{words}") as e:
        read_image(path, None, 1)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_raise(make, tmp_path):
    make(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png .not a regular file"):
        data.load(tmp_path)


def test_wrong_folders_raise(tmp_path):
    def assert_raises(words, source=tmp_path, **options):
        with pytest.raises(ValueError, match=words):
            data.load(source, **options)

    assert_raises("expected images in the folder .*found none")
    assert_raises("an existing folder of images.*nowhere", tmp_path / "nowhere")
    assert_raises("an existing folder of images.*nowhere", "./nowhere")
    assert_raises("numpy.load", "images.npz")
    assert_raises("data_dir: there is no", "mnist", data_dir=tmp_path / "nowhere")
    save(tmp_path, RED, RED, RED, size=(60, 60))
    assert_raises("to have class labels, it has none", labels=True)
    path = tmp_path / "001.png"
    whole = path.read_bytes()
    for broken in (b"not a picture", whole[: len(whole) // 2]):
        path.write_bytes(broken)
        assert_raises(r"cannot read the image .*001\.png")
    save(tmp_path / "class", RED)
    assert_raises("found both")


# Streams


@pytest.fixture
def folder(tmp_path):
    for k in range(3):
        colors = [(i, k, 100) for i in range(k, 120, 3)]
        save(tmp_path / f"{k}", *colors, size=(4, 5))
    return tmp_path


def test_stream_of_a_folder_equals_arrays(folder):
    for arguments in ({}, {"levels": 8}, {"binarize": "static"}, {"channels": 1}):
        arrays = data.load(folder, **arguments)
        streams = data.load(folder, max_bytes=100, batch_size=32, **arguments)
        assert not isinstance(streams.train, np.ndarray)
        for split in ("validation", "test"):
            got = gather(getattr(streams, split))
            np.testing.assert_array_equal(got, getattr(arrays, split))
            assert got.dtype == np.uint8
        train = gather(streams.train)
        assert multiset(train) == multiset(arrays.train)
        assert not np.array_equal(train, arrays.train)  # shuffled


def test_stream_order_depends_on_seed_and_epoch(folder):
    def epochs(seed):
        options = {"labels": True, "max_bytes": 0, "batch_size": 25, "seed": seed}
        train = data.load(folder, **options).train
        assert len(train) == 4
        return [gather(train) for _ in range(2)]

    zero, one, again, other = *epochs(0), epochs(0)[0], epochs(1)[0]
    for x, y in (zero, one):
        np.testing.assert_array_equal(x[:, 0, 0, 1], y)
        assert y.dtype == np.int32 and x.shape[1:] == (4, 5, 3)
    assert multiset(zero[0]) == multiset(one[0])
    np.testing.assert_array_equal(again[0], zero[0])
    assert (one[0] != zero[0]).any() and (other[0] != zero[0]).any()


def test_stream_is_binarized_anew_each_epoch(tmp_path):
    save(tmp_path, *[51] * 80, size=(8, 8))  # probability 1/5
    options = dict(binarize="dynamic", max_bytes=0, batch_size=16)
    splits, again = (data.load(tmp_path, **options) for _ in range(2))
    epochs = [gather(splits.train) for _ in range(4)]
    assert max(multiset(np.concatenate(epochs)).values()) == 1  # no image comes back
    bound = 5 * np.sqrt(0.2 * 0.8 / np.size(epochs))
    assert abs(np.mean(epochs) - 0.2) < bound
    np.testing.assert_array_equal(gather(again.train), epochs[0])
    test = data.load(tmp_path, binarize="static").test
    for _ in range(2):
        np.testing.assert_array_equal(gather(splits.test), test)


def test_stream_with_an_unreadable_file_raises(folder):
    import tensorflow as tf

    path = folder / "0" / "000.png"
    path.write_bytes(path.read_bytes()[:-30])  # the header is whole
    splits = data.load(folder, max_bytes=0, validation=0)
    with pytest.raises(tf.errors.OpError, match=r"cannot read the image .*000\.png"):
        gather(splits.train), gather(splits.test)


# TensorFlow Datasets


@pytest.mark.skipif(not prepared("mnist"), reason="set TFDS_DATA_DIR")
def test_mnist_is_whole_and_its_stream_equals_arrays():
    arrays = data.load("mnist", labels=True, max_bytes=2**23)  # train is a stream
    test = arrays.test
    assert test.images.shape == (10000, 28, 28, 1) and arrays.levels == 256
    assert round(float(test.images.mean()), 4) == 33.7912
    assert np.bincount(test.labels)[[0, 1, 5]].tolist() == [980, 1135, 892]
    streams = data.load("mnist", labels=True, max_bytes=2**20, levels=8, batch_size=500)
    sizes = "54,000 train / 6,000 validation / 10,000 test"
    assert str(streams) == f"mnist 28x28x1, 8 levels, 10 classes, {sizes}"
    for split in ("test", "validation"):
        x, y = gather(getattr(streams, split))
        whole = getattr(arrays, split)
        np.testing.assert_array_equal(x, data.quantize(whole.images, 8))
        np.testing.assert_array_equal(y, whole.labels)
    first = [next(iter(streams.train))[1] for _ in range(2)]
    assert len(streams.train) == 108 and not np.array_equal(*first)  # shuffled


@pytest.mark.skipif(not prepared("binarized_mnist"), reason="set TFDS_DATA_DIR")
def test_binarized_mnist_is_whole_and_binary():
    splits = data.load("binarized_mnist", max_bytes=2**23)  # train is a stream
    assert splits.levels == 2 and set(np.unique(splits.test)) == {0, 1}
    assert splits.sizes == {"train": 50000, "validation": 10000, "test": 10000}
    means = [round(float(x.mean()), 4) for x in (splits.validation, splits.test)]
    assert means == [0.1311, 0.1325]
    with pytest.raises(ValueError, match="binarized_mnist is binary already"):
        data.load("binarized_mnist", binarize="dynamic")
    with pytest.raises(ValueError, match="to have class labels, it has none"):
        data.load("binarized_mnist", labels=True)


def test_tfds_set_of_many_sizes_without_test_split(tmp_path):
    """40 RGB images of two sizes, train only."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image()}
    features["label"] = tfds.features.ClassLabel(num_classes=40)
    images = [np.full((6, 6 + 4 * (i % 2), 3), i, np.uint8) for i in range(40)]
    examples = [(i, {"image": image, "label": i}) for i, image in enumerate(images)]
    name, arguments = "two_sizes", {"data_dir": str(tmp_path), "labels": True}
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples},
        data_dir=tmp_path,
    )
    with pytest.raises(ValueError, match="differ in size .*image_size="):
        data.load(name, **arguments)
    arguments |= {"image_size": (6, 6), "seed": 1}
    labels = []
    for max_bytes in (2**30, 0):  # arrays, then streams
        splits = data.load(name, max_bytes=max_bytes, **arguments)
        assert splits.sizes == {"train": 32, "validation": 4, "test": 4}
        for split in splits.sizes:
            x, y = gather(getattr(splits, split))
            np.testing.assert_array_equal(x, np.tile(y[:, None, None, None], (6, 6, 3)))
            labels.append(sorted(y))
    assert labels[:3] == labels[3:] and sorted(sum(labels[:3], [])) == list(range(40))


def test_wrong_tfds_sets_raise(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    offline = Mock(side_effect=ConnectionError("no network"))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    monkeypatch.setattr(socket, "create_connection", lambda *_: socket.socket())
    (tmp_path / "empty").mkdir()
    for name, error, words in (
        ("mnisst", ValueError, "'digits'.*folder.*did you mean 'mnist'"),
        ("./no such", ValueError, "expected 'digits'.*got './no such'"),
        ("imdb_reviews", ValueError, "8-bit images.*'text'"),
        ("cifar10", RuntimeError, "not prepared in .*empty.*no network.*TFDS_DATA"),
    ):
        with pytest.raises(error, match=words):
            data.load(name, data_dir=str(tmp_path / "empty"))


@pytest.fixture
def connect(monkeypatch):
    """Connections to hosts whose names begin with "up" succeed, to "silent" ones never
    end, others fail. A list of the hosts that were asked."""
    asked, end = [], threading.Event()

    def create_connection(host, timeout):
        asked.append(host)
        if host[0].startswith("silent"):
            end.wait(60)
        if not host[0].startswith("up"):
            raise socket.gaierror("unknown name")
        return socket.socket()

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    yield asked
    end.set()


def test_no_network_is_found_before_the_download(connect, tmp_path, monkeypatch):
    """tfds tries for minutes. With the files there, it is asked."""
    import tensorflow_datasets as tfds

    def prepare(self, **kw):
        raise ConnectionError("tfds was asked")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    words = "'cifar10' is not prepared in .*www.cs.toronto.edu: unknown.*TFDS_DATA_DIR"
    with pytest.raises(RuntimeError, match=words):
        data.load("cifar10", data_dir=str(tmp_path))
    assert connect == [("www.cs.toronto.edu", 443)]
    (tmp_path / "downloads").mkdir()
    (url,) = tfds.builder("cifar10", data_dir=str(tmp_path)).url_infos
    kept = tmp_path / "downloads" / "cifar.tar.gz.INFO"
    for urls, words in (("of another set", "unknown name"), (url, "tfds was asked")):
        kept.write_text(f'{{"urls": ["{urls}"]}}')
        with pytest.raises(RuntimeError, match=words):
            data.load("cifar10", data_dir=str(tmp_path))


def test_one_reachable_server_is_enough(connect, monkeypatch):
    check_reachable([])
    check_reachable(["/a/file", "gs://bucket/file"])
    assert not connect
    check_reachable(["https://down/x", "https://silent/x", "http://up:81/x"])
    assert ("up", 81) in connect
    monkeypatch.setattr(network, "PATIENCE", 0.2)
    words = "down: unknown name; silent: no answer in 0.2 s"
    with pytest.raises(ConnectionError, match=words):
        check_reachable(["https://down/x", "https://silent/x"])
    for proxy in ("http://up.proxy:3128", "up.proxy:3128"):
        monkeypatch.setenv("https_proxy", proxy)
        check_reachable(["https://down/x"])
        assert connect[-1] == ("up.proxy", 3128)
