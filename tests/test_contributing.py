"""Models and losses of a user: the example of CONTRIBUTING.md, a loss of a GAN."""

import re

import exports
import keras
import numpy as np
import pytest
import users_models
import zoo
from keras import ops
from users_models import Relativistic
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


def users_models_of(digits):
    """Of another prior, of another loss, of another network; each trained a little."""
    models = {
        "two-layers": users_models.TwoLayers(zoo.SHAPE, zoo.LEVELS),
        "relativistic": zoo.new("gan", loss=Relativistic(), gradient_norms=False),
        "wide-prior": users_models.WidePrior(zoo.SHAPE, zoo.LEVELS, latent_dim=3),
    }
    for model in models.values():
        model.compile("adam")
        logs = model.fit(digits[:32], batch_size=16, epochs=2, verbose=0).history
        assert np.isfinite(list(logs.values())).all()
    return models


@pytest.mark.exhaustive
@pytest.mark.parametrize("over", ["rest", "grpc"])
def test_users_models_are_served(over, digits, tmp_path, monkeypatch):
    """Trained, saved, loaded, exported, and asked through the client."""
    pytest.importorskip("tensorflow_serving")
    server = zoo.TESTS / "stand_in_server.py"
    monkeypatch.setenv("TENSORFLOW_MODEL_SERVER", str(server))
    models = users_models_of(digits)
    exports.export(models, tmp_path / "models")
    kgen.serving.write_config(tmp_path / "models")
    with exports.started(tmp_path / "models", models) as client:
        for name, model in models.items():
            path = tmp_path / f"{name}.keras"
            model.save(path)
            loaded = keras.saving.load_model(path)
            x, y = digits[:5], np.zeros(5, "int32")
            exports.check_client(client(name, over), loaded, x, y, 1e-4)


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


@keras.saving.register_keras_serializable(package="tests")
class WithClasses(Relativistic):
    """A. Odena, C. Olah, J. Shlens. Conditional image synthesis with auxiliary
    classifier GANs. ICML 2017: D also names the class, by three further outputs."""

    heads, threshold, relativistic = 3, 0.0, False

    def discriminator(self, real, generated, labels):
        of_class = -ops.sum(labels * ops.log_softmax(real[:, 1:], axis=-1), axis=-1)
        return ops.softplus(-real[:, 0]) + ops.softplus(generated[:, 0]) + of_class

    def generator(self, generated, labels):
        log_p = ops.log_softmax(generated[:, 1:], axis=-1)
        return ops.softplus(-generated[:, 0]) - ops.sum(labels * log_p, axis=-1)


def test_discriminator_may_have_further_heads(digits):
    """D learns to name the class, which the loss alone asks of it."""
    labels = np.repeat(np.arange(3), 24)
    x = np.zeros((72, 8, 8, 1), "uint8") + 4 * labels[:, None, None, None]
    inputs = [keras.Input((8, 8, 1)), keras.Input((3,))]
    h = keras.layers.Dense(8, "relu")(keras.layers.Flatten()(inputs[0]))
    D = keras.Model(inputs, keras.layers.Dense(4)(h))
    settings = {"discriminator": D, "gradient_norms": False, "loss": WithClasses()}
    model = zoo.new("gan", num_classes=3, **settings)
    model.compile(keras.optimizers.Adam(0.02))
    model.fit(x, labels, batch_size=24, epochs=40, verbose=0)
    one_hot = np.eye(3, dtype="float32")[labels]
    outputs = numpy(D([zoo.tensor(x / 16.0), zoo.tensor(one_hot)]))
    assert np.mean(outputs[:, 1:].argmax(axis=1) == labels) > 0.95
    np.testing.assert_allclose(
        numpy(model.discriminate(x, labels)), outputs[:, 0], atol=1e-5
    )
    plain = zoo.new("gan", num_classes=3).discriminator
    with pytest.raises(ValueError, match=r"discriminator must give \(None, 4\)"):
        zoo.new("gan", num_classes=3, loss=WithClasses(), discriminator=plain)


@pytest.mark.parametrize("penalty", [3, object(), lambda *args: 0.0])
def test_objects_that_are_no_penalties_raise(penalty):
    with pytest.raises(ValueError, match="penalties must be objects"):
        zoo.new("gan", penalties=[penalty])


@pytest.mark.parametrize("loss", [Relativistic, 3, object()])
def test_objects_that_are_no_losses_raise(loss):
    with pytest.raises(ValueError, match="loss must be one of .*; got"):
        zoo.new("gan", loss=loss)
