"""PixelCNN++: what no other family has. Causality over odd sizes and resolutions,
weight normalisation and its initialisation from data, dropout, Polyak's average,
channels coupled by the likelihood."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from kgen import backend
from kgen.data import Batches
from kgen.layers import GatedResnet, WeightNormConv2D
from kgen.layers.weight_norm import doubled, halved
from kgen.models import PixelCNNPlusPlus
from kgen.models.base import GenerativeModel
from kgen.models.pixel_cnn_pp import first_images


def numpy(x):
    return ops.convert_to_numpy(x)


def tiny(shape=(4, 3, 1), levels=2, **kwargs):
    kwargs = {"filters": 4, "num_blocks": 1, "num_resolutions": 1} | kwargs
    return PixelCNNPlusPlus(shape, levels, **kwargs)


def strong(model):
    """Far from a fresh model, whose distant pixels hardly matter: large gates."""
    rng = np.random.default_rng(1)
    for conv in model.convolutions():
        conv.g.assign(rng.uniform(1.0, 2.0, conv.g.shape))
        conv.b.assign(rng.normal(0, 0.3, conv.b.shape))
    return model


def images(n, shape, levels, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (n, *shape)).astype("uint8")


# The network


@pytest.mark.parametrize(
    "shape, levels, R, N",
    [
        ((8, 8, 1), 2, 3, 1),
        ((7, 5, 1), 2, 1, 1),
        ((7, 5, 3), 4, 2, 1),
        ((5, 7, 1), 4, 3, 1),
        ((1, 6, 1), 2, 2, 1),
        ((6, 1, 3), 4, 3, 1),
    ],
)
def test_parameters_follow_from_all_earlier_pixels_and_no_others(shape, levels, R, N):
    model = strong(tiny(shape, levels, num_resolutions=R, num_blocks=N))
    W, D = shape[1], shape[0] * shape[1]
    changed = np.zeros((D, D))  # [of pixel j] of the parameters at pixel i
    for seed in range(2):
        x = np.repeat(images(1, shape, levels, seed), 1 + D, axis=0)
        for j in range(D):
            pixel = x[1 + j, j // W, j % W]
            pixel[:] = np.where(pixel < levels // 2, levels - 1, 0)
        params = numpy(model.logits(x)).reshape(1 + D, D, -1)
        changed = np.maximum(changed, np.abs(params[1:] - params[0]).max(-1))
    earlier = np.arange(D)[:, None] < np.arange(D)
    assert changed[~earlier].max() < 1e-5
    # Halved maps tell odd rows nothing of the row itself, and not all of the one above
    (row, column), (of_row, of_column) = (divmod(k, W) for k in np.nonzero(earlier))
    far = np.abs(of_column - column) > 4 * N + 1
    blind = far & (of_row % 2 == 1) & (row >= of_row - 1)
    assert blind.mean() < 0.02 and changed[earlier][~blind].min() > 1e-5


@pytest.mark.parametrize("size", [(5, 4), (4, 5), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("width", [2, 3])
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
    x, low, kernel = map(ops.convert_to_tensor, (x, low, kernel))
    np.testing.assert_allclose(numpy(halved(x, kernel)), down, atol=1e-5)
    np.testing.assert_allclose(numpy(doubled(low, kernel, size)), up, atol=1e-5)


def test_resolutions_are_as_many_as_fit():
    def of(*size, **kwargs):
        return tiny((*size, 1), **{"num_resolutions": None} | kwargs)

    assert of(28, 28).maps == [(28, 28), (14, 14), (7, 7)]
    assert of(7, 1).maps == [(7, 1), (4, 1), (2, 1)]
    assert of(2, 2).maps == [(2, 2)] and of(1, 1).maps == [(1, 1)]
    assert of(3, 2, num_resolutions=3).maps == [(3, 2), (2, 1), (1, 1)]
    assert of(9, 9, num_resolutions=2).num_resolutions == 2
    model = of(5, 3)
    assert PixelCNNPlusPlus.from_config(model.get_config()).maps == model.maps
    blocks = [len(blocks) for blocks in [*model.down, *model.up]]
    assert blocks == [1, 1, 1, 1, 2, 2]


# Weight normalisation


def test_kernels_have_the_norms_g():
    model = strong(tiny((4, 4, 1), num_resolutions=2))
    assert len(model.convolutions()) == 3 + 10 * 2 + 8 + 4 + 1
    for conv in model.convolutions():
        norms = np.sqrt((numpy(conv.effective_kernel()) ** 2).sum((0, 1, 2)))
        np.testing.assert_allclose(norms, numpy(conv.g), rtol=1e-5)
    conv, x = model.head, np.ones((1, 2, 2, 4), "float32")
    expected = x @ numpy(conv.effective_kernel())[0, 0] + numpy(conv.b)
    np.testing.assert_allclose(numpy(conv(x)), expected, atol=1e-5)


def outputs(model, monkeypatch, *batch):
    """What every convolution puts out, in the order of `convolutions`."""
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


def test_initialised_outputs_are_standardised(monkeypatch):
    x, labels = images(40, (5, 4, 3), 4), np.arange(40) % 2
    model = tiny((5, 4, 3), 4, num_classes=2, num_resolutions=2)
    assert int(model.initialized) == 0
    model.initialize(x, labels)
    assert int(model.initialized) == 1
    for conv, y in zip(
        model.convolutions(), outputs(model, monkeypatch, x, labels), strict=True
    ):
        gates = any(conv is b.gates for b in model.layers if isinstance(b, GatedResnet))
        assert conv.init_scale == (0.1 if gates else 1.0)
        assert np.isfinite(y).all()
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(y.std((0, 1, 2)), conv.init_scale, rtol=1e-3)
    first = [numpy(v) for v in model.weights]
    strong(model).initialize(x, labels)  # of what was there, only v matters
    for mine, other in zip(model.weights, first, strict=True):
        np.testing.assert_array_equal(numpy(mine), other)


def test_constant_features_are_centred_not_blown_up(monkeypatch):
    model, x = tiny((1, 6, 1)), images(20, (1, 6, 1), 2)
    model.initialize(x)  # no rows above: all of the stream u is constant
    y = outputs(model, monkeypatch, x)
    np.testing.assert_allclose(y[0], 0, atol=1e-6)
    assert np.isfinite(y[-1]).all()
    for conv in model.convolutions():
        assert np.abs(numpy(conv.g)).max() < 100


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(GenerativeModel, "fit", lambda self, *args, **kwargs: None)


def scales(model):
    return np.concatenate([numpy(v).ravel() for v in model.head.variables])


def test_fit_initialises_a_fresh_model_once(no_training, tmp_path):
    x, other = images(300, (4, 3, 1), 2), images(30, (4, 3, 1), 2, seed=5)
    model = tiny()
    model.compile("adam")
    fresh = scales(model)
    model.fit(x)
    first = scales(model)
    assert int(model.initialized) == 1 and np.abs(first - fresh).max() > 0.01
    model.fit(other)
    np.testing.assert_array_equal(scales(model), first)
    # what fit took of 300
    strong(model).initialize(x[np.linspace(0, 299, 256).astype(int)])
    np.testing.assert_array_equal(scales(model), first)

    model.save_weights(tmp_path / "m.weights.h5")
    loaded = tiny()
    loaded.load_weights(tmp_path / "m.weights.h5")
    loaded.fit(other)
    np.testing.assert_array_equal(scales(loaded), first)


def test_fit_leaves_trained_models_and_generators_alone(no_training):
    x = images(8, (4, 3, 1), 2)
    model = tiny()
    model.compile("adam")
    fresh = scales(model)
    model.optimizer.iterations.assign(3)
    model.fit(x)
    np.testing.assert_array_equal(scales(model), fresh)

    model = tiny()
    model.compile("adam")
    fresh = scales(model)
    data = iter([x, x])
    model.fit(data)
    assert len(list(data)) == 2  # none was taken
    model.fit(x)  # and trained since
    np.testing.assert_array_equal(scales(model), fresh)


def test_fit_checks_before_it_initialises():
    model = tiny()
    model.compile("adam")
    with pytest.raises(ValueError, match="with values 0..1; got values 0..7"):
        model.fit(np.full((4, 4, 3, 1), 7) * np.arange(4).reshape(4, 1, 1, 1) % 8)
    assert int(model.initialized) == 0


def test_first_images_of_all_kinds_of_data():
    x, y = images(10, (4, 3, 1), 2), np.arange(10)
    got, labels = first_images(x, y, most=5)
    even = [0, 2, 4, 6, 9]
    np.testing.assert_array_equal(got, x[even])
    np.testing.assert_array_equal(labels, y[even])
    got, labels = first_images(ops.convert_to_tensor(x), most=5)
    np.testing.assert_array_equal(got, x[even])
    got, labels = first_images(ops.convert_to_tensor(x), most=20)
    np.testing.assert_array_equal(got, x)
    assert labels is None

    data = Batches(x, y, batch_size=3, seed=1)
    order = np.concatenate([data[i][1] for i in range(4)])
    got, labels = first_images(data, most=5)
    np.testing.assert_array_equal(labels, order[:5])
    np.testing.assert_array_equal(got, x[order[:5]])
    assert data.epoch == 0
    assert first_images(Batches(x, batch_size=3), most=5)[1] is None
    assert first_images(iter([x])) is None


def test_first_images_of_torch_loaders_and_tf_data():
    x, y = images(10, (4, 3, 1), 2), np.arange(10)
    torch = pytest.importorskip("torch")
    pairs = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    loader = torch.utils.data.DataLoader(pairs, 3, shuffle=True)
    state = torch.get_rng_state()
    got, labels = first_images(loader, most=5)
    even = [0, 2, 4, 6, 9]
    np.testing.assert_array_equal(labels, y[even])
    np.testing.assert_array_equal(got, x[even])
    assert torch.equal(state, torch.get_rng_state())

    tf = pytest.importorskip("tensorflow")
    got, labels = first_images(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(3), None, 5
    )
    np.testing.assert_array_equal(labels, y[:5])
    np.testing.assert_array_equal(got, x[:5])


# Dropout


def test_dropout_is_for_training_alone_and_goes_on_from_saved_seeds(tmp_path):
    x = ops.convert_to_tensor(images(2, (4, 3, 1), 2))
    model = strong(tiny(dropout=0.5))
    blocks = [b for b in model.layers if isinstance(b, GatedResnet)]
    seeds = [b.seed for b in blocks]
    assert len(set(seeds)) == len(seeds) == 4
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
    np.testing.assert_array_equal(states, [numpy(v) for v in model._seed_states()])
    np.testing.assert_array_equal(numpy(run(x)[1]), later)


# Training


class Weights(keras.callbacks.Callback):
    """The weights after each step."""

    def __init__(self):
        super().__init__()
        self.steps, self.in_test = [], None

    def values(self):
        return [numpy(v).copy() for v in self.model.trainable_variables]

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.values())

    def on_test_begin(self, logs=None):
        self.in_test = self.values()


def test_fit_initialises_trains_and_evaluates_the_average_of_weights(monkeypatch):
    x, held_out = images(24, (4, 3, 1), 2), images(8, (4, 3, 1), 2, seed=1)
    model, momentum = tiny(), 0.7
    model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=momentum))
    seen, given = Weights(), []
    initialize = model.initialize
    monkeypatch.setattr(
        model, "initialize", lambda *a: (given.append(len(a[0])), initialize(*a))
    )
    average = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = model.fit(
        x, batch_size=8, epochs=2, shuffle=False, verbose=0,
        validation_data=held_out, callbacks=[average, seen],
    ).history  # fmt: skip
    assert given == [24] and len(seen.steps) == 6
    assert history["loss"][1] < history["loss"][0]
    expected = seen.steps[0]
    for step in seen.steps[1:]:
        expected = [
            momentum * a + (1 - momentum) * w
            for a, w in zip(expected, step, strict=True)
        ]
    for a, tested, now in zip(
        expected, seen.in_test, model.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(tested, a, atol=1e-5)
        np.testing.assert_allclose(numpy(now), a, atol=1e-5)
    moved = max(np.abs(a - w).max() for a, w in zip(expected, step, strict=True))
    assert moved > 0.005
    loss = -numpy(model.log_prob(held_out)).mean()
    np.testing.assert_allclose(history["val_loss"][-1], loss, rtol=1e-5)


# The likelihood


@pytest.mark.parametrize("shape, levels", [((1, 2, 3), 2), ((2, 1, 1), 4)])
def test_probabilities_sum_to_one_and_couple_channels(shape, levels):
    D = int(np.prod(shape))
    model = strong(tiny(shape, levels, num_mixtures=2))
    x = np.indices((levels,) * D).reshape(D, -1).T.reshape(-1, *shape).astype("uint8")
    log_p = numpy(model.log_prob(x)).astype("float64")
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, atol=1e-4)
    if shape[-1] == 1:
        return
    params = numpy(model.logits(x)).reshape(8, 8, -1)  # [first pixel, last pixel]
    assert np.ptp(params, axis=1).max() < 1e-6  # not seen by the network
    red_green = log_p.reshape(8, 2, 2, 2)[..., 0]  # of the last pixel
    ratio = red_green[:, 1, 1] - red_green[:, 1, 0] - red_green[:, 0, 1]
    ratio = ratio + red_green[:, 0, 0]  # 0 if green did not depend on red
    assert np.abs(ratio).max() > 1e-2


def test_likelihoods_and_configurations():
    assert tiny().likelihood.name == "bernoulli"
    assert tiny((4, 3, 3)).likelihood.name == "logistic_mixture"
    model = tiny((4, 3, 1), 17, num_mixtures=3)
    assert model.likelihood.name == "logistic_mixture" and model.num_outputs == 9
    assert tiny(levels=17, likelihood="categorical").num_outputs == 17
    again = PixelCNNPlusPlus.from_config(model.get_config())
    assert again.num_mixtures == again.likelihood.num_mixtures == 3
    assert again.get_config() == model.get_config()
    own = tiny(levels=17, likelihood="logistic_mixture", num_mixtures=5)
    assert PixelCNNPlusPlus.from_config(own.get_config()).num_outputs == 15


def test_half_precision_keeps_weights_and_norms_in_float32(monkeypatch):
    model = tiny((4, 4, 1), num_resolutions=2, dtype="mixed_bfloat16")
    x = ops.convert_to_tensor(images(8, (4, 4, 1), 2))
    params = backend.compiled(model, model.params)(x)
    assert keras.backend.standardize_dtype(params.dtype) == "bfloat16"
    kept, kernel = [], WeightNormConv2D.effective_kernel
    monkeypatch.setattr(
        WeightNormConv2D,
        "effective_kernel",
        lambda self: kept.append(kernel(self)) or kept[-1],
    )
    model.head(ops.zeros((1, 2, 2, 4)))
    v, g = numpy(model.head.v), numpy(model.head.g)
    exact = g * v / np.sqrt((v**2).sum((0, 1, 2)))
    assert keras.backend.standardize_dtype(kept[0].dtype) == "float32"
    np.testing.assert_allclose(numpy(kept[0]), exact, rtol=1e-5)
    assert np.isfinite(numpy(ops.cast(params, "float32"))).all()


def test_errors():
    with pytest.raises(ValueError, match="num_resolutions must be in 1..3 for"):
        tiny((4, 3, 1), num_resolutions=4)
    with pytest.raises(ValueError, match="num_resolutions must be in 1..3"):
        tiny((4, 3, 1), num_resolutions=0)
    with pytest.raises(ValueError, match="num_blocks must be"):
        tiny(num_blocks=0)
    with pytest.raises(ValueError, match="filters must be"):
        tiny(filters=0)
    with pytest.raises(ValueError, match="image_shape must be"):
        PixelCNNPlusPlus(8)
    with pytest.raises(ValueError, match="conditional"):
        tiny(num_classes=2).initialize(images(4, (4, 3, 1), 2))
    with pytest.raises(ValueError, match="resample='halve' over"):
        WeightNormConv2D(2, (0, 1), (0, 1), resample="halve")
    with pytest.raises(ValueError, match="resample='third' over"):
        WeightNormConv2D(2, resample="third")
