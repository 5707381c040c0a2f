"""Distances over a feature model, after epochs of `fit`, and the features of MNIST."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from zoo import LEVELS, SHAPE, cases, inputs, new

import kgen
from kgen import metrics
from kgen.callbacks import SampleDistances
from kgen.metrics import Distances


def pixels():
    """The simplest feature model: the pixels themselves."""
    return keras.Sequential([layers.Input(SHAPE), layers.Flatten()])


def pixel_distances(reference, floor, levels=LEVELS):
    return Distances(pixels(), "pixel", reference, floor, levels)


def test_distances_are_the_functions_of_features(digits):
    reference, train, samples = digits[:100], digits[100:250], digits[250:] // 2
    distances = pixel_distances(reference, train)
    values = distances(samples)
    assert list(values) == distances.names
    assert all(type(v) is float for v in values.values())
    assert values["pixel_images"] == values["pixel_images_floor"] == 70
    fake, real = samples.reshape(70, -1) / 16, reference.reshape(100, -1) / 16
    # equal numbers: 70 of the reference, in its fixed random order
    fewer = real[np.random.default_rng(0).permutation(100)[:70]]
    expected = [
        metrics.frechet_distance(fake, real),
        *metrics.kernel_distance(fake, real),
        *metrics.precision_recall(fewer, fake),
        *metrics.density_coverage(fewer, fake),
    ]
    names = "frechet_distance kernel_distance kernel_distance_se "
    names += "precision recall density coverage"
    found = [values[f"pixel_{k}"] for k in names.split()]
    assert found == pytest.approx(expected, rel=1e-4)
    # the baseline: as many of the data's images, measured the same way
    baseline = distances(train[np.random.default_rng(0).permutation(150)[:70]])
    for name in distances.names[:8]:
        assert baseline[name] == values[f"{name}_floor"], name
    assert values["pixel_frechet_distance"] > 3 * values["pixel_frechet_distance_floor"]
    # fewer baseline images than samples: all are taken, and counted
    values = pixel_distances(reference, train[:40])(train[50:])
    assert (values["pixel_images"], values["pixel_images_floor"]) == (100, 40)


@pytest.mark.once
def test_baseline_has_mean_and_deviation_of_draws(digits):
    distances = Distances(pixels(), "pixel", digits[:100], digits[100:], LEVELS)
    mean, deviation = distances.frechet_baseline(60, draws=5)
    rng, order = np.random.default_rng(0), np.random.default_rng(0).permutation(220)
    real, others = (x.reshape(len(x), -1) / 16 for x in (digits[:100], digits[100:]))
    chosen = [order[rng.choice(220, 60, replace=False)] for _ in range(5)]
    values = [metrics.frechet_distance(others[rows], real) for rows in chosen]
    expected = np.mean(values), np.std(values, ddof=1)
    assert (mean, deviation) == pytest.approx(expected, rel=1e-4)
    assert distances.frechet_baseline(60, 5, seed=1) != (mean, deviation)
    for arguments in ({"n": 221}, {"n": 1}, {"n": 60, "draws": 1}):
        with pytest.raises(ValueError, match="n must be in 2..220"):
            distances.frechet_baseline(**arguments)


@pytest.mark.once
def test_wrong_images_raise(digits):
    right = {"features": pixels(), "reference": digits[:20], "floor": digits[20:40]}
    distances = Distances(name="pixel", levels=LEVELS, **right)
    for images, words in [
        (digits[:, :7], "images: expected integer images .*got shape"),
        (digits / 16, "got float64"),
        (digits + 10, "got values 10..26"),
        (digits[:5], "pixel distances: expected 6 images or more of each; got 5"),
    ]:
        with pytest.raises(ValueError, match=words):
            distances(images)
    relu = keras.Sequential([layers.Input(SHAPE), layers.ReLU()])
    for wrong, words in [
        ({"features": metrics.mnist_features()}, r"images \(28, 28, 1\), .* pixel"),
        ({"features": relu}, r"expected a model that gives \(batch, d\)"),
        ({"reference": kgen.data.Batches(digits)}, "expected an array .* got Batches"),
        ({"floor": digits / 16}, "floor: expected integer images"),
    ]:
        with pytest.raises(ValueError, match=words):
            Distances(name="pixel", levels=LEVELS, **right | wrong)


@pytest.mark.parametrize("name", cases(["vae-conditional"], ["vae"]))
def test_callback_logs_distances(name, digits, digit_labels, tmp_path, capsys):
    """After the first epoch and every third. The best epoch can be chosen by them:
    epochs without a measurement neither count as the best nor hide it."""
    model = new(name)
    model.compile(keras.optimizers.Adam(1e-2))
    distances = pixel_distances(digits[:100], digits[100:])
    labels = None if model.num_classes is None else 3
    best = {"monitor": "pixel_frechet_distance", "mode": "min", "save_best_only": True}
    best = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras", **best)
    callbacks = [SampleDistances(distances, 40, every=3, labels=labels), best]
    data = inputs(model, digits, digit_labels)
    history = model.fit(*data, epochs=9, verbose=0, callbacks=callbacks).history
    assert set(distances.names) < set(history)
    for key in distances.names:
        measured = np.isfinite(history[key]).nonzero()[0]
        assert measured.tolist() == [0, 2, 5, 8], key
    last = distances(model.sample(40, seed=0, labels=labels, verbose=0))
    assert {key: history[key][8] for key in last} == pytest.approx(last, rel=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith("distances: pixel_images 40 (40), ")
    frechet, baseline = (last[f"pixel_frechet_distance{k}"] for k in ("", "_floor"))
    assert f"pixel_frechet_distance {frechet:.4g} ({baseline:.4g})" in lines[3]
    saved = {int(p.name.split(".")[0]) for p in tmp_path.iterdir()}
    epoch = np.nanargmin(history["pixel_frechet_distance"]) + 1
    assert saved <= {1, 3, 6, 9} and max(saved) == epoch > 1


def test_wrong_callback_raises_before_the_first_epoch(digits, binary):
    model = new("vae")
    model.compile("adam")
    other = pixel_distances(binary[:50], binary[50:], 2)
    right = pixel_distances(digits[:50], digits[50:])
    for callback, words in [
        (SampleDistances(other), "with 2 levels, the model draws"),
        (SampleDistances(right, 5), "6 images or more"),
    ]:
        with pytest.raises(ValueError, match=words):
            model.fit(digits, verbose=0, callbacks=[callback])
    assert int(model.optimizer.iterations) == 0
    with pytest.raises(ValueError, match="every must be a positive integer"):
        SampleDistances(other, every=0)


def test_mnist_features_are_the_same_on_every_backend():
    path = Path(kgen.__file__).parent / "assets" / "mnist_features.keras"
    assert path.stat().st_size < 300_000
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = metrics.mnist_features()
    assert model.input_shape == (None, 28, 28, 1) and model.output_shape == (None, 64)
    x = np.random.default_rng(0).random((3, 28, 28, 1)).astype("float32")
    features = model.predict(x, verbose=0)
    assert features.shape == (3, 64) and features.dtype == np.float32
    # what TensorFlow gave when the model was trained
    sums = (95.09754, 93.24805, 87.32930)
    np.testing.assert_allclose(features.sum(axis=1), sums, rtol=1e-4)
