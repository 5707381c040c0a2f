"""Importance weighted autoencoder, of one stochastic layer or several.

    Y. Burda, R. Grosse, R. Salakhutdinov. Importance Weighted Autoencoders. ICLR 2016,
        arXiv:1509.00519

A VAE that is trained on the bound it is judged by. With stochastic layers z_1 (next to
the image) to z_N and z = (z_1, ..., z_N),

    p(x, z)   = p(z_N) p(z_{N-1} | z_N) ... p(z_1 | z_2) p(x | z_1)                (1)
    q(z | x)  = q(z_1 | x) q(z_2 | z_1) ... q(z_N | z_{N-1})                       (2)
    L_k(x)    = E log 1/k sum_i w_i,   w_i = p(x, z_i) / q(z_i | x),  z_i ~ q      (3)

(1), (2): eqs. 1 and 2 of the paper, each conditional a diagonal Gaussian from a
network, p(z_N) = N(0, I). (3): eq. 8, L_1 the ELBO, L_k <= L_{k+1} <= log p(x); its
gradient, in which each sample counts as much as its weight (eq. 14), is what automatic
differentiation gives. k = 1 with several layers is the paper's deeper VAE. Unit: nats
per image.

Shapes: B batch, (H, W, C) image, k num_samples, L_1, ..., L_N latents of each layer.

Differences from the paper:
  1. ReLU by default, for tanh; Keras' Adam has an epsilon of 1e-7, for 1e-4.
  2. Evaluation draws its noise from a hash of the image, as VAE's does.
  3. Labels, if any, condition the networks next to the image alone.
"""

import keras
import numpy as np
from keras import layers, ops

from kgen import random
from kgen.checks import positive, sizes
from kgen.likelihoods import gaussian_log_prob
from kgen.metrics import bits_per_dim
from kgen.models.base import Headline
from kgen.models.vae import LATENT, VAE


@keras.saving.register_keras_serializable(package="kgen")
class IWAE(VAE):
    """Importance weighted autoencoder; see the module for equations.

    `encode`, `decode`, `reconstruct` and `interpolate` are about the layer next to the
    image, z_1. `log_prob` takes its own number of samples, as VAE's does.

    Args:
        latent_dim: L_1, or (L_1, ..., L_N).
        num_samples: k of the bound that is trained and evaluated.
        upper_units: dense layers of each network between stochastic layers: the
            recognition's in this order, the generative reversed.
        others: see VAE; there is no `beta`.

    Metrics, means over images: `loss` and `bound_nats` (3), its negative; `elbo_nats`,
    `reconstruction_nats` and `kl_nats`, means over the k samples; `bits_per_dim` of the
    bound (3).

    Example:
        model = kgen.models.IWAE((28, 28, 1), latent_dim=(100, 50), num_samples=5)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=50)
    """

    headline = Headline("bound_nats", "nats", "higher", "bound")
    _METRICS = ("bound_nats", *VAE._METRICS)

    config_names = ("num_samples", "upper_units")

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        latent_dim=50,
        num_samples=50,
        upper_units=(100, 100),
        **kwargs,
    ):
        several = isinstance(latent_dim, (tuple, list))
        dims = sizes("latent_dim", latent_dim if several else (latent_dim,))
        if not dims or "beta" in kwargs:
            raise ValueError(
                "IWAE takes one latent_dim or more, no beta, as the bound is no sum "
                f"of two terms; got latent_dim={latent_dim}, {kwargs}."
            )
        positive(num_samples=num_samples)
        super().__init__(image_shape, levels, num_classes, latent_dim=dims[0], **kwargs)
        self.latent_dims = dims
        self.num_samples = int(num_samples)
        self.upper_units = sizes("upper_units", upper_units)
        self.upper_encoders, self.upper_decoders = [], []
        for below, above in zip(dims, dims[1:], strict=False):
            self.upper_encoders.append(self._dense(below, self.upper_units, above))
            self.upper_decoders.append(
                self._dense(above, self.upper_units[::-1], below)
            )

    def _dense(self, inputs, units, outputs):
        """(n, inputs) -> (n, 2 outputs), mean and log variance."""
        dtype = self.dtype_policy
        hidden = [layers.Dense(u, self.activation, dtype=dtype) for u in units]
        last = layers.Dense(2 * outputs, dtype=dtype)
        return keras.Sequential([layers.Input((inputs,)), *hidden, last])

    def _gaussian(self, network, z, training):
        """Mean and log variance of the next layer's L' latents: (B, k, L) -> (B, k, L')
        each."""
        k, L = ops.shape(z)[1], z.shape[-1]
        h = network(ops.reshape(z, (-1, L)), training=training)  # (B k, 2 L')
        h = ops.reshape(ops.cast(h, "float32"), (-1, k, h.shape[-1]))
        mean, log_var = ops.split(h, 2, axis=-1)
        return mean, ops.clip(log_var, -20.0, 20.0)

    def _of_layers(self, epsilon):
        """Noise (..., L_1 + ... + L_N), split: (..., L_n) each."""
        ends = np.cumsum(self.latent_dims).tolist()
        return [
            epsilon[..., end - L : end]
            for L, end in zip(self.latent_dims, ends, strict=True)
        ]

    def _log_terms(self, x, labels, epsilon, training=False):
        """log p(x | z), and log p(z) - log q(z | x), of z ~ q from standard normals
        (B, k, L_1 + ... + L_N): (B, k) each."""
        noise = self._of_layers(epsilon)  # (B, k, L_n) each
        mean, log_var = self.posterior(x, labels, training)  # (B, L_1)
        mean, log_var = mean[:, None], log_var[:, None]
        z = lowest = self.sampling([mean, log_var], noise[0])  # (B, k, L_1)
        ratio = -gaussian_log_prob(z, mean, log_var)  # (B, k)
        uppers = zip(noise[1:], self.upper_encoders, self.upper_decoders, strict=True)
        for own_noise, up, down in uppers:
            mean, log_var = self._gaussian(up, z, training)  # (B, k, L_n)
            above = self.sampling([mean, log_var], own_noise)
            ratio = ratio - gaussian_log_prob(above, mean, log_var)
            ratio = ratio + gaussian_log_prob(z, *self._gaussian(down, above, training))
            z = above
        ratio = ratio + gaussian_log_prob(z)
        return self._log_px(x, lowest, labels, training), ratio

    def _terms(self, x, labels, epsilon=None, training=False):
        """Per image (B,): what is minimised, and the parts of the ELBO."""
        if epsilon is None:
            shape = (ops.shape(x)[0], self.num_samples, sum(self.latent_dims))
            epsilon = self.sampling.noise(shape)
        log_px, ratio = self._log_terms(x, labels, epsilon, training)  # (B, k) each
        bound = ops.logsumexp(log_px + ratio, axis=-1) - np.log(self.num_samples)
        reconstruction, kl = -ops.mean(log_px, axis=-1), -ops.mean(ratio, axis=-1)
        return {
            "loss": -bound,
            "bound_nats": bound,
            "elbo_nats": -(reconstruction + kl),
            "reconstruction_nats": reconstruction,
            "kl_nats": kl,
            "bits_per_dim": bits_per_dim(-bound, self.image_shape),
        }

    def _noise(self, x):
        """Standard normal noise that is a function of each image: (B, k, sum of L)."""
        streams = ops.arange(self.num_samples, dtype="int32")
        return random.normals(random.image_keys(x), sum(self.latent_dims), streams)

    def log_weights(self, x, keys, streams, labels=None):
        """As VAE's: log w of k latents, (B, k) nats."""
        epsilon = random.normals(keys, sum(self.latent_dims), streams)
        log_px, ratio = self._log_terms(x, labels, epsilon)
        return log_px + ratio

    def draw_latents(self, seeds):
        """z_1 by (1), from the top down: (B, L_1)."""
        epsilon = random.normals(seeds, sum(self.latent_dims), LATENT)[:, None]
        *noise, z = self._of_layers(epsilon)  # (B, 1, L_n) each
        downwards = zip(reversed(noise), reversed(self.upper_decoders), strict=True)
        for own_noise, down in downwards:
            z = self.sampling(list(self._gaussian(down, z, False)), own_noise)
        return z[:, 0]

    def get_config(self):
        config = super().get_config() | {"latent_dim": self.latent_dims}
        del config["beta"]
        return config
