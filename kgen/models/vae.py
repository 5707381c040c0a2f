"""Variational autoencoder.

    D. P. Kingma, M. Welling. Auto-Encoding Variational Bayes. ICLR 2014,
        arXiv:1312.6114
    D. J. Rezende, S. Mohamed, D. Wierstra. Stochastic Backpropagation and Approximate
        Inference in Deep Generative Models. ICML 2014, arXiv:1401.4082
    Y. Burda, R. Grosse, R. Salakhutdinov. Importance Weighted Autoencoders. ICLR 2016,
        arXiv:1509.00519
    I. Higgins et al. beta-VAE. ICLR 2017 (the `beta`)

A latent z ~ N(0, I) explains an image through p(x | z). With q(z | x) = N(mean, diag
exp(log_var)) from the encoder,

    log p(x) >= E_q[log p(x | z)] - KL(q(z | x), p(z)) = ELBO(x)                   (1)
    log p(x) >= E log 1/k sum_i p(x | z_i) p(z_i) / q(z_i | x),   z_i ~ q(z | x)   (2)

(1): eq. 3 of Kingma and Welling, the KL in closed form (their appendix B), one z a
training step. (2): eq. 8 of Burda et al., tight as k grows. Training minimizes
-E_q[log p(x | z)] + beta KL. Unit: nats per image, summed over pixels and latents,
averaged over images; log p(x) is a probability of integers.

Shapes: B batch, (H, W, C) image, L latents, K classes, P parameters a pixel. Latents of
another shape S, such as maps, are (B, *S) wherever (B, L) is written.

Differences from the papers:
  1. Adam or what `compile` gets, in place of Adagrad.
  2. Evaluation draws its noise from a hash of the image: `evaluate`, `elbo` and
     `log_prob` are functions of the image, the same in any batch and on any backend.
  3. log_var is clipped to +-20, beyond any trained value, against overflow.
"""

import math

import keras
import numpy as np
from keras import ops

from kgen import backend, random
from kgen.batching import in_batches
from kgen.checks import is_integer, not_negative, positive, sizes
from kgen.layers import Sampling
from kgen.likelihoods import gaussian_kl, gaussian_log_prob, likelihood_of
from kgen.metrics import bits_per_dim, log_mean_weight
from kgen.models.base import GenerativeModel, Headline
from kgen.models.networks import (
    deserialize_networks,
    serialize_networks,
    vae_networks,
)
from kgen.signatures import Input, Output
from kgen.tensor_checks import prepare_latents

LATENT, _PIXELS = 0, 1  # streams of one seed


@keras.saving.register_keras_serializable(package="kgen")
class VAE(GenerativeModel):
    """Variational autoencoder with a Gaussian posterior; see the module for equations.

    Args:
        image_shape, levels, num_classes: see GenerativeModel. With K = num_classes,
            encoder and decoder see the label.
        latent_dim: L; or a shape S, such as (7, 7, 4), of maps.
        hidden_units: dense layers of the encoder, the decoder's reversed; by default
            (200, 200), or none where there are `filters`.
        filters: strided 3x3 convolutions before them, the decoder's reversed after.
        activation: of the hidden layers.
        likelihood: "bernoulli" (2 levels), "categorical", "discretized_logistic" or
            "logistic_mixture"; None: Bernoulli at 2 levels, else discretised logistic.
        beta: weight of the KL in the training loss (the ELBO is reported with 1). It
            may be set while `fit` runs; see `kgen.callbacks.KLWarmUp`.
        encoder: a Keras model of your own, from images scaled to 0..1 (B, H, W, C) [and
            one-hot labels (B, K)] to (B, 2 L), mean and log variance, halves of the
            last axis.
        decoder: a Keras model of your own, from z (B, L) [and one-hot labels (B, K)] to
            the likelihood's parameters (B, H, W, P).

    Metrics, means over images: `loss` (what is minimised), `elbo_nats`,
    `reconstruction_nats` (-E log p(x | z)), `kl_nats`, `bits_per_dim`
    (-ELBO / (H W C ln 2), an upper bound).

    Example:
        model = kgen.models.VAE((28, 28, 1), latent_dim=50)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=20)
    """

    config_names = (
        "latent_dim", "hidden_units", "filters", "activation", "likelihood", "beta",
    )  # fmt: skip
    headline = Headline("elbo_nats", "nats", "higher", "bound")
    _METRICS = ("elbo_nats", "reconstruction_nats", "kl_nats", "bits_per_dim")

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        latent_dim=50,
        hidden_units=None,
        filters=None,
        activation="relu",
        likelihood=None,
        beta=1.0,
        encoder=None,
        decoder=None,
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, **kwargs)
        if isinstance(latent_dim, (tuple, list)):
            self.latent_dim = self.latent_shape = sizes("latent_dim", latent_dim)
            if not latent_dim:
                raise ValueError("latent_dim must be a number or a shape; got ().")
        else:
            positive(latent_dim=latent_dim)
            self.latent_dim, self.latent_shape = int(latent_dim), (int(latent_dim),)
        if hidden_units is None:
            hidden_units = () if filters else (200, 200)
        self.hidden_units = sizes("hidden_units", hidden_units)
        self.filters = sizes("filters", filters or ())
        self.activation = activation
        self.likelihood = likelihood_of(likelihood, self.levels)
        # State, not a weight: files of weights need not have it. Keras would make a
        # weight of a variable that is an attribute.
        variable = keras.Variable(1.0, trainable=False, dtype="float32", name="beta")
        self.__dict__["_kl_weight"] = variable
        self.beta = beta
        given = {"encoder": encoder, "decoder": decoder}
        self._own_networks = [name for name, network in given.items() if network]
        self.encoder, self.decoder = vae_networks(
            encoder,
            decoder,
            image_shape=self.image_shape,
            latent_shape=self.latent_shape,
            num_params=self.likelihood.params_per_pixel(self.image_shape[-1]),
            num_classes=self.num_classes,
            hidden_units=self.hidden_units,
            filters=self.filters,
            activation=activation,
            dtype=self.dtype_policy,
        )
        self.sampling = Sampling()
        self.trackers = [keras.metrics.Mean(name) for name in self._METRICS]
        elbo = backend.compile_function(self, self._keyed_elbo, gradients=True)
        self._elbo = backend.few_sizes(elbo)
        self._bound = backend.few_sizes(self._importance_bound)
        self._chunk_sizes = backend.program_sizes()
        self._encode = backend.few_sizes(self.posterior)
        self._decode = backend.few_sizes(self._expected_image)
        self._log_weights = backend.compile_function(
            self, self.log_weights, gradients=True
        )
        self._draw_expected = backend.compile_function(self, self._draw_mean)
        self.built = True

    @property
    def beta(self):
        return self._beta

    @beta.setter
    def beta(self, value):
        not_negative(beta=value)
        self._beta = float(value)
        backend.sync_state(self)
        self._kl_weight.assign(self._beta)

    @property
    def variables(self):
        return [*super().variables, self._kl_weight]

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self._beta = float(ops.convert_to_numpy(self._kl_weight))

    def _given(self, x, labels):
        """What a network takes: `x`, or with labels also the one-hot of them."""
        return x if labels is None else [x, self.one_hot(labels)]

    # A subclass may override the next four: another prior, another divergence.

    def posterior(self, x, labels=None, training=False):
        """q(z | x): mean and log_var, float32 (B, L) each."""
        h = self.encoder(self._given(self.scale(x), labels), training=training)
        mean, log_var = ops.split(ops.cast(h, "float32"), 2, axis=-1)
        return mean, ops.clip(log_var, -20.0, 20.0)

    def divergence(self, z, mean, log_var):
        """KL(q(z | x), p(z)), (B,) nats, in closed form, or an estimate by z ~ q."""
        return gaussian_kl(mean, log_var)

    def log_prior(self, z):
        """log p(z) of latents (..., L): (...) nats."""
        return gaussian_log_prob(z, axes=len(self.latent_shape))

    def draw_latents(self, seeds):
        """z ~ p(z), a function of seeds, int32 (B, 2): (B, L)."""
        return self._normals(seeds, LATENT)

    def _normals(self, seeds, streams=LATENT):
        """Standard normal numbers for each seed: (B, L); of k streams, (B, k, L)."""
        epsilon = random.normals(seeds, math.prod(self.latent_shape), streams)
        if len(self.latent_shape) == 1:
            return epsilon
        k = ops.shape(epsilon)[1:-1]  # (), or (k,)
        return ops.reshape(epsilon, (-1, *k, *self.latent_shape))

    def _params(self, z, labels=None, training=False):
        """The likelihood's parameters p(x | z): (B, H, W, P)."""
        return self.decoder(self._given(z, labels), training=training)

    # Training

    def _terms(self, x, labels, epsilon=None, training=False):
        """Per image (B,): what is minimised, and the parts of the ELBO."""
        mean, log_var = self.posterior(x, labels, training)
        z = self.sampling([mean, log_var], epsilon)  # (B, L)
        params = self._params(z, labels, training)
        reconstruction = -self.likelihood.log_prob(params, x)
        kl = self.divergence(z, mean, log_var)
        elbo = -(reconstruction + kl)
        return {
            "loss": reconstruction + self._kl_weight.value * kl,
            "elbo_nats": elbo,
            "reconstruction_nats": reconstruction,
            "kl_nats": kl,
            "bits_per_dim": bits_per_dim(-elbo, self.image_shape),
        }

    @backend.step
    def train_step(self, data):
        x, labels, weight = self.unpack(data)

        def loss():
            terms = self._terms(x, labels, training=True)
            return self.objective(terms["loss"], weight), terms

        _, terms = self.minimize(loss)
        return self.update_metrics(terms, weight)

    @backend.step
    def test_step(self, data):
        x, labels, weight = self.unpack(data)
        return self.update_metrics(self._terms(x, labels, self._noise(x)), weight)

    # Densities

    def _noise(self, x):
        """Standard normal noise that is a function of each image: (B, L)."""
        return self._normals(random.image_keys(x))

    # `gradients` of all these: see GenerativeModel.

    def elbo(self, x, labels=None, gradients=False):
        """A one-sample estimate of the ELBO (1), a function of the image: (B,) nats."""
        with backend.record_gradients(gradients):
            return self._elbo(*self.prepare_inputs(x, labels))

    def _keyed_elbo(self, x, labels=None):
        return self._terms(x, labels, self._noise(x))["elbo_nats"]

    def log_prob(self, x, num_samples=100, labels=None, seed=0, gradients=False):
        """The importance-weighted bound (2) on log p(x), k = num_samples: (B,) nats.

        A function of each image and `seed`. Computed in batches, so memory grows with
        `num_samples` only where gradients are recorded; for whole data sets see
        `kgen.metrics.importance_weighted_bound`.
        """
        checked = self.prepare_inputs(x, labels)
        with backend.record_gradients(gradients):
            return self._bound(*checked, num_samples=num_samples, seed=seed)

    def _importance_bound(self, x, *labels, num_samples, seed):
        sizes = {"size_of": self._chunk_sizes}
        return log_mean_weight(
            self._log_weights, num_samples, seed, x, *labels, **sizes
        )

    def log_weights(self, x, keys, streams, labels=None):
        """log p(x, z) / q(z | x) for k latents drawn from q: (B, k) nats.

        Args:
            x: images (B, H, W, C).
            keys: seeds of the noise, int32 (B, 2).
            streams: int32 (k,), one independent stream of those seeds a latent.
            labels: (B,) or None.
        """
        epsilon = self._normals(keys, streams)  # (B, k, L)
        mean, log_var = self.posterior(x, labels)
        mean, log_var = mean[:, None], log_var[:, None]  # (B, 1, L)
        z = self.sampling([mean, log_var], epsilon)  # (B, k, L)
        axes = len(self.latent_shape)
        log_q = gaussian_log_prob(z, mean, log_var, axes)  # (B, k)
        ratio = self.log_prior(z) - log_q
        return self._log_px(x, z, labels) + ratio

    def _log_px(self, x, z, labels=None, training=False):
        """log p(x | z) of k latents an image, z (B, k, L): (B, k) nats."""
        k = ops.shape(z)[1]
        rows = ops.reshape(z, (-1, *self.latent_shape))  # (B k, L)
        repeated = None if labels is None else ops.repeat(labels, k, axis=0)
        params = self._params(rows, repeated, training)  # (B k, H, W, P)
        params = ops.reshape(params, (-1, k, *params.shape[1:]))
        return self.likelihood.log_prob(params, x[:, None])

    def encode(self, x, labels=None, gradients=False):
        """Posterior of images: mean and log variance, float32 (B, L) each."""
        with backend.record_gradients(gradients):
            return self._encode(*self.prepare_inputs(x, labels))

    def decode(self, z, labels=None, gradients=False):
        """E[x | z] of latents (B, L): float32 (B, H, W, C) in 0..levels-1; for two
        levels this is the probability of 1."""
        z, labels = prepare_latents(z, self.latent_shape), self.prepare_labels(labels)
        given = [z] if labels is None else [z, labels]
        with backend.record_gradients(gradients):
            return self._decode(*given)

    def _expected_image(self, z, labels=None):
        return self.likelihood.mean(self._params(z, labels))

    def reconstruct(self, x, labels=None, gradients=False):
        """E[x | z = posterior mean]: float32 (B, H, W, C) in 0..levels-1."""
        mean, _ = self.encode(x, labels, gradients)
        return self.decode(mean, labels, gradients)

    def call(self, inputs, training=False):
        """`reconstruct` for `predict`: images, or (images, labels) if conditional."""
        x, labels, nan = self.call_inputs(inputs)
        mean, _ = self.posterior(x, labels, training)
        expected = self.likelihood.mean(self._params(mean, labels, training))
        return expected + nan[:, None, None, None]

    def interpolate(self, a, b, steps, labels=None, gradients=False):
        """Expected images on the straight line between the posterior means of images
        a and b, (B, H, W, C) each, both ends included: float32 (B, steps, H, W, C)."""
        if not is_integer(steps) or steps < 2:
            raise ValueError(
                f"steps must be an integer of at least 2, for both ends; got {steps!r}."
            )
        if len(a) != len(b):
            raise ValueError(
                f"interpolate goes between pairs of images; got {len(a)} and {len(b)}."
            )
        start, end = (self.encode(x, labels, gradients)[0] for x in (a, b))
        path = [(1.0 - t) * start + t * end for t in np.linspace(0.0, 1.0, steps)]
        return ops.stack([self.decode(z, labels, gradients) for z in path], axis=1)

    # Drawing

    def _drawn_params(self, seeds, labels):
        return self._params(self.draw_latents(seeds), labels)

    def draw(self, seeds, labels=None):
        """x ~ p(x | z), z ~ N(0, I): integers (B, H, W, C)."""
        u = random.uniforms(seeds, self.num_dims, _PIXELS)  # (B, H W C)
        u = ops.reshape(u, (-1, *self.image_shape))
        return self.likelihood.draw(self._drawn_params(seeds, labels), u)

    def _draw_mean(self, seeds, labels=None):
        return self.likelihood.mean(self._drawn_params(seeds, labels))

    def sample_expected(self, n, seed=None, labels=None, verbose="auto"):
        """E[x | z] for the same z that `sample` draws from the same seed: float32 NumPy
        (n, H, W, C) in 0..levels-1. Smoother than a sample, and not one."""
        rows = self.requests(n, seed, labels)
        return in_batches(self._draw_expected, rows, self.image_shape, verbose)

    # Keeping

    def endpoints(self):
        images, latents = {"images": self.image_input}, self.latent_shape
        z = {"z": Input("float32", latents, kind="latent")}
        elbo = {"elbo": Output("float32")}
        posterior = dict.fromkeys(["mean", "log_var"], Output("float32", latents))
        expected = {"images": Output("float32", self.image_shape)}
        return super().endpoints() | {
            "elbo": self.signature(self.elbo, images, elbo),
            "encode": self.signature(self.encode, images, posterior),
            "decode": self.signature(self.decode, z, expected),
            "reconstruct": self.signature(self.reconstruct, images, expected),
        }

    def get_config(self):
        return super().get_config() | serialize_networks(self, self._own_networks)

    @classmethod
    def from_config(cls, config):
        return cls(**deserialize_networks(config, "encoder", "decoder"))
