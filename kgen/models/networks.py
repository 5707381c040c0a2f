"""Default networks of VAEs and GANs, and the check of a user's own.

Labels enter as one-hot vectors: beside z, beside the encoder's flattened maps, and of a
discriminator as maps of their own.

VAE: strided convolutions, then dense layers, and the same backwards; either kind may be
empty.

GAN, by name:

    mlp      I. Goodfellow et al. Generative Adversarial Nets. NIPS 2014,
             arXiv:1406.2661: rectified layers; maxout layers of 5 pieces with dropout
    dcgan    A. Radford, L. Metz, S. Chintala. ICLR 2016, arXiv:1511.06434: strided
             5x5 convolutions, batch normalisation, widths that double as maps halve
    infogan  M. Lucic et al. Are GANs Created Equal? NeurIPS 2018, arXiv:1711.10337: two
             4x4 strided convolutions and a layer of 16 times as many units; these
             networks alone, which are InfoGAN's, without its codes

Differences from the papers: images are in 0..1, of a sigmoid, for DCGAN too (there they
are in -1..1, of a tanh); none of them has labels.

Shapes: B batch, L latents, (H, W, C) image, P likelihood parameters a pixel, F filters,
K classes.
"""

import math

import keras
from keras import layers, ops

from kgen.checks import one_of, positive
from kgen.layers import Crop, SpectralNorm
from kgen.models.gan_losses import heads

# A user's own


def check_network(name, network, source, num_classes, target):
    """Raises a ValueError unless `network` maps (B, *source) [and (B, K)] to
    (B, *target)."""
    if not isinstance(network, keras.Layer):
        raise ValueError(f"{name} must be a Keras model; got {network!r}.")
    given = symbolic_output(network, source, num_classes)
    if tuple(getattr(given, "shape", ())) != (None, *target):
        got = getattr(given, "shape", f"{type(given).__name__} of outputs")
        raise ValueError(f"{name} must give {(None, *target)}; got {got}.")


def check_activities(name, network):
    """Raises a ValueError if a layer has an `activity_regularizer`: a GAN's step runs
    its networks several times."""
    for layer in network._flatten_layers():
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(
                f"{name}: the activity_regularizer of layer '{layer.name}' would count "
                "differently on each backend; put it into a loss of your own."
            )


def symbolic_output(network, source, num_classes):
    """The symbolic output for inputs (None, *source) [and labels (None, K)]."""
    x = keras.KerasTensor((None, *source))
    x = [x, keras.KerasTensor((None, num_classes))] if num_classes else x
    try:
        return network(x)
    except (ValueError, TypeError) as error:
        labels = f" and one-hot labels (None, {num_classes})" if num_classes else ""
        raise ValueError(
            f"The network '{network.name}' must take {(None, *source)}{labels}; it "
            f"failed: {error}"
        ) from error


def serialize_networks(model, names):
    """For `get_config`: {name: configuration} of those that are the user's own."""
    serialize = keras.saving.serialize_keras_object
    return {name: serialize(getattr(model, name)) for name in names}


def deserialize_networks(config, *names):
    """For `from_config`: the configuration with its networks made."""
    own = {name: config[name] for name in names if name in config}
    make = keras.saving.deserialize_keras_object
    return config | {name: make(network) for name, network in own.items()}


# VAE


def vae_networks(encoder, decoder, *, image_shape, latent_shape, num_params, **sizes):
    """A VAE's encoder and decoder: those given, once checked, or the default ones."""
    outputs = (*latent_shape[:-1], 2 * latent_shape[-1])
    params = (*image_shape[:2], num_params)
    encoder = encoder or build_encoder(image_shape, outputs, **sizes)
    decoder = decoder or build_decoder(latent_shape, params, **sizes)
    K = sizes["num_classes"]
    check_network("encoder", encoder, image_shape, K, outputs)
    check_network("decoder", decoder, latent_shape, K, params)
    return encoder, decoder


def build_encoder(
    image_shape, output_shape, *, num_classes, hidden_units, filters, **hidden
):
    """Scaled images (B, H, W, C) [and one-hot labels (B, K)] -> (B, *output_shape).

    `hidden` has the activation and the dtype of the hidden layers.
    """
    inputs = [layers.Input(image_shape)]
    h = inputs[0]  # (B, H, W, C)
    for width in filters:
        h = layers.Conv2D(width, 3, 2, padding="same", **hidden)(h)
    h = layers.Flatten(dtype=hidden["dtype"])(h)
    if num_classes:
        inputs.append(layers.Input((num_classes,)))
        h = layers.Concatenate(dtype=hidden["dtype"])([h, inputs[1]])
    for units in hidden_units:
        h = layers.Dense(units, **hidden)(h)
    h = layers.Dense(math.prod(output_shape), dtype=hidden["dtype"])(h)
    if len(output_shape) > 1:
        h = layers.Reshape(output_shape, dtype=hidden["dtype"])(h)
    return keras.Model(inputs, h, name="encoder")


def build_decoder(
    latent_shape, output_shape, *, num_classes, hidden_units, filters, **hidden
):
    """z (B, *latent_shape) [and one-hot labels (B, K)] -> (B, H, W, P)."""
    inputs = [layers.Input(latent_shape)]
    h = inputs[0]
    if len(latent_shape) > 1:
        h = layers.Flatten(dtype=hidden["dtype"])(h)  # (B, L)
    if num_classes:
        inputs.append(layers.Input((num_classes,)))
        h = layers.Concatenate(dtype=hidden["dtype"])([h, inputs[1]])
    for units in reversed(hidden_units):
        h = layers.Dense(units, **hidden)(h)
    H, W, outputs = output_shape
    if not filters:
        h = layers.Dense(H * W * outputs, dtype=hidden["dtype"])(h)
        h = layers.Reshape(output_shape, dtype=hidden["dtype"])(h)
        return keras.Model(inputs, h, name="decoder")
    sizes = [(H, W)]  # the encoder's maps; a stride of 2 rounds up
    for _ in filters:
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    small = (*sizes.pop(), filters[-1])
    h = layers.Dense(small[0] * small[1] * small[2], **hidden)(h)
    h = layers.Reshape(small, dtype=hidden["dtype"])(h)
    for width in reversed((filters[0], *filters[:-1])):
        h = layers.Conv2DTranspose(width, 3, 2, padding="same", **hidden)(h)
        h = Crop(sizes.pop(), dtype=hidden["dtype"])(h)
    h = layers.Conv2D(outputs, 3, padding="same", dtype=hidden["dtype"])(h)
    return keras.Model(inputs, h, name="decoder")


# GAN


@keras.saving.register_keras_serializable(package="kgen")
class Maxout(layers.Layer):
    """The largest of each run of `pieces` features: (B, n pieces) -> (B, n)."""

    def __init__(self, pieces, **kwargs):
        super().__init__(**kwargs)
        self.pieces = pieces

    def call(self, x):
        return ops.max(
            ops.reshape(x, (-1, x.shape[-1] // self.pieces, self.pieces)), -1
        )

    def get_config(self):
        return super().get_config() | {"pieces": self.pieces}


def gan_networks(model, generator, discriminator):
    """A GAN's networks: those given, once checked, or those it names."""
    one_of("architecture", model.architecture, ("mlp", "dcgan", "infogan"))
    mlp = model.architecture == "mlp"
    width = model.width if model.width is not None else 1200 if mlp else 64
    positive(width=width)
    if mlp and width % 5:
        raise ValueError(
            f"width must be a multiple of 5, the pieces of a maxout unit; got {width}."
        )
    shape, K, dtype = model.image_shape, model.num_classes, model.dtype_policy
    normed = not (model.spectral_norm or model.penalties)
    if generator is None:
        builder = Generator(shape, model.latent_dim, K, width, dtype)
        generator = getattr(builder, model.architecture)()
    if discriminator is None:
        builder = Discriminator(shape, K, width, model.spectral_norm, normed, dtype)
        discriminator = getattr(builder, model.architecture)()
    check_network("generator", generator, (model.latent_dim,), K, shape)
    check_network("discriminator", discriminator, shape, K, (1 + heads(model.kind),))
    check_activities("generator", generator)
    check_activities("discriminator", discriminator)
    return generator, discriminator


class Generator:
    """Builds z (B, L) [, labels (B, K)] -> images in 0..1 (B, H, W, C)."""

    def __init__(self, image_shape, latent_dim, num_classes, width, dtype):
        self.image_shape, self.width = image_shape, width
        self.dtype = {"dtype": dtype}
        self.inputs = [layers.Input((latent_dim,))]
        self.h = self.inputs[0]  # (B, L)
        if num_classes:
            self.inputs.append(layers.Input((num_classes,)))
            self.h = layers.Concatenate(**self.dtype)(self.inputs)

    def model(self, h):
        return keras.Model(self.inputs, h, name="generator")

    def mlp(self):
        H, W, C = self.image_shape
        h, same = self.h, {"kernel_initializer": _uniform(0.05)} | self.dtype
        for _ in range(2):
            h = layers.Dense(self.width, activation="relu", **same)(h)
        h = layers.Dense(H * W * C, activation="sigmoid", **same)(h)
        return self.model(layers.Reshape(self.image_shape, **self.dtype)(h))

    def _normalize(self, h, slope):
        h = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **self.dtype)(h)
        return layers.LeakyReLU(slope, **self.dtype)(h)

    def _upward(self, h, maps, filters, kernel_size, slope):
        """From the smallest map (B, h, w, F') to the image."""
        same = {"kernel_initializer": _normal(), "padding": "same"} | self.dtype
        C = self.image_shape[-1]
        for size, width in zip(maps, [*filters, C], strict=True):
            last = size == maps[-1]
            options = {"activation": "sigmoid"} if last else {"use_bias": False}
            h = layers.Conv2DTranspose(width, kernel_size, 2, **options, **same)(h)
            h = Crop(size, **self.dtype)(h)
            h = h if last else self._normalize(h, slope)
        return self.model(h)

    def dcgan(self):
        maps = halvings(self.image_shape[:2], least=4)  # from the image down
        widths = [self.width * 2**i for i in range(len(maps) - 1)]
        h = self._to_map(self.h, maps[-1], widths[-1], slope=0.0)
        return self._upward(h, maps[-2::-1], widths[-2::-1], 5, slope=0.0)

    def infogan(self):
        maps = halvings(self.image_shape[:2], least=1)[:3]
        h = layers.Dense(16 * self.width, use_bias=False, **self._dense())(self.h)
        h = self._to_map(self._normalize(h, 0.2), maps[-1], 2 * self.width, slope=0.2)
        return self._upward(h, maps[-2::-1], [self.width] * (len(maps) - 2), 4, 0.2)

    def _dense(self):
        return {"kernel_initializer": _normal()} | self.dtype

    def _to_map(self, h, size, width, slope):
        units = size[0] * size[1] * width
        h = self._normalize(
            layers.Dense(units, use_bias=False, **self._dense())(h), slope
        )
        return layers.Reshape((*size, width), **self.dtype)(h)


class Discriminator:
    """Builds images in 0..1 (B, H, W, C) [, labels (B, K)] -> logits (B, 1).

    With `spectral_norm`, of all layers. Batch normalisation only with `batch_norm`:
    spectral normalisation and gradient penalties go without (the latter are of each
    example alone, which batch statistics are not).
    """

    def __init__(
        self, image_shape, num_classes, width, spectral_norm, batch_norm, dtype
    ):
        self.image_shape, self.num_classes, self.width = image_shape, num_classes, width
        self.spectral_norm, self.batch_norm = spectral_norm, batch_norm
        self.dtype = {"dtype": dtype}
        self.inputs = [layers.Input(image_shape)]
        if num_classes:
            self.inputs.append(layers.Input((num_classes,)))

    def _linear(self, layer, h, *args, **kwargs):
        if not self.spectral_norm:
            return layer(*args, **kwargs, **self.dtype)(h)
        layer = layer(*args, use_bias=False, **kwargs, **self.dtype)
        return SpectralNorm(layer, **self.dtype)(h)

    def model(self, h, **options):
        h = layers.Flatten(**self.dtype)(h)
        h = self._linear(layers.Dense, h, 1, **options)
        return keras.Model(self.inputs, h, name="discriminator")

    def mlp(self):
        h = layers.Flatten(**self.dtype)(self.inputs[0])
        if self.num_classes:
            h = layers.Concatenate(**self.dtype)([h, self.inputs[1]])
        options = {"kernel_initializer": _uniform(0.005)}
        for i, rate in enumerate((0.2, 0.5)):
            h = layers.Dropout(rate, seed=i, **self.dtype)(h)
            h = self._linear(layers.Dense, h, self.width, **options)
            h = Maxout(5, **self.dtype)(h)
        h = layers.Dropout(0.5, seed=2, **self.dtype)(h)
        return self.model(h, **options)

    def _image_and_label(self):
        if not self.num_classes:
            return self.inputs[0]
        H, W, _ = self.image_shape
        maps = layers.RepeatVector(H * W, **self.dtype)(self.inputs[1])
        maps = layers.Reshape((H, W, self.num_classes), **self.dtype)(maps)
        return layers.Concatenate(**self.dtype)([self.inputs[0], maps])

    def _downward(self, widths, kernel_size):
        options = {"padding": "same", "kernel_initializer": _normal()}
        h = self._image_and_label()
        for i, width in enumerate(widths):
            h = self._linear(layers.Conv2D, h, width, kernel_size, strides=2, **options)
            h = self._activate(h, normed=i > 0)
        return h

    def _activate(self, h, normed):
        if normed and self.batch_norm:
            h = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **self.dtype)(h)
        return layers.LeakyReLU(0.2, **self.dtype)(h)

    def dcgan(self):
        count = len(halvings(self.image_shape[:2], least=4)) - 1
        h = self._downward([self.width * 2**i for i in range(count)], 5)
        return self.model(h, kernel_initializer=_normal())

    def infogan(self):
        count = len(halvings(self.image_shape[:2], least=1)[:3]) - 1
        h = self._downward([self.width * 2**i for i in range(count)], 4)
        h = layers.Flatten(**self.dtype)(h)
        normal = {"kernel_initializer": _normal()}
        h = self._linear(layers.Dense, h, 16 * self.width, **normal)
        return self.model(self._activate(h, normed=True), **normal)


def halvings(size, least):
    """Map sizes from the image's down, halved (rounded up) once and then until the next
    one's longer side would be below `least`."""
    maps = [tuple(size), tuple(-(-n // 2) for n in size)]
    while (max(maps[-1]) + 1) // 2 >= least and max(maps[-1]) > 1:
        maps.append(tuple(-(-n // 2) for n in maps[-1]))
    return maps


def _normal():
    return keras.initializers.RandomNormal(stddev=0.02)


def _uniform(limit):
    return keras.initializers.RandomUniform(-limit, limit)
