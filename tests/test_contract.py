"""What models, `fit`, `evaluate` and `sample` take and refuse: data, labels, arguments.
Wrong types and a fuzz are in test_bad_arguments.py."""

import functools
import json

import keras
import numpy as np
import pytest
import zoo
from keras import layers
from PIL import Image
from zoo import EXACT, LEVELS, MODELS, assert_same, cases, inputs, new, numpy

import kgen
from kgen import batching
from kgen.data import Batches


def compiled(name):
    model = new(name)
    model.compile("adam")
    return model


@pytest.fixture(scope="module")
def vae():
    return compiled("vae")


@pytest.fixture(scope="module")
def exact():
    return compiled("fvbn")


@pytest.fixture(scope="module")
def conditional():
    return compiled("vae-conditional")


@pytest.mark.parametrize("name", cases(["gated", "gan"], MODELS))
def test_fit_takes_tf_data_batches_and_loaders(name, digits, digit_labels):
    tf, torch = map(pytest.importorskip, ("tensorflow", "torch"))
    model = compiled(name)
    data = tuple(a[:64] for a in inputs(model, digits, digit_labels))
    slices = tf.data.Dataset.from_tensor_slices(data if len(data) > 1 else data[0])
    tensors = torch.utils.data.TensorDataset(*(torch.tensor(np.array(a)) for a in data))
    sets = [
        slices.batch(32, drop_remainder=True),
        Batches(*data, batch_size=32),
        torch.utils.data.DataLoader(tensors, batch_size=32),
    ]
    for dataset in sets:
        logs = model.fit(dataset, validation_data=dataset, verbose=0).history
        assert np.isfinite(logs["val_loss"][0])
    # the same images in the same batches, the same metrics
    scores = [model.evaluate(dataset, verbose=0) for dataset in (sets[0], sets[2])]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize("name", cases(["vae", "fvbn"], MODELS))
def test_long_sampling_is_batched_with_progress(name, capsys, monkeypatch):
    model = new(name)
    monkeypatch.setattr(batching, "MAX_BATCH", 8)
    many = model.sample(35, seed=0)  # batches of 8, and 3 padded to 4
    assert "35/35" in capsys.readouterr().out
    np.testing.assert_array_equal(many[:5], model.sample(5, seed=0))
    np.testing.assert_array_equal(many[32:], model.sample(35, seed=0, verbose=0)[32:])
    assert capsys.readouterr().out == ""


@pytest.mark.once
def test_progress_prints_lines_within_long_epochs(digits, capsys, exact):
    progress = kgen.callbacks.Progress(["loss"], seconds=1e-9)
    exact.fit(digits[:64], batch_size=16, verbose=0, callbacks=[progress])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  loss")[0] for line in lines] == [
        *(f"epoch 1/1, step {k}/4" for k in (1, 2, 3, 4)),
        "epoch 1/1",
    ]
    with pytest.raises(ValueError, match="every must be a positive integer"):
        kgen.callbacks.Progress(every=0)


@pytest.mark.once
def test_completions_picture_has_images_halves_and_samples(digits, tmp_path, exact):
    images = digits[:3]
    path = kgen.callbacks.save_completions(tmp_path / "c.png", exact, images, draws=2)
    known = images.copy()
    known[:, 4:] = 0
    completed = [exact.complete(images, 4, seed) for seed in (0, 1)]
    rows = np.concatenate([images, known, *completed])
    expected = kgen.callbacks.image_grid(rows, LEVELS, columns=3)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


# Input validation

BAD_IMAGES = {
    "shape": (np.zeros((4, 9, 8, 1), "uint8"), r"\(batch, 8, 8, 1\).*shape \(.*, 9, 8"),
    "rank": (np.zeros((4, 8, 8), "uint8"), r"got shape \(4, 8, 8\)"),
    "floats": (np.zeros((4, 8, 8, 1), "float32"), "integer images.*got float32"),
    "nan": (np.full((4, 8, 8, 1), np.nan), "float64 with NaN"),
    "too large": (np.full((4, 8, 8, 1), 17), r"values 0\.\.16; got values 17\.\.17"),
    "negative": (np.full((4, 8, 8, 1), -1), r"got values -1\.\.-1"),
    "empty": (np.zeros((0, 8, 8, 1), "uint8"), "got no images at all"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_wrong_images_raise_everywhere(case, digits, vae, exact):
    images, words = BAD_IMAGES[case]
    calls = [
        *((vae, use) for use in ("elbo", "encode", "reconstruct")),
        *((exact, use) for use in ("logits", "complete")),
        *((m, u) for m in (vae, exact) for u in ("fit", "log_prob", "predict")),
        *((new("gan"), "discriminate"), (vae, "evaluate")),
    ]
    for model, use in calls:
        with pytest.raises(ValueError, match=words):
            getattr(model, use)(images, *([4] if use == "complete" else []))
    with pytest.raises(ValueError, match=words):
        vae.fit(digits, validation_data=images, verbose=0)
    if case in ("shape", "floats"):  # all that can be seen of a data set
        tf = pytest.importorskip("tensorflow")
        with pytest.raises(ValueError, match=words):
            vae.fit(tf.data.Dataset.from_tensor_slices(images).batch(2), verbose=0)


def test_wrong_values_in_batches_and_tuples_raise(digits, vae):
    with pytest.raises(ValueError, match=r"values 0\.\.16; got values 0\.\.32"):
        vae.fit(Batches(2 * digits), verbose=0)
    for wrong in ((digits, digits), [digits]):
        with pytest.raises(ValueError, match=r"Pass labels beside the images"):
            vae.fit(wrong, verbose=0)
    with pytest.raises(ValueError, match="0 or more images"):
        vae.sample(-1)


BAD_LABELS = {
    "missing": (None, r"conditional \(num_classes=10\): pass labels"),
    "too large": (np.full(4, 10), r"in 0\.\.9; got 10\.\.10"),
    "negative": (np.full(4, -1), r"got -1\.\.-1"),
    "floats": (np.zeros(4), "integer labels.*got float64"),
    "one-hot": (np.zeros((4, 10), "int32"), r"got int32 \(4, 10\)"),
}


@pytest.mark.parametrize("labels, words", BAD_LABELS.values(), ids=BAD_LABELS)
def test_wrong_labels_raise(labels, words, digits, conditional):
    for use in ("fit", "evaluate", "elbo", "reconstruct"):
        with pytest.raises(ValueError, match=words):
            getattr(conditional, use)(digits[:4], labels)
    if labels is not None:
        with pytest.raises(ValueError, match="integer labels"):
            conditional.sample(4, labels=labels)


def test_unconditional_models_ignore_labels(digits, digit_labels, vae):
    vae.fit(digits, digit_labels, verbose=0)
    elbo = numpy(vae.elbo(digits[:4], digit_labels[:4]))
    np.testing.assert_array_equal(elbo, numpy(vae.elbo(digits[:4])))


def test_loss_and_metrics_of_compile_raise(vae):
    for wrong in ({"loss": "mse"}, {"metrics": ["mae"]}):
        with pytest.raises(ValueError, match="brings its own loss and metrics"):
            vae.compile("adam", **wrong)


COLOR = (4, 4, 3)  # of 4 levels


def network(shape, units, **kwargs):
    return zoo.sequential(shape, layers.Flatten(), layers.Dense(units, **kwargs))


HEAD = {  # of convolutional and recurrent networks
    "must be an odd integer, 3 or more; got 1": {"first_kernel_size": 1},
    "head_filters must be a positive multiple": {"head_filters": 4},
}
CONVOLUTIONAL = HEAD | {
    "filters must be a positive multiple of the image's 3 chann": {"filters": 4},
    "kernel_size must be an odd integer, 1 or more; got 4": {"kernel_size": 4},
    "num_blocks must be a positive integer; got -1": {"num_blocks": -1},
    "filters must be a positive multiple .*got 0": {"filters": 0},
    "couples the channels of a pixel": {"likelihood": "logistic_mixture"},
    "'poisson'": {"likelihood": "poisson"},
}
RECURRENT = HEAD | {
    "units must be a positive multiple of the image's 3 chann": {"units": 4},
    "num_layers must be a positive integer; got 0": {"num_layers": 0},
}
CONSTRAINED = network(COLOR, 1, kernel_constraint="non_neg")
ERRORS = {  # of each model: words, and the arguments that they are about
    "fvbn": {
        "height, width, channels": {"shape": (8, 8)},
        "tuple of positive integers": {"shape": (8, 0, 1)},
        "image_shape must be": {"shape": 8},
        r"levels must be in 2\.\..* got 1": {"levels": 1},
        r"levels must be in 2\.\..* got 70000": {"levels": 70_000},
        "num_classes must be": {"num_classes": 0},
    },
    "nade": {"units must be a positive integer; got 7.9": {"units": 7.9}},
    "made": {
        "num_masks must be a positive integer; got 0": {"num_masks": 0},
        "without hidden layers, MADE is FVBN": {"hidden_units": ()},
        "'raster' or 'random'": {"ordering": "random order"},
        "seed must be an integer.* got None": {"seed": None},
        "seed must be an integer.* got -1": {"seed": -1},
    },
    "pixel-cnn": CONVOLUTIONAL,
    "gated": CONVOLUTIONAL,
    "row-lstm": RECURRENT,
    "diagonal": RECURRENT,
    "pp": {
        "num_mixtures must be a positive integer": {"num_mixtures": -4},
        "num_blocks must be a positive integer; got 1.5": {"num_blocks": 1.5},
        "filters must be a positive integer": {"filters": 0},
        "num_resolutions must be in 1..3 for .* got 4": {"num_resolutions": 4},
        "num_resolutions must be in 1..3 for .* got 0": {"num_resolutions": 0},
    },
    "vae": {
        r"must give \(None, 6\).*got \(None, 3\)": {"encoder": network(COLOR, 3)},
        "is incompatible with the layer": {"encoder": network((9, 9, 1), 6)},
        "expects 1 .*input": {"encoder": network(COLOR, 6), "num_classes": 10},
        "hidden_units must be a tuple": {"hidden_units": 16},
        "latent_dim must be a positive": {"latent_dim": 0},
    },
    "iwae": {
        "one latent_dim or more, no beta": {"latent_dim": ()},
        "one latent_dim or more, .*no beta": {"beta": 2.0},
        "latent_dim must be a tuple of positive": {"latent_dim": (4, 0)},
        "num_samples must be a positive": {"num_samples": 0},
    },
    "gan": {
        "loss must be one of 'minimax', .*; got 'bce'": {"loss": "bce"},
        "prior must be one of 'normal', 'uniform'": {"prior": "cauchy"},
        "architecture must be one of 'mlp'": {"architecture": "vgg"},
        "gradient_penalty must be .* not negative": {"gradient_penalty": -1.0},
        "r1_penalty must be .* not negative": {"r1_penalty": float("nan")},
        "weight_clip must be positive, or None.* -0.1": {"weight_clip": -0.1},
        "weight_clip must be positive, or None.* 0.0": {"weight_clip": 0.0},
        r"ema must be in 0\.\.1, and below 1; got 1.0": {"ema": 1.0},
        "discriminator_steps": {"discriminator_steps": 0},
        "latent_dim": {"latent_dim": 0},
        "width must be a multiple of 5": {"architecture": "mlp", "width": 12},
        "generator must be a Keras model; got 'dcgan'": {"generator": "dcgan"},
        r"must take \(None, 3\); it failed": {"generator": network((4,), 48)},
        r"give \(None, 4, 4, 3\); got \(None, 5": {"generator": network((3,), 5)},
        r"give \(None, 1\); got \(None, 2": {"discriminator": network(COLOR, 2)},
        "SpectralNorm": {"discriminator": network(COLOR, 1), "spectral_norm": True},
        "activity_regularizer of layer": {
            "discriminator": network(COLOR, 1, activity_regularizer="l2")
        },
        "place of the constraint": {"discriminator": CONSTRAINED, "weight_clip": 0.1},
    },
}


@pytest.mark.portable
@pytest.mark.parametrize("name", ERRORS)
def test_wrong_arguments_of_models_raise(name):
    for words, arguments in ERRORS[name].items():
        with pytest.raises(ValueError, match=words):
            new(name, **{"shape": COLOR, "levels": 4} | arguments)
    if name in EXACT:
        with pytest.raises(TypeError, match="likelihood must be a name"):
            new(name, likelihood=5)


# State between calls


def test_further_fits_continue_the_epochs_of_the_data(digits, vae):
    data, seen = Batches(digits, batch_size=160), set()
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.add(data.epoch)
    )
    for _ in range(3):
        vae.fit(data, epochs=1, verbose=0, callbacks=[look])
    assert seen == {0, 1, 2}


def test_failed_calls_keep_the_weights(digits):
    """Keras on JAX takes the values out of the variables while it runs."""
    tf = pytest.importorskip("tensorflow")
    model = compiled("vae")
    model.fit(digits[:64], verbose=0)
    floats = tf.data.Dataset.from_tensor_slices(digits[:64] / 16.0).batch(32)
    before = [numpy(v).copy() for v in model.variables + model.optimizer.variables]
    calls = [
        (ValueError, lambda: model.fit(floats, verbose=0)),
        (ValueError, lambda: model.evaluate(floats, verbose=0)),
        (ValueError, lambda: model.evaluate({"x": digits})),
        (ValueError, lambda: model.predict(floats, verbose=0)),
    ]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for moment in ("on_test_batch_begin", "on_test_batch_end"):
        callbacks = [keras.callbacks.LambdaCallback(**{moment: interrupt})]
        some = {"batch_size": 32, "verbose": 0, "callbacks": callbacks}
        evaluate = functools.partial(model.evaluate, digits[:64], **some)
        calls.append((KeyboardInterrupt, evaluate))
    for error, call in calls:
        with pytest.raises(error):
            call()
        assert_same(model.variables + model.optimizer.variables, before)
    assert np.isfinite(model.evaluate(digits[:64], verbose=0)["loss"])


def test_compiled_files_name_no_private_class(tmp_path, vae):
    """On PyTorch an Adam is a private subclass: other backends could not train it."""
    config = json.dumps(vae.get_compile_config())
    assert "keras.src" not in config and '"Adam"' in config
    vae.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras").optimizer
    assert isinstance(loaded, keras.optimizers.Adam)
