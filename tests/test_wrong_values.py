"""Values and labels out of range, in data that only the compiled step sees."""

import keras
import numpy as np
import pytest
import zoo
from zoo import CLASSES, LEVELS, cases

KINDS = ["gated", "vae", "gan-critic"]


class Stream(keras.utils.PyDataset):
    """(images, labels) in batches of 16; the third has what `wrong` names."""

    def __init__(self, x, y, wrong=None, for_predict=False):
        super().__init__()
        x, y = x[:64].astype("int64"), np.array(y[:64])
        if wrong in ("high", "low"):
            x[40, 3, 3] = LEVELS if wrong == "high" else -1
        elif wrong:
            y[40] = CLASSES
        self.x, self.y, self.for_predict = x, y, for_predict

    def __len__(self):
        return 4

    def __getitem__(self, i):
        x, y = (a[16 * i : 16 * i + 16] for a in (self.x, self.y))
        return ((x, y),) if self.for_predict else (x, y)


@pytest.fixture(scope="module")
def models():
    return {name: zoo.new(name) for name in KINDS}


FURTHER = [("gan-critic", False), ("vae", True)]


@pytest.mark.parametrize("name, eager", cases([("gated", False)], FURTHER))
def test_fit_and_evaluate_raise(name, eager, models, digits, digit_labels):
    model = models[name]
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=eager)
    data = {w: Stream(digits, digit_labels, w) for w in (None, "high", "low", "label")}
    rules = {"high": "values above 16", "low": "values below 0"}
    if model.num_classes is not None:
        rules["label"] = r"labels that are not in 0\.\.9"
    for wrong, words in rules.items():
        with pytest.raises(ValueError, match=f"fit: .* got {words} .batches: 1.\\."):
            model.fit(data[wrong], verbose=0)
        with pytest.raises(
            ValueError, match=f"evaluate: .* got {words} .batches: 1.\\."
        ):
            model.evaluate(data[wrong], verbose=0)
    with pytest.raises(ValueError, match="evaluate: .* above 16"):
        model.fit(data[None], validation_data=data["high"], verbose=0)
    quiet = [keras.callbacks.TerminateOnNaN()]  # in place of kgen's, which raises
    with pytest.raises(ValueError, match="fit: .* above 16"):
        model.fit(data["high"], validation_data=data[None], callbacks=quiet, verbose=0)
    history = model.fit(data[None], verbose=0).history
    logs = model.evaluate(data[None], verbose=0)
    assert "out_of_range" not in history and "out_of_range" not in logs
    assert np.all(np.isfinite([*logs.values(), *sum(history.values(), [])]))


@pytest.mark.parametrize("name", cases(["gated"], KINDS))
def test_predict_raises(name, models, digits, digit_labels):
    model = models[name]
    conditional = model.num_classes is not None
    for wrong in ("high", "low", *["label"] * conditional):
        data = Stream(digits, digit_labels, wrong, for_predict=conditional)
        with pytest.raises(ValueError, match="image 40|values 0..16; got|labels"):
            model.predict(data, verbose=0)
    data = Stream(digits, digit_labels, for_predict=conditional)
    x = (data.x, data.y) if conditional else data.x
    streamed, whole = model.predict(data, verbose=0), model.predict(x, verbose=0)
    np.testing.assert_allclose(streamed, whole, rtol=1e-5, atol=1e-5)


def test_single_batches_raise(models, digits):
    model = models["vae"]
    model.compile(keras.optimizers.SGD(1e-3))
    x = digits[:8] + np.uint8(100)
    for method in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(ValueError, match=r"0\.\.16; got values 100\.\."):
            method(x)
