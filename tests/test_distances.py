"""Distances of two sets of features: closed forms, direct sums, real digits."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel
from zoo import prepared

import kgen
from kgen import distances, metrics
from kgen.data.images import bernoulli
from kgen.distances import (
    density_coverage,
    frechet_distance,
    kernel_distance,
    precision_recall,
)

pytestmark = pytest.mark.once

# Frechet distance


@pytest.mark.parametrize("d", [1, 7])
def test_frechet_distance_against_a_matrix_square_root(d, rng):
    a = rng.normal(size=(80, d)) @ rng.normal(size=(d, d))
    b = rng.normal(size=(50, d)) @ rng.normal(size=(d, d)) + 1
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(
        cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_covariances_without_full_rank(rng):
    few = rng.normal(size=(6, 40))  # fewer images than features
    assert 0 <= frechet_distance(few, few) < 1e-12 * 40
    flat = np.concatenate([rng.normal(size=(90, 3)), np.zeros((90, 37))], axis=1)
    assert 0 <= frechet_distance(flat, flat[::-1]) < 1e-12 * 40
    apart = np.concatenate([np.zeros((50, 3)), rng.normal(size=(50, 37))], axis=1)
    still = np.ones((4, 40))  # no spread at all
    for a, b in ((flat, apart), (few, still)):  # the covariances share no axis
        moved = np.sum((a.mean(0) - b.mean(0)) ** 2)
        expected = moved + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


# Kernel distance


def direct_kernel_distance(a, b):
    def mean(x, y, pairs=...):
        return np.mean(polynomial_kernel(x, y)[pairs])  # (x y / d + 1)^3

    within = sum(mean(x, x, ~np.eye(len(x), dtype=bool)) for x in (a, b))
    return within - 2 * mean(a, b)


def test_kernel_distance_against_the_direct_sum(rng):
    a, b = rng.normal(size=(9, 4)) + 1, 2 * rng.normal(size=(13, 4))
    value, error = kernel_distance(a, b)
    assert value == pytest.approx(direct_kernel_distance(a, b), rel=1e-10)
    assert kernel_distance(b, a) == pytest.approx((value, error), rel=1e-10)
    # the jackknife as it is defined: every image left out in turn
    without_a = [direct_kernel_distance(np.delete(a, i, 0), b) for i in range(9)]
    without_b = [direct_kernel_distance(a, np.delete(b, i, 0)) for i in range(13)]
    variance = 8 * np.var(without_a) + 12 * np.var(without_b)
    assert error == pytest.approx(variance**0.5, rel=1e-8)


def test_kernel_distance_is_unbiased_with_a_true_error(rng):
    """In one dimension (x y + 1)^3 = 1 + 3 x y + 3 x^2 y^2 + x^3 y^3, so the squared
    discrepancy is a sum over squared differences of moments. Between equal
    distributions the error may be up to sqrt(2) too large."""
    x = rng.uniform(-1, 1, (1000, 2, 50, 1))
    y = rng.uniform(0, 1, (1000, 80, 1))
    for a, b, truth, low, high in (
        (x[:, 0], y, 3 * 0.5**2 + 0.25**2, 0.85, 1.2),
        (x[:, 0], x[:, 1], 0, 1, 2.4),
    ):
        pairs = [kernel_distance(*sets) for sets in zip(a, b, strict=True)]
        values, errors = np.transpose(pairs)
        assert abs(values.mean() - truth) < 4 * values.std() / 1000**0.5
        assert low < np.mean(errors**2) / values.var() < high


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


def test_neighbors_of_copies(rng):
    """Of ten images: balls of radius 0 hold just the copies."""
    copies = np.repeat(rng.normal(size=(10, 64)), 6, axis=0)
    zero = distances._squared_distances(copies, copies) == 0  # exactly
    np.testing.assert_array_equal(zero, np.kron(np.eye(10), np.ones((6, 6))))
    assert precision_recall(copies, copies[::-1]) == (1, 1)
    assert precision_recall(copies, copies + 1e-4) == (0, 0)
    assert density_coverage(copies, copies[:6], 3) == (2, 0.1)  # in 6 balls, over k


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
        return *kernel_distance(a, b), *precision_recall(a, b), *density_coverage(a, b)

    whole = measures()
    for elements in (300, 1):  # 300: 5 to 7 rows
        monkeypatch.setattr(distances, "_MAX_ELEMENTS", elements)
        assert measures() == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize(
    "measure", [frechet_distance, kernel_distance, precision_recall, density_coverage]
)
def test_wrong_features_raise(measure, rng):
    x = rng.normal(size=(20, 3))
    calls = [
        ((x, x[:, :, None]), r"expected features \(n, d\)"),
        ((x, x[:1]), r"images or more; got shape \(1, 3\)"),
        ((x, x[:, :2]), "expected features of one model; got 3 and 2"),
        ((x, np.where(x > 1, np.nan, x)), "NaN or infinity"),
        ((x, x.astype("complex")), "real numbers; got complex128"),
    ]
    if measure in (precision_recall, density_coverage):
        calls.append(((x, x, 0), "k must be a positive integer"))
        calls.append(((x, x, 20), "real: expected .* 21 images or more"))
    for arguments, words in calls:
        with pytest.raises(ValueError, match=words):
            measure(*arguments)


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
    test, truth = test[:500], truth[:500]
    binary = bernoulli(test, 256, np.random.default_rng(0))
    labeled, *features = (
        metrics.mnist_features().predict(x.astype("float32"), 250, verbose=0)
        for x in (train[:1000] / 255, test / 255, binary)
    )
    for found in features:
        nearest = cdist(found, labeled).argmin(axis=1)
        assert np.mean(labels[nearest] == truth) > 0.97


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_real_digits_are_nearer_than_imitations(mnist):
    """Those of the other split; then one class left out, blurred, and noise. Binary
    copies are nearly as near: the features are of digits, not of gray levels."""
    train, labels, test, _ = mnist
    measure = metrics.Distances(metrics.mnist_features(), "mnist", test, train)
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

    def each(key):
        return {name: v[f"mnist_{key}"] for name, v in values.items()}

    frechet, baseline = each("frechet_distance"), each("frechet_distance_floor")["real"]
    assert 0.5 * baseline < frechet["real"] < 2 * baseline
    assert baseline < frechet["binary"] < frechet["left"]
    kernel, error = each("kernel_distance"), each("kernel_distance_se")
    assert abs(kernel["real"]) < 4 * error["real"]
    for name in ("left", "blurred"):
        assert 2 * baseline < frechet[name] < frechet["noise"]
        assert kernel[name] > 4 * error[name]
    precision, recall, coverage = map(each, ("precision", "recall", "coverage"))
    assert precision["real"] > 0.7 and recall["real"] > 0.7
    assert precision["noise"] < 0.1 and coverage["noise"] < 0.1
    assert coverage["left"] < coverage["real"] - 0.05
    assert precision["left"] > precision["real"] - 0.05
