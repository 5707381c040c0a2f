"""Distances between two sets of images, over features that some model gives them.

A set is an array of features (n, d), a row for each image. All is float64 NumPy, in
blocks of rows, so that memory does not grow with the number of images. A number means
something only beside the same number for images of the data itself, and only over one
feature model: `kgen.metrics.Distances` gives both.

Shapes: n, m = images in the two sets, d = features.
"""

import numpy as np

_MAX_ELEMENTS = 2**22  # of a block of pairs, 32 MB


def frechet_distance(a, b):
    """Frechet distance of the Gaussians with the sets' means and covariances.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)): Dowson and Landau 1982, "The
    Frechet distance between multivariate normal distributions"; of generated images by
    Heusel et al. 2017, arXiv:1706.08500, eq. 6. In squared units of the features.

    It grows as the sets get smaller, by a term of the order 1/n that depends on the
    data (Binkowski et al. 2018, arXiv:1801.01401, sec. 4): compare equal numbers of
    images, and give their number.

    Args:
        a, b: features (n, d) and (m, d), two images or more; n and m may be below d.

    Returns: float, 0 or more.

    Raises:
        ValueError: not such arrays, or not finite.
    """
    a, b = _as_arrays(2, a=a, b=b)
    (mean_a, root_a), (mean_b, root_b) = _mean_and_root(a), _mean_and_root(b)
    # C_a C_b has the eigenvalues of M M^T for M = R_a R_b^T, so the trace of its root
    # is the sum of M's singular values: real, 0 or more, whatever the ranks.
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    spread = np.sum(root_a**2) + np.sum(root_b**2)  # tr(C_a) + tr(C_b)
    return max(0.0, float(np.sum((mean_a - mean_b) ** 2) + spread - 2 * cross))


def _mean_and_root(x):
    """Mean (d,), and R (min(n, d), d) with R^T R = the covariance (unbiased)."""
    mean = x.mean(axis=0)
    # Not from the covariance matrix: its eigenvalues near 0 are rounding errors, and
    # their roots are not small.
    return mean, np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r")


def kernel_distance(a, b):
    """Unbiased squared maximum mean discrepancy, kernel (x.y / d + 1)^3; its error.

    Kernel: Binkowski et al. 2018, arXiv:1801.01401, sec. 4. Estimate: Gretton et al.
    2012, "A kernel two-sample test", lemma 6, over all pairs of different images. Its
    expectation does not depend on n and m; between equal distributions it is 0, so
    that estimates may be negative.

    The standard error is the jackknife's, over images of a and of b, each left out
    once. On average it does not fall short (Efron and Stein 1981, "The jackknife
    estimate of variance"); where the distributions are equal it is up to sqrt(2) times
    too large.

    Args:
        a, b: features (n, d) and (m, d), three images or more.

    Returns: (squared discrepancy, standard error), floats.

    Raises:
        ValueError: not such arrays, or not finite.
    """
    a, b = _as_arrays(3, a=a, b=b)
    n, m = len(a), len(b)
    within_a, within_b = _kernel_to_others(a), _kernel_to_others(b)  # (n,), (m,)
    across_a, across_b = _kernel_sums(a, b)  # (n,), (m,)
    value = within_a.sum() / (n * (n - 1)) + within_b.sum() / (m * (m - 1))
    value -= 2 * across_a.sum() / (n * m)
    variance = _jackknife(within_a, across_a, m) + _jackknife(within_b, across_b, n)
    return float(value), float(np.sqrt(variance))


def _kernel(products, d):
    base = products / d + 1
    return base * base * base


def _kernel_sums(x, y):
    """sum_j k(x_i, y_j), (n,), and sum_i k(x_i, y_j), (m,)."""
    row_sums, column_sums = np.empty(len(x)), np.zeros(len(y))
    for rows in _blocks(len(x), len(y)):
        k = _kernel(x[rows] @ y.T, x.shape[1])  # (rows, m)
        row_sums[rows] = k.sum(axis=1)
        column_sums += k.sum(axis=0)
    return row_sums, column_sums


def _kernel_to_others(x):
    """sum over j != i of k(x_i, x_j), (n,)."""
    return _kernel_sums(x, x)[0] - _kernel(np.sum(x * x, axis=1), x.shape[1])


def _jackknife(within, across, others):
    """The variance that one set brings: from the estimates without each image in turn.

    Args:
        within, across: (n,), kernel sums of an image over its own set and the other.
        others: number of images in the other set.
    """
    n = len(within)
    # what the estimate without image i differs by from a constant
    part = 2 * across / ((n - 1) * others) - 2 * within / ((n - 1) * (n - 2))  # (n,)
    return (n - 1) / n * np.sum((part - part.mean()) ** 2)


def precision_recall(real, generated, k=3):
    """Precision: the share of generated images that are near real ones. Recall: the
    share of real images that are near generated ones.

    Near: within the distance, for some image of the other set, from that image to the
    k-th nearest of its own set. Kynkaanniemi et al. 2019, "Improved precision and
    recall metric for assessing generative models", arXiv:1904.06991, eq. 1 and 2.
    Both depend on the numbers of images; the paper takes equal ones.

    Args:
        real, generated: features (n, d) and (m, d), more than k images each.
        k: of the neighbour, itself not counted.

    Returns: (precision, recall), each in 0..1.

    Raises:
        ValueError: not such arrays, or not finite, or k below 1.
    """
    real, generated = _centered(k, real, generated)
    near_real, _ = _in_balls(real, k, generated)  # (m,)
    near_generated, _ = _in_balls(generated, k, real)  # (n,)
    return float(np.mean(near_real > 0)), float(np.mean(near_generated > 0))


def density_coverage(real, generated, k=5):
    """Density: how many balls of real images a generated one is in, over k. Coverage:
    the share of real images with a generated one in their ball.

    A ball reaches from a real image to the k-th nearest other one. Naeem et al. 2020,
    "Reliable fidelity and diversity metrics for generative models", arXiv:2002.09797,
    sec. 3. For equal distributions density is 1 on average, and coverage of equal
    numbers of images near 1 - 2^-k; fewer generated images cover less.

    Args:
        real, generated: features (n, d) and (m, d), more than k images each.
        k: of the neighbour, itself not counted.

    Returns: (density, 0 or more, may exceed 1; coverage in 0..1).

    Raises:
        ValueError: not such arrays, or not finite, or k below 1.
    """
    real, generated = _centered(k, real, generated)
    balls, covered = _in_balls(real, k, generated)  # (m,), (n,)
    return float(np.mean(balls) / k), float(np.mean(covered))


def _centered(k, real, generated):
    """Checked; moved so that little is lost where distances come from products."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k must be a positive integer; got {k!r}.")
    real, generated = _as_arrays(k + 1, real=real, generated=generated)
    mean = real.mean(axis=0)
    return real - mean, generated - mean


def _in_balls(centres, k, points):
    """How many balls each point is in, (points,), and which balls hold a point,
    (centres,); a ball reaches from a centre to its k-th nearest other one, included."""
    squared_radii = np.empty(len(centres))
    for rows in _blocks(len(centres), len(centres)):
        squares = _squared_distances(centres[rows], centres)  # (rows, centres)
        own = np.arange(rows.start, rows.start + len(squares))
        squares[np.arange(len(own)), own] = np.inf
        squared_radii[rows] = np.partition(squares, k - 1, axis=1)[:, k - 1]
    balls = np.empty(len(points), "int64")
    held = np.zeros(len(centres), bool)
    for rows in _blocks(len(points), len(centres)):
        inside = _squared_distances(points[rows], centres) <= squared_radii
        balls[rows] = inside.sum(axis=1)
        held |= inside.any(axis=0)
    return balls, held


def _squared_distances(x, y):
    """|x_i - y_j|^2, (n, m), exactly 0 between copies."""
    norms = np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1)  # (n, m)
    squares = norms - 2 * (x @ y.T)
    squares[squares < 1e-13 * norms] = 0.0  # what is left is rounding
    return squares


def _blocks(n, m):
    """Slices of the n rows, each of few enough for a block (rows, m)."""
    size = max(1, _MAX_ELEMENTS // m)
    return [slice(start, start + size) for start in range(0, n, size)]


def _as_arrays(least, **sets):
    """The sets as float64 (n, d): of one d, finite, of `least` rows or more."""
    arrays = []
    for name, x in sets.items():
        x = np.asarray(x)
        expected = f"{name}: expected features (n, d), {least} images or more"
        if x.ndim != 2 or len(x) < least or not x.shape[1]:
            raise ValueError(f"{expected}; got shape {x.shape}.")
        if x.dtype.kind not in "fiub":
            raise ValueError(f"{expected}, real numbers; got {x.dtype}.")
        x = x.astype("float64")
        if not np.isfinite(x).all():
            raise ValueError(f"{expected}; got NaN or infinity among them.")
        if np.abs(x).max() > 1e50:  # products of three of them are summed
            raise ValueError(f"{expected}, below 1e50; got {np.abs(x).max():.3g}.")
        arrays.append(x)
    (first, a), (second, b) = zip(sets, arrays, strict=True)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{first} and {second}: expected features of one model; got "
            f"{a.shape[1]} and {b.shape[1]} for each image."
        )
    return arrays
