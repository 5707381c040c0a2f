"""A one-layer VAE on statically binarized MNIST: the bound on log p(x), k = 5000.

    python recipes/vae_binarized_mnist.py --backend tensorflow

Reproduces: the VAE of one stochastic layer, k = 1, of Burda, Grosse and Salakhutdinov,
    "Importance Weighted Autoencoders", ICLR 2016, arXiv:1509.00519, app. D, table 3.
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: 88.71 nats (importance-weighted estimate, 5000 samples, whole test set).

Differences from the paper:
  1. Two hidden layers of gated units (GATED) in place of 200 tanh units.
  2. LATENT_DIM latents in place of 50.
  3. Adam with a cosine schedule; the paper has 3280 epochs in eight stages from 1e-3 to
     1e-4, batches of 20.
  4. The epoch is selected by the validation ELBO.
"""

from run import cosine, run

import keras
from keras import layers

import kgen

LATENT_DIM = 40
GATED = (300, 300)  # h = (W x + b) * sigmoid(V x + c)


def gated_mlp(input_shape, output_shape, outputs):
    inputs = layers.Input(input_shape)
    h = layers.Flatten()(inputs)
    for units in GATED:
        gate = layers.Dense(units, activation="sigmoid")(h)
        h = layers.Multiply()([layers.Dense(units)(h), gate])
    h = layers.Reshape(output_shape)(layers.Dense(outputs)(h))
    return keras.Model(inputs, h)


def build(args, splits):
    H, W, C = splits.image_shape
    model = kgen.models.VAE(
        splits.image_shape,
        latent_dim=LATENT_DIM,
        encoder=gated_mlp((H, W, C), (2 * LATENT_DIM,), 2 * LATENT_DIM),
        decoder=gated_mlp((LATENT_DIM,), (H, W, C), H * W * C),
    )
    return model, keras.optimizers.Adam(cosine(args, splits, warmup=0))


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "binarized_mnist",
        epochs=100,
        batch_size=100,
        lr=5e-4,
        previews=10,
        bound_samples=5000,
    )
