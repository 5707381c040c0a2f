"""What `fit`, `evaluate` and `sample` take and refuse: data, labels, arguments."""

import functools
import json

import keras
import numpy as np
import pytest
from PIL import Image
from zoo import LEVELS, MODELS, SHAPE, assert_same, cases, inputs, new, numpy

import kgen
from kgen import batching
from kgen.data import Batches


def compiled(name, optimizer="adam"):
    model = new(name)
    model.compile(optimizer)
    return model


@pytest.fixture(scope="module")
def vae():
    return compiled("vae")


@pytest.fixture(scope="module")
def exact():
    return compiled("fvbn")


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
    uses = [
        lambda: vae.fit(images, verbose=0),
        lambda: vae.evaluate(images, verbose=0),
        lambda: vae.fit(digits, validation_data=images, verbose=0),
        lambda: vae.elbo(images),
        lambda: vae.log_prob(images),
        lambda: vae.encode(images),
        lambda: vae.reconstruct(images),
        lambda: vae.predict(images, verbose=0),
        lambda: exact.fit(images, verbose=0),
        lambda: exact.log_prob(images),
        lambda: exact.logits(images),
        lambda: exact.complete(images, 4),
        lambda: exact.predict(images, verbose=0),
    ]
    if case in ("shape", "floats"):  # all that can be seen of a data set
        tf = pytest.importorskip("tensorflow")
        batches = tf.data.Dataset.from_tensor_slices(images).batch(2)
        uses.append(lambda: compiled("vae").fit(batches, verbose=0))
    for use in uses:
        with pytest.raises(ValueError, match=words):
            use()


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


def test_wrong_labels_raise(digits):
    model = compiled("vae-conditional")
    for labels, words in BAD_LABELS.values():
        for use in (
            lambda y: model.fit(digits[:4], y, verbose=0),
            lambda y: model.evaluate(digits[:4], y, verbose=0),
            lambda y: model.elbo(digits[:4], y),
            lambda y: model.reconstruct(digits[:4], y),
        ):
            with pytest.raises(ValueError, match=words):
                use(labels)
        if labels is not None:
            with pytest.raises(ValueError, match="integer labels"):
                model.sample(4, labels=labels)


def test_unconditional_models_ignore_labels(digits, digit_labels):
    model = compiled("vae")
    model.fit(digits, digit_labels, verbose=0)
    elbo = numpy(model.elbo(digits[:4], digit_labels[:4]))
    np.testing.assert_array_equal(elbo, numpy(model.elbo(digits[:4])))


@pytest.mark.once
def test_wrong_arguments_of_models_and_compile_raise(vae):
    for wrong, words in (
        ({"image_shape": (8, 8)}, "height, width, channels"),
        ({"image_shape": (8, 0, 1)}, "tuple of positive integers"),
        ({"levels": 1}, r"levels must be in 2\.\.256"),
        ({"levels": 300}, r"levels must be in 2\.\.256"),
        ({"num_classes": 0}, "num_classes must be"),
    ):
        with pytest.raises(ValueError, match=words):
            kgen.models.VAE(**{"image_shape": SHAPE} | wrong)
    for wrong in ({"loss": "mse"}, {"metrics": ["mae"]}):
        with pytest.raises(ValueError, match="brings its own loss and metrics"):
            vae.compile("adam", **wrong)


# State between calls


def test_further_fits_continue_the_epochs_of_the_data(digits):
    model, data, seen = compiled("vae"), Batches(digits, batch_size=160), set()
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.add(data.epoch)
    )
    for _ in range(3):
        model.fit(data, epochs=1, verbose=0, callbacks=[look])
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


def test_compiled_files_name_no_private_class(tmp_path):
    """On PyTorch an Adam is a private subclass: other backends could not train it."""
    model = compiled("vae", keras.optimizers.Adam(1e-3))
    config = json.dumps(model.get_compile_config())
    assert "keras.src" not in config and '"Adam"' in config
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras").optimizer
    assert isinstance(loaded, keras.optimizers.Adam)
