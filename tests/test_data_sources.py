"""kgen.data from folders of images and TensorFlow Datasets, in memory or as streams."""

import numpy as np
import pytest
from PIL import Image
from test_data import gather, multiset
from zoo import prepared

import kgen.data as data
from kgen.data.images import read_image, scan

pytestmark = [
    pytest.mark.once,
    # tfds, keras_cv and their dependencies still use what others deprecate.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def save(path, color, size=(6, 6), mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], color).save(path, **kwargs)


# Folders


def test_subfolders_are_classes(tmp_path):
    for k, color in enumerate((RED, GREEN, BLUE)):
        for i in range(10):
            save(tmp_path / f"class{k}" / f"{i}.png", color)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "class0" / "notes.txt").write_text("not an image")
    splits = data.load(tmp_path, labels=True, batch_size=5)
    assert splits.name == tmp_path.name and splits.num_classes == 3
    assert splits.sizes == {"train": 24, "validation": 3, "test": 3}
    parts = [gather(s) for s in (splits.train, splits.validation, splits.test)]
    x, y = (np.concatenate(z) for z in zip(*parts, strict=True))
    np.testing.assert_array_equal(x[:, 3, 3].argmax(-1), y)
    assert x.shape == (30, 6, 6, 3) and np.bincount(y).tolist() == [10, 10, 10]


@pytest.mark.parametrize("validation", ["val", "validation"])
def test_folders_of_splits_are_used(tmp_path, validation):
    for i in range(20):
        save(tmp_path / "train" / "a" / f"{i:02}.png", i, mode="L")
    splits = data.load(tmp_path)  # train alone is split
    assert splits.sizes == {"train": 16, "validation": 2, "test": 2}
    every = np.concatenate([splits.train, splits.validation, splits.test])
    assert sorted(every[:, 0, 0, 0]) == list(range(20))
    for split, level, count in ((validation, 20, 3), ("test", 30, 2)):
        for i in range(count):
            save(tmp_path / split / "a" / f"{i}.png", level, mode="L")
    splits = data.load(str(tmp_path))
    assert sorted(splits.train[:, 0, 0, 0]) == list(range(20))
    for x, level, count in ((splits.validation, 20, 3), (splits.test, 30, 2)):
        np.testing.assert_array_equal(x, np.full((count, 6, 6, 1), level))
    save(tmp_path / "test" / "b" / "0.png", 5, mode="L")
    with pytest.raises(ValueError, match=r"classes of the train folder, \['a'\]"):
        data.load(tmp_path)


def test_images_are_resized_and_cropped_at_the_center(tmp_path):
    for i in range(4):  # wide: a red, a green and a blue square
        picture = np.zeros((8, 24, 3), np.uint8)
        for k, color in enumerate((RED, GREEN, BLUE)):
            picture[:, 8 * k : 8 * k + 8] = color
        Image.fromarray(picture).save(tmp_path / f"wide{i}.png")
        # tall, twice as large
        tall = Image.fromarray(picture.transpose(1, 0, 2).repeat(2, 0).repeat(2, 1))
        tall.save(tmp_path / f"tall{i}.png")
    words = r"tall0.png is 48x16 and wide0.png is 8x24 .*image_size="
    with pytest.raises(ValueError, match=words):
        data.load(tmp_path)
    splits = data.load(tmp_path, image_size=8)
    every = np.concatenate([splits.train, splits.validation, splits.test])
    assert every.shape == (8, 8, 8, 3)
    np.testing.assert_array_equal(every[:, 1:-1, 1:-1], np.full((8, 6, 6, 3), GREEN))
    splits = data.load(tmp_path, image_size=(8, 24))  # wide ones stay as they are
    wide = [x for x in splits.train if (x[:, 1] == RED).all()]
    np.testing.assert_array_equal(wide[0], picture)


def test_every_image_format_is_read(tmp_path):
    """16-bit, gray, alpha, JPEG, bilevel, palette."""
    Image.fromarray(np.full((6, 6), 200 * 256 + 17, "uint16")).save(tmp_path / "a.png")
    save(tmp_path / "b.png", 200, mode="L")
    save(tmp_path / "c.png", (200, 10), mode="LA")  # nearly transparent
    save(tmp_path / "d.jpg", 200, mode="L", quality=100)
    save(tmp_path / "e.png", 1, mode="1")
    files = sorted(tmp_path.iterdir())
    assert scan(files, None) == ((6, 6), True)
    want = [200, 200, 200, 200, 255]
    for path, level in zip(files, want, strict=True):
        got = read_image(path, None, 1)
        assert got.shape == (6, 6, 1) and got.dtype == np.uint8
        assert np.abs(got.astype(int) - level).max() <= (path.suffix == ".jpg")
    assert data.load(tmp_path).image_shape == (6, 6, 1)
    Image.new("RGB", (6, 6), (10, 20, 200)).quantize(4).save(tmp_path / "f.png")
    save(tmp_path / "g.png", (10, 20, 200, 3), mode="RGBA")
    for name in "fg":
        got = read_image(tmp_path / f"{name}.png", None, 3)
        np.testing.assert_array_equal(got, np.full((6, 6, 3), (10, 20, 200)))
    assert data.load(tmp_path).image_shape == (6, 6, 3)
    assert data.load(tmp_path, channels=1).image_shape == (6, 6, 1)


def test_photos_are_turned_upright(tmp_path):
    half = np.repeat(np.uint8([[255, 0]]), 6, 0).repeat(3, 1)  # white left, black right
    picture = Image.fromarray(half)
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees clockwise
    for i in range(3):
        picture.crop((0, 0, 6, 4)).save(tmp_path / f"{i}.png", exif=exif)
    splits = data.load(tmp_path)
    assert splits.image_shape == (6, 4, 1)
    np.testing.assert_array_equal(splits.train[0, :3], np.full((3, 4, 1), 255))


def test_wrong_folders_raise(tmp_path):
    with pytest.raises(ValueError, match="expected images in the folder .*found none"):
        data.load(tmp_path)
    with pytest.raises(ValueError, match="expected an existing folder of images"):
        data.load(tmp_path / "nowhere")
    for i in range(3):
        save(tmp_path / f"{i}.png", RED, (60, 60))
    whole = (tmp_path / "1.png").read_bytes()
    for broken in (b"not a picture", whole[: len(whole) // 2]):
        (tmp_path / "1.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"cannot read the image .*1\.png"):
            data.load(tmp_path)
    (tmp_path / "1.png").write_bytes(whole)
    with pytest.raises(ValueError, match="to have class labels, it has none"):
        data.load(tmp_path, labels=True)
    save(tmp_path / "class" / "1.png", RED)
    with pytest.raises(ValueError, match="found both"):
        data.load(tmp_path)


# Streams


@pytest.fixture
def folder(tmp_path):
    for i in range(120):
        save(tmp_path / f"{i % 3}" / f"{i:03}.png", (i, i % 3, 100), (4, 5))
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
        arguments = {"labels": True, "max_bytes": 0, "batch_size": 25}
        train = data.load(folder, seed=seed, **arguments).train
        assert len(train) == 4
        return [gather(train) for _ in range(2)]

    (x0, y0), (x1, y1) = epochs(0)
    for x, y in ((x0, y0), (x1, y1)):
        np.testing.assert_array_equal(x[:, 0, 0, 1], y)
        assert y.dtype == np.int32 and x.shape[1:] == (4, 5, 3)
    assert not np.array_equal(x0, x1) and multiset(x0) == multiset(x1)
    np.testing.assert_array_equal(epochs(0)[0][0], x0)
    assert not np.array_equal(epochs(1)[0][0], x0)


def test_stream_is_binarized_anew_each_epoch(tmp_path):
    for i in range(80):
        save(tmp_path / f"{i}.png", 51, (8, 8), mode="L")  # probability 1/5
    arguments = dict(binarize="dynamic", max_bytes=0, batch_size=16)
    splits = data.load(tmp_path, **arguments)
    epochs = [gather(splits.train) for _ in range(4)]
    assert len({e.tobytes() for e in epochs}) == 4
    distinct = multiset(np.concatenate(epochs))
    assert len(distinct) == sum(distinct.values())  # no binary image comes back
    share, n = np.mean(epochs), np.size(epochs)
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / n)
    again = data.load(tmp_path, **arguments)
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


@pytest.fixture(scope="module")
def mnist():
    if not prepared("mnist"):
        pytest.skip("tfds has no prepared mnist: set TFDS_DATA_DIR")
    return data.load("mnist", validation=0, labels=True)


def test_mnist_is_whole(mnist):
    x, y = mnist.train.images, mnist.train.labels
    assert x.shape == (60000, 28, 28, 1) and mnist.levels == 256
    assert round(float(x.mean(dtype=float)), 4) == 33.3184
    assert np.bincount(y)[[0, 1, 5]].tolist() == [5923, 6742, 5421]
    assert mnist.test.images.shape == (10000, 28, 28, 1)
    assert mnist.validation is None and mnist.num_classes == 10


def test_mnist_stream_equals_arrays(mnist):
    """Its validation images are the last of train."""
    streams = data.load("mnist", labels=True, max_bytes=2**20, levels=8, batch_size=500)
    sizes = "54,000 train / 6,000 validation / 10,000 test"
    assert str(streams) == f"mnist 28x28x1, 8 levels, 10 classes, {sizes}"
    x, y = gather(streams.test)
    np.testing.assert_array_equal(x, data.quantize(mnist.test.images, 8))
    np.testing.assert_array_equal(y, mnist.test.labels)
    x, y = gather(streams.validation)
    np.testing.assert_array_equal(x, data.quantize(mnist.train.images[54000:], 8))
    np.testing.assert_array_equal(y, mnist.train.labels[54000:])
    assert len(streams.train) == 108
    x, y = next(iter(streams.train))
    assert not np.array_equal(y, mnist.train.labels[:500])


@pytest.mark.exhaustive
def test_mnist_validation_is_the_end_of_train(mnist):
    splits = data.load("mnist", validation=10000)
    assert splits.sizes == {"train": 50000, "validation": 10000, "test": 10000}
    np.testing.assert_array_equal(splits.train, mnist.train.images[:50000])
    np.testing.assert_array_equal(splits.validation, mnist.train.images[50000:])
    np.testing.assert_array_equal(splits.test, mnist.test.images)


@pytest.mark.skipif(not prepared("binarized_mnist"), reason="not prepared")
def test_binarized_mnist_is_whole_and_binary():
    splits = data.load("binarized_mnist")
    assert splits.levels == 2 and set(np.unique(splits.train)) == {0, 1}
    assert splits.sizes == {"train": 50000, "validation": 10000, "test": 10000}
    assert round(float(splits.train.mean(dtype=float)), 4) == 0.1306
    modes = [{"binarize": mode} for mode in ("static", "dynamic", "threshold")]
    for arguments, words in (
        *((mode, "binarized_mnist is binary already") for mode in modes),
        ({"labels": True}, "to have class labels, it has none"),
        ({"levels": 256}, "expected levels in 2..2"),
    ):
        with pytest.raises(ValueError, match=words):
            data.load("binarized_mnist", **arguments)


@pytest.mark.skipif(not prepared("fashion_mnist"), reason="not prepared")
def test_fashion_mnist_is_whole():
    splits = data.load("fashion_mnist", validation=0)
    assert round(float(splits.train.mean(dtype=float)), 4) == 72.9404


@pytest.fixture(scope="module")
def tiny_sets(tmp_path_factory):
    """A tfds set of 40 RGB images of two sizes, train only; returns its data_dir."""
    import tensorflow_datasets as tfds

    class KgenTinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        FEATURES = {"image": tfds.features.Image()}
        FEATURES |= {"label": tfds.features.ClassLabel(num_classes=40)}

        def _info(self):
            features = tfds.features.FeaturesDict(self.FEATURES)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(40):
                image = np.full((6, 6 + 4 * (i % 2), 3), i, np.uint8)
                yield i, {"image": image, "label": i}

    class KgenTinyText(KgenTinyShapes):
        FEATURES = {"text": tfds.features.Text()}

    return str(tmp_path_factory.mktemp("tfds"))


def test_tfds_set_of_many_sizes_without_test_split(tiny_sets):
    name = "kgen_tiny_shapes"
    with pytest.raises(ValueError, match="differ in size .*image_size="):
        data.load(name, data_dir=tiny_sets)
    arguments = dict(data_dir=tiny_sets, image_size=(6, 6), labels=True, seed=1)
    arrays = data.load(name, **arguments)
    streams = data.load(name, max_bytes=0, **arguments)
    assert arrays.sizes == {"train": 32, "validation": 4, "test": 4}
    labels = {}
    for split in ("train", "validation", "test"):
        for splits in (arrays, streams):
            x, y = gather(getattr(splits, split))
            np.testing.assert_array_equal(x, np.tile(y[:, None, None, None], (6, 6, 3)))
            labels.setdefault(split, []).append(sorted(y))
        assert labels[split][0] == labels[split][1]
    assert sorted(sum((both[0] for both in labels.values()), [])) == list(range(40))


def test_wrong_tfds_sets_raise(tiny_sets, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    with pytest.raises(ValueError, match="'digits'.*folder.*did you mean 'mnist'"):
        data.load("mnisst")
    with pytest.raises(ValueError, match="expected 'digits'.*got './no such'"):
        data.load("./no such")
    with pytest.raises(ValueError, match="8-bit images.*'text'"):
        data.load("kgen_tiny_text", data_dir=tiny_sets)

    def offline(self, **kw):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    where = str(tmp_path / "empty")
    words = "cifar10.*not prepared in .*empty.*no network.*data_dir=.*TFDS_DATA_DIR"
    with pytest.raises(RuntimeError, match=words):
        data.load("cifar10", data_dir=where)
