"""What kgen.data does with the backend: `fit` on its batches and streams, augmentation,
and TensorFlow beside another backend."""

import keras
import numpy as np
import pytest
from test_data import gather, multiset, numbered

import kgen.data as data
from kgen.data.sources import _tensorflow

# tfds, keras_cv and their dependencies still use what others deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def classifier():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss)
    return model


def test_fit_reads_the_batches_of_each_epoch():
    """All of them, in order, also where the training goes on from a later epoch."""

    class Recorded(data.Batches):
        def __getitem__(self, i):
            seen.append((self.epoch, i))
            return super().__getitem__(i)

    seen = []
    batches = Recorded(numbered(40), np.arange(40) % 3, batch_size=16)
    model = classifier()
    model.fit(batches, epochs=2, verbose=0, shuffle=False)
    # Keras may look at the first batches, and end an epoch, before it starts.
    first = seen[-1][0] - 1
    assert seen[-6:] == [(first + e, i) for e in range(2) for i in range(3)], seen
    assert batches.epoch == first + 2
    begin = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.set_epoch(epoch)
    )
    arguments = {"verbose": 0, "shuffle": False, "callbacks": [begin]}
    model.fit(batches, initial_epoch=5, epochs=8, **arguments)
    assert seen[-9:] == [(5 + e, i) for e in range(3) for i in range(3)], seen
    model.evaluate(batches, verbose=0)


def test_augmentation_flips_images_in_streams_for_fit():
    images = np.zeros((200, 4, 6, 3), np.uint8)
    images[..., 1] = np.arange(200)[:, None, None]
    images[..., 0] = np.arange(6) * 50  # left to right

    def load(labels):
        options = dict(augment=True, labels=True, batch_size=32)
        return data.load((images, labels), **options)

    splits, epochs = load(np.arange(200)), []
    assert isinstance(splits.test, data.Batches)  # train only
    for _ in range(2):
        x, y = gather(splits.train)
        assert x.dtype == np.uint8 and x.shape == (162, 4, 6, 3)
        flipped = (x == images[y, :, ::-1]).all((1, 2, 3))
        assert (flipped ^ (x == images[y]).all((1, 2, 3))).all()
        assert 50 < flipped.sum() < 112
        epochs.append(dict(zip(y, flipped, strict=True)))
    assert epochs[0] != epochs[1]
    stream, again = (load(np.arange(200) % 3).train for _ in range(2))
    np.testing.assert_array_equal(gather(stream)[0], gather(again)[0])  # by the seed
    model = classifier()
    history = model.fit(stream, epochs=2, verbose=0, shuffle=False)
    assert len(history.history["loss"]) == 2
    model.evaluate(stream, verbose=0)


def test_augmentation_rounds_clips_and_quantizes():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3))
    plain = data.load(images).train.astype(int)
    for offset, shift in ((100.6, 101), (-100.4, -100)):
        layers = [keras.layers.Rescaling(1.0, offset=offset)]
        want = np.clip(plain + shift, 0, 255)
        for levels in (256, 4):
            got = gather(data.load(images, augment=layers, levels=levels).train)
            assert multiset(got) == multiset((want * levels // 256).astype("uint8"))


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="uses the GPUs")
def test_tensorflow_beside_another_backend_takes_no_gpu(monkeypatch):
    import tensorflow as tf

    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *a: calls.append(a))
    assert _tensorflow() is tf and calls == [([], "GPU")]
