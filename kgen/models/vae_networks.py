"""The VAE's default encoder and decoder: strided convolutions, then dense layers, and
the same backwards. Either kind may be empty. Labels enter as one-hot vectors."""

import keras
from keras import layers

from kgen.layers import Crop


def networks(encoder, decoder, *, image_shape, latent_dim, num_params, **sizes):
    """Those given, whose outputs are checked, or the default ones."""
    H, W, _ = image_shape
    outputs, params = 2 * latent_dim, (H, W, num_params)
    encoder = encoder or build_encoder(image_shape, outputs, **sizes)
    decoder = decoder or build_decoder(latent_dim, params, **sizes)
    classes = sizes["num_classes"]
    for network, source, shape, what in (
        (encoder, image_shape, (outputs,), "mean and log variance of each latent"),
        (decoder, (latent_dim,), params, "the likelihood's parameters"),
    ):
        taken = [keras.KerasTensor((None, *source))]
        if classes:
            taken.append(keras.KerasTensor((None, classes)))
        given = network(taken if classes else taken[0]).shape
        if tuple(given) != (None, *shape):
            raise ValueError(
                f"The network '{network.name}' must give {(None, *shape)}, {what}; got "
                f"{tuple(given)}."
            )
    return encoder, decoder


def build_encoder(
    image_shape, outputs, *, num_classes, hidden_units, filters, **hidden
):
    """Scaled images (B, H, W, C) [and one-hot labels (B, K)] -> (B, outputs).

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
    h = layers.Dense(outputs, dtype=hidden["dtype"])(h)
    return keras.Model(inputs, h, name="encoder")


def build_decoder(
    latent_dim, output_shape, *, num_classes, hidden_units, filters, **hidden
):
    """z (B, L) [and one-hot labels (B, K)] -> `output_shape`, (B, H, W, P)."""
    inputs = [layers.Input((latent_dim,))]
    h = inputs[0]  # (B, L)
    if num_classes:
        inputs.append(layers.Input((num_classes,)))
        h = layers.Concatenate(dtype=hidden["dtype"])(inputs)
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
