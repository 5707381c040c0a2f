"""Generative adversarial networks.

    I. Goodfellow, J. Pouget-Abadie, M. Mirza, B. Xu, D. Warde-Farley, S. Ozair,
        A. Courville, Y. Bengio. Generative Adversarial Nets. NIPS 2014,
        arXiv:1406.2661

Two networks are trained against each other: the discriminator D(x), a logit, tells
images from what the generator makes, G(z), z ~ p(z). Losses and penalties, with their
sources, are in gan_losses.py, default networks in networks.py.

    a step:  `discriminator_steps` times   z drawn, D minimizes its loss + penalties
             once                          z drawn anew, G minimizes its loss

Implementation choices: D takes real and generated images in separate passes. Both
networks are in training mode in both steps, so moving statistics of batch normalisation
follow each training pass: D's two in its own step, one more for each penalty, one in
G's; G's one in each. `evaluate`, `sample` and the others use them.

Shapes: B batch, L latents, (H, W, C) image, K classes.
"""

import functools

import keras
import numpy as np
from keras import ops

from kgen import backend, random
from kgen.checks import boolean, fraction, one_of, positive
from kgen.models import gan_losses as losses
from kgen.models.base import GenerativeModel, Headline
from kgen.models.networks import (
    deserialize_networks,
    gan_networks,
    serialize_networks,
    symbolic_output,
)
from kgen.optimizers import Alternating
from kgen.signatures import Input, Output
from kgen.tensor_checks import prepare_latents

LOSS_METRICS = ["discriminator_loss", "generator_loss"]
NORM_METRICS = ["discriminator_gradient_norm", "generator_gradient_norm"]


@keras.saving.register_keras_serializable(package="kgen")
class GAN(GenerativeModel):
    """A generator and a discriminator; see the module for equations.

    Args:
        image_shape, levels, num_classes: see GenerativeModel.
        latent_dim: L.
        loss: "minimax", "non_saturating", "least_squares", "hinge" or "wasserstein", or
            an object of your own; see kgen/models/gan_losses.py.
        architecture: "mlp", "dcgan" or "infogan"; see kgen/models/networks.py.
        width: units of the mlp's layers, a multiple of 5, by default 1200; filters of
            the largest maps of the others, by default 64.
        prior: of z: "normal", N(0, I), or "uniform", on [-1, 1]^L.
        gradient_penalty: lambda; by default 10 for a "wasserstein" critic that nothing
            else restrains, else 0.
        r1_penalty: gamma.
        penalties: of D, further ones, objects; see kgen/models/gan_losses.py.
        weight_clip: c, D's weights are clipped to [-c, c] after each of its steps
            (Arjovsky et al., algorithm 1); None for no clipping.
        spectral_norm: whether D's layers are spectrally normalised.
        discriminator_steps: steps of D for each of G, on the same images (WGAN's paper
            has others each time), z anew; metrics of D are those of the last.
        ema: None, or m: `sample`, `generate` and `export` use an average of G's
            weights, after each step m_t times itself + (1 - m_t) times theirs, where
            m_t = min(m, (1 + t) / (10 + t)) after the t-th step of G's optimizer
            (TensorFlow's `ExponentialMovingAverage` with `num_updates`): a short run
            averages few steps. Another optimizer counts from 0.
        gradient_norms: whether `fit` also reports the l2 norms of both networks'
            gradients; 0 for a step that float16 overflowed, which is skipped.
        generator: your own, from z (B, L) [and one-hot labels (B, K)] to images in 0..1
            (B, H, W, C). Give Dropout a seed, for runs that repeat.
        discriminator: your own, from images in 0..1 (B, H, W, C) [and one-hot labels
            (B, K)] to logits (B, 1), or (B, 1 + M) for a loss of M heads; of what
            restrains it, only the arguments count.

    Metrics, means over images: `discriminator_loss` without penalties and
    `generator_loss`, `loss` their sum, no measure of quality; D's
    `accuracy_real` and `accuracy_generated`, or a critic's `critic_difference`,
    D(x) - D(G(z)). Sample weights weigh a row's real image and its generated ones.

    Example:
        model = kgen.models.GAN((28, 28, 1), levels=256, architecture="dcgan")
        model.compile(keras.optimizers.Adam(2e-4, beta_1=0.5))
        model.fit(images, batch_size=128, epochs=20)
    """

    headline = Headline(
        "frechet_distance", "squared feature units", "lower", "distance"
    )

    config_names = (
        "latent_dim", "architecture", "width", "prior", "gradient_penalty",
        "r1_penalty", "weight_clip", "spectral_norm", "discriminator_steps", "ema",
        "gradient_norms",
    )  # fmt: skip

    def __init__(
        self,
        image_shape,
        levels=256,
        num_classes=None,
        latent_dim=64,
        loss="non_saturating",
        architecture="dcgan",
        width=None,
        prior="normal",
        gradient_penalty=None,
        r1_penalty=0.0,
        weight_clip=None,
        spectral_norm=False,
        discriminator_steps=1,
        ema=None,
        gradient_norms=False,
        generator=None,
        discriminator=None,
        penalties=(),
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, **kwargs)
        positive(latent_dim=latent_dim, discriminator_steps=discriminator_steps)
        self.latent_dim, self.prior = latent_dim, Prior(prior, latent_dim)
        self.kind = losses.loss_of(loss)
        self.architecture, self.width = architecture, width
        if gradient_penalty is None:
            others = spectral_norm or r1_penalty or penalties
            restrained = weight_clip is not None or others
            gradient_penalty = 10.0 * (loss == "wasserstein" and not restrained)
        self.gradient_penalty, self.r1_penalty = gradient_penalty, r1_penalty
        named = losses.GradientPenalty(gradient_penalty), losses.R1Penalty(r1_penalty)
        losses.check_penalties(penalties)
        self.own_penalties = list(penalties)
        self.penalties = [*(p for p in named if p.weight), *penalties]
        self.weight_clip, self.spectral_norm = weight_clip, spectral_norm
        self.discriminator_steps, self.ema = discriminator_steps, ema
        self.gradient_norms = gradient_norms
        self._own_networks = check_settings(self, generator, discriminator)
        self.generator, self.discriminator = gan_networks(
            self, generator, discriminator
        )
        if weight_clip is not None:
            limit(self.discriminator, weight_clip)
        if ema is not None:
            self.average = frozen_copy(self.generator, (latent_dim,), num_classes)
        names = (
            LOSS_METRICS + losses.measures(self.kind) + NORM_METRICS * gradient_norms
        )
        self.trackers = [keras.metrics.Mean(name) for name in names]
        generate = backend.compile_function(self, self._generate_images, gradients=True)
        score = backend.compile_function(self, self._score_images, gradients=True)
        self._generate = backend.few_sizes(generate)
        self._score = backend.few_sizes(score)
        self.built = True

    def compile(
        self,
        optimizer=None,
        *,
        generator_optimizer=None,
        discriminator_optimizer=None,
        **kwargs,
    ):
        """As `GenerativeModel.compile`, with an optimizer for each network, or one
        whose configuration serves for both; by default DCGAN's Adam(2e-4, beta_1=0.5).
        """
        given = optimizer
        if optimizer is None:
            given = keras.optimizers.Adam(2e-4, beta_1=0.5)
        each = generator_optimizer, discriminator_optimizer
        if optimizer is not None and each != (None, None):
            raise ValueError(
                "compile takes either optimizer= for both networks, or "
                "generator_optimizer= and discriminator_optimizer=; got both."
            )
        if (each[0] is None) != (each[1] is None):
            one, other = ("discriminator", "generator")[:: 1 if each[0] is None else -1]
            raise ValueError(
                f"compile got {one}_optimizer= alone: pass {other}_optimizer= too, or "
                "one optimizer= for both networks."
            )
        optimizer = Alternating.of(given, generator=each[0], discriminator=each[1])
        if self.ema is not None:
            self.average.trainable = False
        super().compile(optimizer, **kwargs)

    def _one_hot(self, labels):
        return None if labels is None else self.one_hot(labels)

    def _given(self, x, labels):
        """What a network takes: `x`, or with labels also the one-hot of them."""
        return x if labels is None else [x, self.one_hot(labels)]

    def make(self, z, labels=None, training=False, network=None):
        """G(z), float32 (B, H, W, C) in 0..1."""
        network = network or self.generator
        return ops.cast(network(self._given(z, labels), training=training), "float32")

    def _outputs(self, x, labels=None, training=False):
        """All that D says of images in 0..1, the logit first: float32 (B, 1 + M)."""
        outputs = self.discriminator(self._given(x, labels), training=training)
        return ops.cast(outputs, "float32")

    def make_from_seeds(self, seeds, labels=None):
        """G(z), z ~ p(z), of the generator itself, not of its average: of seeds, int32
        (B, 2) [and labels (B,)], float32 (B, H, W, C) in 0..1."""
        return self.make(self.prior.of(seeds), labels)

    def _logits(self, x, labels=None, training=False):
        """D(x) of images in 0..1: float32 (B,)."""
        return self._outputs(x, labels, training)[:, 0]

    def _real(self, x):
        return ops.cast(self.scale(x), "float32")  # (B, H, W, C) in 0..1

    def _discriminator_terms(self, real, generated, labels=None, training=False):
        of_real = self._outputs(real, labels, training)  # (B, 1 + M)
        of_generated = self._outputs(generated, labels, training)
        loss = losses.discriminator_loss(
            self.kind, of_real, of_generated, self._one_hot(labels)
        )
        measures = losses.measure(self.kind, of_real[:, 0], of_generated[:, 0])
        return {"discriminator_loss": loss} | measures

    def _train_discriminator(self, real, labels, weight):
        def gradient_at(x):
            score = functools.partial(self._logits, labels=labels, training=True)
            return self.input_gradient(score, x)

        def loss():
            z = self.prior.draw(ops.shape(real)[0], self.seed_generator)  # (B, L)
            generated = ops.stop_gradient(self.make(z, labels, training=True))
            terms = self._discriminator_terms(real, generated, labels, training=True)
            total = terms["discriminator_loss"]  # (B,)
            for penalty in self.penalties:
                images = real, generated
                total = total + penalty(gradient_at, *images, self.seed_generator)
            return self.objective(total, weight), terms

        return self._minimize(loss, "discriminator")

    def _generator_loss(self, generated, real, labels, training=False):
        def of_real():
            return self._outputs(real, labels, training)

        outputs = self._outputs(generated, labels, training)  # (B, 1 + M)
        one_hot = self._one_hot(labels)
        return losses.generator_loss(self.kind, outputs, of_real, one_hot)  # (B,)

    def _train_generator(self, real, labels, weight):
        def loss():
            z = self.prior.draw(ops.shape(real)[0], self.seed_generator)  # (B, L)
            generated = self.make(z, labels, training=True)
            per_image = self._generator_loss(generated, real, labels, training=True)
            return self.objective(per_image, weight), {"generator_loss": per_image}

        return self._minimize(loss, "generator")

    def _minimize(self, loss, network):
        """One step of a network: its terms, with the gradient's norm if wanted."""
        if not self.gradient_norms:
            return self.minimize(loss, network)[1]
        _, terms, norm = self.minimize(loss, network, with_norm=True)
        if hasattr(self.optimizer, "inner_optimizer"):  # overflow: the step is skipped
            norm = ops.where(ops.isfinite(norm), norm, 0.0)
        every = ops.zeros_like(terms[f"{network}_loss"]) + norm  # for each image, (B,)
        return terms | {f"{network}_gradient_norm": every}

    def _generator_steps(self):
        """How many steps G has made: a variable that is saved with the optimizer."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        return optimizer.members["generator"].iterations

    @backend.step
    def train_step(self, data):
        x, labels, weight = self.unpack(data)
        real = self._real(x)
        for _ in range(self.discriminator_steps):
            terms = self._train_discriminator(real, labels, weight)
        more = self._train_generator(real, labels, weight)
        if self.ema is not None:
            decay = warm_up_decay(self.ema, self._generator_steps())
            follow(self.average, self.generator, decay)
        return self._update_logs(terms | more, weight)

    @backend.step
    def test_step(self, data):
        x, labels, weight = self.unpack(data)
        z = self.prior.of(random.image_keys(x))
        real, generated = self._real(x), self.make(z, labels)
        terms = self._discriminator_terms(real, generated, labels)
        terms["generator_loss"] = self._generator_loss(generated, real, labels)
        return self._update_logs(terms, weight)

    def evaluate(self, *args, return_dict=True, **kwargs):
        logs = super().evaluate(*args, return_dict=return_dict, **kwargs)
        shown = [k for k in logs if k not in NORM_METRICS] if return_dict else []
        return {k: logs[k] for k in shown} if return_dict else logs

    def _update_logs(self, terms, weight):
        loss = terms["discriminator_loss"] + terms["generator_loss"]
        return self.update_metrics({"loss": loss} | terms, weight)

    def _generate_images(self, z, labels=None):
        network = self.generator if self.ema is None else self.average
        x = self.make(z, labels, network=network)
        return (self.levels - 1) * ops.clip(x, 0.0, 1.0)

    def draw(self, seeds, labels=None):
        """G(z), z ~ p(z), to the nearest integers (B, H, W, C)."""
        x = self._generate_images(self.prior.of(seeds), labels)
        return ops.cast(ops.round(x), "int32")

    def generate(self, z, labels=None, gradients=False):
        """G(z) of latents (B, L) [and labels, (B,) or one for all]: float32
        (B, H, W, C) in 0..levels-1. `gradients`: see GenerativeModel."""
        z = prepare_latents(z, (self.latent_dim,))
        given = [z]
        if self.num_classes is not None:
            one = isinstance(labels, (int, np.integer))
            labels = self.prepare_labels(np.full(len(z), labels) if one else labels)
            if len(labels) != len(z):
                raise ValueError(
                    f"labels: expected one or {len(z)}, got {len(labels)}."
                )
            given.append(labels)
        with backend.record_gradients(gradients):
            return self._generate(*given)

    def _score_images(self, x, labels=None):
        return self._logits(self._real(x), labels)

    def discriminate(self, x, labels=None, gradients=False):
        """D(x) of integer images: logits, float32 (B,). `gradients`: see
        GenerativeModel."""
        with backend.record_gradients(gradients):
            return self._score(*self.prepare_inputs(x, labels))

    def call(self, inputs, training=False):
        """`discriminate` for `predict`: of images, or (images, labels)."""
        x, labels, nan = self.call_inputs(inputs)
        return self._logits(self._real(x), labels, training) + nan

    def endpoints(self):
        z = {"z": Input("float32", (self.latent_dim,), kind="latent")}
        images = {"images": Output("float32", self.image_shape)}
        real, logits = {"images": self.image_input}, {"logits": Output("float32")}
        return super().endpoints() | {
            "generate": self.signature(self._generate_images, z, images),
            "discriminate": self.signature(self._score_images, real, logits),
        }

    def get_config(self):
        config = super().get_config() | serialize_networks(self, self._own_networks)
        serialize = keras.saving.serialize_keras_object
        config["penalties"] = serialize(self.own_penalties)
        if self.kind in losses.LOSSES.values():
            return config | {"loss": self.kind.name}
        return config | {"loss": serialize(self.kind)}

    @classmethod
    def from_config(cls, config):
        own = ["generator", "discriminator", "penalties"]
        own += ["loss"] if isinstance(config.get("loss"), dict) else []
        return cls(**deserialize_networks(config, *own))


# Arguments


def check_settings(model, generator, discriminator):
    """Raises a ValueError on arguments of a GAN that cannot be. Returns the names of
    the networks that are the user's own."""
    boolean(spectral_norm=model.spectral_norm, gradient_norms=model.gradient_norms)
    if model.ema is not None:
        fraction(ema=model.ema)
    if model.weight_clip is not None and not 0.0 < model.weight_clip < float("inf"):
        raise ValueError(
            f"weight_clip must be positive, or None; got {model.weight_clip!r}."
        )
    if model.spectral_norm and discriminator is not None:
        raise ValueError(
            "spectral_norm is of the discriminators that kgen builds: in your own, "
            "wrap the layers in kgen.layers.SpectralNorm, and leave spectral_norm out."
        )
    own = {"generator": generator, "discriminator": discriminator}
    return [name for name, network in own.items() if network is not None]


class Prior:
    """p(z) of latents (B, L): "normal", N(0, I), or "uniform", on [-1, 1]^L."""

    def __init__(self, name, latent_dim):
        one_of("prior", name, ("normal", "uniform"))
        self.name, self.latent_dim = name, latent_dim

    def draw(self, n, seed):
        """n of them, from a Keras seed generator."""
        L = self.latent_dim
        if self.name == "normal":
            return random.of_batch(lambda n: keras.random.normal((n, L), seed=seed), n)
        draw = keras.random.uniform
        return random.of_batch(lambda n: draw((n, L), -1.0, 1.0, seed=seed), n)

    def of(self, seeds):
        """One for each seed, int32 (B, 2), and from nothing else."""
        if self.name == "normal":
            return random.normals(seeds, self.latent_dim, stream=1)
        return 2.0 * random.uniforms(seeds, self.latent_dim, 1) - 1.0


# Weights: clipped, averaged


@keras.saving.register_keras_serializable(package="kgen")
class Clip(keras.constraints.Constraint):
    """Weights clipped to [-limit, limit]."""

    def __init__(self, limit):
        self.limit = limit

    def __call__(self, w):
        return ops.clip(w, -self.limit, self.limit)

    def get_config(self):
        return {"limit": self.limit}


def limit(network, c):
    """Has optimizers clip the network's weights to [-c, c] after each step."""
    for v in network.trainable_variables:
        if v.constraint is not None and not isinstance(v.constraint, Clip):
            raise ValueError(
                f"weight_clip would take the place of the constraint of {v.path}: "
                "leave out one of the two."
            )
        v.constraint = Clip(c)


def frozen_copy(network, source, num_classes):
    """A network of the same layers and weights, which nothing trains."""
    copy = type(network).from_config(network.get_config())
    symbolic_output(copy, source, num_classes)  # builds subclassed models
    copy.set_weights(network.get_weights())
    copy.trainable = False
    return copy


def warm_up_decay(decay, steps):
    """min(decay, (1 + t) / (10 + t)) after t steps, a scalar of the backend: the decay
    of TensorFlow's `tf.train.ExponentialMovingAverage` with `num_updates`. So an
    average soon leaves the weights that it began with: of a decay of 0.999, after 100
    steps they have a share of 2e-12, where the plain average keeps 0.90."""
    t = ops.cast(steps, "float32")
    return ops.minimum(decay, (1.0 + t) / (10.0 + t))


def follow(average, network, m):
    """Moves the weights of a copy to m times themselves + (1 - m) times network's."""
    for v, w in zip(average.weights, network.weights, strict=True):
        v.assign(m * v + (1.0 - m) * w)
