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
    for start in (0, 5):
        seen.clear()
        model.fit(batches, initial_epoch=start, epochs=start + 3, **arguments)
        expected = [(start + e, i) for e in range(3) for i in range(3)]
        assert seen[-9:] == expected, seen
    model.evaluate(batches, verbose=0)


def test_augmentation_flips_images_in_streams_for_fit():
    images = np.zeros((200, 4, 6, 3), np.uint8)
    images[..., 1] = np.arange(200)[:, None, None]
    images[:, :, :, 0] = np.arange(6) * 50  # left to right
    arguments = dict(augment=True, labels=True, batch_size=32)
    splits = data.load((images, np.arange(200)), **arguments)
    assert isinstance(splits.test, data.Batches)  # train only
    epochs = []
    for _ in range(2):
        x, y = gather(splits.train)
        assert x.dtype == np.uint8 and x.shape == (162, 4, 6, 3)
        original = images[y]
        flipped = (x == original[:, :, ::-1]).all((1, 2, 3))
        same = (x == original).all((1, 2, 3))
        assert (flipped ^ same).all() and 50 < flipped.sum() < 112
        epochs.append({int(k): bool(f) for k, f in zip(y, flipped, strict=True)})
    assert epochs[0] != epochs[1]
    streams = [data.load((images, np.arange(200) % 3), **arguments) for _ in range(2)]
    first, again = (gather(each.train) for each in streams)
    np.testing.assert_array_equal(first[0], again[0])  # repeats with the seed
    model = classifier()
    history = model.fit(streams[0].train, epochs=2, verbose=0, shuffle=False)
    assert len(history.history["loss"]) == 2
    model.evaluate(streams[0].train, verbose=0)


def test_augmentation_rounds_clips_and_quantizes():
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3))
    plain = data.load(images).train.astype(int)
    for offset, shift in ((100.6, 101), (-100.4, -100)):
        layers = [keras.layers.Rescaling(1.0, offset=offset)]
        want = np.clip(plain + shift, 0, 255)
        got = gather(data.load(images, augment=layers).train)
        assert multiset(got) == multiset(want.astype(np.uint8))
        four = gather(data.load(images, augment=layers, levels=4).train)
        assert multiset(four) == multiset((want * 4 // 256).astype(np.uint8))


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="uses the GPUs")
def test_tensorflow_beside_another_backend_takes_no_gpu(monkeypatch):
    import tensorflow as tf

    calls = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *a: calls.append(a))
    assert _tensorflow() is tf and calls == [([], "GPU")]
