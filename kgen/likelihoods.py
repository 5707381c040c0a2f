"""p(x | parameters) over integer images, and Gaussians over latents. All in nats.

Each likelihood turns a network's output map into log-probabilities and draws:

    params_per_pixel(channels)   P, how many numbers it takes for each pixel
    log_prob(params, x)          sum over the event (H, W, C): (B,) nats
    log_prob_map(params, x)      sum over the channels alone: (B, H, W) nats
    draw(params, u, temperature=1.0)    int32 by inverse CDF of given uniforms u
    mean(params)                 expected image in 0..levels-1 (2 levels: P(x = 1))

Shapes: B batch, H, W, C image, K mixture components; params are (B, H, W, P), x and u
are (B, H, W, C); more axes in front broadcast. Channel c owns the contiguous P / C
parameters from c P / C on, but for the mixture, whose channels share the weights. A
temperature T divides logits, and multiplies the scales of logistics. Sums are taken in
float32, whatever the policy: half precision cannot add up 784 terms.
Values and gradients are finite for parameters of +-1e4.

The Gaussians at the end are densities of latents, which are continuous. They are no
likelihood of images, whose integers have probabilities.

    T. Salimans, A. Karpathy, X. Chen, D. P. Kingma. PixelCNN++. ICLR 2017,
        arXiv:1701.05517
"""

import numpy as np
from keras import ops

# At e^-7, PixelCNN++'s floor, a bin of 256 holds all the mass; at e^7 the two ends do.
_MAX_ABS_LOG_SCALE = 7.0


def likelihood_of(name, levels, **kwargs):
    """The likelihood called `name` over `levels` levels; None: Bernoulli for two
    levels, the discretised logistic for more. `kwargs` are the class's own, such as
    the mixture's `num_mixtures`."""
    if name is None:
        name = Bernoulli.name if levels == 2 else DiscretizedLogistic.name
    kinds = (Bernoulli, Categorical, DiscretizedLogistic, LogisticMixture)
    for kind in kinds:
        if kind.name == name.replace("discretised", "discretized"):
            return kind(levels, **kwargs)
    names = ", ".join(repr(kind.name) for kind in kinds)
    raise ValueError(f"likelihood must be one of {names}; got {name!r}.")


class _Likelihood:
    def log_prob(self, params, x):
        return ops.sum(self.log_prob_map(params, x), axis=(-2, -1))  # (B,)


class Bernoulli(_Likelihood):
    """p(x = 1) = sigmoid(logit), for images of two levels."""

    name = "bernoulli"

    def __init__(self, levels=2):
        if levels != 2:
            raise ValueError(
                f"A Bernoulli likelihood is over 2 levels; got levels={levels}. Use "
                "'categorical' or 'discretized_logistic', or binarise the images."
            )

    def params_per_pixel(self, channels):
        return channels

    def log_prob_map(self, params, x):
        logits = ops.cast(params, "float32")  # (B, H, W, C)
        # log sigmoid(l) = l - softplus(l): no overflow at either end
        terms = ops.cast(x, "float32") * logits - ops.softplus(logits)
        return ops.sum(terms, axis=-1)  # (B, H, W)

    def draw(self, params, u, temperature=1.0):
        logits = ops.cast(params, "float32") / temperature
        return ops.cast(u < ops.sigmoid(logits), "int32")  # (B, H, W, C)

    def mean(self, params):
        return ops.sigmoid(ops.cast(params, "float32"))


class Categorical(_Likelihood):
    """p(x = k) = softmax(logits)_k, any distribution over the levels. Parameters per
    channel: a logit for each level."""

    name = "categorical"

    def __init__(self, levels):
        self.levels = levels

    def params_per_pixel(self, channels):
        return channels * self.levels

    def _log_probs(self, params):
        params = ops.cast(params, "float32")
        *leading, P = ops.shape(params)
        logits = ops.reshape(params, (*leading, P // self.levels, self.levels))
        return ops.log_softmax(logits, axis=-1)  # (B, H, W, C, levels)

    def log_prob_map(self, params, x):
        log_probs = self._log_probs(params)
        index = ops.broadcast_to(ops.cast(x, "int32"), ops.shape(log_probs)[:-1])
        terms = ops.take_along_axis(log_probs, index[..., None], axis=-1)
        return ops.sum(terms, axis=(-2, -1))  # (B, H, W)

    def draw(self, params, u, temperature=1.0):
        params = ops.cast(params, "float32") / temperature
        cdf = ops.cumsum(ops.exp(self._log_probs(params)), axis=-1)
        # Rounding may leave the last edge below 1, and u above it: a level of no
        # probability would be drawn.
        cdf = cdf / cdf[..., -1:]
        return ops.sum(ops.cast(u[..., None] >= cdf[..., :-1], "int32"), axis=-1)

    def mean(self, params):
        values = ops.arange(self.levels, dtype="float32")
        return ops.sum(ops.exp(self._log_probs(params)) * values, axis=-1)


class DiscretizedLogistic(_Likelihood):
    """A logistic density on [-1, 1], integrated over each level's bin; the first and
    the last bin reach to infinity (PixelCNN++, eq. 2, one component). Parameters per
    channel: mean, log scale."""

    name = "discretized_logistic"

    def __init__(self, levels):
        self.levels = levels

    def params_per_pixel(self, channels):
        return 2 * channels

    def _logistic(self, params):
        params = ops.cast(params, "float32")
        return _in_levels(params[..., 0::2], params[..., 1::2], self.levels)

    def log_prob_map(self, params, x):
        center, width = self._logistic(params)  # (B, H, W, C) each
        terms = _log_bin_mass(ops.cast(x, "float32"), center, width, self.levels)
        return ops.sum(terms, axis=-1)  # (B, H, W)

    def draw(self, params, u, temperature=1.0):
        center, width = self._logistic(params)
        value = center + temperature * (ops.log(u) - ops.log1p(-u)) / width
        level = ops.floor(value + 0.5)
        return ops.cast(ops.clip(level, 0, self.levels - 1), "int32")  # (B, H, W, C)

    def mean(self, params):
        return _expected_level(*self._logistic(params), self.levels)


class LogisticMixture(_Likelihood):
    """A mixture of K discretised logistics over the colour of a pixel (PixelCNN++,
    eqs. 2 and 3): with x scaled to [-1, 1],

        p(x) = sum_k pi_k prod_c p_k(x_c | x_<c)
        p_k(x_c | x_<c) = logistic around m_ck + sum_{c' < c} alpha_cc'k x_c', binned

    Args:
        levels: of the image.
        num_mixtures: K.

    Parameters, in runs of K: the logits of pi; then for channel c the means, the log
    scales, and for each earlier channel c' = 0..c-1 the alphas before their tanh. So
    3 K for one channel, 10 K for three, and the first c channels are a mixture too.
    """

    name = "logistic_mixture"

    def __init__(self, levels, num_mixtures=10):
        if num_mixtures < 1:
            raise ValueError(f"num_mixtures must be positive; got {num_mixtures}.")
        self.levels, self.num_mixtures = levels, num_mixtures

    def params_per_pixel(self, channels):
        return self.num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _channels(self, params):
        channels = 1
        while self.params_per_pixel(channels) < params.shape[-1]:
            channels += 1
        if self.params_per_pixel(channels) != params.shape[-1]:
            raise ValueError(
                f"{self.num_mixtures} mixtures take K (1 + 2 C + C (C - 1) / 2) "
                f"parameters per pixel; got {params.shape[-1]}."
            )
        return channels

    def _run(self, params, start):
        return ops.cast(params[..., start : start + self.num_mixtures], "float32")

    def _logistics(self, params, earlier):
        """The components of the channel after the `earlier` ones, whose levels these
        are, (B, H, W, 1) or (B, H, W, K) each: center and width, (B, H, W, K)."""
        K, start = self.num_mixtures, self.params_per_pixel(len(earlier))
        mean, log_scale = self._run(params, start), self._run(params, start + K)
        for c, level in enumerate(earlier):
            alpha = ops.tanh(self._run(params, start + (2 + c) * K))  # (B, H, W, K)
            mean = mean + alpha * (2.0 / (self.levels - 1) * level - 1.0)
        return _in_levels(mean, log_scale, self.levels)

    def log_prob_map(self, params, x):
        joint = ops.log_softmax(self._run(params, 0), axis=-1)  # (B, H, W, K)
        x = ops.cast(x, "float32")
        x = [x[..., c : c + 1] for c in range(self._channels(params))]
        for c, level in enumerate(x):
            logistics = self._logistics(params, x[:c])
            joint = joint + _log_bin_mass(level, *logistics, self.levels)
        return ops.logsumexp(joint, axis=-1)  # (B, H, W)

    def draw(self, params, u, temperature=1.0):
        """By the inverse CDF of x_c given the earlier channels, in turn: a mixture of
        the components' CDFs with their posterior weights. One uniform a channel."""
        joint = ops.log_softmax(self._run(params, 0) / temperature, axis=-1)  # (.., K)
        drawn = []
        for c in range(self._channels(params)):
            center, width = self._logistics(params, drawn)
            logistics = center, width / temperature
            drawn.append(self._inverse_cdf(u[..., c : c + 1], joint, *logistics))
            joint = joint + _log_bin_mass(drawn[-1], *logistics, self.levels)
        return ops.cast(ops.concatenate(drawn, axis=-1), "int32")  # (B, H, W, C)

    def _inverse_cdf(self, u, joint, center, width):
        """The smallest level with F(level) > u, by bisection: float32 (B, H, W, 1)."""
        weights = ops.exp(ops.log_softmax(joint, axis=-1))  # (B, H, W, K)
        # Above the median by 1 - F <= 1 - u: a sum near 1 has no digits for its tail.
        low, tail = u < 0.5, ops.minimum(u, 1.0 - u)
        sign = ops.where(low, 1.0, -1.0)
        level = ops.zeros_like(u)
        for bit in reversed(range((self.levels - 1).bit_length())):
            higher = level + 2.0**bit
            cdf = ops.sigmoid(sign * (higher - 0.5 - center) * width)  # (B, H, W, K)
            cdf = ops.sum(weights * cdf, axis=-1, keepdims=True)
            passed = ops.where(low, cdf <= tail, cdf >= tail)  # F(higher - 1) <= u
            level = ops.where(passed & (higher < self.levels), higher, level)
        return level

    def mean(self, params):
        """E[x]: (B, H, W, C). Exact for the first channel. For a later channel the sum
        over all earlier colours is too long: each component's expectation is taken at
        its expected earlier levels. That is exact where it is linear in its mean, so
        where the scale is not far below a bin and little mass is beyond the ends."""
        # Not softmax, of which Keras warns over an axis of one
        weights = ops.exp(ops.log_softmax(self._run(params, 0), axis=-1))
        levels = []
        for _ in range(self._channels(params)):
            logistics = self._logistics(params, levels)
            levels.append(_expected_level(*logistics, self.levels))
        means = [ops.sum(weights * level, axis=-1) for level in levels]
        return ops.stack(means, axis=-1)


def _in_levels(mean, log_scale, levels):
    """Of logistics on [-1, 1]: their centers in levels, and the width of a bin in
    scales. Differences of levels are exact, which those of values in [-1, 1] are not:
    at the smallest scales the probabilities would not sum to one."""
    log_scale = ops.clip(log_scale, -_MAX_ABS_LOG_SCALE, _MAX_ABS_LOG_SCALE)
    return (mean + 1.0) * (0.5 * (levels - 1)), 2.0 / (levels - 1) * ops.exp(-log_scale)


def _log_bin_mass(x, center, width, levels):
    """log of the logistic's mass in the bin of level x, a float. All of its branches
    are finite, for the gradient of `where` goes through both."""
    upper = (x - center + 0.5) * width
    lower = (x - center - 0.5) * width
    # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), no
    # difference of near-equal numbers, and each factor has a stable logarithm
    log_below = ops.log_sigmoid(upper)
    log_above = ops.log_sigmoid(-lower)
    inside = log_below + log_above + ops.log(-ops.expm1(-width))
    log_p = ops.where(x < 0.5, log_below, inside)
    return ops.where(x > levels - 1.5, log_above, log_p)


def _expected_level(center, width, levels):
    """E[x] = sum over k >= 1 of P(x >= k), and bin k begins at k - 1/2."""
    center, width, total = center[..., None], width[..., None], 0.0
    edges = np.arange(1, levels) - 0.5
    for block in np.array_split(edges, -(-len(edges) // 16)):  # 16 maps at a time
        scaled = (center - ops.convert_to_tensor(block, "float32")) * width
        total = total + ops.sum(ops.sigmoid(scaled), axis=-1)
    return total


def gaussian_kl(mean, log_var):
    """KL(N(mean, exp(log_var)) || N(0, I)): (B, ...) -> (B,) nats, summed over latents
    (Kingma and Welling 2014, appendix B)."""
    mean, log_var = ops.cast(mean, "float32"), ops.cast(log_var, "float32")
    each = ops.square(mean) + ops.exp(log_var) - 1.0 - log_var
    return 0.5 * ops.sum(each, axis=tuple(range(1, len(each.shape))))


def gaussian_log_prob(z, mean=0.0, log_var=0.0, axes=1):
    """log N(z; mean, exp(log_var)), diagonal: (..., L) -> (...) nats; summed over so
    many of the last axes."""
    squared = ops.square(z - mean) * ops.exp(-ops.convert_to_tensor(log_var, z.dtype))
    each = squared + log_var + np.log(2.0 * np.pi)
    return -0.5 * ops.sum(each, axis=tuple(range(-axes, 0)))
