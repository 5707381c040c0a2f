"""The losses of D and G, from the discriminator's logits D: (B,) -> (B,); and the
penalties of D.

Each class has `discriminator(real, generated)`, what D minimizes, and
`generator(generated)`, what G minimizes. `threshold` is the logit above which D takes
an image for a real one; None for a critic, whose scores have no such value. A user's
own loss is an object of the same form, with `get_config` and `from_config`, of a class
that is registered with Keras; with `relativistic = True` its method is
`generator(generated, real)`. With `heads = M` the discriminator, a user's own, gives M
outputs beside the logit; the methods get all of them, (B, 1 + M) in place of (B,), and
`labels=`, one-hot (B, K) or None.

A penalty is called with (gradient_at, real, generated, seed), where gradient_at(x) is
the gradient of D at images x, seed a Keras seed generator, and returns (B,).

sigma is the logistic function, softplus(t) = log(1 + e^t) = -log sigma(-t), so that no
logarithm of a probability is taken; all are float32 and finite for logits of +-1e4.
"""

import keras
from keras import ops

from kgen import random
from kgen.checks import not_negative, one_of


class Minimax:
    """min_G max_D E log sigma(D(x)) + E log(1 - sigma(D(G(z)))).

    I. Goodfellow et al. Generative Adversarial Nets. NIPS 2014, arXiv:1406.2661, eq. 1.
    G minimizes log(1 - sigma(D)), whose derivative by D is -sigma(D): next to nothing
    early in training, once D has learnt to reject what G makes.
    """

    name, threshold = "minimax", 0.0

    @staticmethod
    def discriminator(real, generated):
        return ops.softplus(-real) + ops.softplus(generated)

    @staticmethod
    def generator(generated):
        return -ops.softplus(generated)


class NonSaturating(Minimax):
    """The same D; G ascends log sigma(D(G(z))) (Goodfellow et al. 2014, section 3). The
    derivative by D is -(1 - sigma(D)): Minimax's times (1 - sigma(D)) / sigma(D)."""

    name = "non_saturating"

    @staticmethod
    def generator(generated):
        return ops.softplus(-generated)


class LeastSquares:
    """D to 1 on real images and 0 on generated ones, G to 1; halves of squares.

    X. Mao et al. Least Squares Generative Adversarial Networks. ICCV 2017,
        arXiv:1611.04076, eq. 9.
    """

    name, threshold = "least_squares", 0.5

    @staticmethod
    def discriminator(real, generated):
        return 0.5 * (ops.square(real - 1.0) + ops.square(generated))

    @staticmethod
    def generator(generated):
        return 0.5 * ops.square(generated - 1.0)


class Hinge:
    """D to 1 and above on real images, to -1 and below on generated ones; G ascends D.

    J. H. Lim, J. C. Ye. Geometric GAN. 2017, arXiv:1705.02894
    T. Miyato, T. Kataoka, M. Koyama, Y. Yoshida. Spectral Normalization for Generative
        Adversarial Networks. ICLR 2018, arXiv:1802.05957, eqs. 16 and 17
    """

    name, threshold = "hinge", 0.0

    @staticmethod
    def discriminator(real, generated):
        return ops.relu(1.0 - real) + ops.relu(1.0 + generated)

    @staticmethod
    def generator(generated):
        return -generated


class Wasserstein:
    """D, a critic, ascends E D(x) - E D(G(z)), which is Wasserstein's distance for the
    best of the 1-Lipschitz ones; G ascends E D(G(z)).

    M. Arjovsky, S. Chintala, L. Bottou. Wasserstein GAN. ICML 2017, arXiv:1701.07875,
        eqs. 2 and 3.
    """

    name, threshold = "wasserstein", None

    @staticmethod
    def discriminator(real, generated):
        return generated - real

    @staticmethod
    def generator(generated):
        return -generated


_NEEDS = ("get_config", "from_config")
_METHODS = ("discriminator", "generator", *_NEEDS)
LOSSES = {
    kind.name: kind
    for kind in (Minimax, NonSaturating, LeastSquares, Hinge, Wasserstein)
}


def loss_of(loss):
    """The class of losses called `loss`; or `loss` itself, an object of a user's."""
    if not isinstance(loss, str):
        missing = [name for name in _METHODS if not hasattr(loss, name)]
        if isinstance(loss, type) or missing:
            raise ValueError(
                f"loss must be one of {', '.join(LOSSES)}, or an object with methods "
                f"{', '.join(_METHODS)}; got {loss!r}."
            )
        return loss
    one_of("loss", loss, tuple(LOSSES))
    return LOSSES[loss]


def discriminator_loss(kind, real, generated, labels):
    """D's loss (B,), from its outputs (B, 1 + M)."""
    if heads(kind):
        return kind.discriminator(real, generated, labels=labels)
    return kind.discriminator(real[:, 0], generated[:, 0])


def generator_loss(kind, generated, real, labels):
    """G's loss (B,), from D's outputs (B, 1 + M) and, for a loss that compares, a
    function that gives those of real images."""
    compares = getattr(kind, "relativistic", False)
    outputs = [generated, real()] if compares else [generated]
    if heads(kind):
        return kind.generator(*outputs, labels=labels)
    return kind.generator(*[output[:, 0] for output in outputs])


def heads(kind):
    """M, outputs of D beside the logit."""
    return getattr(kind, "heads", 0)


def measures(kind):
    """Names of what `measure` gives."""
    if getattr(kind, "threshold", None) is None:
        return ["critic_difference"]
    return ["accuracy_real", "accuracy_generated"]


def measure(kind, real, generated):
    """How well D tells the two apart, by its logits (B,): {name: (B,)}."""
    if getattr(kind, "threshold", None) is None:
        values = [real - generated]
    else:
        right = [real > kind.threshold, generated <= kind.threshold]
        values = [ops.cast(r, "float32") for r in right]
    return dict(zip(measures(kind), values, strict=True))


def squared_norms(gradient):
    """||gradient||_2^2 of each image, float32: (B, H, W, C) -> (B,)."""
    return ops.sum(ops.square(ops.cast(gradient, "float32")), axis=(1, 2, 3))


def norms(gradient):
    """||gradient||_2 of each image, differentiable at zero, where its derivative is
    taken to be zero: (B, H, W, C) -> (B,)."""
    squared = squared_norms(gradient)
    zero = ops.equal(squared, 0.0)
    return ops.where(zero, 0.0, ops.sqrt(ops.where(zero, 1.0, squared)))


def mixing_weights(n, seed):
    """a ~ U(0, 1) of n images, from a Keras seed generator: (n, 1, 1, 1)."""
    draw = keras.random.uniform
    return random.of_batch(lambda n: draw((n, 1, 1, 1), seed=seed), n)


@keras.saving.register_keras_serializable(package="kgen")
class GradientPenalty:
    """weight (||grad D(x^)||_2 - 1)^2, x^ = a x + (1 - a) G(z), a ~ U(0, 1).

    I. Gulrajani, F. Ahmed, M. Arjovsky, V. Dumoulin, A. Courville. Improved Training of
        Wasserstein GANs. NIPS 2017, arXiv:1704.00028, eq. 3
    """

    def __init__(self, weight=10.0):
        not_negative(gradient_penalty=weight)
        self.weight = weight

    def __call__(self, gradient_at, real, generated, seed):
        a = mixing_weights(ops.shape(real)[0], seed)  # (B, 1, 1, 1)
        gradient = gradient_at(a * real + (1.0 - a) * generated)
        return self.weight * ops.square(norms(gradient) - 1.0)

    def get_config(self):
        return {"weight": self.weight}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable(package="kgen")
class R1Penalty(GradientPenalty):
    """weight / 2 ||grad D(x)||_2^2 of real images.

    L. Mescheder, A. Geiger, S. Nowozin. Which Training Methods for GANs do actually
        Converge? ICML 2018, arXiv:1801.04406, eq. 9
    """

    def __init__(self, weight):
        not_negative(r1_penalty=weight)
        self.weight = weight

    def __call__(self, gradient_at, real, generated, seed):
        return 0.5 * self.weight * squared_norms(gradient_at(real))


@keras.saving.register_keras_serializable(package="kgen")
class R2Penalty(R1Penalty):
    """weight / 2 ||grad D(G(z))||_2^2, of generated images: eq. 10 there."""

    def __call__(self, gradient_at, real, generated, seed):
        return 0.5 * self.weight * squared_norms(gradient_at(generated))


def check_penalties(penalties):
    """A ValueError unless these are penalties."""
    for penalty in penalties:
        if not callable(penalty) or not all(hasattr(penalty, n) for n in _NEEDS):
            raise ValueError(
                "penalties must be objects that are called, with methods "
                f"{', '.join(_NEEDS)}, such as kgen.models.gan_losses.R1Penalty(1.0); "
                f"got {penalty!r}."
            )
