"""PixelCNN++, what no other model has: several resolutions, weight normalization and
its initialization from data, dropout, averaged weights, channels that the likelihood
couples."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.backend import standardize_dtype
from zoo import assert_same, cases, flat, new, numpy, tensor, tiny, weights

from kgen import backend
from kgen.data import Batches
from kgen.layers import GatedResnet, WeightNormConv2D
from kgen.layers.weight_norm import concat_elu, downsample, upsample
from kgen.models import PixelCNNPlusPlus
from kgen.models.base import GenerativeModel
from kgen.models.pixel_cnn_pp import first_images

pytestmark = pytest.mark.portable

SHAPE = (4, 3, 1)


def fresh(shape=SHAPE, levels=2, **kwargs):
    return new("pp", shape, levels, **kwargs)


def images(n, shape=SHAPE, levels=2, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (n, *shape)).astype("uint8")


# Resolutions


@pytest.mark.parametrize("width", [2, 3])
@pytest.mark.parametrize("H, W", cases([(5, 4)], [(4, 5), (1, 3), (3, 1), (1, 1)]))
def test_halving_and_doubling_are_strided_convolutions(H, W, width, rng):
    h, w, left = -(-H // 2), -(-W // 2), width - 2
    kernel = tensor(rng.normal(size=(2, width, 3, 2)))
    x, low = rng.normal(size=(2, H, W, 3)), tensor(rng.normal(size=(2, h, w, 3)))
    padded = tensor(np.pad(x, ((0, 0), (1, 1), (1, 2), (0, 0))))
    down = numpy(ops.conv(padded, kernel, 2))[:, :h, :w]
    np.testing.assert_allclose(numpy(downsample(tensor(x), kernel)), down, atol=1e-5)
    up = numpy(ops.conv_transpose(low, ops.swapaxes(kernel, 2, 3), 2))
    up = up[:, :H, left : left + W]
    np.testing.assert_allclose(numpy(upsample(low, kernel, (H, W))), up, atol=1e-5)


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
    """In float32, also in half precision."""
    half = WeightNormConv2D(6, dtype="mixed_bfloat16")
    assert standardize_dtype(half(ops.ones((1, 2, 2, 4))).dtype) == "bfloat16"
    model = tiny("pp", (4, 4, 1), num_resolutions=2)
    assert len(model.convolutions()) == 3 + 10 * 2 + 8 + 4 + 1
    for conv in [half, *model.convolutions()]:
        kernel, v, g = conv.effective_kernel(), numpy(conv.v), numpy(conv.g)
        assert standardize_dtype(kernel.dtype) == "float32"
        exact = g * v / np.sqrt((v**2).sum((0, 1, 2)))
        np.testing.assert_allclose(numpy(kernel), exact, rtol=1e-5)
    conv, x = model.head, np.ones((1, 2, 2, 4), "float32")
    expected = x @ numpy(conv.effective_kernel())[0, 0] + numpy(conv.b)
    np.testing.assert_allclose(numpy(conv(x)), expected, atol=1e-5)


def outputs(model, monkeypatch, *batch):
    """The output of every convolution, in the order of `convolutions`."""
    call, seen = WeightNormConv2D.call, {}

    def recorded(self, x, collect=None):
        seen[id(self)] = y = call(self, x, collect)
        return y

    with monkeypatch.context() as patch:
        patch.setattr(WeightNormConv2D, "call", recorded)
        model.params(*model.prepare_inputs(*batch))
    return [numpy(seen[id(conv)]) for conv in model.convolutions()]


def test_initialization_standardizes_outputs(monkeypatch):
    x, labels = images(40, (5, 4, 3), 4), np.arange(40) % 2
    model = fresh((5, 4, 3), 4, num_classes=2, num_resolutions=2)
    assert int(model.initialized) == 0
    with pytest.raises(ValueError, match="conditional"):
        model.initialize(x)
    model.initialize(x, labels)
    assert int(model.initialized) == 1
    gates = [b.gates for b in model.layers if isinstance(b, GatedResnet)]
    results = outputs(model, monkeypatch, x, labels)
    for conv, y in zip(model.convolutions(), results, strict=True):
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
    with pytest.raises(ValueError, match="with values 0..1; got values 0..7"):
        model.fit(7 * x)
    assert int(model.initialized) == 0
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
    trained.compile("adam")
    trained.optimizer.iterations.assign(3)
    model.compile("adam")
    batches = iter([x, x])
    for fitted, data in ((trained, x), (model, batches), (model, x)):
        start = weights(fitted.head)
        fitted.fit(data)
        assert_same(weights(fitted.head), start)
    assert len(list(batches)) == 2  # none was taken


def test_first_images_of_each_kind_of_data():
    torch, tf = map(pytest.importorskip, ("torch", "tensorflow"))
    x, y, even = images(10), np.arange(10), [0, 2, 4, 6, 9]
    batches = Batches(x, y, batch_size=3, seed=1)
    order = np.concatenate([batches[i][1] for i in range(4)])[:5]
    pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    loader = torch.utils.data.DataLoader(pairs, 3, shuffle=True)
    state = torch.get_rng_state()
    for data, chosen in (
        ((x, y), even),
        ((ops.convert_to_tensor(x), y), even),
        ((batches,), order),
        ((loader,), even),
        ((tf.data.Dataset.from_tensor_slices((x, y)).batch(3), None), range(5)),
    ):
        got, labels = first_images(*data, most=5)
        np.testing.assert_array_equal(got, x[chosen])
        np.testing.assert_array_equal(labels, chosen)
    assert batches.epoch == 0 and torch.equal(state, torch.get_rng_state())
    unlabeled = Batches(x, batch_size=3, shuffle=False)
    for data in (ops.convert_to_tensor(x), unlabeled):
        got, labels = first_images(data, most=20)
        np.testing.assert_array_equal(got, x)
        assert labels is None
    assert first_images(iter([x])) is None


# Training


def test_dropout_is_for_training_and_differs_by_block():
    """That files keep the state of its seeds is in test_journey.py."""
    model, x = tiny("pp", SHAPE, dropout=0.5), ops.convert_to_tensor(images(2))
    blocks = [b for b in model.layers if isinstance(b, GatedResnet)]
    assert len({b.seed for b in blocks}) == len(blocks) == 4
    assert all(b.dropout.rate == 0.5 for b in blocks)
    plain, again = numpy(model.params(x)), numpy(model.params(x))
    np.testing.assert_array_equal(plain, again)
    first, second = (numpy(model.params(x, training=True)) for _ in range(2))
    assert min(np.abs(a - b).max() for a, b in [(first, plain), (first, second)]) > 1e-3


def test_fit_ends_with_and_evaluates_the_average():
    x, held_out, steps = images(24), images(8, seed=1), []
    model, momentum = fresh(), 0.7
    model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=momentum))

    def record(batch, logs):
        backend.sync_state(model)  # JAX has empty variables within an epoch
        steps.append(flat(model.trainable_variables))

    average = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    recorder = keras.callbacks.LambdaCallback(on_train_batch_end=record)
    history = model.fit(
        x, batch_size=8, epochs=2, shuffle=False, verbose=0,
        validation_data=held_out, callbacks=[average, recorder],
    ).history  # fmt: skip
    assert len(steps) == 6 and history["loss"][1] < history["loss"][0]
    expected = steps[0]
    for step in steps[1:]:
        expected = momentum * expected + (1 - momentum) * step
    assert_same([flat(model.trainable_variables)], [expected], atol=1e-5)
    assert np.abs(expected - steps[-1]).max() > 0.005
    loss = -numpy(model.log_prob(held_out)).mean()
    np.testing.assert_allclose(history["val_loss"][-1], loss, rtol=1e-5)


# The likelihood, configurations


def test_likelihoods_and_configurations():
    assert fresh().likelihood.name == "bernoulli"
    assert fresh((4, 3, 3)).likelihood.name == "logistic_mixture"
    assert fresh(levels=17, likelihood="categorical").num_outputs == 17
    for likelihood in (None, "logistic_mixture"):
        model = fresh(levels=17, num_mixtures=3, likelihood=likelihood)
        again = PixelCNNPlusPlus.from_config(model.get_config())
        assert again.num_outputs == model.num_outputs == 9


def test_wrong_resampling_raises():
    for resample, offsets in (("halve", [(0, 1), (0, 1)]), ("third", [])):
        with pytest.raises(ValueError, match=f"resample='{resample}' over"):
            WeightNormConv2D(2, *offsets, resample=resample)
