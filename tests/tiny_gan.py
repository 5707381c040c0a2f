"""The smallest model with everything that a step has to carry: two networks with an
optimizer each, batch normalisation, dropout, seed generators, a gradient penalty."""

import keras
from keras import layers, ops

from kgen import backend
from kgen.models import GenerativeModel
from kgen.optimizers import Alternating


@keras.saving.register_keras_serializable(package="tests")
class TinyGAN(GenerativeModel):
    def __init__(self, image_shape=(8, 8, 1), levels=17, penalty=1.0, **kwargs):
        super().__init__(image_shape, levels, **kwargs)
        self.penalty = penalty
        policy = {"dtype": self.dtype_policy}
        self.generator = keras.Sequential(
            [
                layers.Input((4,)),
                layers.Dense(8, **policy),
                layers.BatchNormalization(**policy),
                layers.ReLU(**policy),
                layers.Dense(self.num_dims, activation="sigmoid", **policy),
            ],
            name="maker",
        )
        self.discriminator = keras.Sequential(
            [
                layers.Input((self.num_dims,)),
                layers.Dense(8, activation="tanh", **policy),
                # seeded: otherwise Keras on PyTorch takes the global generator
                layers.Dropout(0.1, seed=1, **policy),
                layers.Dense(1, **policy),
            ],
            name="critic",
        )
        self.d_tracker = keras.metrics.Mean("d_loss")
        self.g_tracker = keras.metrics.Mean("g_loss")
        self.built = True

    def score(self, x, training=True):
        return ops.cast(self.discriminator(x, training=training), "float32")[:, 0]

    def make(self, n, training=True):
        z = keras.random.normal((n, 4), seed=self.seed_generator)
        return ops.cast(self.generator(z, training=training), "float32")

    def d_loss(self, real):
        fake = ops.stop_gradient(self.make(ops.shape(real)[0]))
        per_image = ops.softplus(-self.score(real)) + ops.softplus(self.score(fake))
        gradient = self.input_gradient(self.score, real)
        return per_image + self.penalty * ops.sum(ops.square(gradient), axis=-1)

    @backend.step
    def train_step(self, data):
        x, _, weight = self.unpack(data)
        real = ops.reshape(self.scale(x), (-1, self.num_dims))
        real = ops.cast(real, "float32")

        def discriminator():
            per_image = self.d_loss(real)
            return self.objective(per_image, weight), per_image

        def generator():
            per_image = ops.softplus(-self.score(self.make(ops.shape(real)[0])))
            return self.objective(per_image, weight), per_image

        _, d = self.minimize(discriminator, "discriminator")
        _, g = self.minimize(generator, "generator")
        return self.tracked({"loss": d + g, "d_loss": d, "g_loss": g}, weight)

    @backend.step
    def test_step(self, data):
        x, _, weight = self.unpack(data)
        real = ops.cast(ops.reshape(self.scale(x), (-1, self.num_dims)), "float32")
        d = ops.softplus(-self.score(real, training=False))
        return self.tracked({"loss": d, "d_loss": d, "g_loss": d}, weight)

    def call(self, x, training=False):
        x = ops.reshape(self.scale(x), (-1, self.num_dims))
        return self.score(x, training)

    def get_config(self):
        return super().get_config() | {"penalty": self.penalty}


def compiled(optimizer="adam", **kwargs):
    """A TinyGAN with an optimizer each, both as `optimizer` says."""
    config = keras.optimizers.serialize(keras.optimizers.get(optimizer))
    model = TinyGAN(**kwargs)
    each = {k: keras.optimizers.deserialize(config) for k in ("generator",)}
    each["discriminator"] = keras.optimizers.deserialize(config)
    model.compile(Alternating(**each))
    return model


def weights(model):
    return [ops.convert_to_numpy(v) for v in model.weights]
