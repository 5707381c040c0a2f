"""What every family owes a Keras user: configure, fit, save, load, resume, draw."""

import json

import keras
import numpy as np
import pytest
from families import CLASSES, FAMILIES, LEVELS, SHAPE, arguments
from keras import ops
from PIL import Image

import kgen
from kgen import batching
from kgen.data import Batches


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.fixture(params=FAMILIES)
def model(request):
    model = FAMILIES[request.param]()
    model.compile(keras.optimizers.Adam(1e-3))
    return model


@pytest.fixture
def data(model, digits, digit_labels):
    return arguments(model, digits, digit_labels)


def same_weights(a, b, atol=0.0):
    for v, w in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(numpy(v), numpy(w), atol=atol, rtol=0)


def test_config_round_trip_is_json(model):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(model)
    plain = [  # networks of one's own have numbers of shared objects in theirs
        {k: v for k, v in m.get_config().items() if k not in ("encoder", "decoder")}
        for m in (model, again)
    ]
    assert plain[0] == plain[1]
    assert [v.shape for v in again.weights] == [v.shape for v in model.weights]
    assert model.built and again.built


@pytest.mark.feature("save")
def test_keras_file_and_weights_round_trip(model, data, tmp_path):
    model.fit(*data, epochs=1, verbose=0)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.compiled
    fresh = type(model).from_config(model.get_config())
    fresh.load_weights(tmp_path / "m.weights.h5")
    for other in (loaded, fresh):
        same_weights(model, other)
        np.testing.assert_array_equal(model.sample(3, seed=2), other.sample(3, seed=2))
    # the loaded optimizer goes on as the saved one would have
    for m in (model, loaded):
        m.fit(*data, shuffle=False, verbose=0)
    same_weights(model, loaded, atol=1e-6)


@pytest.mark.feature("save")
def test_preset_round_trip(model, tmp_path):
    for v in model.trainable_variables:  # some begin at zero
        v.assign(v + 0.1)
    folder = tmp_path / "preset"
    model.save_to_preset(folder)
    names = {p.name for p in folder.iterdir()}
    assert names == {"config.json", "metadata.json", "model.weights.h5"}
    config = json.loads((folder / "config.json").read_text())
    assert "compile_config" not in config and "build_config" not in config
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["parameter_count"] == model.count_params()
    again = kgen.models.GenerativeModel.from_preset(folder)
    same_weights(model, again)
    model.save_to_preset(folder)  # in place of the old one
    assert not list(tmp_path.glob(".writing-*"))
    without = type(model).from_preset(folder, load_weights=False)
    assert any(
        np.any(numpy(a) != numpy(b))
        for a, b in zip(without.weights, model.weights, strict=True)
    )


@pytest.mark.feature("callbacks")
def test_keras_callbacks_work_unmodified(model, data, tmp_path):
    callbacks = [
        keras.callbacks.EarlyStopping(patience=50, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "{epoch}.weights.h5", save_weights_only=True
        ),
        keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=2),
        keras.callbacks.TensorBoard(tmp_path / "tb", histogram_freq=1),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ReduceLROnPlateau(patience=50),
        keras.callbacks.TerminateOnNaN(),
    ]
    logs = model.fit(
        *data,
        validation_data=data if len(data) > 1 else data[0],
        epochs=2,
        batch_size=100,
        verbose=0,
        callbacks=callbacks,
    ).history
    assert len(logs["val_loss"]) == 2 and np.all(np.isfinite(logs["val_loss"]))
    best = keras.models.load_model(tmp_path / "best.keras")
    evaluated = best.evaluate(*data, verbose=0)
    assert evaluated["loss"] == pytest.approx(min(logs["val_loss"]), rel=1e-4)
    assert (tmp_path / "2.weights.h5").exists() and list(
        (tmp_path / "tb").rglob("*ev*")
    )


@pytest.mark.feature("resume")
def test_an_interrupted_run_resumes_as_if_it_had_not_been(model, data, tmp_path):
    """Order, noise, moments: 2 + 2 epochs in two models equal 4 in one."""

    def run(m, epochs, **kwargs):
        m.compile(keras.optimizers.Adam(1e-2))
        m.fit(Batches(*data, batch_size=64, seed=3), epochs=epochs, verbose=0, **kwargs)
        return m

    def new():
        return type(model).from_config(model.get_config())

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)

    keras.utils.set_random_seed(5)
    whole = run(new(), 4)
    keras.utils.set_random_seed(5)
    run(new(), 2, callbacks=[backup()])
    keras.utils.set_random_seed(77)
    resumed = run(new(), 4, callbacks=[backup()])
    # Not exactly: TensorFlow on busy cores sums in another order from run to run.
    same_weights(whole, resumed, atol=2e-5)
    drawn = whole.sample(4).astype("int32") - resumed.sample(4)
    assert np.mean(drawn != 0) < 0.02  # ties, of which some fall the other way


@pytest.mark.feature("fit")
def test_fit_takes_what_keras_fit_takes(model, data):
    tf = pytest.importorskip("tensorflow")
    torch = pytest.importorskip("torch")
    few = tuple(a[:64] for a in data)
    tensors = [torch.tensor(np.asarray(a)) for a in few]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*tensors), batch_size=32
    )
    sets = [
        tf.data.Dataset.from_tensor_slices(few if len(few) > 1 else few[0]).batch(32),
        Batches(*few, batch_size=32),
        loader,
    ]
    for dataset in sets:
        logs = model.fit(dataset, validation_data=dataset, epochs=1, verbose=0).history
        assert np.isfinite(logs["val_loss"][0])
        assert set(model.evaluate(dataset, verbose=0)) == {
            m.name for m in model.metrics if "gradient" not in m.name
        }


def test_predict_and_call(model, data):
    inputs = data[0] if len(data) == 1 else data
    out = model.predict(inputs, batch_size=50, verbose=0)
    maps = out.ndim > 1  # of a GAN they are logits
    assert out.shape[:3] == data[0].shape[: 3 if maps else 1]
    assert np.all(np.isfinite(out))
    few = inputs[:3] if len(data) == 1 else tuple(a[:3] for a in data)
    again = numpy(ops.stop_gradient(model(few)))
    np.testing.assert_allclose(again, out[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.feature("fit")
def test_samples_are_integers_and_functions_of_their_seed(model):
    images = model.sample(10, seed=3)
    assert images.dtype == "uint8" and images.shape == (10, *SHAPE)
    assert images.max() < LEVELS
    np.testing.assert_array_equal(images, model.sample(10, seed=3))
    assert np.any(images != model.sample(10, seed=4))
    if model.num_classes is None:
        np.testing.assert_array_equal(images[:3], model.sample(3, seed=3))
    else:
        labels = np.arange(10) % CLASSES
        np.testing.assert_array_equal(images, model.sample(10, seed=3, labels=labels))
        three = model.sample(3, seed=3, labels=labels[:3])
        np.testing.assert_array_equal(images[:3], three)
    assert np.any(
        model.sample(10) != model.sample(10)
    )  # the model's generator moves on
    assert model.sample(0, seed=1).shape == (0, *SHAPE)


def test_long_draws_are_split_and_say_how_far(model, capsys, monkeypatch):
    monkeypatch.setattr(batching, "MAX_BATCH", 8)
    many = model.sample(35, seed=0)  # parts of 8, and 3 filled up to 4
    assert "35/35" in capsys.readouterr().out
    np.testing.assert_array_equal(many[:5], model.sample(5, seed=0))
    np.testing.assert_array_equal(many, model.sample(35, seed=0, verbose=0))
    assert capsys.readouterr().out == ""


def test_picture_callbacks(model, data, tmp_path, capsys):
    images, labels = data if len(data) > 1 else (data[0], None)
    grids = [kgen.callbacks.SampleGrid(tmp_path / "s", n=10)]
    if hasattr(model, "reconstruct"):
        grids.append(
            kgen.callbacks.ReconstructionGrid(tmp_path / "r", images, labels, every=2)
        )
    model.fit(
        *data,
        epochs=2,
        verbose=0,
        callbacks=[*grids, kgen.callbacks.Progress(["loss"])],
    )
    printed = capsys.readouterr().out
    samples = tmp_path / "s" / "samples_epoch_002.png"
    assert str(samples) in printed and "epoch 2/2  loss" in printed
    pixels = np.asarray(Image.open(samples))
    expected = kgen.callbacks.image_grid(model.sample(10, seed=0), LEVELS)
    np.testing.assert_array_equal(pixels, expected)
    drawn = [p.name for p in (tmp_path / "r").glob("*.png")]
    assert drawn == ["reconstructions_epoch_002.png"] * (len(grids) - 1)


def test_progress_tells_of_long_epochs(digits, capsys):
    model = FAMILIES["fvbn"]()
    model.compile("adam")
    progress = kgen.callbacks.Progress(["loss"], seconds=1e-9)
    model.fit(digits[:64], batch_size=16, verbose=0, callbacks=[progress])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  loss")[0] for line in lines] == [
        *(f"epoch 1/1, step {k}/4" for k in (1, 2, 3, 4)),
        "epoch 1/1",
    ]
    with pytest.raises(ValueError, match="every must be a positive number"):
        kgen.callbacks.Progress(every=0)


def test_the_picture_of_completions(digits, tmp_path):
    """Rows: images, their known halves, completions from seeds 0 and 1."""
    model, images = FAMILIES["fvbn"](), digits[:3]
    path = kgen.callbacks.save_completions(tmp_path / "c.png", model, images, draws=2)
    known = images.copy()
    known[:, 4:] = 0
    drawn = [model.complete(images, 4, seed) for seed in (0, 1)]
    rows = np.concatenate([images, known, *drawn])
    expected = kgen.callbacks.image_grid(rows, LEVELS, columns=3)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)


BAD_IMAGES = {
    "shape": (
        np.zeros((4, 9, 8, 1), "uint8"),
        r"\(batch, 8, 8, 1\).*got shape \(.*, 9, 8",
    ),
    "rank": (np.zeros((4, 8, 8), "uint8"), r"got shape \(4, 8, 8\)"),
    "floats": (np.zeros((4, 8, 8, 1), "float32"), "integer images.*got float32"),
    "nan": (np.full((4, 8, 8, 1), np.nan), "float64 with NaN"),
    "too large": (np.full((4, 8, 8, 1), 17), r"values 0\.\.16; got values 17\.\.17"),
    "negative": (np.full((4, 8, 8, 1), -1), r"got values -1\.\.-1"),
    "empty": (np.zeros((0, 8, 8, 1), "uint8"), "got no images at all"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_told(case, digits):
    images, words = BAD_IMAGES[case]
    model = FAMILIES["vae"]()
    model.compile("adam")
    for use in (
        lambda: model.fit(images, verbose=0),
        lambda: model.evaluate(images, verbose=0),
        lambda: model.fit(digits, validation_data=images, verbose=0),
        lambda: model.elbo(images),
        lambda: model.log_prob(images),
        lambda: model.encode(images),
        lambda: model.reconstruct(images),
        lambda: model.predict(images, verbose=0),
    ):
        with pytest.raises(ValueError, match=words):
            use()


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_told_by_exact_models(case):
    images, words = BAD_IMAGES[case]
    model = FAMILIES["fvbn"]()
    model.compile("adam")
    for use in (
        lambda: model.fit(images, verbose=0),
        lambda: model.log_prob(images),
        lambda: model.logits(images),
        lambda: model.complete(images, 4),
        lambda: model.predict(images, verbose=0),
    ):
        with pytest.raises(ValueError, match=words):
            use()


@pytest.mark.parametrize("case", ["shape", "floats"])
def test_bad_images_in_a_data_set_are_told(case):
    images, words = BAD_IMAGES[case]
    tf = pytest.importorskip("tensorflow")
    model = FAMILIES["vae"]()
    model.compile("adam")
    with pytest.raises(ValueError, match=words):
        model.fit(tf.data.Dataset.from_tensor_slices(images).batch(2), verbose=0)


BAD_LABELS = {
    "missing": (None, r"conditional \(num_classes=10\): pass labels"),
    "too large": (np.full(4, 10), r"in 0\.\.9; got 10\.\.10"),
    "negative": (np.full(4, -1), r"got -1\.\.-1"),
    "floats": (np.zeros(4), "integer labels.*got float64"),
    "one-hot": (np.zeros((4, 10), "int32"), r"got int32 \(4, 10\)"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_are_told(case, digits):
    labels, words = BAD_LABELS[case]
    model = FAMILIES["vae-conditional"]()
    model.compile("adam")
    for use in (
        lambda: model.fit(digits[:4], labels, verbose=0),
        lambda: model.evaluate(digits[:4], labels, verbose=0),
        lambda: model.elbo(digits[:4], labels),
        lambda: model.reconstruct(digits[:4], labels),
    ):
        with pytest.raises(ValueError, match=words):
            use()
    if labels is not None:
        with pytest.raises(ValueError, match="integer labels"):
            model.sample(4, labels=labels)


def test_unconditional_models_ignore_labels(digits, digit_labels):
    model = FAMILIES["vae"]()
    model.compile("adam")
    model.fit(digits, digit_labels, verbose=0)
    assert numpy(ops.stop_gradient(model.elbo(digits[:4], digit_labels[:4]))).shape == (
        4,
    )


@pytest.mark.parametrize(
    "kwargs,words",
    [
        ({"image_shape": (8, 8)}, "height, width, channels"),
        ({"image_shape": (8, 0, 1)}, "tuple of positive integers"),
        ({"levels": 1}, r"levels must be in 2\.\.256"),
        ({"levels": 300}, r"levels must be in 2\.\.256"),
        ({"num_classes": 0}, "num_classes must be"),
    ],
)
def test_bad_constructor_arguments_are_told(kwargs, words):
    with pytest.raises(ValueError, match=words):
        kgen.models.VAE(**{"image_shape": SHAPE} | kwargs)


def test_losses_and_metrics_are_the_models_own():
    model = FAMILIES["vae"]()
    for kwargs in ({"loss": "mse"}, {"metrics": ["mae"]}):
        with pytest.raises(ValueError, match="brings its own loss and metrics"):
            model.compile("adam", **kwargs)


def test_bad_values_in_batches_and_tuples_are_told(digits):
    model = kgen.models.VAE(SHAPE, levels=2, latent_dim=2, hidden_units=(4,))
    model.compile("adam")
    with pytest.raises(ValueError, match=r"values 0\.\.1; got values 0\.\.16"):
        model.fit(Batches(digits), verbose=0)
    for wrong in ((digits, digits), [digits]):
        with pytest.raises(ValueError, match=r"Pass labels beside the images"):
            model.fit(wrong, verbose=0)
    with pytest.raises(ValueError, match="0 or more images"):
        model.sample(-1)


def test_further_fits_go_on_with_the_epochs_of_the_data(digits):
    model, data, seen = FAMILIES["vae"](), Batches(digits, batch_size=100), set()
    model.compile("adam")

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.add(data.epoch)

    for _ in range(3):
        model.fit(data, epochs=1, verbose=0, callbacks=[Look()])
    assert seen == {0, 1, 2}


def test_a_frozen_model_is_left_as_it_is(digits):
    model = FAMILIES["vae"]()
    model.trainable = False
    model.compile("adam")
    before = [numpy(v).copy() for v in model.weights]
    model.fit(digits, verbose=0)
    for v, b in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(v), b)


def test_compiled_files_name_no_private_class_of_a_backend(tmp_path):
    """On PyTorch an Adam is a private subclass: other backends could not train it."""
    model = FAMILIES["vae"]()
    model.compile(keras.optimizers.Adam(1e-3))
    config = json.dumps(model.get_compile_config())
    assert "keras.src" not in config and '"Adam"' in config
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras").optimizer
    assert isinstance(loaded, keras.optimizers.Adam)


def test_folders_with_anything_else_are_not_replaced(tmp_path):
    model = FAMILIES["vae"]()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    for use in (
        lambda: model.save_to_preset(tmp_path / "thesis"),
        lambda: model.save(tmp_path / "thesis"),
        lambda: model.export(tmp_path / "thesis"),
    ):
        with pytest.raises((FileExistsError, ValueError)):
            use()
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    """Two exports to one version: the first that is done stays."""
    for make in (lambda p: p.mkdir() or (p / "f").touch(), lambda p: p.touch()):
        target = tmp_path / f"target{make.__code__.co_firstlineno}{id(make)}"
        with pytest.raises(FileExistsError):
            with kgen.files.atomic(target, replace=False) as late:
                make(late)
                with kgen.files.atomic(target, replace=False) as early:
                    make(early)
                    (early / "f" if early.is_dir() else early).write_text("early")
        kept = target / "f" if target.is_dir() else target
        assert kept.read_text() == "early"


def test_unwritable_places_and_wrong_presets_are_told(tmp_path):
    model = FAMILIES["vae"]()
    (tmp_path / "file").write_text("in the way")
    for use in (
        lambda: model.save(tmp_path / "file" / "m.keras"),
        lambda: model.save_weights(tmp_path / "file" / "m.weights.h5"),
        lambda: model.save_to_preset(tmp_path / "file" / "preset"),
        lambda: model.export(tmp_path / "file" / "1"),
    ):
        with pytest.raises(PermissionError, match="Choose an output path"):
            use()
    with pytest.raises(ValueError, match="No preset in"):
        kgen.models.VAE.from_preset(tmp_path / "nothing")


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "m.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), kgen.files.atomic(path) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [
        "m.txt"
    ]
