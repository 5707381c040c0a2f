"""p(x | parameters) over integer images, and Gaussians over latents. All in nats.

Each likelihood turns a network's output map into log-probabilities and draws:

    log_prob(params, x)   sum over the event (H, W, C): (B,) nats
    draw(params, u)       integers by inverse CDF of given uniforms u (B, H, W, C)
    mean(params)          expected image in 0..levels-1 (probability of 1 for 2 levels)

Shapes: B batch, H, W, C image, P = `num_params` per channel; params are
(B, H, W, C * P), x and u are (B, H, W, C); more axes in front broadcast. Sums are taken
in float32, whatever the policy: half precision cannot add up 784 terms.
"""

import numpy as np
from keras import ops

# At e^-7, PixelCNN++'s floor, a bin of 256 holds all the mass; at e^7 the two ends do.
_MAX_ABS_LOG_SCALE = 7.0


def likelihood_of(name, levels):
    """The likelihood called `name` over `levels` levels; None: Bernoulli for two
    levels, the discretised logistic for more."""
    if name is None:
        name = Bernoulli.name if levels == 2 else DiscretizedLogistic.name
    for kind in (Bernoulli, Categorical, DiscretizedLogistic):
        if kind.name == name.replace("discretised", "discretized"):
            return kind(levels)
    raise ValueError(
        "likelihood must be 'bernoulli', 'categorical' or 'discretized_logistic'; got "
        f"{name!r}."
    )


class Bernoulli:
    """p(x = 1) = sigmoid(logit), for images of two levels."""

    name = "bernoulli"
    num_params = 1

    def __init__(self, levels=2):
        if levels != 2:
            raise ValueError(
                f"A Bernoulli likelihood is over 2 levels; got levels={levels}. Use "
                "'categorical' or 'discretized_logistic', or binarise the images."
            )

    def log_prob(self, params, x):
        logits = ops.cast(params, "float32")  # (B, H, W, C)
        # log sigmoid(l) = l - softplus(l): no overflow at either end
        return sum_event(ops.cast(x, "float32") * logits - ops.softplus(logits))

    def draw(self, params, u):
        logits = ops.cast(params, "float32")
        return ops.cast(u < ops.sigmoid(logits), "int32")  # (B, H, W, C)

    def mean(self, params):
        return ops.sigmoid(ops.cast(params, "float32"))


class Categorical:
    """p(x = k) = softmax(logits)_k, any distribution over the levels."""

    name = "categorical"

    def __init__(self, levels):
        self.levels = self.num_params = levels

    def _log_probs(self, params):
        params = ops.cast(params, "float32")
        *leading, CP = ops.shape(params)
        logits = ops.reshape(params, (*leading, CP // self.levels, self.levels))
        return ops.log_softmax(logits, axis=-1)  # (B, H, W, C, levels)

    def log_prob(self, params, x):
        log_probs = self._log_probs(params)
        index = ops.broadcast_to(ops.cast(x, "int32"), ops.shape(log_probs)[:-1])
        terms = ops.take_along_axis(log_probs, index[..., None], axis=-1)
        return sum_event(terms[..., 0])

    def draw(self, params, u):
        cdf = ops.cumsum(ops.exp(self._log_probs(params)), axis=-1)
        # The last edge is left out: rounding may leave it below 1, and u above it.
        return ops.sum(ops.cast(u[..., None] >= cdf[..., :-1], "int32"), axis=-1)

    def mean(self, params):
        values = ops.arange(self.levels, dtype="float32")
        return ops.sum(ops.exp(self._log_probs(params)) * values, axis=-1)


class DiscretizedLogistic:
    """A logistic density on [-1, 1], integrated over each level's bin; the first and
    the last bin reach to infinity (Salimans et al. 2017, PixelCNN++, eq. 2, one
    component). Parameters per channel: mean and log scale."""

    name = "discretized_logistic"
    num_params = 2

    def __init__(self, levels):
        self.levels = levels
        self.half_bin = 1.0 / (levels - 1)

    def _mean_log_scale(self, params):
        """(B, H, W, C) each."""
        mean, log_scale = ops.split(ops.cast(params, "float32"), 2, axis=-1)
        return mean, ops.clip(log_scale, -_MAX_ABS_LOG_SCALE, _MAX_ABS_LOG_SCALE)

    def log_prob(self, params, x):
        mean, log_scale = self._mean_log_scale(params)
        x = ops.cast(x, "float32")
        centered = 2.0 * x * self.half_bin - 1.0 - mean  # (B, H, W, C)
        inverse_scale = ops.exp(-log_scale)
        upper = (centered + self.half_bin) * inverse_scale
        lower = (centered - self.half_bin) * inverse_scale
        width = 2.0 * self.half_bin * inverse_scale
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), no
        # difference of near-equal numbers, and each factor has a stable logarithm
        log_below = ops.log_sigmoid(upper)
        log_above = ops.log_sigmoid(-lower)
        inside = log_below + log_above + ops.log(-ops.expm1(-width))
        log_p = ops.where(x < 0.5, log_below, inside)
        return sum_event(ops.where(x > self.levels - 1.5, log_above, log_p))

    def draw(self, params, u):
        mean, log_scale = self._mean_log_scale(params)
        value = mean + ops.exp(log_scale) * (ops.log(u) - ops.log1p(-u))
        level = ops.floor((value + 1.0) / (2.0 * self.half_bin) + 0.5)
        return ops.cast(ops.clip(level, 0, self.levels - 1), "int32")  # (B, H, W, C)

    def mean(self, params):
        mean, log_scale = self._mean_log_scale(params)
        # E[x] = sum over k >= 1 of P(x >= k), and bin k begins half a bin below it
        edges = (2.0 * np.arange(1, self.levels) - 1.0) * self.half_bin - 1.0
        mean, inverse_scale = mean[..., None], ops.exp(-log_scale)[..., None]
        total = 0.0
        for block in np.array_split(edges, -(-len(edges) // 16)):  # 16 maps at a time
            scaled = (mean - ops.convert_to_tensor(block, "float32")) * inverse_scale
            total = total + ops.sum(ops.sigmoid(scaled), axis=-1)
        return total


def sum_event(terms):
    """Sum over the image: (B, H, W, C) -> (B,)."""
    return ops.sum(terms, axis=(-3, -2, -1))


def gaussian_kl(mean, log_var):
    """KL(N(mean, exp(log_var)) || N(0, I)): (B, L) -> (B,) nats, summed over latents
    (Kingma and Welling 2014, appendix B)."""
    mean, log_var = ops.cast(mean, "float32"), ops.cast(log_var, "float32")
    return 0.5 * ops.sum(ops.square(mean) + ops.exp(log_var) - 1.0 - log_var, axis=-1)


def gaussian_log_prob(z, mean=0.0, log_var=0.0):
    """log N(z; mean, exp(log_var)), diagonal: (..., L) -> (...) nats."""
    squared = ops.square(z - mean) * ops.exp(-ops.convert_to_tensor(log_var, z.dtype))
    return -0.5 * ops.sum(squared + log_var + np.log(2.0 * np.pi), axis=-1)
