"""The example of CONTRIBUTING.md is a model: exact, trained, saved."""

import re

import keras
import numpy as np
import pytest
import zoo
from zoo import numpy

pytestmark = pytest.mark.portable


def test_example_of_a_new_model_is_exact(tmp_path):
    text = (zoo.TESTS.parent / "CONTRIBUTING.md").read_text()
    code, names = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    model = zoo.randomize(names["MyModel"]((3, 3, 1), filters=4))
    x = zoo.every_image((3, 3, 1), 2)
    assert np.exp(numpy(model.log_prob(x))).sum() == pytest.approx(1.0, abs=1e-4)
    model.compile("adam")
    before = model.evaluate(x[-64:], verbose=0)["loss"]
    model.fit(x[-64:], epochs=5, verbose=0)
    assert model.evaluate(x[-64:], verbose=0)["loss"] < before
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.sample(4, seed=0), model.sample(4, seed=0))
    known = model.complete(x[-4:], 2, seed=0)[:, :2]
    np.testing.assert_array_equal(known, x[-4:, :2])
