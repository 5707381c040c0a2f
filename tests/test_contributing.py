"""Models and losses of a user: the example of CONTRIBUTING.md, a loss of a GAN."""

import re

import keras
import numpy as np
import pytest
import zoo
from keras import ops
from zoo import numpy

import kgen

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


@keras.saving.register_keras_serializable(package="tests")
class Relativistic:
    """A. Jolicoeur-Martineau. The relativistic discriminator. ICLR 2019."""

    relativistic = True

    def discriminator(self, real, generated):
        return ops.softplus(generated - real)

    def generator(self, generated, real):
        return ops.softplus(real - generated)

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_loss_of_ones_own_may_compare_with_real_images(digits, tmp_path):
    x = digits[:32]
    model = zoo.new("gan", loss=Relativistic(), gradient_norms=False)
    model.compile("adam")
    history = model.fit(x, batch_size=16, epochs=2, verbose=0).history
    assert "critic_difference" in history
    z = model.prior.of(kgen.random.image_keys(zoo.tensor(x, "int32")))
    generated = model.make(z)
    real, generated = (
        numpy(model._logits(images)) for images in (zoo.tensor(x / 16.0), generated)
    )
    logs = model.evaluate(x, batch_size=32, verbose=0)
    expected = np.logaddexp(0.0, real - generated).mean()
    assert logs["generator_loss"] == pytest.approx(expected, rel=1e-4)
    model.save(tmp_path / "gan.keras")
    loaded = keras.saving.load_model(tmp_path / "gan.keras")
    assert isinstance(loaded.kind, Relativistic)
    np.testing.assert_array_equal(loaded.sample(2, seed=0), model.sample(2, seed=0))


@pytest.mark.parametrize("loss", [Relativistic, 3, object()])
def test_objects_that_are_no_losses_raise(loss):
    with pytest.raises(ValueError, match="loss must be one of .*; got"):
        zoo.new("gan", loss=loss)
