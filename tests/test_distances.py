"""Distances of two sets of features: closed forms, direct sums, real digits."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from zoo import prepared

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

pytestmark = pytest.mark.once

# Frechet distance


def with_moments(rng, n, mean, root):
    """(n, d) with exactly this mean and exactly root^T root as covariance."""
    x = rng.normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(len(mean), -1))).T
    return x @ root + mean


def rotation(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


@pytest.mark.parametrize("d", [1, 5])
def test_frechet_distance_of_commuting_covariances(rng, d):
    """|mu_a - mu_b|^2 + sum (sigma_a - sigma_b)^2 along the common axes."""
    axes, s, t = rotation(rng, d), np.arange(2.0, 2 + d), np.array([0.7, 3, 0, 2, 8])
    shift, t = rng.normal(size=d), t[:d]
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


def test_frechet_distance_of_covariances_without_full_rank(rng):
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


def test_frechet_distance_falls_with_more_images(rng):
    """Between samples of one distribution it falls as 1/n."""
    means = [
        np.mean([frechet_distance(*rng.normal(size=(2, n, 4))) for _ in range(300)])
        for n in (100, 200)
    ]
    assert means[0] / means[1] == pytest.approx(2, rel=0.1)


# Kernel distance


def direct_kernel_distance(a, b):
    def mean(x, y, pairs):
        return np.mean((x @ y.T / x.shape[1] + 1)[pairs] ** 3)

    aa, bb = (
        mean(a, a, ~np.eye(len(a), dtype=bool)),
        mean(b, b, ~np.eye(len(b), dtype=bool)),
    )
    return aa + bb - 2 * mean(a, b, ...)


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
    a, b = rng.uniform(-1, 1, (2000, 4, 1)), rng.uniform(0, 1, (2000, 5, 1))
    truth = 3 * 0.5**2 + 3 * 0**2 + 0.25**2
    values = [kernel_distance(x, y)[0] for x, y in zip(a, b, strict=True)]
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / 2000**0.5
    equal = [kernel_distance(x, y)[0] for x, y in zip(a[::2], a[1::2], strict=True)]
    assert abs(np.mean(equal)) < 4 * np.std(equal) / 1000**0.5
    assert min(equal) < 0


def test_standard_error_is_the_spread_over_repetitions(rng):
    """Between different distributions; between equal ones, up to sqrt(2) larger."""
    for shift, low, high in ((0.5, 0.85, 1.2), (0.0, 1.0, 2.4)):
        pairs = [
            kernel_distance(rng.normal(size=(50, 2)), rng.normal(size=(80, 2)) + shift)
            for _ in range(1000)
        ]
        values, errors = np.transpose(pairs)
        assert low < np.mean(errors**2) / np.var(values) < high


# Neighbors


def direct_balls(centers, k, points):
    """Whether point j is in the ball of center i, [j][i], by definition."""
    radii = np.sort(cdist(centers, centers))[:, k]  # the nearest is the center itself
    return cdist(points, centers) <= radii


@pytest.mark.parametrize("k", [1, 3])
def test_neighbors_against_the_definitions(rng, k):
    real, generated = rng.normal(size=(40, 3)), 1.3 * rng.normal(size=(25, 3)) + 0.5
    in_real = direct_balls(real, k, generated)  # (25, 40)
    in_generated = direct_balls(generated, k, real)  # (40, 25)
    assert precision_recall(real, generated, k) == (
        in_real.any(axis=1).mean(),
        in_generated.any(axis=1).mean(),
    )
    assert density_coverage(real, generated, k) == pytest.approx(
        (in_real.sum() / (k * 25), in_real.any(axis=0).mean()), rel=1e-12
    )


def test_neighbors_of_known_sets(rng):
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


def test_missing_mode_lowers_recall_and_coverage(rng):
    modes = 50 * np.repeat([[0], [1]], 100, axis=0)
    real, whole = rng.normal(size=(2, 200, 2)) + modes
    half = rng.normal(size=(200, 2))
    precision, recall = np.transpose([precision_recall(real, x) for x in (whole, half)])
    assert precision.min() > 0.9 and recall[0] > 0.9 and recall[1] < 0.5
    density, coverage = np.transpose([density_coverage(real, x) for x in (whole, half)])
    assert 0.8 < density[0] < 1.2 and density[1] > 0.8
    assert coverage[0] > 0.9 and 0.4 < coverage[1] < 0.51


def test_expectations_for_equal_distributions(rng):
    """Density: 1. Coverage: 1 - prod_i (N-1-i) / (N+M-1-i), the probability that the
    first k neighbors among N-1 real and M generated images are not all real."""
    N, M, k = 30, 20, 4
    pairs = [
        density_coverage(rng.normal(size=(N, 3)), rng.normal(size=(M, 3)), k)
        for _ in range(1000)
    ]
    i = np.arange(k)
    expected = 1, 1 - np.prod((N - 1 - i) / (N + M - 1 - i))
    errors = np.std(pairs, axis=0) / 1000**0.5
    assert np.all(np.abs(np.mean(pairs, axis=0) - expected) < 4 * errors)


def test_blocks_give_the_same_numbers(rng, monkeypatch):
    a, b = rng.normal(size=(53, 6)), rng.normal(size=(41, 6)) + 0.5

    def measures():
        found = kernel_distance(a, b), precision_recall(a, b), density_coverage(a, b)
        return sum(found, ())

    whole = measures()
    for elements in (300, 1):  # 300: 5 to 7 rows
        monkeypatch.setattr(distances, "_MAX_ELEMENTS", elements)
        assert measures() == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize(
    "measure", [frechet_distance, kernel_distance, precision_recall, density_coverage]
)
def test_wrong_features_raise(measure, rng):
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


# Real digits


@pytest.fixture(scope="module")
def mnist():
    """Images and labels: 4000 of the train split, 1500 of the test split."""
    if not prepared("mnist"):
        pytest.skip("tfds has no prepared mnist: set TFDS_DATA_DIR")
    # 2**23 bytes: train is a stream, which nothing reads, and the rest is in memory
    splits = kgen.data.load("mnist", labels=True, validation=4000, max_bytes=2**23)
    train, test = splits.validation, splits.test
    return train.images, train.labels, test.images[:1500], test.labels[:1500]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tfds
def test_mnist_features_classify_digits(mnist):
    """The nearest of 1000 labeled images has the image's digit, gray or binary."""
    train, labels, test, truth = mnist
    model = mnist_features()

    def features(x):
        return model.predict(x.astype("float32"), batch_size=250, verbose=0)

    labeled = features(train[:1000] / 255)
    for x in (test[:500] / 255, bernoulli(test[:500], 256, np.random.default_rng(0))):
        nearest = cdist(features(x), labeled).argmin(axis=1)
        assert np.mean(labels[nearest] == truth[:500]) > 0.97


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_real_digits_are_nearer_than_imitations(mnist):
    """Those of the other split; then one class left out, blurred, and noise. Binary
    copies are nearly as near: the features are of digits, not of gray levels."""
    train, labels, test, _ = mnist
    measure = Distances(mnist_features(), "mnist", test, train)
    rng = np.random.default_rng(0)
    blurred = (train + np.roll(train, 2, 1).astype(int) + np.roll(train, 2, 2)) // 3
    sets = {
        "real": train[-1000:],
        "left": train[labels != 3][:1000],  # one class left out
        "binary": 255 * bernoulli(train[:1000], 256, rng),
        "blurred": blurred[:1000],
        "noise": rng.integers(0, 256, (1000, 28, 28, 1)),
    }
    values = {name: measure(images) for name, images in sets.items()}
    baseline = values["real"]["mnist_frechet_distance_floor"]

    def value(name, key):
        return values[name][f"mnist_{key}"]

    frechet = {name: value(name, "frechet_distance") for name in sets}
    assert 0.5 * baseline < frechet["real"] < 2 * baseline
    assert baseline < frechet["binary"] < frechet["left"]
    for name in ("left", "blurred"):
        assert 2 * baseline < frechet[name] < frechet["noise"]
        kernel, error = (
            value(name, "kernel_distance"),
            value(name, "kernel_distance_se"),
        )
        assert kernel > 4 * error
    kernel, error = (
        value("real", "kernel_distance"),
        value("real", "kernel_distance_se"),
    )
    assert abs(kernel) < 4 * error
    assert value("real", "precision") > 0.7 and value("real", "recall") > 0.7
    assert value("noise", "precision") < 0.1 and value("noise", "coverage") < 0.1
    assert value("left", "coverage") < value("real", "coverage") - 0.05
    assert value("left", "precision") > value("real", "precision") - 0.05
