"""Autoregressive: what the exact families share.

The chain rule, with dimensions in raster order, row by row, channels R, G, B last:

    p(x) = prod_i p(x_i | x_1, ..., x_{i-1}),   i = 1 .. H W C                       (1)

A family is a network whose parameters at dimension i see earlier dimensions only, so
one parallel pass gives all the factors. Training maximises the exact log-likelihood of
images, whose unit is the nat: summed over dimensions, averaged over images.

Drawing goes dimension by dimension: by inverse CDF, from one uniform each, so an image
is a function of its uniforms alone. Convolutional and recurrent families go from pixel
to pixel over what they have computed (kgen/models/cached_sampler.py), dense ones have a
`fill` of their own. For any other causal network there is the naive way, which runs the
whole of it at each step.

Shapes: B batch, (H, W, C) image, D = H W C, K classes, P likelihood parameters a pixel.
"""

import functools

import numpy as np
from keras import ops
from keras.metrics import Mean

from kgen import backend, random
from kgen.batching import in_batches
from kgen.checks import check_temperature
from kgen.likelihoods import LogisticMixture, likelihood_of
from kgen.metrics import bits_per_dim
from kgen.models.base import GenerativeModel, Headline
from kgen.models.cached_sampler import CachedNetwork, sample_rows
from kgen.signatures import Input, Output


class Autoregressive(GenerativeModel):
    """A model of p(x) as a product of conditionals; see the module for equations.

    Families define `network`, for the parallel pass and the sampler at once, or only
    `params`, the parallel pass; and end their `__init__` with `self.built = True`.

    Args:
        image_shape, levels, num_classes: see GenerativeModel.
        likelihood: of a pixel: "bernoulli" (2 levels), "categorical",
            "discretized_logistic" or "logistic_mixture"; None for Bernoulli at 2 levels
            and categorical, the softmax over levels, at more.
        num_mixtures: components of a "logistic_mixture".

    Metrics, means over images: `loss` (what is minimised), `nll_nats`, `bits_per_dim`
    (nats / (H W C ln 2)).
    """

    # The network sees the earlier channels of the pixel itself, so channels are drawn
    # one by one. Otherwise the likelihood couples them, and pixels are drawn whole.
    channels_in_turn = True

    headline = Headline("nll_nats", "nats", "lower", "exact")
    max_levels = 2**16  # discrete codes

    # Whether small batches are drawn a row at once (kgen/models/cached_sampler.py); no
    # gain where a layer goes along the row from pixel to pixel.
    whole_rows = True

    # Columns of zeros that the network sees on the right of the image
    extra_columns = 0

    config_names = ("likelihood",)

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        likelihood=None,
        num_mixtures=10,
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, **kwargs)
        if likelihood is None:
            likelihood = "bernoulli" if self.levels == 2 else "categorical"
        if not isinstance(likelihood, str):
            raise TypeError(f"likelihood must be a name or None; got {likelihood!r}.")
        mixture = likelihood == LogisticMixture.name
        if mixture and self.channels_in_turn and self.image_shape[-1] > 1:
            raise ValueError(
                f"likelihood 'logistic_mixture' couples the channels of a pixel, which "
                f"{type(self).__name__} takes in turn: use 'categorical' or "
                "'discretized_logistic', or PixelCNNPlusPlus."
            )
        own = {"num_mixtures": num_mixtures} if mixture else {}
        self.likelihood = likelihood_of(likelihood, self.levels, **own)
        self.num_outputs = self.likelihood.params_per_pixel(self.image_shape[-1])
        self.trackers = [Mean(name) for name in ("nll_nats", "bits_per_dim")]
        logits = backend.compile_function(self, self._float_params, gradients=True)
        log_prob = backend.compile_function(self, self.log_likelihood, gradients=True)
        self._logits = backend.few_sizes(logits)
        self._log_prob = backend.few_sizes(log_prob)
        # One program for all temperatures T, an argument of it
        self._draw = backend.compile_function(  # in place of the base's
            self, lambda T, *rows: self.draw(*rows, temperature=T)
        )
        self._complete_at = backend.compile_function(
            self, lambda T, *rows: self._complete(*rows, temperature=T)
        )

    def params(self, x, labels=None, training=False):
        """The likelihood's parameters at every pixel, in one parallel pass.

        Args:
            x: integers (B, H, W, C).
            labels: int32 (B,), or None.

        Returns: (B, H, W, P), in the policy's compute dtype.
        """
        biases = self.label_biases(None if labels is None else self.one_hot(labels))
        x, W, extra = self.scale(x), self.image_shape[1], self.extra_columns
        if extra:
            x = ops.pad(x, [[0, 0], [0, 0], [0, extra], [0, 0]])
        from_above = self.vertical(x, biases, _whole_map)
        params = self.network(x, from_above, biases, _whole_map)
        return params[:, :, :W] if extra else params

    def label_biases(self, label):
        """What the network's layers are given of the one-hot label (B, K) or None."""
        del label

    def vertical(self, x, biases, apply):
        """The layers that see the rows above alone: a nest of what they give to each
        pixel. See `network`."""
        del x, biases, apply
        return ()

    def network(self, x, from_above, biases, apply):
        """The network, for the parallel pass and for the sampler.

        Args:
            x: the image, scaled to 0..1: (B, H, W, C), or pixels (..., C) of a step.
            from_above: as `vertical` returns it.
            biases: as `label_biases` returns them.
            apply: `apply(layer, x, bias=None)`, a call of the layer with the whole map,
                or a step of it. All layers with `step` (kgen/layers) are to go through
                it, those of mask A with x itself; what else there is sees the features
                of one pixel alone.

        Returns: the likelihood's parameters (..., P).
        """
        raise NotImplementedError

    def log_likelihood(self, x, labels=None, training=False):
        """log p(x), eq. 1: (B,) nats, in plain ops."""
        return self.likelihood.log_prob(self.params(x, labels, training), x)

    # Training

    def _terms(self, x, labels, training=False):
        nll = -self.log_likelihood(x, labels, training)  # (B,)
        per_dim = bits_per_dim(nll, self.image_shape)
        return {"loss": nll, "nll_nats": nll, "bits_per_dim": per_dim}

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
        return self.update_metrics(self._terms(x, labels), weight)

    # Densities

    def _float_params(self, x, labels=None):
        return ops.cast(self.params(x, labels), "float32")

    def logits(self, x, labels=None, gradients=False):
        """The likelihood's parameters at every pixel: float32 (B, H, W, P). Those of a
        dimension depend on the dimensions before it alone. `gradients`: see
        GenerativeModel."""
        with backend.record_gradients(gradients):
            return self._logits(*self.prepare_inputs(x, labels))

    def log_prob(self, x, labels=None, gradients=False):
        """log p(x), exact: (B,) nats, float32. `gradients`: see GenerativeModel."""
        with backend.record_gradients(gradients):
            return self._log_prob(*self.prepare_inputs(x, labels))

    def call(self, inputs, training=False):
        """`logits` for `predict`: of images, or (images, labels) if conditional."""
        x, labels, nan = self.call_inputs(inputs)
        params = ops.cast(self.params(x, labels, training), "float32")
        return params + nan[:, None, None, None]

    # Drawing

    def _uniforms(self, seeds):
        u = random.uniforms(seeds, self.num_dims)  # (B, D)
        return ops.reshape(u, (-1, *self.image_shape))

    def draw(self, seeds, labels=None, temperature=1.0):
        """x ~ p(x): integers (B, H, W, C)."""
        u = self._uniforms(seeds)
        return self.fill(ops.zeros_like(u, "int32"), u, 0, labels, temperature)

    def cached_network(self, label, B):
        """The network in the form of `sample_rows`, given one-hot labels (B, K) or
        None; or None, if it cannot go from pixel to pixel."""
        has_network = type(self).network is not Autoregressive.network
        return CachedNetwork(self, label, B) if has_network else None

    def fill(self, x, u, known_rows, labels=None, temperature=1.0):
        """Draws the rows from `known_rows` on, given those above.

        Args:
            x: integers (B, H, W, C); rows from `known_rows` on are not looked at.
            u: uniforms in (0, 1), (B, H, W, C).
            known_rows: 0, or int32 (B,).
            temperature: see `sample`.

        Returns: int32 (B, H, W, C).
        """
        label = None if labels is None else self.one_hot(labels)
        network = self.cached_network(label, ops.shape(u)[0])
        if network is None:
            return fill_naively(self, x, u, known_rows, labels, temperature)
        return sample_rows(self, network, x, u, known_rows, temperature)

    def sample(self, n, seed=None, labels=None, verbose="auto", temperature=1.0):
        """As `GenerativeModel.sample`, with a temperature T of each conditional: below
        1 for likelier images of less variety, above 1 for more. Bernoulli and
        categorical ones are raised to the power 1 / T and normalised; of logistics the
        scales are multiplied by T, and the weights of a mixture taken to 1 / T."""
        draw = functools.partial(self._draw, check_temperature(temperature))
        rows = self.requests(n, seed, labels)
        drawn = in_batches(draw, rows, self.image_shape, verbose)
        return drawn.astype(self.image_dtype)

    def _complete(self, x, known_rows, seeds, labels=None, temperature=1.0):
        return self.fill(x, self._uniforms(seeds), known_rows, labels, temperature)

    def complete(
        self, x, known_rows, seed=None, labels=None, verbose="auto", temperature=1.0
    ):
        """Draws the lower part of images given the upper: x_low ~ p(x_low | x_up).

        Args:
            x: integer images (n, H, W, C); what is below the known rows is not used.
            known_rows: how many rows from the top are given, one number or (n,).
            seed: as for `sample`; with no known rows the result is `sample`'s.
            labels: (n,) integers, for conditional models.
            verbose: 0 for no progress bar.
            temperature: as for `sample`.

        Returns: NumPy (n, H, W, C), as `sample`.
        """
        self.prepare_inputs(x, labels)  # images have labels of their own
        x = np.asarray(ops.convert_to_numpy(x), "int32")
        n, H = len(x), self.image_shape[0]
        rows = np.asarray(known_rows)
        if rows.dtype.kind not in "iu" or rows.shape not in ((), (n,)):
            raise ValueError(
                f"known_rows must be an integer or {n} of them, one an image; got "
                f"{known_rows!r}."
            )
        if np.any(rows < 0) or np.any(rows > H):
            raise ValueError(f"known_rows must be in 0..{H}; got {known_rows!r}.")
        rows = np.broadcast_to(rows, n).astype("int32")
        arguments = [x, rows, *self.requests(n, seed, labels)]
        fill = functools.partial(self._complete_at, check_temperature(temperature))
        drawn = in_batches(fill, arguments, self.image_shape, verbose)
        return drawn.astype(self.image_dtype)

    # Keeping

    def endpoints(self):
        images = {"images": self.image_input}
        known_rows = Input("int64", interval=(0, self.image_shape[0]))
        given = images | {"known_rows": known_rows, "seed": Input("int64", kind="seed")}
        drawn = {"images": Output(self.image_dtype, self.image_shape)}
        log_prob = {"log_prob": Output("float32")}
        return super().endpoints() | {
            "log_prob": self.signature(self.log_likelihood, images, log_prob),
            "complete": self.signature(self._complete_images, given, drawn),
        }

    def _complete_images(self, x, known_rows, seeds, labels=None):
        drawn = self._complete(x, known_rows, seeds, labels)
        return ops.cast(drawn, self.image_dtype)


def _whole_map(layer, x, bias=None):
    return layer(x) if bias is None else layer(x, bias)


def fill_naively(model, x, u, known_rows, labels=None, temperature=1.0):
    """As `Autoregressive.fill`, by a whole pass of the network for each dimension:
    right for any causal network, and what other samplers are proved against."""
    H, W, C = model.image_shape
    group = 1 if model.channels_in_turn else C
    step_of = np.arange(H * W * C).reshape(H, W, C) // group
    step_of = ops.convert_to_tensor(step_of, "int32")
    known_rows = ops.reshape(ops.cast(known_rows, "int32"), (-1, 1, 1, 1))
    rows = ops.reshape(ops.arange(H, dtype="int32"), (1, H, 1, 1))
    unknown = rows >= known_rows  # (B or 1, H, 1, 1)

    def one_step(t, x):
        params = model.params(x, labels)  # (B, H, W, P)
        drawn = model.likelihood.draw(params, u, temperature)  # (B, H, W, C)
        now = ops.logical_and(ops.equal(step_of, t), unknown)
        return ops.where(now, drawn, x)

    per_row = W * C // group
    first = ops.min(known_rows) * per_row
    return ops.fori_loop(first, H * per_row, one_step, ops.cast(x, "int32"))
