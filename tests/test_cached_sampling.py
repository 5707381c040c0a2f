"""Samplers that keep what they computed: the parameters are those of the parallel
network, the images those of the naive sampler, which runs all of it at each step."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops
from zoo import ONE_PASS, cases, numpy, shared, tensor, tiny

from kgen import backend, random
from kgen.models.autoregressive import fill_naively
from kgen.models.cached_sampler import _Row, sample_rows

KINDS = {  # variants of the networks, beside those of the zoo
    "gated-5x5": {"kernel_size": 5},
    "gated-1x1": {"kernel_size": 1, "num_blocks": 1},
    "pixel-cnn-3x3": {"first_kernel_size": 3},
    "pixel-cnn-5x5": {"kernel_size": 5},
    "pixel-cnn-1x1": {"kernel_size": 1, "num_blocks": 1},
    "row-lstm-2": {"num_layers": 2},
    "row-lstm-skip": {"num_layers": 3, "skip_connections": True},
    "diagonal-2": {"num_layers": 2, "first_kernel_size": 3},
    "diagonal-skip": {"num_layers": 3, "skip_connections": True},
    "pp-mixture": {"num_resolutions": 2},
    "pp-1": {"likelihood": "categorical"},
    "pp-2": {"likelihood": "categorical", "num_resolutions": 2},
    "pp-3": {"likelihood": "categorical", "num_resolutions": 3},
}
SHAPE, LEVELS = (5, 4, 1), 3
N = 8
LABELS = np.array([0, 1, 1, 0, 1, 0, 0, 1], "int32")


def model_of(kind, shape=SHAPE, levels=LEVELS, **scale):
    name = next(n for n in reversed(ONE_PASS) if kind.startswith(n))
    return shared(name, shape, levels, 2, **KINDS.get(kind, {}) | scale)


GRAY, COLOR = (SHAPE, LEVELS), ((4, 3, 3), 4)
NETWORKS = [(kind, *GRAY) for kind in ("fvbn", "nade", "made")]
NETWORKS += [("pixel-cnn-5x5", *GRAY), ("row-lstm-2", *GRAY)]
NETWORKS += [("gated-5x5", *COLOR), ("diagonal-skip", *COLOR)]
NAIVE, PP, MIXTURE = [("gated", *GRAY)], ("pp-3", *GRAY), ("pp-mixture", *COLOR)
if backend.name == "torch":  # XLA compiles several resolutions for 10 s
    NETWORKS, NAIVE = [*NETWORKS, PP], [*NAIVE, MIXTURE]
SHAPES = [((5, 4, 1), 2), ((4, 7, 1), 5), ((1, 6, 1), 2), ((6, 1, 1), 2), COLOR]
FURTHER = [(kind, *c) for kind in (*ONE_PASS[:-1], "pp-1") for c in SHAPES] + [PP]
FURTHER += [(kind, *SHAPES[1]) for kind in KINDS if kind != "pp-1"]


@pytest.mark.parametrize("kind, shape, levels", cases(NETWORKS, FURTHER), ids=str)
def test_cached_logits_are_the_parallel_ones(kind, shape, levels, rng, monkeypatch):
    """With rows that are known, whose pixels are computed at once, and without."""
    model, x = model_of(kind, shape, levels), rng.integers(0, levels, (N, *shape))
    scale, per_channel = model.scale, model.num_outputs // shape[-1]
    parallel = numpy(model.logits(x, LABELS))[..., ::per_channel]
    assert np.abs(parallel).max() > 0.1

    def draw(params, u, temperature):
        """The given values, with the first parameter of each packed on top."""
        first = ops.cast(params[..., ::per_channel], "float32")
        first = ops.cast(ops.round(first * 2e4), "int32")
        return first * levels + ops.cast(u, "int32")

    monkeypatch.setattr(model, "likelihood", SimpleNamespace(draw=draw))
    monkeypatch.setattr(model, "scale", lambda x: scale(ops.mod(x, levels)))
    fill = backend.compile_function(model, lambda x, u, k, y: model.fill(x, u, k, y))
    for known in [k for k in (0, 1, 3, 4) if k < shape[0]]:
        given, rows = x.astype("int32"), np.array(known, "int32")
        given[:, known:] = 0
        packed = numpy(fill(given, x.astype("float32"), rows, LABELS))
        np.testing.assert_array_equal(packed % levels, x)
        logits = packed // levels / 2e4
        assert np.all(logits[:, :known] == 0)
        np.testing.assert_allclose(logits[:, known:], parallel[:, known:], atol=1e-4)


FURTHER = ("fvbn", "nade", "made", "pixel-cnn", "row-lstm", "diagonal", "pp-3")
FURTHER = [*((kind, *GRAY) for kind in FURTHER), MIXTURE]


@pytest.mark.parametrize("kind, shape, levels", cases(NAIVE, FURTHER), ids=str)
def test_cached_samples_are_those_of_the_naive_sampler(kind, shape, levels, rng):
    """By pixels and by rows, at a temperature, with labels, given rows or not. Weights
    are large, for pixels that depend on one another."""
    model = model_of(kind, shape, levels, scale=3.0)
    x = rng.integers(0, levels, (N, *shape)).astype("int32")
    u, T = model._uniforms(tensor(random.image_seeds(2, N), "int32")), 1.2

    def compiled(fill, **kwargs):
        def fill_rows(known):
            return fill(tensor(x, "int32"), u, known, temperature=T, **kwargs)

        return backend.compile_function(model, fill_rows)

    naive = compiled(functools.partial(fill_naively, model), labels=LABELS)
    network = model.cached_network(model.one_hot(tensor(LABELS, "int32")), N)
    sample = functools.partial(sample_rows, model, network)
    both = (False, True) if network else ()
    samplers = [compiled(sample, whole_rows=whole) for whole in both]
    for first in (0, 2):  # the least of the known rows, where the naive one starts
        known = np.maximum(np.arange(N) % shape[0], first).astype("int32")
        expected = numpy(naive(known))
        drawn = model.complete(x, known, seed=2, labels=LABELS, temperature=T)
        np.testing.assert_array_equal(drawn, expected)
        for sampler in samplers:
            np.testing.assert_array_equal(numpy(sampler(known)), expected)
        assert len(np.unique(drawn.reshape(N, -1), axis=0)) == N


def test_rounds_go_on_to_the_fixed_point():
    """Where each pixel is one more than its left neighbour: W rounds."""
    W = 6

    def step(left, above, x):
        return ops.pad(x[:, :-1], [[0, 0], [1, 0], [0, 0]]) + 1.0, ([], [])

    model = SimpleNamespace(
        image_shape=(1, W, 1),
        extra_columns=0,
        channels_in_turn=True,
        scale=lambda x: ops.cast(x, "float32"),
        likelihood=SimpleNamespace(draw=lambda params, u, temperature: params),
    )
    network = SimpleNamespace(step=step, see=lambda left, above, x, after: after)
    zeros = ops.zeros((2, W, 1), "int32")
    row = _Row(model, network, 1.0, [], None)
    drawn, _ = row.draw_at_once((), zeros, zeros, ops.zeros((2, W, 1)))
    np.testing.assert_array_equal(numpy(drawn)[..., 0], [np.arange(1, W + 1)] * 2)


@pytest.mark.skipif(
    backend.name != "torch", reason="rounds of a compiled loop cannot be counted"
)
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ["gated", "pixel-cnn", "row-lstm", "diagonal", "pp-3"])
def test_rows_take_few_steps(kind, whole, rng, monkeypatch):
    """A known row one; of others a pixel one each, or a row as many at most."""
    model, of_rows, of_pixels = model_of(kind), [], []
    network = model.cached_network(None, 2)
    step, W = network.step, SHAPE[1] + model.extra_columns

    def counted(left, above, x):
        (of_rows if len(x.shape) == 3 else of_pixels).append(1)
        return step(left, above, x)

    monkeypatch.setattr(network, "step", counted)
    x = tensor(rng.integers(0, LEVELS, (2, *SHAPE)), "int32")
    u = tensor(rng.uniform(size=x.shape), "float32")
    for known, rows in ((5, 0), (4, 1), (0, 5), ([4, 2], 3)):
        of_rows.clear(), of_pixels.clear()
        sample_rows(model, network, x, u, tensor(known, "int32"), whole_rows=whole)
        if whole:
            assert 5 <= len(of_rows) <= 5 - rows + rows * W and not of_pixels
        else:
            assert len(of_rows) == 5 - rows and len(of_pixels) == rows * W


@pytest.mark.skipif(backend.name == "torch", reason="nothing is compiled")
@pytest.mark.parametrize("name", cases(["fvbn"], ["gated"]))
def test_programs_are_kept(name):
    """The same shapes compile nothing, whatever the temperature; other numbers of
    images and of known rows a few batch sizes at most."""
    model, traces = tiny(name, SHAPE, LEVELS), []
    fill = model.fill
    model.fill = lambda *args: traces.append(1) or fill(*args)
    model.sample(3, seed=0)
    once = len(traces)
    for T in (1.0, 0.5, 2.0):
        model.sample(3, seed=1, temperature=T)
    assert len(traces) == once >= 1
    for n in range(1, 8):
        model.sample(n, seed=1)
    assert len(traces) <= 4 * once  # 1, 2, 4, 8
    x = np.zeros((4, *SHAPE), "uint8")
    model.complete(x, 1, seed=0)
    before = len(traces)
    for known in (0, 2, 4, [1, 2, 3, 4]):
        model.complete(x, known, seed=3, temperature=0.7)
    assert len(traces) == before
