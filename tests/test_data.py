"""kgen.data: what the splits hold, exactly, and that bad input is refused."""

import collections
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

import kgen.data as data

# tfds, keras_cv and their dependencies still use what others deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def numbered(count, size=4):
    """(count, size, size, 1) images that spell their own number, 0..65535."""
    images = np.zeros((count, size, size, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    images[:, 2:] = 7
    return images


def number(images):
    """The numbers `numbered` images spell."""
    images = np.asarray(images).astype(int)
    return images[:, 0, 0, 0] * 256 + images[:, 0, 1, 0]


def gather(batches):
    """The images, or (images, labels), of all batches as arrays."""
    batches = [b if isinstance(b, tuple) else (b,) for b in batches]
    parts = [
        np.concatenate([np.asarray(x) for x in p]) for p in zip(*batches, strict=True)
    ]
    return parts[0] if len(parts) == 1 else tuple(parts)


def as_set(images):
    """Multiset of images."""
    return collections.Counter(x.tobytes() for x in np.asarray(images))


def tfds_set(name):
    root = os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets"))
    # by its files: a download that failed leaves the folder behind
    if not list(pathlib.Path(root, name).glob("*/dataset_info.json")):
        pytest.skip(f"the tfds set {name} is not prepared in {root}: set TFDS_DATA_DIR")
    return name


@pytest.fixture(scope="module")
def mnist():
    return data.load(tfds_set("mnist"), validation=0, labels=True)


# Importing


def test_import_needs_no_optional_package():
    def imported(module):
        code = f"import sys, {module}; print(*sys.modules)"
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    # Keras imports its backend, and Pillow if it is there: compare with Keras alone.
    ours, alone = imported("kgen.data"), imported("keras")
    optional = {"tensorflow", "tensorflow_datasets", "keras_cv", "PIL", "sklearn"}
    assert "kgen.data" in ours
    assert ours & optional == alone & optional


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        data.load("digits")


# Levels


@pytest.mark.parametrize("source_levels", [256, 17, 2])
def test_quantize_is_the_formula(source_levels):
    images = np.arange(source_levels).reshape(1, 1, -1, 1)
    for levels in range(2, source_levels + 1):
        got = data.quantize(images, levels, source_levels)
        want = [x * levels // source_levels for x in range(source_levels)]
        assert got.dtype == np.uint8 and got.ravel().tolist() == want
        assert got.min() == 0 and got.max() == levels - 1
        assert len(set(want)) == levels


def test_quantize_refuses():
    x = np.zeros((1, 2, 2, 1), np.uint8)
    for levels, source in ((18, 17), (1, 256), (300, 300)):
        with pytest.raises(ValueError, match="expected levels in 2"):
            data.quantize(x, levels, source)
    with pytest.raises(ValueError, match="expected values in 0..16, got 17"):
        data.quantize(x + 17, 4, 17)


def test_load_quantizes_from_the_source_levels():
    full, four = data.load("digits"), data.load("digits", levels=4)
    assert (full.levels, four.levels) == (17, 4)
    np.testing.assert_array_equal(four.train, full.train.astype(int) * 4 // 17)
    with pytest.raises(ValueError, match="expected levels in 2..17"):
        data.load("digits", levels=18)


def test_array_levels():
    five = np.arange(100, dtype=np.int64).reshape(25, 2, 2, 1) % 5
    as_is = data.load(five, levels=5)
    assert as_is.levels == 5 and set(as_is.train.ravel()) == {0, 1, 2, 3, 4}
    assert data.load(five).levels == 256
    assert data.load(five > 2).levels == 2
    eight = data.load(five * 60, levels=4)  # not all below 4: 8-bit
    assert set(eight.train.ravel()) == {x * 60 * 4 // 256 for x in range(5)}


# Splits


def test_digits_splits():
    from sklearn.datasets import load_digits

    every = load_digits().images.astype(np.uint8)[..., None]
    whole = as_set(every)
    assert len(whole) == 1797  # no image is there twice, so that hashes are indices
    splits = data.load("digits")
    parts = [as_set(x) for x in (splits.train, splits.validation, splits.test)]
    assert [len(p) for p in parts] == [1293, 144, 360]
    assert splits.sizes == {"train": 1293, "validation": 144, "test": 360}
    assert parts[0] + parts[1] + parts[2] == whole
    assert splits.image_shape == (8, 8, 1) and splits.train.dtype == np.uint8
    assert splits.train.max() == 16 and splits.train.min() == 0


def test_test_split_never_changes():
    first = data.load("digits").test
    for kw in (dict(seed=5), dict(validation=0), dict(validation=400)):
        np.testing.assert_array_equal(data.load("digits", **kw).test, first)
    assert data.load("digits", validation=0).validation is None
    assert len(data.load("digits", validation=400).validation) == 400


def test_array_splits_keep_labels_attached():
    images = numbered(1000)
    labels = np.arange(1000) // 100  # in order, as many sets come
    splits = data.load((images, labels), labels=True, batch_size=64, validation=100)
    seen = {}
    for name in ("train", "validation", "test"):
        x, y = gather(getattr(splits, name))
        np.testing.assert_array_equal(number(x) // 100, y)
        assert set(y) == set(range(10))  # each split has images of every class
        assert y.dtype == np.int32 and x.dtype == np.uint8
        seen[name] = number(x)
    assert {k: len(v) for k, v in seen.items()} == splits.sizes
    assert splits.sizes == {"train": 800, "validation": 100, "test": 100}
    everything = np.sort(np.concatenate(list(seen.values())))
    np.testing.assert_array_equal(everything, np.arange(1000))
    assert splits.num_classes == 10 and data.load((images, labels)).num_classes is None


def test_describe():
    splits = data.load(numbered(20000, 28), binarize="dynamic", validation=0.1)
    assert (
        str(splits)
        == splits.describe()
        == (
            "array 28x28x1, 2 levels (dynamic binarisation), "
            "16,200 train / 1,800 validation / 2,000 test"
        )
    )
    splits = data.load("digits", labels=True, validation=0)
    assert str(splits) == "digits 8x8x1, 17 levels, 10 classes, 1,437 train / 360 test"


# Batches


def test_batches_without_shuffle():
    batches = data.Batches(numbered(10), np.arange(10), batch_size=4, shuffle=False)
    assert len(batches) == 3 and [len(x) for x, _ in batches] == [4, 4, 2]
    x, y = gather(batches)
    np.testing.assert_array_equal(number(x), np.arange(10))
    np.testing.assert_array_equal(y, np.arange(10))
    with pytest.raises(IndexError, match="expected a batch index in 0..2, got 3"):
        batches[3]


def test_batches_order_is_of_seed_and_epoch():
    def order(seed, epoch):
        batches = data.Batches(numbered(300), batch_size=32, seed=seed)
        batches.set_epoch(epoch)
        return number(gather(batches)).tolist()

    orders = [order(s, e) for s in (0, 1) for e in (0, 1, 2)]
    assert all(sorted(o) == list(range(300)) for o in orders)
    assert len({tuple(o) for o in orders}) == 6
    assert orders == [order(s, e) for s in (0, 1) for e in (0, 1, 2)]


def test_batches_draws_are_of_seed_epoch_and_index():
    grey = np.full((64, 8, 8, 1), 128, np.uint8)

    def draw(seed, epoch, i):
        batches = data.Batches(grey, batch_size=32, binarize=True, seed=seed)
        batches.set_epoch(epoch)
        return batches[i].tobytes()

    keys = [(s, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    drawn = [draw(*k) for k in keys]
    assert len(set(drawn)) == 8
    assert drawn[::-1] == [draw(*k) for k in keys[::-1]]  # whatever came before


def test_batches_epoch_moves_on_by_itself():
    batches = data.Batches(numbered(50), batch_size=8)
    zero = gather(batches)
    batches.on_epoch_end()
    one = gather(batches)
    assert batches.epoch == 1 and not np.array_equal(zero, one)
    batches.set_epoch(0)
    np.testing.assert_array_equal(gather(batches), zero)


@pytest.mark.parametrize("resumed", [0, 5])
def test_fit_takes_batches(resumed):
    """Each epoch of `fit` reads its own epoch's batches, all of them, in order."""

    class Recorded(data.Batches):
        def __getitem__(self, i):
            seen.append((self.epoch, i))
            return super().__getitem__(i)

    seen = []
    batches = Recorded(numbered(40), np.arange(40) % 3, batch_size=16)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss)
    model.fit(batches, epochs=2, verbose=0, shuffle=False)
    # Keras may look at the first batches, and end an epoch, before it starts.
    first = seen[-1][0] - 1
    assert seen[-6:] == [(first + e, i) for e in range(2) for i in range(3)], seen
    assert batches.epoch == first + 2
    begin = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.set_epoch(epoch)
    )
    seen.clear()
    model.fit(
        batches,
        initial_epoch=resumed,
        epochs=resumed + 3,
        verbose=0,
        shuffle=False,
        callbacks=[begin],
    )
    assert seen[-9:] == [(resumed + e, i) for e in range(3) for i in range(3)], seen
    model.evaluate(batches, verbose=0)


def test_batches_refuse():
    x = numbered(4)
    with pytest.raises(ValueError, match="one integer class label"):
        data.Batches(x, np.arange(3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        data.Batches(x, batch_size=0)
    with pytest.raises(ValueError, match="set source_levels"):
        data.Batches(x + 20, binarize=True, source_levels=17)


# Binarisation


def test_static_binarisation_repeats_and_is_bernoulli():
    grey = np.tile(np.arange(17, dtype=np.uint8), (3000, 1)).reshape(3000, 1, 17, 1)
    grey = grey * 15  # 0, 15, ..., 240
    splits = data.load(grey, binarize="static", seed=3)
    again = data.load(grey, binarize="static", seed=3)
    other = data.load(grey, binarize="static", seed=4)
    assert splits.levels == 2 and set(np.unique(splits.train)) == {0, 1}
    np.testing.assert_array_equal(splits.train, again.train)
    assert not np.array_equal(splits.train, other.train)
    draws = np.concatenate([splits.train, other.train])  # independent
    p = np.arange(17) * 15 / 255
    bound = 5 * np.sqrt(p * (1 - p) / len(draws))
    assert (np.abs(draws.mean((0, 1, 3)) - p) <= bound).all()
    ends = data.load(np.full((50, 2, 2), 255), binarize="static")
    assert ends.train.min() == 1


def test_digits_probability_is_of_17_levels():
    grey = data.load("digits").train
    drawn = [data.load("digits", binarize="static", seed=s).train for s in range(8)]
    assert drawn[0][grey == 16].min() == 1 and drawn[0][grey == 0].max() == 0
    share = np.mean([d[grey == 8].mean() for d in drawn])
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(8 * (grey == 8).sum())


def test_evaluation_draws_do_not_depend_on_the_rest():
    base = data.load("digits", binarize="static")
    for kw in (dict(validation=0), dict(validation=300), dict(seed=9)):
        np.testing.assert_array_equal(
            data.load("digits", binarize="static", **kw).test, base.test
        )
    dynamic = data.load("digits", binarize="dynamic", seed=7)
    np.testing.assert_array_equal(dynamic.test, base.test)
    np.testing.assert_array_equal(dynamic.validation, base.validation)


def test_dynamic_binarisation():
    splits = data.load("digits", binarize="dynamic", batch_size=100)
    assert isinstance(splits.train, data.Batches)
    zero = gather(splits.train)
    splits.train.set_epoch(1)
    one = gather(splits.train)
    splits.train.set_epoch(0)
    np.testing.assert_array_equal(gather(splits.train), zero)
    assert set(np.unique(one)) == {0, 1} and not np.array_equal(zero, one)
    # Not the order only: an image seldom comes out the same in two epochs.
    assert sum((as_set(zero) & as_set(one)).values()) < 20


def test_threshold():
    ramp = np.arange(256, dtype=np.uint8).reshape(256, 1, 1)
    splits = data.load((ramp, np.arange(256)), binarize="threshold", labels=True)
    x, y = gather(splits.train)
    np.testing.assert_array_equal(x[:, 0, 0, 0], y >= 128)


def test_binarize_refuses():
    with pytest.raises(ValueError, match="gives 2 levels, got levels=4"):
        data.load("digits", binarize="static", levels=4)
    with pytest.raises(ValueError, match="binary already"):
        data.load(np.eye(4, dtype=int)[None].repeat(9, 0), binarize="static")
    with pytest.raises(ValueError, match="'dynamic'.*got 'always'"):
        data.load("digits", binarize="always")


# Arrays that are refused


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((3, 4, 4, 1)), "integers in 0..levels-1, got float64.*quantize"),
        (np.full((3, 4, 4, 1), np.nan), "hold NaN"),
        (np.zeros((4, 4), np.uint8), r"shape \(N, H, W, C\).*\(4, 4\)"),
        (np.zeros((1, 3, 4, 4, 1), np.uint8), r"\(1, 3, 4, 4, 1\)"),
        (np.zeros((0, 4, 4, 1), np.uint8), "empty array"),
        (np.full((3, 4, 4, 1), -1), "0..255, got values from -1"),
        (np.full((3, 4, 4, 1), 256), "to 256"),
        (np.full((3, 4, 4, 1), "a"), "got an array of <U1"),
        (np.zeros((1, 4, 4, 1), np.uint8), "leaves some of the 1 to train on"),
        ((numbered(9), np.arange(8)), "one integer class label"),
        ((numbered(9), np.arange(9) / 2), "got shape .* of float64"),
        ((numbered(9), np.arange(9), 1), "got a tuple of 3"),
    ],
)
def test_bad_arrays(array, words):
    with pytest.raises(ValueError, match=words):
        data.load(array)


@pytest.mark.parametrize("validation", [-1, -0.5, 1437, 10.5, True, 0.9999])
def test_bad_validation(validation):
    with pytest.raises(ValueError, match="expected validation to be a share below 1"):
        data.load("digits", validation=validation)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="channels to be None, 1 or 3, got 2"):
        data.load("digits", channels=2)
    with pytest.raises(ValueError, match="image_size to be int or"):
        data.load("digits", image_size=(1, 2, 3))
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        data.load("digits", batch_size=0)
    with pytest.raises(ValueError, match="1, 3 or 4 channels to convert, got 2"):
        data.load(np.zeros((20, 4, 4, 2), np.uint8), image_size=2)
    with pytest.raises(ValueError, match="to have class labels, it has none"):
        data.load(numbered(30), labels=True)


def test_array_conversion():
    digits = data.load("digits", image_size=16, channels=3)
    assert digits.image_shape == (16, 16, 3) and digits.levels == 17
    assert digits.train.max() == 16
    np.testing.assert_array_equal(digits.train[..., 0], digits.train[..., 2])


# Folders


def save(path, color, size=(6, 6), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = kw.pop("mode", "RGB")
    Image.new(mode, size[::-1], color).save(path, **kw)


def test_folder_classes(tmp_path):
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


@pytest.mark.parametrize("val", ["val", "validation"])
def test_folder_with_its_own_splits(tmp_path, val):
    for split, level, count in (("train", 10, 7), (val, 20, 3), ("test", 30, 2)):
        for i in range(count):
            save(tmp_path / split / "a" / f"{i}.png", level, mode="L")
    splits = data.load(str(tmp_path))
    for x, level, count in (
        (splits.train, 10, 7), (splits.validation, 20, 3), (splits.test, 30, 2)
    ):  # fmt: skip
        np.testing.assert_array_equal(x, np.full((count, 6, 6, 1), level))
    save(tmp_path / "test" / "b" / "0.png", 5, mode="L")
    with pytest.raises(ValueError, match=r"classes of the train folder, \['a'\]"):
        data.load(tmp_path)


def test_folder_train_without_test_carves_both(tmp_path):
    for i in range(20):
        save(tmp_path / "train" / f"{i:02}.png", i, mode="L")
    splits = data.load(tmp_path)
    assert splits.sizes == {"train": 16, "validation": 2, "test": 2}
    levels = [x[0, 0, 0] for s in (splits.train, splits.validation, splits.test)
              for x in s]  # fmt: skip
    assert sorted(levels) == list(range(20))
    with pytest.raises(ValueError, match="to have class labels, it has none"):
        data.load(tmp_path, labels=True)


def test_folder_resizes_and_crops_the_centre(tmp_path):
    for i in range(4):  # wide: a red, a green and a blue square side by side
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


def test_image_formats(tmp_path):
    """What a 16-bit, palette, alpha, bilevel, grey and JPEG file is read as."""
    sixteen = np.full((6, 6), 200 * 256 + 17, np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "a.png")
    save(tmp_path / "b.png", 200, mode="L")
    save(tmp_path / "c.png", (200, 10), mode="LA")  # nearly transparent
    save(tmp_path / "d.jpg", 200, mode="L", quality=100)
    save(tmp_path / "e.png", 1, mode="1")
    from kgen.data.images import read_image, scan

    files = sorted(tmp_path.iterdir())
    assert scan(files, None) == ((6, 6), True)
    want = [200, 200, 200, 200, 255]
    for path, level in zip(files, want, strict=True):
        got = read_image(path, None, 1)
        assert got.shape == (6, 6, 1) and got.dtype == np.uint8
        assert np.abs(got.astype(int) - level).max() <= (path.suffix == ".jpg")
    assert data.load(tmp_path).image_shape == (6, 6, 1)
    palette = Image.new("RGB", (6, 6), (10, 20, 200)).quantize(4)
    palette.save(tmp_path / "f.png")
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


def test_bad_folders(tmp_path):
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
    save(tmp_path / "class" / "1.png", RED)
    with pytest.raises(ValueError, match="found both"):
        data.load(tmp_path)


# Streams


@pytest.fixture
def folder(tmp_path):
    for i in range(120):
        save(tmp_path / f"{i % 3}" / f"{i:03}.png", (i, i % 3, 100), (4, 5))
    return tmp_path


def test_folder_stream_equals_arrays(folder):
    for kw in ({}, {"levels": 8}, {"binarize": "static"}, {"channels": 1}):
        arrays = data.load(folder, **kw)
        streams = data.load(folder, max_bytes=100, batch_size=32, **kw)
        assert not isinstance(streams.train, np.ndarray)
        for split in ("validation", "test"):
            got = gather(getattr(streams, split))
            np.testing.assert_array_equal(got, getattr(arrays, split))
            assert got.dtype == np.uint8
        train = gather(streams.train)
        assert as_set(train) == as_set(arrays.train)
        assert not np.array_equal(train, arrays.train)  # shuffled


def test_stream_labels_order_and_seed(folder):
    def epochs(seed):
        train = data.load(
            folder, labels=True, max_bytes=0, seed=seed, batch_size=25
        ).train
        assert len(train) == 4
        return [gather(train) for _ in range(2)]

    (x0, y0), (x1, y1) = epochs(0)
    for x, y in ((x0, y0), (x1, y1)):
        np.testing.assert_array_equal(x[:, 0, 0, 1], y)
        assert y.dtype == np.int32 and x.shape[1:] == (4, 5, 3)
    assert not np.array_equal(x0, x1) and as_set(x0) == as_set(x1)
    np.testing.assert_array_equal(epochs(0)[0][0], x0)
    assert not np.array_equal(epochs(1)[0][0], x0)


def test_stream_dynamic_binarisation(tmp_path):
    for i in range(80):
        save(tmp_path / f"{i}.png", 51, (8, 8), mode="L")  # probability 1/5
    kw = dict(binarize="dynamic", max_bytes=0, batch_size=16)
    splits = data.load(tmp_path, **kw)
    epochs = [gather(splits.train) for _ in range(4)]
    assert len({e.tobytes() for e in epochs}) == 4
    distinct = as_set(np.concatenate(epochs))
    assert len(distinct) == sum(distinct.values())  # no draw comes back
    share, n = np.mean(epochs), np.size(epochs)
    assert abs(share - 0.2) < 5 * np.sqrt(0.2 * 0.8 / n)
    again = data.load(tmp_path, **kw)
    np.testing.assert_array_equal(gather(again.train), epochs[0])
    test = data.load(tmp_path, binarize="static").test
    for _ in range(2):
        np.testing.assert_array_equal(gather(splits.test), test)


def test_unreadable_file_in_a_stream_is_named(folder):
    import tensorflow as tf

    path = folder / "0" / "000.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])  # the header is whole
    splits = data.load(folder, max_bytes=0, validation=0)
    with pytest.raises(tf.errors.OpError, match=r"cannot read the image .*000\.png"):
        gather(splits.train), gather(splits.test)


def test_fit_takes_streams(folder):
    splits = data.load(folder, labels=True, max_bytes=0, batch_size=32)
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss)
    history = model.fit(splits.train, epochs=2, verbose=0, shuffle=False)
    assert len(history.history["loss"]) == 2
    model.evaluate(splits.test, verbose=0)


# Augmentation


def test_augmentation_flips_rgb_images():
    pytest.importorskip("keras_cv")
    images = np.zeros((200, 4, 6, 3), np.uint8)
    images[..., 1] = np.arange(200)[:, None, None]
    images[:, :, :, 0] = np.arange(6) * 50  # left to right
    kw = dict(augment=True, labels=True, batch_size=32)
    splits = data.load((images, np.arange(200)), **kw)
    assert isinstance(splits.test, data.Batches)  # train only
    epochs = []
    for _ in range(2):
        x, y = gather(splits.train)
        assert x.dtype == np.uint8 and x.shape == (162, 4, 6, 3)
        original = images[y]
        flipped = (x == original[:, :, ::-1]).all((1, 2, 3))
        same = (x == original).all((1, 2, 3))
        assert (flipped ^ same).all() and 50 < flipped.sum() < 112
        epochs.append({int(k): bool(f) for k, f in zip(y, flipped, strict=True)})
    assert epochs[0] != epochs[1]
    x, _ = gather(data.load((images, np.arange(200)), **kw).train)
    first, _ = gather(data.load((images, np.arange(200)), **kw).train)
    np.testing.assert_array_equal(x, first)  # repeats with the seed


def test_augmentation_rounds_clips_and_quantizes():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3))
    plain = data.load(images).train.astype(int)
    for offset, shift in ((100.6, 101), (-100.4, -100)):
        layers = [keras.layers.Rescaling(1.0, offset=offset)]
        want = np.clip(plain + shift, 0, 255)
        got = gather(data.load(images, augment=layers).train)
        assert as_set(got) == as_set(want.astype(np.uint8))
        four = gather(data.load(images, augment=layers, levels=4).train)
        assert as_set(four) == as_set((want * 4 // 256).astype(np.uint8))


def test_augmentation_refuses_grey():
    with pytest.raises(ValueError, match="RGB images.*1 channel.*17 levels"):
        data.load("digits", augment=True)


# TensorFlow Datasets


@pytest.mark.once
def test_mnist_is_whole(mnist):
    x, y = mnist.train.images, mnist.train.labels
    assert x.shape == (60000, 28, 28, 1) and mnist.levels == 256
    assert round(float(x.mean(dtype=float)), 4) == 33.3184
    assert np.bincount(y)[[0, 1, 5]].tolist() == [5923, 6742, 5421]
    assert mnist.test.images.shape == (10000, 28, 28, 1)
    assert mnist.validation is None and mnist.num_classes == 10


@pytest.mark.once
def test_mnist_validation_is_the_end_of_train(mnist):
    splits = data.load("mnist", validation=10000)
    assert splits.sizes == {"train": 50000, "validation": 10000, "test": 10000}
    np.testing.assert_array_equal(splits.train, mnist.train.images[:50000])
    np.testing.assert_array_equal(splits.validation, mnist.train.images[50000:])
    np.testing.assert_array_equal(splits.test, mnist.test.images)


@pytest.mark.once
def test_mnist_stream_equals_arrays(mnist):
    streams = data.load(
        "mnist", labels=True, max_bytes=2**20, levels=8, binarize=None, batch_size=500
    )
    assert str(streams) == (
        "mnist 28x28x1, 8 levels, 10 classes, "
        "54,000 train / 6,000 validation / 10,000 test"
    )
    x, y = gather(streams.test)
    np.testing.assert_array_equal(x, data.quantize(mnist.test.images, 8))
    np.testing.assert_array_equal(y, mnist.test.labels)
    x, y = gather(streams.validation)
    np.testing.assert_array_equal(x, data.quantize(mnist.train.images[54000:], 8))
    np.testing.assert_array_equal(y, mnist.train.labels[54000:])
    assert len(streams.train) == 108
    x, y = next(iter(streams.train))
    assert not np.array_equal(y, mnist.train.labels[:500])


@pytest.mark.once
def test_binarized_mnist():
    splits = data.load(tfds_set("binarized_mnist"))
    assert splits.levels == 2 and set(np.unique(splits.train)) == {0, 1}
    assert splits.sizes == {"train": 50000, "validation": 10000, "test": 10000}
    assert round(float(splits.train.mean(dtype=float)), 4) == 0.1306
    for mode in ("static", "dynamic", "threshold"):
        with pytest.raises(ValueError, match="binarized_mnist is binary already"):
            data.load("binarized_mnist", binarize=mode)
    with pytest.raises(ValueError, match="to have class labels, it has none"):
        data.load("binarized_mnist", labels=True)
    with pytest.raises(ValueError, match="expected levels in 2..2"):
        data.load("binarized_mnist", levels=256)


@pytest.mark.once
def test_fashion_mnist_mean():
    splits = data.load(tfds_set("fashion_mnist"), validation=0)
    assert round(float(splits.train.mean(dtype=float)), 4) == 72.9404


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tfds set of 40 RGB images of two sizes, train only; gives its data_dir."""
    import tensorflow_datasets as tfds

    class KgenTinyShapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(num_classes=40),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(40):
                image = np.full((6, 6 + 4 * (i % 2), 3), i, np.uint8)
                yield i, {"image": image, "label": i}

    class KgenTinyText(KgenTinyShapes):
        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            )

    return str(tmp_path_factory.mktemp("tfds"))


def test_tfds_without_test_and_of_many_sizes(tiny):
    name = "kgen_tiny_shapes"
    with pytest.raises(ValueError, match="differ in size .*image_size="):
        data.load(name, data_dir=tiny)
    kw = dict(data_dir=tiny, image_size=(6, 6), labels=True, seed=1)
    arrays = data.load(name, **kw)
    streams = data.load(name, max_bytes=0, **kw)
    assert arrays.sizes == {"train": 32, "validation": 4, "test": 4}
    labels = []
    for split in ("train", "validation", "test"):
        for splits in (arrays, streams):
            x, y = gather(getattr(splits, split))
            np.testing.assert_array_equal(x, np.tile(y[:, None, None, None], (6, 6, 3)))
        labels += sorted(y)
    assert sorted(labels) == list(range(40))


def test_tfds_that_is_refused(tiny, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    with pytest.raises(ValueError, match="'digits'.*folder.*did you mean 'mnist'"):
        data.load("mnisst")
    with pytest.raises(ValueError, match="expected 'digits'.*got './no such'"):
        data.load("./no such")
    with pytest.raises(ValueError, match="8-bit images.*'text'"):
        data.load("kgen_tiny_text", data_dir=tiny)

    def offline(self, **kw):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    where = str(tmp_path / "empty")
    words = "cifar10.*not prepared in .*empty.*no network.*data_dir=.*TFDS_DATA_DIR"
    with pytest.raises(RuntimeError, match=words):
        data.load("cifar10", data_dir=where)


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="its own GPUs")
def test_trap_8_tensorflow_leaves_the_gpus_alone(monkeypatch):
    import tensorflow as tf

    from kgen.data.sources import _tensorflow

    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *a: calls.append(a))
    assert _tensorflow() is tf and calls == [([], "GPU")]
