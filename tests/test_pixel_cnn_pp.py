"""PixelCNN++, what no other model has: several resolutions, weight normalization and
its initialization from data, dropout, averaged weights, channels that the likelihood
couples."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops
from zoo import assert_same, every_image, new, numpy, shared, tensor, tiny, weights

from kgen import backend
from kgen.data import Batches
from kgen.layers import GatedResnet, WeightNormConv2D
from kgen.layers.weight_norm import concat_elu, doubled, halved
from kgen.models import PixelCNNPlusPlus
from kgen.models.base import GenerativeModel
from kgen.models.pixel_cnn_pp import first_images

pytestmark = pytest.mark.portable

more = pytest.mark.exhaustive
SHAPE = (4, 3, 1)


def fresh(shape=SHAPE, levels=2, **kwargs):
    return new("pp", shape, levels, **kwargs)


def images(n, shape=SHAPE, levels=2, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (n, *shape)).astype("uint8")


# Resolutions


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize(
    "size",
    [(5, 4), *(pytest.param(s, marks=more) for s in ((4, 5), (1, 3), (3, 1), (1, 1)))],
)
def test_halving_and_doubling_are_strided_convolutions(size, width, rng):
    (H, W), (h, w) = size, (-(-n // 2) for n in size)
    kernel = rng.normal(size=(2, width, 3, 2)).astype("float32")
    x = rng.normal(size=(2, H, W, 3)).astype("float32")
    low = rng.normal(size=(2, h, w, 3)).astype("float32")
    down, up = np.zeros((2, h, w, 2)), np.zeros((2, H, W, 2))
    for r, c, a, b in itertools.product(range(h), range(w), range(2), range(width)):
        i, j = 2 * r - 1 + a, 2 * c - 1 + b
        if 0 <= i < H and 0 <= j < W:
            down[:, r, c] += x[:, i, j] @ kernel[a, b]
        i, j = 2 * r + a, 2 * c + b - (width == 3)
        if 0 <= i < H and 0 <= j < W:
            up[:, i, j] += low[:, r, c] @ kernel[a, b]
    x, low, kernel = map(tensor, (x, low, kernel))
    np.testing.assert_allclose(numpy(halved(x, kernel)), down, atol=1e-5)
    np.testing.assert_allclose(numpy(doubled(low, kernel, size)), up, atol=1e-5)


def test_resolutions_are_as_many_as_fit():
    def maps(*size, num_resolutions=None):
        return fresh((*size, 1), num_resolutions=num_resolutions).maps

    assert maps(28, 28) == [(28, 28), (14, 14), (7, 7)]
    assert maps(7, 1) == [(7, 1), (4, 1), (2, 1)]
    assert maps(2, 2) == [(2, 2)] and maps(1, 1) == [(1, 1)]
    assert maps(3, 2, num_resolutions=3) == [(3, 2), (2, 1), (1, 1)]
    assert len(maps(9, 9, num_resolutions=2)) == 2
    model = fresh((5, 3, 1), num_resolutions=None)
    assert PixelCNNPlusPlus.from_config(model.get_config()).maps == model.maps
    assert [len(blocks) for blocks in [*model.down, *model.up]] == [1, 1, 1, 1, 2, 2]


# Weight normalization


def test_kernels_have_the_norms_g():
    model = tiny("pp", (4, 4, 1), num_resolutions=2)
    assert len(model.convolutions()) == 3 + 10 * 2 + 8 + 4 + 1
    kernels = backend.compiled(
        model, lambda: [conv.effective_kernel() for conv in model.convolutions()]
    )
    for conv, kernel in zip(model.convolutions(), kernels(), strict=True):
        norms = np.sqrt((numpy(kernel) ** 2).sum((0, 1, 2)))
        np.testing.assert_allclose(norms, np.abs(numpy(conv.g)), rtol=1e-5)
    conv, x = model.head, np.ones((1, 2, 2, 4), "float32")
    expected = x @ numpy(conv.effective_kernel())[0, 0] + numpy(conv.b)
    np.testing.assert_allclose(numpy(conv(x)), expected, atol=1e-5)


def outputs(model, monkeypatch, *batch):
    """The output of every convolution, in the order of `convolutions`."""
    call, seen = WeightNormConv2D.call, {}

    def recorded(self, x, collect=None):
        seen[id(self)] = y = call(self, x, collect)
        return y

    def run(*batch):
        model.params(*batch)
        return [seen[id(conv)] for conv in model.convolutions()]

    with monkeypatch.context() as patch:
        patch.setattr(WeightNormConv2D, "call", recorded)
        return [numpy(y) for y in backend.compiled(model, run)(*model.checked(*batch))]


def test_initialization_standardizes_outputs(monkeypatch):
    x, labels = images(40, (5, 4, 3), 4), np.arange(40) % 2
    model = fresh((5, 4, 3), 4, num_classes=2, num_resolutions=2)
    assert int(model.initialized) == 0
    with pytest.raises(ValueError, match="conditional"):
        model.initialize(x)
    model.initialize(x, labels)
    assert int(model.initialized) == 1
    gates = [b.gates for b in model.layers if isinstance(b, GatedResnet)]
    for conv, y in zip(
        model.convolutions(), outputs(model, monkeypatch, x, labels), strict=True
    ):
        assert conv.init_scale == (0.1 if any(conv is g for g in gates) else 1.0)
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(y.std((0, 1, 2)), conv.init_scale, rtol=1e-3)
    first = weights(model)
    for conv in model.convolutions():  # of what was there, only v matters
        conv.g.assign(2.0 + conv.g)
        conv.b.assign(1.0 - conv.b)
    model.initialize(x, labels)
    assert_same(model, first)


def test_constant_features_are_only_centered(monkeypatch):
    model, x = fresh((1, 6, 1)), images(20, (1, 6, 1))
    model.initialize(x)  # no rows above: all of the stream u is constant
    y = outputs(model, monkeypatch, x)
    np.testing.assert_allclose(y[0], 0, atol=1e-6)
    assert np.isfinite(y[-1]).all()
    assert all(np.abs(numpy(conv.g)).max() < 100 for conv in model.convolutions())
    conv, found, x = WeightNormConv2D(8), [], tensor(np.full((20, 3, 5, 4), 0.1))
    conv.build(x.shape)  # its mean is rounded: a variance that is not quite 0
    conv(x, collect=lambda conv, g, b: found.append(numpy(g)))
    np.testing.assert_array_equal(found[0], 1.0)


def test_concatenated_elu_is_that_of_both_signs(rng):
    x = rng.normal(size=(2, 3, 3, 4))
    both = np.concatenate([x, -x], -1)
    expected = np.where(both > 0, both, np.expm1(both))
    np.testing.assert_allclose(numpy(concat_elu(tensor(x))), expected, atol=1e-6)


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(GenerativeModel, "fit", lambda self, *args, **kwargs: None)


def test_fit_initializes_a_fresh_model_once(no_training, tmp_path):
    x, other = images(300), images(30, seed=5)
    model = fresh()
    model.compile("adam")
    start = weights(model.head)
    model.fit(x)
    first = weights(model.head)
    assert int(model.initialized) == 1 and np.abs(first[1] - start[1]).max() > 0.01
    model.fit(other)
    assert_same(weights(model.head), first)
    model.initialize(x[np.linspace(0, 299, 256).astype(int)])  # what fit took of 300
    assert_same(weights(model.head), first)

    model.save_weights(tmp_path / "m.weights.h5")
    loaded = fresh()
    loaded.load_weights(tmp_path / "m.weights.h5")
    loaded.fit(other)
    assert_same(weights(loaded.head), first)


def test_fit_leaves_trained_models_and_generators_alone(no_training):
    x, trained, model = images(8), fresh(), fresh()
    batches = iter([x, x])
    trained.compile("adam")
    trained.optimizer.iterations.assign(3)
    model.compile("adam")
    for fitted, data in ((trained, [x]), (model, [batches, x])):
        start = weights(fitted.head)
        for some in data:
            fitted.fit(some)
        assert_same(weights(fitted.head), start)
    assert len(list(batches)) == 2  # none was taken


def test_fit_checks_before_it_initializes():
    model = fresh()
    model.compile("adam")
    with pytest.raises(ValueError, match="with values 0..1; got values 0..7"):
        model.fit(np.full((4, *SHAPE), 7) * np.arange(4).reshape(4, 1, 1, 1) % 8)
    assert int(model.initialized) == 0


EVEN = [0, 2, 4, 6, 9]  # 5 of 10


def assert_first(data, x, y):
    """`first_images` of what fit takes are these images and labels."""
    got, labels = first_images(*data, most=5)
    np.testing.assert_array_equal(got, x)
    assert labels is None if y is None else np.array_equal(labels, y)


def test_first_images_of_arrays_and_batches():
    x, y = images(10), np.arange(10)
    assert_first((x, y), x[EVEN], y[EVEN])
    assert_first((ops.convert_to_tensor(x),), x[EVEN], None)
    np.testing.assert_array_equal(first_images(ops.convert_to_tensor(x), most=20)[0], x)
    batches = Batches(x, y, batch_size=3, seed=1)
    order = np.concatenate([batches[i][1] for i in range(4)])[:5]
    assert_first((batches,), x[order], order)
    assert batches.epoch == 0
    assert first_images(Batches(x, batch_size=3), most=5)[1] is None
    assert first_images(iter([x])) is None


def test_first_images_of_torch_loaders_and_tf_data():
    x, y = images(10), np.arange(10)
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    loader = torch.utils.data.DataLoader(pairs, 3, shuffle=True)
    state = torch.get_rng_state()
    assert_first((loader,), x[EVEN], y[EVEN])
    assert torch.equal(state, torch.get_rng_state())
    tf = pytest.importorskip("tensorflow")
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(3)
    assert_first((batches, None), x[:5], y[:5])


# Training


def test_dropout_is_for_training_and_its_seeds_are_saved(tmp_path):
    x = ops.convert_to_tensor(images(2))
    model = tiny("pp", SHAPE, dropout=0.5)
    blocks = [b for b in model.layers if isinstance(b, GatedResnet)]
    assert len({b.seed for b in blocks}) == len(blocks) == 4
    assert all(b.dropout.rate == 0.5 for b in blocks)
    run = backend.compiled(
        model, lambda x: [model.params(x), model.params(x, training=True)]
    )
    before, trained = map(numpy, run(x))
    assert np.abs(trained - before).max() > 1e-3
    blocks[1].dropout.seed_generator.next()
    model.save_weights(tmp_path / "m.weights.h5")
    states = [numpy(v) for v in model._seed_states()]
    same, later = map(numpy, run(x))
    np.testing.assert_array_equal(same, before)
    assert np.abs(later - trained).max() > 1e-3
    for b in blocks:
        b.dropout.seed_generator.next()
    model.load_weights(tmp_path / "m.weights.h5")
    assert_same(model._seed_states(), states)
    np.testing.assert_array_equal(numpy(run(x)[1]), later)


def test_fit_initializes_trains_and_evaluates_the_average(monkeypatch):
    x, held_out = images(24), images(8, seed=1)
    model, momentum = fresh(), 0.7
    model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=momentum))
    steps, tested, sizes, initialize = [], [], [], model.initialize

    def record(into):
        return lambda *_, **__: into.append(
            [numpy(v).copy() for v in recorder.model.trainable_variables]
        )

    monkeypatch.setattr(
        model, "initialize", lambda x, y: (sizes.append(len(x)), initialize(x))
    )
    average = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    recorder = keras.callbacks.LambdaCallback(
        on_train_batch_end=record(steps), on_test_begin=record(tested)
    )
    history = model.fit(
        x, batch_size=8, epochs=2, shuffle=False, verbose=0,
        validation_data=held_out, callbacks=[average, recorder],
    ).history  # fmt: skip
    assert sizes == [24] and len(steps) == 6 and len(tested) == 2
    assert history["loss"][1] < history["loss"][0]
    expected = steps[0]
    for step in steps[1:]:
        pairs = zip(expected, step, strict=True)
        expected = [momentum * a + (1 - momentum) * w for a, w in pairs]
    assert_same(tested[-1], expected, atol=1e-5)
    assert_same(model.trainable_variables, expected, atol=1e-5)
    pairs = zip(expected, steps[-1], strict=True)
    assert max(np.abs(a - w).max() for a, w in pairs) > 0.005
    loss = -numpy(model.log_prob(held_out)).mean()
    np.testing.assert_allclose(history["val_loss"][-1], loss, rtol=1e-5)


# The likelihood, configurations, precision


def test_the_likelihood_couples_channels():
    model, x = shared("pp", (1, 2, 3), 2, 2, scale=2.0), every_image((1, 2, 3), 2)
    labels = np.zeros(64, int)
    params = numpy(model.logits(x, labels)).reshape(8, 8, -1)  # [first, last pixel]
    assert np.ptp(params, axis=1).max() < 1e-6  # the network does not see the pixel
    log_p = numpy(model.log_prob(x, labels)).reshape(8, 2, 2, 2)[..., 0]
    ratio = log_p[:, 1, 1] - log_p[:, 1, 0] - log_p[:, 0, 1] + log_p[:, 0, 0]
    assert np.abs(ratio).max() > 1e-2  # 0 if green did not depend on red


def test_likelihoods_and_configurations():
    assert fresh().likelihood.name == "bernoulli"
    assert fresh((4, 3, 3)).likelihood.name == "logistic_mixture"
    assert fresh(levels=17, likelihood="categorical").num_outputs == 17
    for likelihood in (None, "logistic_mixture"):
        model = fresh(SHAPE, 17, num_mixtures=3, likelihood=likelihood)
        assert model.likelihood.name == "logistic_mixture" and model.num_outputs == 9
        again = PixelCNNPlusPlus.from_config(model.get_config())
        assert again.num_mixtures == again.likelihood.num_mixtures == 3
        assert again.get_config() == model.get_config()


def test_half_precision_keeps_norms_in_float32():
    conv = WeightNormConv2D(6, dtype="mixed_bfloat16")
    y = conv(ops.ones((1, 2, 2, 4)))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    kernel, v, g = conv.effective_kernel(), numpy(conv.v), numpy(conv.g)
    assert keras.backend.standardize_dtype(kernel.dtype) == "float32"
    exact = g * v / np.sqrt((v**2).sum((0, 1, 2)))
    np.testing.assert_allclose(numpy(kernel), exact, rtol=1e-5)


def test_wrong_resampling_raises():
    with pytest.raises(ValueError, match="resample='halve' over"):
        WeightNormConv2D(2, (0, 1), (0, 1), resample="halve")
    with pytest.raises(ValueError, match="resample='third' over"):
        WeightNormConv2D(2, resample="third")
