"""Samplers that keep what they computed: the same network, the same images."""

import keras
import numpy as np
import pytest
from exact import numpy, randomized
from keras import ops

from kgen import backend, random
from kgen.models import (
    FVBN,
    DiagonalBiLSTM,
    GatedPixelCNN,
    PixelCNN,
    PixelCNNPlusPlus,
    RowLSTM,
    incremental,
)
from kgen.models.autoregressive import naively_filled

CASES = {
    "fvbn": (FVBN, {}),
    "gated": (GatedPixelCNN, {"filters": 6, "num_blocks": 2}),
    "gated-5x5": (GatedPixelCNN, {"filters": 6, "num_blocks": 2, "kernel_size": 5}),
    "gated-1x1": (GatedPixelCNN, {"filters": 6, "num_blocks": 1, "kernel_size": 1}),
    "pixel-cnn": (PixelCNN, {"filters": 6, "num_blocks": 2, "first_kernel_size": 3}),
    "pixel-cnn-5x5": (PixelCNN, {"filters": 6, "num_blocks": 2, "kernel_size": 5}),
    "pixel-cnn-1x1": (PixelCNN, {"filters": 6, "num_blocks": 1, "kernel_size": 1}),
    "row-lstm": (RowLSTM, {"units": 6, "num_layers": 2}),
    "row-lstm-skip": (RowLSTM, {"units": 6, "num_layers": 3, "skip_connections": True}),
    "diagonal": (DiagonalBiLSTM, {"units": 6, "num_layers": 2, "first_kernel_size": 3}),
    "diagonal-skip": (
        DiagonalBiLSTM,
        {"units": 6, "num_layers": 3, "skip_connections": True},
    ),
}
SHAPES = [
    ((5, 4, 1), 2),
    ((4, 7, 1), 5),
    ((1, 6, 1), 2),
    ((6, 1, 1), 2),
    ((3, 2, 3), 4),
]


PP = {"filters": 4, "num_blocks": 1, "likelihood": "categorical"}
CASES |= {f"pp-{r}": (PixelCNNPlusPlus, PP | {"num_resolutions": r}) for r in (1, 2, 3)}
MAIN = ("fvbn", "gated", "pixel-cnn", "row-lstm", "diagonal")
# every network on every kind of shape, its variants on one
WHERE = [(n, s) for n in CASES for s in (SHAPES if n in MAIN else SHAPES[1:2])]


def case(name, shape, levels, num_classes=2):
    kind, kwargs = CASES[name]
    return randomized(kind(shape, levels, num_classes, **kwargs))


def incremental_logits(model, x, labels, known_rows=(0,)):
    """What the sampler's network gives at every dimension (the first parameter of
    each), when all that it draws happens to be x: a likelihood that draws the true
    value, which its uniforms carry, with the parameter packed on top. A list, for each
    of `known_rows`; of the rows that are known, zeros."""
    levels, likelihood, scale = model.levels, model.likelihood, model.scale
    per_channel = model.num_outputs // x.shape[-1]

    class Packed:
        def draw(self, params, u, temperature):
            first = ops.cast(params[..., ::per_channel], "float32")
            return ops.cast(ops.round(first * 2e4), "int32") * levels + ops.cast(
                u, "int32"
            )

    model.likelihood, model.scale = Packed(), lambda x: scale(ops.mod(x, levels))
    try:
        fill = backend.compiled(model, lambda x, u, k, y: model.fill(x, u, k, y))
        if known_rows == (0,):  # as `sample` does: no row can be known
            fill = backend.compiled(model, lambda x, u, k, y: model.fill(x, u, 0, y))
        packed = []
        for known in known_rows:
            given = x.astype("int32")
            given[:, known:] = 0
            rows = np.array(known, "int32")
            packed.append(numpy(fill(given, x.astype("float32"), rows, labels)))
    finally:
        model.likelihood, model.scale = likelihood, scale
    for p in packed:
        np.testing.assert_array_equal(p % levels, x)
    return [(p // levels) / 2e4 for p in packed]


@pytest.mark.parametrize("name,grid", WHERE, ids=str)
def test_incremental_logits_are_the_parallel_ones(name, grid, rng):
    shape, levels = grid
    model = case(name, shape, levels)
    x = rng.integers(0, levels, (5, *shape))
    labels = np.array([0, 1, 1, 0, 1], "int32")
    parallel = numpy(model.logits(x, labels))[..., :: model.num_outputs // shape[-1]]
    assert np.abs(parallel).max() > 0.1
    (out,) = incremental_logits(model, x, labels)
    np.testing.assert_allclose(out, parallel, atol=1e-4)


VARIANTS = ["gated", "gated-5x5", "pixel-cnn-5x5", "row-lstm", "diagonal-skip"]


@pytest.mark.parametrize("name", [*VARIANTS, "pp-1", "pp-3"])
def test_rows_that_are_known_leave_what_drawing_them_would(name, rng):
    """Known rows pass all pixels at once: what follows from them is the same."""
    shape, levels = (6, 7, 1), 5
    model = case(name, shape, levels)
    x, labels = rng.integers(0, levels, (4, *shape)), np.array([0, 1, 1, 0], "int32")
    parallel = numpy(model.logits(x, labels))[..., :: model.num_outputs]
    some = (1, 4, 5)
    results = incremental_logits(model, x, labels, some)
    for known, out in zip(some, results, strict=True):
        assert np.all(out[:, :known] == 0)
        np.testing.assert_allclose(out[:, known:], parallel[:, known:], atol=1e-4)


@pytest.mark.parametrize("name", ["gated", "pixel-cnn", "row-lstm", "diagonal", "pp-3"])
def test_known_rows_are_not_walked_pixel_by_pixel(name, rng, monkeypatch):
    if backend.name != "torch":
        pytest.skip("steps of a compiled loop cannot be counted")
    model, steps = case(name, (4, 5, 1), 3), []

    class Counted(incremental.Left):
        def __init__(self, caches):
            steps.append(1)
            super().__init__(caches)

    monkeypatch.setattr(incremental, "Left", Counted)
    x, extra = rng.integers(0, 3, (2, 4, 5, 1)), getattr(model, "extra_columns", 0)
    for known, walked in ((4, 0), (3, 1), (0, 4), ([4, 2], 2)):
        steps.clear()
        model.complete(x, known, seed=0, labels=np.array([0, 1]), verbose=0)
        assert len(steps) == walked * (5 + extra)


@pytest.mark.parametrize("name", ["gated", "fvbn"])
def test_programs_are_kept(name):
    """Same shapes compile nothing, whatever the temperature; other numbers of images
    and of known rows a few batch sizes at most."""
    if backend.name == "torch":
        pytest.skip("nothing is compiled")
    model, traces = case(name, (4, 5, 1), 3, num_classes=None), []
    fill = model.fill
    model.fill = lambda *args: traces.append(1) or fill(*args)
    model.sample(3, seed=0)
    once = len(traces)
    assert once >= 1
    for T in (1.0, 0.5, 2.0):
        model.sample(3, seed=1, temperature=T)
    assert len(traces) == once
    for n in range(1, 41):
        model.sample(n, seed=1)
    assert len(traces) <= 7 * once  # 1, 2, 4, ... 64
    x = np.zeros((4, 4, 5, 1), "uint8")
    model.complete(x, 1, seed=0)
    before = len(traces)
    for known in (0, 2, 4, [1, 2, 3, 4]):
        model.complete(x, known, seed=3, temperature=0.7)
    assert len(traces) == before


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", MAIN)
def test_half_precision_policies_draw(name, policy, rng):
    keras.config.set_dtype_policy(policy)
    model = case(name, (3, 4, 3), 3)
    x, labels = rng.integers(0, 3, (4, 3, 4, 3)), np.arange(4) % 2
    drawn = model.complete(x, 1, seed=3, labels=labels)
    np.testing.assert_array_equal(drawn[:, :1], x[:, :1])
    assert len(np.unique(drawn[:, 1:])) == 3


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("name", [*MAIN, "pp-3"])
def test_images_are_those_of_the_naive_sampler(name, first, rng):
    shape, levels = (4, 5, 1), 3
    model = case(name, shape, levels)
    x = rng.integers(0, levels, (6, *shape)).astype("int32")
    labels = np.arange(6, dtype="int32") % 2
    u = numpy(model._uniforms(ops.convert_to_tensor(random.image_seeds(2, 6))))
    known = np.maximum(np.array([0, 1, 2, 3, 4, 0], "int32"), first)

    def naive(x, u, known, y):
        return naively_filled(model, x, u, known, y)

    cached, one_by_one = (
        numpy(backend.compiled(model, fill)(x, u, known, labels))
        for fill in (model.fill, naive)
    )
    np.testing.assert_array_equal(cached, one_by_one)
    assert len(np.unique(cached.reshape(6, -1), axis=0)) == 6
