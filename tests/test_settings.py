"""Settings that are changed while `fit` runs reach the compiled step."""

import keras
import numpy as np
import pytest
import zoo
from keras.optimizers import SGD, Adam

from kgen import backend
from kgen.callbacks import KLWarmUp


@pytest.mark.portable
def test_beta_follows_its_warm_up(digits, tmp_path):
    model = zoo.randomize(zoo.new("vae", beta=1.0))
    model.compile(SGD(1e-4))
    warm_up = KLWarmUp(epochs=4, start=0.5, end=2.5)
    logs = model.fit(digits[:32], epochs=6, callbacks=[warm_up], verbose=0).history
    names = "loss", "reconstruction_nats", "kl_nats"
    loss, reconstruction, kl = (np.array(logs[name]) for name in names)
    betas = [0.5, 1.0, 1.5, 2.0, 2.5, 2.5]
    np.testing.assert_allclose((loss - reconstruction) / kl, betas, rtol=1e-4)
    assert model.beta == 2.5
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    logs = again.evaluate(digits[:32], verbose=0)
    weighted = logs["reconstruction_nats"] + 2.5 * logs["kl_nats"]
    assert again.beta == 2.5 and logs["loss"] == pytest.approx(weighted, rel=1e-5)
    with pytest.raises(ValueError, match="got a IWAE"):
        iwae = zoo.new("iwae")
        iwae.compile("sgd")
        iwae.fit(digits[:32], callbacks=[warm_up], verbose=0)


def test_beta_changes_between_two_batches(digits):
    model = zoo.randomize(zoo.new("vae", beta=3.0))
    model.compile(SGD(0.0))
    logs_of = {}

    def next_beta(batch, logs):
        logs_of[batch] = dict(logs)
        model.beta = 0.0

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=next_beta)
    model.fit(digits[:32], batch_size=16, callbacks=[callback], verbose=0)
    first, both = logs_of[0], logs_of[1]
    assert first["loss"] == pytest.approx(
        first["reconstruction_nats"] + 3.0 * first["kl_nats"], rel=1e-4
    )
    second = 2.0 * both["loss"] - first["loss"]  # metrics are means so far
    reconstruction = 2.0 * both["reconstruction_nats"] - first["reconstruction_nats"]
    assert second == pytest.approx(reconstruction, rel=1e-4)


@pytest.mark.portable
def test_learning_rate_of_alternating_optimizers(digits):
    model = zoo.new("gan")
    model.compile(generator_optimizer=Adam(1e-3), discriminator_optimizer=Adam(2e-3))
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)
    model.fit(digits[:32], verbose=0)
    model.optimizer.learning_rate = 0.0
    before = [zoo.numpy(v) for v in model.trainable_variables]
    model.fit(digits[:32], verbose=0)
    zoo.assert_same(before, model.trainable_variables)


@pytest.mark.skipif(backend.name != "torch", reason="PyTorch's threads")
def test_a_busy_machine_is_told_of_once(monkeypatch, digits):
    import torch

    from kgen.backend import torch_devices

    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(torch_devices, "_told", [])
    model = zoo.new("vae")
    model.compile("sgd")
    model.fit(digits[:8], verbose=0)  # one thread, of the tests
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    with pytest.warns(UserWarning, match="99 on .* cores.* 8 threads.*set_num_threads"):
        model.fit(digits[:8], verbose=0)
    model.fit(digits[:8], verbose=0)
