"""MADE: masked autoencoder for distribution estimation.

    M. Germain, K. Gregor, I. Murray, H. Larochelle. MADE: Masked Autoencoder for
        Distribution Estimation. ICML 2015, arXiv:1502.03509

An autoencoder, masked so that output d sees only the inputs before d in an order of
the dimensions. An input's degree is its place in the order, m(d) in 1..D; hidden units
have degrees m(k) in 1..D-1. With g the activation and W, V, A weights,

    h_1(x) = g(b_1 + (W_1 * M_1) x),   h_l(x) = g(b_l + (W_l * M_l) h_{l-1}(x))     (1)
    parameters(x) = c + (V * M_V) h_L(x) + (A * M_A) x                             (2)
    M_l: degree below <= own degree;   M_V, M_A: degree below < own degree         (3)
    p(x) = 1/M sum_m p_m(x),   m = 1..M the masks                                  (4)

(1) to (3): eqs. 8 to 13 of the paper, with a direct connection A (its section 4.1).
(4): an ensemble, section 4.2, each mask with degrees m(k) of its own (connectivity-
agnostic) and, with ordering="random", an order of its own (order-agnostic). It averages
likelihoods: an average of logits is another model. Training takes the masks in turn,
one a step. Unit: nats per image, summed over dimensions.

Drawing needs no masks: once dimension t of the order is there, the units of degree t
have seen all that they may see, and pass their value on. So each image of a batch has
its own mask and order, and the first layer costs O(D U) in all, not O(D^2 U).

Shapes: B batch, (H, W, C) image, D = H W C, K classes, M masks, U units of a layer, P
parameters a dimension.

Differences from the paper:
  1. With one mask, degrees are spread evenly over 1..D-1 and not drawn: layers of D-1
     units or more then join every output to every earlier dimension.
  2. With ordering="raster" the connectivity alone is re-drawn: images can be completed.
  3. More than two levels, by the likelihood; the inputs are levels scaled to 0..1.
  4. Labels add a vector for each class to every layer, not masked.
  5. Glorot's initial weights for orthogonal ones; what `compile` gets for Adagrad.
"""

import keras
import numpy as np
from keras import layers, ops

from kgen import backend, random
from kgen.checks import boolean, positive, sizes
from kgen.layers.masked_dense import MaskedDense, mask_degrees
from kgen.limits import count_table
from kgen.models.autoregressive import Autoregressive

_MASK = 1  # stream of a seed; pixels are drawn from stream 0


@keras.saving.register_keras_serializable(package="kgen")
class MADE(Autoregressive):
    """Masked autoencoder for distribution estimation; see the module for equations.

    Args:
        image_shape, levels, num_classes, likelihood: see Autoregressive.
        hidden_units: U of each hidden layer.
        num_masks: M. Evaluation and `log_prob` take M passes.
        ordering: "raster" (row, column, channel), or "random", an order for each mask;
            then lower rows given upper ones cannot be drawn, and `complete` raises.
        direct: whether inputs are connected to the outputs, too.
        activation: of the hidden layers.
        seed: of the masks, an int in 0..2**32-1; they are the same on every backend.

    Metrics, means over images: `loss`, `nll_nats`, `bits_per_dim`; in training of the
    step's mask, in evaluation of the ensemble.

    Example:
        model = kgen.models.MADE((28, 28, 1), hidden_units=(500,), num_masks=32)
        model.compile(keras.optimizers.Adam(1e-3))
        model.fit(images, validation_data=held_out, epochs=50)
    """

    config_names = (
        "hidden_units", "num_masks", "ordering", "direct", "activation", "seed",
    )  # fmt: skip

    def __init__(
        self,
        image_shape,
        levels=2,
        num_classes=None,
        hidden_units=(500,),
        num_masks=1,
        ordering="raster",
        direct=True,
        activation="relu",
        seed=0,
        likelihood=None,
        **kwargs,
    ):
        super().__init__(image_shape, levels, num_classes, likelihood, **kwargs)
        positive(num_masks=num_masks)
        if ordering not in ("raster", "random"):
            raise ValueError(f"ordering: expected 'raster' or 'random': {ordering!r}.")
        self.hidden_units = sizes("hidden_units", hidden_units)
        if not self.hidden_units:
            raise ValueError("hidden_units: without hidden layers, MADE is FVBN.")
        self.num_masks = int(num_masks)
        self.ordering = ordering
        boolean(direct=direct)
        self.direct = direct
        self.activation = activation
        self.activate = keras.activations.get(activation)
        self.seed = seed
        self.params_per_dim = self.num_outputs // self.image_shape[-1]  # P
        self._add_layers()
        sizes_of = self.num_dims, self.hidden_units, self.num_masks
        count_table(self.num_masks * (self.num_dims + sum(self.hidden_units)))
        self.degrees = mask_degrees(*sizes_of, ordering, seed)
        # The mask of the next step; a weight, so that files keep it.
        same = {"trainable": False, "aggregation": "only_first_replica"}
        self.next_mask = self.add_weight(shape=(), dtype="int", **same)
        self.built = True

    def _add_layers(self):
        dtype, D = self.dtype_policy, self.num_dims
        last = {"units": D * self.params_per_dim, "strict": True, "dtype": dtype}
        self.chain = [MaskedDense(units, dtype=dtype) for units in self.hidden_units]
        self.chain.append(MaskedDense(**last))
        for layer, inputs in zip(self.chain, (D, *self.hidden_units), strict=True):
            layer.build((None, inputs))
        if self.direct:
            self.direct_layer = MaskedDense(use_bias=False, **last)
            self.direct_layer.build((None, D))
        self.label_layers = []
        if self.num_classes is not None:
            for layer in self.chain:
                same = layers.Dense(layer.units, use_bias=False, dtype=dtype)
                same.build((None, self.num_classes))
                self.label_layers.append(same)

    def _label_biases(self, labels):
        """Biases from labels for each layer, the outputs last: (B, U) each, or 0."""
        if labels is None:
            return [0.0] * len(self.chain)
        return [layer(self.one_hot(labels)) for layer in self.label_layers]

    def _tables(self):
        """Degrees of inputs and hidden layers: int32 (M, D), (M, U), ..."""
        return [ops.convert_to_tensor(table, "int32") for table in self.degrees]

    def params(self, x, labels=None, training=False, mask=0):
        """As `Autoregressive.params`, of the mask of index `mask`, an int32 scalar."""
        m_in, *m_hidden = [ops.take(d, mask, axis=0) for d in self._tables()]
        m_out = ops.repeat(m_in, self.params_per_dim)  # (D P,)
        *hidden_biases, output_bias = self._label_biases(labels)
        v = self.scale(ops.reshape(x, (-1, self.num_dims)))  # (B, D)
        h, below = v, m_in
        *hidden, last = self.chain
        for layer, m, bias in zip(hidden, m_hidden, hidden_biases, strict=True):
            h, below = self.activate(layer(h, below, m) + bias), m  # (B, U), eq. 1
        out = last(h, below, m_out) + output_bias  # (B, D P), eq. 2
        if self.direct:
            out = out + self.direct_layer(v, m_in, m_out)
        return ops.reshape(out, (-1, *self.image_shape[:2], self.num_outputs))

    # Densities

    def _each_mask(self, fn, x, labels):
        """fn(params, x) of each mask: (M, ...)."""
        if self.num_masks == 1:
            return fn(self.params(x, labels), x)[None]
        masks = ops.arange(self.num_masks, dtype="int32")
        return ops.map(lambda m: fn(self.params(x, labels, mask=m), x), masks)

    def log_likelihood(self, x, labels=None, training=False):
        """log p(x), (B,) nats: of the ensemble (4); in training, of the next mask."""
        if training:
            mask = ops.cast(self.next_mask.value, "int32")
            params = self.params(x, labels, training, mask)
            self.next_mask.assign((mask + 1) % self.num_masks)
            return self.likelihood.log_prob(params, x)
        log_probs = self._each_mask(self.likelihood.log_prob, x, labels)  # (M, B)
        return ops.logsumexp(log_probs, axis=0) - float(np.log(self.num_masks))

    def _float_params(self, mask, x, labels=None):
        return ops.cast(self.params(x, labels, mask=mask), "float32")

    def logits(self, x, labels=None, mask=0, gradients=False):
        """The likelihood's parameters at every pixel under one of the masks, by default
        the first: float32 (B, H, W, P). An ensemble has no others of its own.
        `gradients`: see GenerativeModel."""
        if mask not in range(self.num_masks):
            raise ValueError(f"mask must be in 0..{self.num_masks - 1}; got {mask}.")
        with backend.record_gradients(gradients):
            return self._logits(mask, *self.prepare_inputs(x, labels))

    # Drawing

    def _pick(self, log_weights, seeds):
        """A mask for each image, by weights (M, B) that need not sum to 1: (B,)."""
        u = random.uniforms(seeds, 1, _MASK)[:, 0]  # (B,)
        weights = ops.exp(log_weights - ops.max(log_weights, axis=0))
        cdf = ops.cumsum(weights, axis=0)  # (M, B)
        passed = u >= cdf[:-1] / cdf[-1:]
        return ops.sum(ops.cast(passed, "int32"), axis=0)

    def draw(self, seeds, labels=None, temperature=1.0):
        """x ~ p(x), eq. 4: a mask at random, then an image of it."""
        u = self._uniforms(seeds)  # (B, H, W, C)
        masks = self._pick(ops.zeros((self.num_masks, ops.shape(u)[0])), seeds)
        x = ops.zeros_like(u, "int32")
        return self.fill(x, u, 0, labels, temperature, masks)

    def _complete(self, x, known_rows, seeds, labels=None, temperature=1.0):
        rows = ops.arange(self.image_shape[0], dtype="int32")[:, None]
        known = rows < ops.cast(known_rows, "int32")[:, None, None]  # (B, H, 1)
        x = ops.where(known[..., None], ops.cast(x, "int32"), 0)
        maps = self._each_mask(self.likelihood.log_prob_map, x, labels)  # (M, B, H, W)
        # p(mask | upper rows) is in proportion to p(upper rows | mask)
        log_weights = ops.sum(ops.where(known, maps, 0.0), axis=(-2, -1))  # (M, B)
        masks = self._pick(log_weights, seeds)
        u = self._uniforms(seeds)
        return self.fill(x, u, known_rows, labels, temperature, masks)

    def complete(self, x, known_rows, *args, **kwargs):
        """As `Autoregressive.complete`, of the ensemble: the mask is drawn from its
        posterior given the upper rows. A ValueError with ordering="random"."""
        if self.ordering == "random":
            raise ValueError(
                "complete: with ordering='random' lower rows are not last in a mask's "
                "order, and their distribution given the upper rows is a sum over all "
                "images. Build and train the model with ordering='raster'."
            )
        return super().complete(x, known_rows, *args, **kwargs)

    def fill(self, x, u, known_rows, labels=None, temperature=1.0, masks=None):
        """As `Autoregressive.fill`, by one of the masks for each image, (B,), or the
        first. Known rows condition what is after them in its order. In float32."""
        shape = (-1, self.num_dims)
        given, u = ops.reshape(ops.cast(x, "int32"), shape), ops.reshape(u, shape)
        known = ops.reshape(ops.cast(known_rows, "int32"), (-1, 1))
        known = known * (self.num_dims // self.image_shape[0])  # (1 or B, 1)
        if masks is None:
            masks = ops.zeros_like(given[:, 0])
        m_in, *m_hidden = [ops.take(d, masks, axis=0) for d in self._tables()]
        order = ops.argsort(m_in, axis=-1)  # (B, D)
        dims = ops.arange(self.num_dims, dtype="int32")
        W_in, W_hidden, V = self._kernels()
        pre, outputs = self._biases(labels, ops.zeros_like(u[:, :1]))

        def one_step(t, carry):
            x, activations, pre = carry  # (B, D), (B, U), of each layer (B, U)
            j = ops.take(order, t, axis=1)[:, None]  # (B, 1), the dimension in turn
            seen = ops.concatenate([activations, self._scale(x)], axis=-1)  # (B, U + D)
            seen = seen[:, : V.shape[-1]]  # without direct connections, (B, U)
            params = ops.matmul(ops.take(V, j[:, 0], axis=0), seen[..., None])
            params = params[..., 0] + _at(outputs, j[..., None])[:, 0]  # eq. 2, (B, P)
            u_j = _at(u, j)[..., None, None]  # an image of one pixel
            drawn = self.likelihood.draw(params[:, None, None], u_j, temperature)
            drawn = drawn[..., 0, 0]
            x_j = ops.where(j < known, _at(given, j), drawn)  # (B, 1)
            change = self._scale(x_j) * ops.take(W_in, j[:, 0], axis=0)
            pre, change = self._pass_on(change, pre, m_hidden, W_hidden, degree=t + 1)
            x = ops.where(ops.equal(dims, j), x_j, x)  # later ones are zero, unseen
            return x, activations + change, pre

        carry = ops.zeros_like(given), ops.zeros_like(pre[-1]), pre
        x, _, _ = ops.fori_loop(0, self.num_dims, one_step, carry)
        return ops.reshape(x, (-1, *self.image_shape))

    def _pass_on(self, change, pre, m_hidden, W_hidden, degree):
        """Eq. 1 for the units of a degree, from layer to layer: the layers'
        pre-activations, and the change of the last one's activations, (B, U) each."""
        pre = list(pre)
        for i, degrees in enumerate(m_hidden):
            pre[i] = pre[i] + (ops.matmul(change, W_hidden[i - 1]) if i else change)
            change = ops.where(degrees == degree, self.activate(pre[i]), 0.0)
        return tuple(pre), change

    def _scale(self, x):
        return ops.cast(self.scale(x), "float32")

    def _kernels(self):
        """W of the first layer (D, U) and of later ones (U, U); by output, V of the
        last layer [and A of the inputs]: (D, P, U [+ D])."""
        kernels = [ops.cast(layer.kernel, "float32") for layer in self.chain]
        W_in, *W_hidden, V = kernels
        if self.direct:
            direct = ops.cast(self.direct_layer.kernel, "float32")
            V = ops.concatenate([V, direct], axis=0)
        V = ops.reshape(V, (-1, self.num_dims, self.params_per_dim))
        return W_in, W_hidden, ops.transpose(V, (1, 2, 0))

    def _biases(self, labels, zeros):
        """Biases of layers (B, U) and outputs (B, D, P), with labels; zeros (B, 1)."""
        *hidden, outputs = [
            zeros + ops.cast(layer.bias, "float32") + ops.cast(added, "float32")
            for layer, added in zip(self.chain, self._label_biases(labels), strict=True)
        ]
        outputs = ops.reshape(outputs, (-1, self.num_dims, self.params_per_dim))
        return tuple(hidden), outputs

    # Keeping

    def endpoints(self):
        left_out = "complete" if self.ordering == "random" else None
        return {k: v for k, v in super().endpoints().items() if k != left_out}


def _at(values, j):
    """values[b, j[b]] for every b: (B, D, ...), (B, 1, ...) -> (B, 1, ...)."""
    j = ops.broadcast_to(j, (ops.shape(values)[0], 1, *values.shape[2:]))
    return ops.take_along_axis(values, j, axis=1)
