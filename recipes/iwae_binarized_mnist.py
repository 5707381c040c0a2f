"""A one-layer IWAE on statically binarized MNIST: the bound on log p(x), k = 5000.

    python recipes/iwae_binarized_mnist.py --backend jax

Reproduces: the IWAE of one stochastic layer of Burda, Grosse and Salakhutdinov,
    "Importance Weighted Autoencoders", ICLR 2016, arXiv:1509.00519, app. D, table 3.
Data: binarized_mnist (Larochelle and Murray 2011), epoch selected on validation.
Published: 87.63 nats (trained with k = 5), 87.10 (k = 50), both estimated with 5000
    samples over the whole test set.

Differences from the paper:
  1. Adam with a warm-up and a cosine schedule; the paper has 3280 epochs in eight
     stages from 1e-3 to 1e-4, batches of 20, an epsilon of 1e-4.
  2. The epoch is selected by the validation bound of --num-samples.
  3. The output's bias starts at 0, not at the logit of the mean pixel.
"""

from run import cosine, run

import keras

import kgen


def build(args, splits):
    model = kgen.models.IWAE(
        splits.image_shape,
        latent_dim=50,
        num_samples=args.num_samples,
        hidden_units=(200, 200),
        activation="tanh",
    )
    return model, keras.optimizers.Adam(cosine(args, splits))


if __name__ == "__main__":
    run(
        __doc__,
        build,
        "binarized_mnist",
        epochs=250,
        batch_size=50,
        lr=1e-3,
        num_samples=5,
        previews=10,
        bound_samples=5000,
    )
