"""Distances of generated images: closed forms, brute force, real digits."""

import csv
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from families import CLASSES, FAMILIES, LEVELS, SHAPE
from keras import layers
from scipy.linalg import sqrtm

import kgen
from kgen import distances
from kgen.data.images import bernoulli
from kgen.metrics import (
    Distances,
    density_coverage,
    frechet_distance,
    kernel_distance,
    mnist_features,
    precision_recall,
)

# Frechet distance


def with_moments(rng, n, mean, root):
    """(n, d) with exactly this mean and exactly root^T root as covariance."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(len(mean), -1))).T
    return x @ root + mean


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def test_frechet_distance_in_one_dimension(rng):
    """(mu_a - mu_b)^2 + (sigma_a - sigma_b)^2."""
    a = with_moments(rng, 30, np.array([1.0]), np.array([[2.0]]))
    b = with_moments(rng, 50, np.array([-0.5]), np.array([[0.7]]))
    assert frechet_distance(a, b) == pytest.approx(1.5**2 + 1.3**2, rel=1e-12)


def test_frechet_distance_of_commuting_covariances(rng):
    """|mu_a - mu_b|^2 + sum (sigma_a - sigma_b)^2 along the common axes."""
    axes, s, t = rotation(rng, 5), np.arange(1.0, 6.0), np.array([0.0, 3, 0.1, 2, 8])
    shift = rng.normal(size=5)
    a = with_moments(rng, 40, shift, s[:, None] * axes)
    b = with_moments(rng, 60, 0 * shift, t[:, None] * axes)
    expected = np.sum(shift**2) + np.sum((s - t) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_against_a_matrix_square_root(rng):
    a = rng.normal(size=(80, 7)) @ rng.normal(size=(7, 7))
    b = rng.normal(size=(50, 7)) @ rng.normal(size=(7, 7)) + 1
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)
    turn = rotation(rng, 7)
    assert frechet_distance(a @ turn + 3, b @ turn + 3) == pytest.approx(expected)
    assert frechet_distance(5 * a, 5 * b) == pytest.approx(25 * expected)


def test_frechet_distance_where_covariances_lack_rank(rng):
    few = rng.normal(size=(6, 40))  # fewer images than features
    assert 0 <= frechet_distance(few, few) < 1e-12 * 40
    flat = np.concatenate([rng.normal(size=(90, 3)), np.zeros((90, 37))], axis=1)
    assert 0 <= frechet_distance(flat, flat[::-1]) < 1e-12 * 40
    # apart on every axis: nothing of the covariances is shared
    other = np.concatenate([np.zeros((50, 3)), rng.normal(size=(50, 37))], axis=1)
    moved = np.sum((flat.mean(0) - other.mean(0)) ** 2)
    expected = moved + np.trace(np.cov(flat.T)) + np.trace(np.cov(other.T))
    assert frechet_distance(flat, other) == pytest.approx(expected, rel=1e-12)
    still = np.ones((4, 40))  # no spread at all
    expected = np.sum((few.mean(0) - 1) ** 2) + np.trace(np.cov(few.T))
    assert frechet_distance(few, still) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_fewer_images_is_larger(rng):
    """Between draws of one distribution it falls as 1/n."""
    means = [
        np.mean([frechet_distance(*rng.normal(size=(2, n, 4))) for _ in range(300)])
        for n in (100, 200)
    ]
    assert means[0] / means[1] == pytest.approx(2, rel=0.1)


# Kernel distance


def direct_kernel_distance(a, b):
    def k(x, y):
        return (sum(x * y) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    aa = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j)
    bb = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j)
    ab = sum(k(x, y) for x in a for y in b)
    return aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * ab / (n * m)


def test_kernel_distance_against_the_direct_sum(rng):
    a, b = rng.normal(size=(9, 4)) + 1, 2 * rng.normal(size=(13, 4))
    value, error = kernel_distance(a, b)
    assert value == pytest.approx(direct_kernel_distance(a, b), rel=1e-10)
    assert kernel_distance(b, a) == pytest.approx((value, error), rel=1e-10)
    # the jackknife as it is defined: every image left out in turn
    variance = 0.0
    for drop, n in ((lambda i: (np.delete(a, i, 0), b), 9),
                    (lambda i: (a, np.delete(b, i, 0)), 13)):  # fmt: skip
        parts = np.array([direct_kernel_distance(*drop(i)) for i in range(n)])
        variance += (n - 1) / n * np.sum((parts - parts.mean()) ** 2)
    assert error == pytest.approx(variance**0.5, rel=1e-8)


def test_kernel_distance_is_unbiased(rng):
    """In one dimension (x y + 1)^3 = 1 + 3 x y + 3 x^2 y^2 + x^3 y^3, so the squared
    discrepancy is a sum over squared differences of moments."""
    a, b = rng.uniform(-1, 1, (4000, 4, 1)), rng.uniform(0, 1, (4000, 5, 1))
    truth = 3 * 0.5**2 + 3 * 0**2 + 0.25**2
    values = [kernel_distance(x, y)[0] for x, y in zip(a, b, strict=True)]
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / 4000**0.5
    same = [kernel_distance(x, y)[0] for x, y in zip(a[::2], a[1::2], strict=True)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 2000**0.5
    assert min(same) < 0


def test_the_standard_error_is_the_spread_over_repetitions(rng):
    """Between different distributions; between equal ones, up to sqrt(2) larger."""
    for shift, low, high in ((0.5, 0.85, 1.2), (0.0, 1.0, 2.4)):
        pairs = [
            kernel_distance(rng.normal(size=(50, 2)), rng.normal(size=(80, 2)) + shift)
            for _ in range(1000)
        ]
        values, errors = np.transpose(pairs)
        assert low < np.mean(errors**2) / np.var(values) < high


# Neighbours


def direct_balls(centres, k, points):
    """Whether point j is in the ball of centre i, [j][i], by definition."""
    radii = []
    for i, c in enumerate(centres):
        others = [np.linalg.norm(c - o) for j, o in enumerate(centres) if j != i]
        radii.append(sorted(others)[k - 1])
    return np.array(
        [
            [np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)]
            for p in points
        ]
    )


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_against_the_definitions(rng, k):
    real, generated = rng.normal(size=(40, 3)), 1.3 * rng.normal(size=(25, 3)) + 0.5
    in_real = direct_balls(real, k, generated)  # (25, 40)
    in_generated = direct_balls(generated, k, real)
    assert precision_recall(real, generated, k) == (
        in_real.any(axis=1).mean(),
        in_generated.any(axis=1).mean(),
    )
    assert density_coverage(real, generated, k) == pytest.approx(
        (in_real.sum() / (k * 25), in_real.any(axis=0).mean()), rel=1e-12
    )


def test_neighbours_of_known_sets(rng):
    x = rng.normal(size=(60, 4))
    assert precision_recall(x, x[::-1]) == (1, 1)
    density, coverage = density_coverage(x, x[::-1])
    assert coverage == 1 and 1 <= density <= 2
    assert precision_recall(x, x + 100) == (0, 0)
    assert density_coverage(x, x + 100) == (0, 0)
    # copies of ten images: balls of radius 0 hold just the copies
    copies = np.repeat(rng.normal(size=(10, 64)), 6, axis=0)
    same = np.kron(np.eye(10), np.ones((6, 6)))
    zero = distances._squared_distances(copies, copies) == 0  # exactly
    np.testing.assert_array_equal(zero, same)
    assert precision_recall(copies, copies[::-1]) == (1, 1)
    assert precision_recall(copies, copies + 1e-4) == (0, 0)
    assert density_coverage(copies, copies[:6], 3) == (2, 0.1)  # in 6 balls, over k


def test_a_dropped_mode_shows_in_recall_and_coverage(rng):
    modes = rng.normal(size=(200, 2)) + 50 * np.repeat([[0], [1]], 100, axis=0)
    whole = rng.normal(size=(200, 2)) + 50 * np.repeat([[0], [1]], 100, axis=0)
    half = rng.normal(size=(200, 2))
    precision, recall = precision_recall(modes, whole)
    precision_half, recall_half = precision_recall(modes, half)
    assert precision > 0.9 and precision_half > 0.9
    assert recall > 0.9 and recall_half < 0.5
    density, coverage = density_coverage(modes, whole)
    density_half, coverage_half = density_coverage(modes, half)
    assert 0.8 < density < 1.2 and density_half > 0.8
    assert coverage > 0.9 and 0.4 < coverage_half < 0.51


def test_expectations_for_equal_distributions(rng):
    """Density: 1. Coverage: 1 - prod_i (N-1-i) / (N+M-1-i), the probability that the
    first k neighbours among N-1 real and M generated images are not all real."""
    N, M, k = 30, 20, 4
    pairs = [
        density_coverage(rng.normal(size=(N, 3)), rng.normal(size=(M, 3)), k)
        for _ in range(1000)
    ]
    i = np.arange(k)
    expected = 1, 1 - np.prod((N - 1 - i) / (N + M - 1 - i))
    errors = np.std(pairs, axis=0) / 1000**0.5
    assert np.all(np.abs(np.mean(pairs, axis=0) - expected) < 4 * errors)


def test_blocks_end_where_the_whole_does(rng, monkeypatch):
    a, b = rng.normal(size=(53, 6)), rng.normal(size=(41, 6)) + 0.5

    def all_of_them():
        return [
            *kernel_distance(a, b),
            *precision_recall(a, b),
            *density_coverage(a, b),
        ]

    whole = all_of_them()
    monkeypatch.setattr(distances, "_MAX_ELEMENTS", 300)  # 5 to 7 rows
    assert all_of_them() == pytest.approx(whole, rel=1e-10)
    monkeypatch.setattr(distances, "_MAX_ELEMENTS", 1)
    assert all_of_them() == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize(
    "measure", [frechet_distance, kernel_distance, precision_recall, density_coverage]
)
def test_wrong_features_are_told(measure, rng):
    x = rng.normal(size=(20, 3))
    for wrong, words in [
        (rng.normal(size=(20, 3, 1)), r"expected features \(n, d\)"),
        (x[:1], r"images or more; got shape \(1, 3\)"),
        (x[:, :2], "expected features of one model; got 3 and 2"),
        (np.where(x > 1, np.nan, x), "NaN or infinity"),
        (x.astype("complex"), "real numbers; got complex128"),
    ]:
        with pytest.raises(ValueError, match=words):
            measure(x, wrong)
    if measure in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="k must be a positive integer"):
            measure(x, x, k=0)
        with pytest.raises(ValueError, match="real: expected .* 21 images or more"):
            measure(x, x, k=20)


# Distances over a feature model


def pixels(shape=SHAPE):
    """The simplest feature model: the pixels themselves."""
    return keras.Sequential([layers.Input(shape), layers.Flatten()])


def test_distances_are_the_functions_of_features(digits):
    reference, own, drawn = digits[:100], digits[100:250], digits[250:] // 2
    measured = Distances(pixels(), "pixel", reference, own, LEVELS)
    values = measured(drawn)
    assert list(values) == measured.names
    assert all(type(v) is float for v in values.values())

    def features(x):
        return x.reshape(len(x), -1) / 16

    real, fake = features(reference), features(drawn)
    assert values["pixel_images"] == values["pixel_images_floor"] == 70
    expected = frechet_distance(fake, real)
    assert values["pixel_frechet_distance"] == pytest.approx(expected, rel=1e-5)
    expected = kernel_distance(fake, real)
    found = [values[f"pixel_kernel_distance{k}"] for k in ("", "_se")]
    assert found == pytest.approx(expected, rel=1e-4)
    # equal numbers: 70 of the reference, in its fixed random order
    real = real[np.random.default_rng(0).permutation(100)[:70]]
    expected = [*precision_recall(real, fake), *density_coverage(real, fake)]
    names = ("precision", "recall", "density", "coverage")
    assert [values[f"pixel_{k}"] for k in names] == pytest.approx(expected)
    # the floor: as many of the data's own images, measured the same way
    mine = own[np.random.default_rng(0).permutation(150)[:70]]
    again = measured(mine)
    for name in measured.names[:8]:
        assert again[name] == values[f"{name}_floor"], name
    assert values["pixel_frechet_distance"] > 3 * values["pixel_frechet_distance_floor"]


def test_a_short_floor_says_so(digits):
    measured = Distances(pixels(), "pixel", digits[:100], digits[100:140], LEVELS)
    values = measured(digits[140:240])
    assert (values["pixel_images"], values["pixel_images_floor"]) == (100, 40)


def test_wrong_images_are_told(digits):
    ours = digits[:20], digits[20:40], LEVELS
    measured = Distances(pixels(), "pixel", *ours)
    for images, words in [
        (digits[:, :7], "images: expected integer images .*got shape"),
        (digits / 16, "got float64"),
        (digits + 10, "got values 10..26"),
        (digits[:5], "pixel distances: expected 6 images or more of each; got 5"),
    ]:
        with pytest.raises(ValueError, match=words):
            measured(images)
    with pytest.raises(ValueError, match=r"expected images \(28, 28, 1\), .* mnist"):
        Distances(mnist_features(), "mnist", *ours)
    with pytest.raises(ValueError, match=r"expected a model that gives \(batch, d\)"):
        Distances(keras.Sequential([layers.Input(SHAPE), layers.ReLU()]), "p", *ours)
    with pytest.raises(ValueError, match="reference: expected an array .* got Batches"):
        Distances(pixels(), "pixel", kgen.data.Batches(digits), digits, LEVELS)
    with pytest.raises(ValueError, match="floor: expected integer images"):
        Distances(pixels(), "pixel", digits, digits / 16, LEVELS)


# After epochs


def measured_digits(digits):
    return Distances(pixels(), "pixel", digits[:100], digits[100:], LEVELS)


@pytest.mark.parametrize("family", ["vae", "vae-conditional"])
def test_the_callback_logs_what_samples_get(
    family, digits, digit_labels, tmp_path, capsys
):
    model = FAMILIES[family]()
    model.compile("adam")
    measured = measured_digits(digits)
    labels = 3 if model.num_classes == CLASSES else None
    data = (digits,) if labels is None else (digits, digit_labels)
    callback = kgen.callbacks.SampleDistances(measured, 40, every=2, labels=labels)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = model.fit(*data, epochs=4, verbose=0, callbacks=[callback, log]).history
    assert set(measured.names) < set(history)
    for name in measured.names:
        known = np.isfinite(history[name])
        assert known.tolist() == [True, True, False, True], name  # the first, 2, 4
    last = measured(model.sample(40, seed=0, labels=labels, verbose=0))
    assert {name: history[name][3] for name in last} == pytest.approx(last, rel=1e-4)
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[3]["pixel_frechet_distance"]) == pytest.approx(
        last["pixel_frechet_distance"], rel=1e-4
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("distances: pixel_images 40 (40), ")
    own = last["pixel_frechet_distance_floor"]
    assert (
        f"pixel_frechet_distance {last['pixel_frechet_distance']:.4g} ({own:.4g})"
        in lines[2]
    )


def test_the_best_epoch_can_be_chosen_by_a_distance(digits, tmp_path):
    """Epochs without a measurement are not taken for it, nor do they hide it."""
    model = FAMILIES["vae"]()
    model.compile(keras.optimizers.Adam(1e-2))
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.weights.h5",
        monitor="pixel_frechet_distance",
        mode="min",
        save_best_only=True,
        save_weights_only=True,
    )
    measure = kgen.callbacks.SampleDistances(measured_digits(digits), 40, every=4)
    fitted = model.fit(digits, epochs=13, verbose=0, callbacks=[measure, best])
    measured = np.array(fitted.history["pixel_frechet_distance"])
    assert np.isfinite(measured).nonzero()[0].tolist() == [0, 3, 7, 11]
    kept = {int(p.name.split(".")[0]) for p in tmp_path.iterdir()}
    assert kept <= {1, 4, 8, 12} and max(kept) == np.nanargmin(measured) + 1 > 1


def test_a_callback_of_other_images_is_told_before_the_first_epoch(digits, binary):
    model = FAMILIES["vae"]()
    model.compile("adam")
    other = Distances(pixels(), "pixel", binary[:50], binary[50:], 2)
    for callback, words in [
        (kgen.callbacks.SampleDistances(other), "with 2 levels, the model draws"),
        (
            kgen.callbacks.SampleDistances(measured_digits(digits), 5),
            "6 images or more",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            model.fit(digits, verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations) == 0
    with pytest.raises(ValueError, match="every must be a positive integer"):
        kgen.callbacks.SampleDistances(other, every=0)


# Real digits

SUMS = (95.09754, 93.24805, 87.32930)


@pytest.fixture(scope="module")
def mnist():
    """Images and labels: 4000 to train on, 1500 to test on, of the two splits."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or not any(Path(folder, "mnist").glob("*/dataset_info.json")):
        pytest.skip("tfds has no prepared mnist: set TFDS_DATA_DIR")
    pytest.importorskip("tensorflow")
    splits = kgen.data.load("mnist", labels=True)
    train, test = splits.train, splits.test
    return (
        train.images[:4000],
        train.labels[:4000],
        test.images[:1500],
        test.labels[:1500],
    )


def test_mnist_features_are_small_float32_and_the_same_everywhere():
    path = Path(kgen.__file__).parent / "assets" / "mnist_features.keras"
    assert path.stat().st_size < 300_000
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = mnist_features()
    assert model.input_shape == (None, 28, 28, 1) and model.output_shape == (None, 64)
    x = np.random.default_rng(0).random((3, 28, 28, 1)).astype("float32")
    features = model.predict(x, verbose=0)
    assert features.shape == (3, 64) and features.dtype == np.float32
    # what TensorFlow gave when the model was trained
    np.testing.assert_allclose(features.sum(axis=1), SUMS, rtol=1e-4)


def test_mnist_features_know_digits(mnist):
    """The nearest of 4000 labelled images has the image's digit, grey or binary."""
    train, labels, test, truth = mnist
    model = mnist_features()

    def features(x):
        return model.predict(x.astype("float32"), batch_size=250, verbose=0)

    known = features(train / 255)
    rng = np.random.default_rng(0)
    for x in (test / 255, bernoulli(test, 256, rng)):
        found = labels[distances._squared_distances(features(x), known).argmin(axis=1)]
        assert np.mean(found == truth) > 0.97


def test_real_digits_are_nearer_than_their_imitations(mnist):
    """Those of the other split; then one class left out, blurred, and noise. Binary
    copies are nearly as near: the features are of digits, not of grey levels."""
    train, labels, test, _ = mnist
    measured = Distances(mnist_features(), "mnist", test, train)
    rng = np.random.default_rng(0)
    blurred = (train + np.roll(train, 2, 1).astype(int) + np.roll(train, 2, 2)) // 3
    noise = rng.integers(0, 256, (1000, 28, 28, 1))
    sets = {
        "real": train[-1000:],
        "one class left out": train[labels != 3][:1000],
        "binary": 255 * bernoulli(train[:1000], 256, rng),
        "blurred": blurred[:1000],
        "noise": noise,
    }
    got = {k: measured(images) for k, images in sets.items()}
    frechet = {k: v["mnist_frechet_distance"] for k, v in got.items()}
    own = got["real"]["mnist_frechet_distance_floor"]
    assert 0.5 * own < frechet["real"] < 2 * own
    assert own < frechet["binary"] < frechet["one class left out"]
    for name in ("one class left out", "blurred"):
        assert 2 * own < frechet[name] < frechet["noise"]
        kernel, error = (got[name][f"mnist_kernel_distance{k}"] for k in ("", "_se"))
        assert kernel > 4 * error
    assert (
        abs(got["real"]["mnist_kernel_distance"])
        < 4 * (got["real"]["mnist_kernel_distance_se"])
    )
    real, left, noise = got["real"], got["one class left out"], got["noise"]
    assert real["mnist_precision"] > 0.7 and real["mnist_recall"] > 0.7
    assert noise["mnist_precision"] < 0.1 and noise["mnist_coverage"] < 0.1
    assert left["mnist_coverage"] < real["mnist_coverage"] - 0.05
    assert left["mnist_precision"] > real["mnist_precision"] - 0.05
