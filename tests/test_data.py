"""kgen.data on arrays: levels, splits, batches and binarization, exactly."""

import itertools
import sys
from collections import Counter

import numpy as np
import pytest

import kgen.data as data

pytestmark = pytest.mark.once


def numbered(count):
    """(count, 4, 4, 1) images that hold their own number, 0..65535."""
    images = np.full((count, 4, 4, 1), 7, np.uint8)
    images[:, 0, :2, 0] = np.arange(count, dtype=">u2")[:, None].view("uint8")
    return images


def number(images):
    """The numbers that `numbered` images hold."""
    return np.asarray(images)[:, 0, :2, 0].astype(int) @ [256, 1]


def gather(batches):
    """The images, or (images, labels), of all batches as arrays."""
    columns = zip(*(b if isinstance(b, tuple) else (b,) for b in batches), strict=True)
    arrays = tuple(np.concatenate([np.asarray(x) for x in c]) for c in columns)
    return arrays if len(arrays) > 1 else arrays[0]


def multiset(images):
    return Counter(x.tobytes() for x in np.asarray(images))


# Levels


@pytest.mark.parametrize("source", [256, 17, 2])
def test_quantize_is_the_formula(source):
    for levels in range(2, source + 1):
        got = data.quantize(np.arange(source).reshape(1, 1, -1, 1), levels, source)
        want = [x * levels // source for x in range(source)]
        assert got.dtype == np.uint8 and got.ravel().tolist() == want
        assert set(want) == set(range(levels))


def test_load_quantizes_from_the_source_levels():
    full, four = data.load("digits"), data.load("digits", levels=4)
    assert (full.levels, four.levels) == (17, 4)
    np.testing.assert_array_equal(four.train, full.train.astype(int) * 4 // 17)
    # an array has 2 or 256 levels, unless it is below those asked for
    five = np.arange(100, dtype=np.int64).reshape(25, 2, 2, 1) % 5
    unchanged = data.load(five, levels=5)
    assert unchanged.levels == 5 and set(unchanged.train.ravel()) == {0, 1, 2, 3, 4}
    assert data.load(five).levels == 256
    assert data.load(five > 2).levels == 2
    eight_bits = data.load(five * 60, levels=4)  # not all below 4
    assert set(eight_bits.train.ravel()) == {x * 60 * 4 // 256 for x in range(5)}


def test_arrays_are_resized_and_converted():
    digits = data.load("digits", image_size=16, channels=3)
    assert digits.image_shape == (16, 16, 3)
    assert digits.levels == 17 and digits.train.max() == 16
    np.testing.assert_array_equal(digits.train[..., 0], digits.train[..., 2])


# Splits


@pytest.mark.parametrize("binarize", [None, "static", "dynamic"])
def test_evaluation_images_depend_on_nothing_else(binarize):
    base = data.load("digits", binarize=binarize and "static")
    others = (dict(validation=0), dict(validation=400), dict(seed=9))
    none, many, seed = (data.load("digits", binarize=binarize, **o) for o in others)
    for other in (none, many, seed):
        np.testing.assert_array_equal(other.test, base.test)
    np.testing.assert_array_equal(seed.validation, base.validation)
    assert none.validation is None and len(many.validation) == 400


def test_array_splits_keep_labels_with_images():
    images = numbered(1000)
    labels = np.arange(1000) // 100  # in order, as many sets come
    splits = data.load((images, labels), labels=True, batch_size=64, validation=100)
    assert splits.sizes == {"train": 800, "validation": 100, "test": 100}
    seen = {}
    for name, size in splits.sizes.items():
        x, y = gather(getattr(splits, name))
        np.testing.assert_array_equal(number(x) // 100, y)
        assert len(y) == size and set(y) == set(range(10))  # every class
        assert y.dtype == np.int32 and x.dtype == np.uint8
        seen[name] = number(x)
    assert sorted(np.concatenate(list(seen.values()))) == list(range(1000))
    arrays = data.load(images, validation=100)  # evaluation keeps their order
    for name in ("validation", "test"):
        np.testing.assert_array_equal(seen[name], number(getattr(arrays, name)))
    assert splits.num_classes == 10 and data.load((images, labels)).num_classes is None


def test_describe():
    splits = data.load(numbered(20000), binarize="dynamic", validation=0.1)
    sizes = "16,200 train / 1,800 validation / 2,000 test"
    expected = f"array 4x4x1, 2 levels (dynamic binarisation), {sizes}"
    assert str(splits) == splits.describe() == expected
    assert data.load("digits").sizes == {"train": 1293, "validation": 144, "test": 360}
    splits = data.load("digits", labels=True, validation=0)
    assert str(splits) == "digits 8x8x1, 17 levels, 10 classes, 1,437 train / 360 test"


# Batches


def test_batches_without_shuffle_keep_the_order():
    batches = data.Batches(numbered(10), np.arange(10), batch_size=4, shuffle=False)
    assert len(batches) == 3 and [len(x) for x, _ in batches] == [4, 4, 2]
    x, y = gather(batches)
    assert number(x).tolist() == y.tolist() == list(range(10))
    with pytest.raises(IndexError, match="expected a batch index in 0..2, got 3"):
        batches[3]
    batches = data.Batches(numbered(10), batch_size=4, drop_remainder=True)
    assert len(batches) == 2 and [len(x) for x in batches] == [4, 4]


@pytest.mark.parametrize("binarize", [False, True])
def test_batches_are_functions_of_seed_epoch_and_index(binarize):
    images = np.full((300, 4, 4, 1), 128, "uint8") if binarize else numbered(300)
    seen = set()
    for seed, epoch in itertools.product((0, 1), (0, 1, 2)):
        a, b = (
            data.Batches(images, None, 100, True, binarize, seed=seed) for _ in "ab"
        )
        a.set_epoch(epoch)
        for _ in range(epoch):
            b.on_epoch_end()  # the next epoch
        found = [a[i] for i in range(3)]
        np.testing.assert_equal(found[::-1], [b[i] for i in (2, 1, 0)])
        assert binarize or sorted(number(gather(found))) == list(range(300))
        seen |= {x.tobytes() for x in found}
    assert len(seen) == 2 * 3 * 3


# Binarization


@pytest.mark.parametrize("levels", [17, 256])
def test_static_binarization_repeats_and_is_bernoulli(levels):
    """A pixel is 1 with probability level / (levels - 1)."""
    ramp = np.tile(np.arange(256), 400).reshape(400, 16, 16)
    source = "digits" if levels == 17 else ramp
    gray = data.load(source).train
    loaded = [data.load(source, binarize="static", seed=s) for s in (*range(8), 3)]
    assert loaded[0].levels == 2 and set(np.unique(loaded[0].train)) == {0, 1}
    *drawn, again = [splits.train for splits in loaded]
    np.testing.assert_array_equal(drawn[3], again)
    assert not np.array_equal(drawn[3], drawn[4])
    drawn = np.array(drawn)
    for level in range(levels):
        there, p = gray == level, level / (levels - 1)
        bound = 5 * np.sqrt(p * (1 - p) / (8 * there.sum()))  # exact at both ends
        assert abs(drawn[:, there].mean() - p) <= bound, level


def test_dynamic_binarization_differs_between_epochs():
    train = data.load("digits", binarize="dynamic").train
    zero = gather(train)
    train.set_epoch(1)
    one = gather(train)
    assert set(np.unique(one)) == {0, 1}
    # Not the order only: an image is seldom the same in two epochs.
    assert sum((multiset(zero) & multiset(one)).values()) < 20


def test_threshold_is_half_of_the_largest_level():
    ramp = np.arange(256).reshape(256, 1, 1), np.arange(256)
    x, y = gather(data.load(ramp, binarize="threshold", labels=True).train)
    np.testing.assert_array_equal(x[:, 0, 0, 0], y >= 128)
    levels = data.load("digits").train  # of 17 levels, 8 is exactly half of 16
    binary = data.load("digits", binarize="threshold").train
    np.testing.assert_array_equal(binary, levels >= 8)


# Errors

SHARE = "expected validation to be a share below 1"


@pytest.mark.parametrize(
    "source, arguments, words",
    [
        (np.zeros((3, 4, 4, 1)), {}, "integers in 0..levels-1, got float64.*quantize"),
        (np.full((3, 4, 4, 1), np.nan), {}, "hold NaN"),
        (np.zeros((4, 4), np.uint8), {}, r"shape \(N, H, W, C\).*\(4, 4\)"),
        (np.zeros((1, 3, 4, 4, 1), np.uint8), {}, r"\(1, 3, 4, 4, 1\)"),
        (np.zeros((0, 4, 4, 1), np.uint8), {}, "empty array"),
        (np.full((3, 4, 4, 1), -1), {}, "0..255, got values from -1"),
        (np.full((3, 4, 4, 1), 256), {}, "to 256"),
        (np.full((3, 4, 4, 1), "a"), {}, "got an array of <U1"),
        (np.zeros((1, 4, 4, 1), np.uint8), {}, "leaves some of the 1 to train on"),
        ((numbered(9), np.arange(8)), {}, "one integer class label"),
        ((numbered(9), np.arange(9) / 2), {}, "got shape .* of float64"),
        ((numbered(9), np.arange(9), 1), {}, "got a tuple of 3"),
        *(
            ("digits", {"validation": v}, SHARE)
            for v in (-1, -0.5, 1437, 10.5, True, 0.9999)
        ),
        ("digits", {"levels": 18}, "expected levels in 2..17"),
        ("digits", {"channels": 2}, "channels to be None, 1 or 3, got 2"),
        ("digits", {"image_size": (1, 2, 3)}, "image_size to be int or"),
        ("digits", {"batch_size": 0}, "batch_size must be a positive"),
        ("digits", {"augment": True}, "RGB images.*1 channel.*17 levels"),
        ("digits", {"binarize": "static", "levels": 4}, "gives 2 levels, got levels=4"),
        ("digits", {"binarize": "always"}, "'dynamic'.*got 'always'"),
        (numbered(9) // 7, {"binarize": "static"}, "binary already"),
        (numbered(9).repeat(2, 3), {"image_size": 2}, "4 channels to convert, got 2"),
        (numbered(30), {"labels": True}, "to have class labels, it has none"),
    ],
)
def test_wrong_sources_and_arguments_raise(source, arguments, words):
    with pytest.raises(ValueError, match=words):
        data.load(source, **arguments)


@pytest.mark.parametrize(
    "kind, arguments, words",
    [
        (data.quantize, (18, 17), "expected levels in 2"),
        (data.quantize, (1, 256), "expected levels in 2"),
        (data.quantize, (300, 300), "expected levels in 2"),
        (data.quantize, (4, 6), "expected values in 0..5, got 7"),
        (data.Batches, (np.arange(3),), "one integer class label"),
        (data.Batches, (None, 0), "batch_size must be a positive"),
        (data.Batches, (None, 4, True, True, 6), "set source_levels"),
        (data.Batches, (None, 5, True, False, 6, 0, True), "no batch of 4 images"),
    ],
)
def test_wrong_levels_and_batches_raise(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind(numbered(4), *arguments)


def test_missing_package_raises_with_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        data.load("digits")
