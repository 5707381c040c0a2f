"""JAX adapter: the stateful body runs in a `keras.StatelessScope`.

Scopes do not inherit from one another, and while `fit` runs, the variables' own values
are purged. So every nested scope is opened over all of the model's state, read through
`v.value` (which the surrounding scope answers), and what it changed is assigned back.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np

from kgen.backend.jax_devices import replica_gradients, replica_loss


def _state(model, lists=4):
    """The lists that Keras passes: train steps get four, test steps no optimizer's."""
    optimizer = [model.optimizer.variables] if lists == 4 else []
    return [
        model.trainable_variables,
        model.non_trainable_variables,
        *optimizer,
        model.metrics_variables,
    ]


def step(fn):
    """Turns `step(self, data) -> logs` into `(self, state, data) -> logs, state`."""

    @functools.wraps(fn)
    def stateless(self, state, data):
        lists = _state(self, len(state))
        mapping = [
            pair
            for variables, values in zip(lists, state, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        with keras.StatelessScope(mapping) as scope:
            logs = fn(self, data)
        state = tuple([scope.get_current_value(v) for v in vs] for vs in lists)
        return logs, state

    return stateless


def _as_pure_function(model, fn, variables=()):
    """`fn` as a pure function of the values of `variables` and its own arguments, which
    also returns the rest of the state; and a function that takes that back."""
    mine = {id(v) for v in variables}
    optimizer = model.optimizer.variables if model.compiled else []
    state = sum(_state(model, 3), []) + optimizer
    rest = [v for v in state if id(v) not in mine]
    before = [v.value for v in rest]

    def pure(values, *args):
        mapping = [
            *zip(variables, values, strict=True),
            *zip(rest, before, strict=True),
        ]
        with keras.StatelessScope(mapping) as scope:
            result = fn(*args)
        return result, [scope.get_current_value(v) for v in rest]

    def write_back(after):
        for v, value in zip(rest, after, strict=True):
            v.assign(value)

    return pure, write_back


def minimize(model, fn, variables):
    """Differentiates `fn() -> (scalar loss, aux)` and updates `variables` alone.

    Returns `(loss, aux, gradients)`: unscaled, unscaled, and as the optimizer got them.
    Variables that the loss does not reach get zeros.
    """

    def scaled_objective():
        loss, aux = fn()
        return model.optimizer.scale_loss(replica_loss(loss)), (loss, aux)

    pure, write_back = _as_pure_function(model, scaled_objective, variables)

    def objective(values):
        (loss, unscaled), after = pure(values)
        return loss, (unscaled, after)

    values = [v.value for v in variables]
    gradients, (unscaled, after) = jax.grad(objective, has_aux=True)(values)
    write_back(after)
    gradients = replica_gradients(gradients)
    _apply(model, gradients, variables)
    return *unscaled, gradients


def _apply(model, gradients, variables):
    """Through `stateless_apply`, for only there loss scaling works on JAX. It wants a
    gradient for each trainable variable: None for those of the other network."""
    known = {id(v): g for v, g in zip(variables, gradients, strict=True)}
    every, optimizer = model.trainable_variables, model.optimizer
    new_values, new_state = optimizer.stateless_apply(
        [v.value for v in optimizer.variables],
        [known.get(id(v)) for v in every],
        [v.value for v in every],
    )
    for v, value in zip(every, new_values, strict=True):
        v.assign(value)
    for v, value in zip(optimizer.variables, new_state, strict=True):
        v.assign(value)


def input_gradient(model, fn, x):
    """d sum(fn(x)) / dx, with the shape of `x`; an outer gradient goes through it."""
    pure, write_back = _as_pure_function(model, fn)

    def total(x):
        y, after = pure((), x)
        return jnp.sum(y), after

    gradient, after = jax.grad(total, has_aux=True)(x)
    write_back(after)
    return gradient


def compile_function(model, fn, gradients=False):
    """`fn(*tensors)` as one XLA program; it reads the model's variables, and changes
    none. They are arguments of the program: closed over, they would be constants.
    Gradients pass in any case."""
    del gradients

    @jax.jit
    def program(values, *args):
        with keras.StatelessScope(zip(model.variables, values, strict=True)):
            return fn(*args)

    return lambda *args: program([v.value for v in model.variables], *args)


def program_sizes():
    """A function of a size, such as a batch's, to the size to compute with.

    XLA compiles a program for each size, which costs time and memory that is not freed:
    the first four sizes stay as they are, others become powers of two."""
    sizes = set()

    def size_of(n):
        size = n if n in sizes or len(sizes) < 4 else 1 << (n - 1).bit_length()
        sizes.add(size)
        return size

    return size_of


def few_sizes(fn):
    """`fn` of tensors (B, ...), to tensors (B, ...), for batches of all sizes: they are
    filled up to `program_sizes` with copies of their first row, so `fn`'s result for a
    row may depend on that row alone. Scalars are passed on."""
    size_of = program_sizes()

    def call(*args, **kwargs):
        n = next(len(a) for a in args if np.ndim(a))
        traced = any(isinstance(a, jax.core.Tracer) for a in args)  # by a caller's jit
        size = n if n == 0 or traced else size_of(n)
        if size == n:
            return fn(*args, **kwargs)
        rows = np.where(np.arange(size) < n, np.arange(size), 0)
        filled = [np.asarray(a)[rows] if np.ndim(a) else a for a in args]
        result = fn(*map(jnp.asarray, filled), **kwargs)
        return jax.tree.map(lambda y: _first(y, n), result)

    return call


def _first(y, n):
    """The first n rows; through NumPy, for a slice of each size is a program too."""
    values = concrete(y)
    return y[:n] if values is None else jnp.asarray(values[:n])


def record_gradients(gradients):
    """JAX's transformations trace what they differentiate: results carry no graph."""
    del gradients
    return contextlib.nullcontext()


def convolution(x, kernel, pads, bias=None):
    """x (B, H, W, F) with pads ((top, bottom), (left, right)) of zeros, negative ones
    cropping, times kernel (rows, columns, F, filters), plus bias (filters,)."""
    if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
        y = jnp.matmul(x, kernel[0, 0])  # ten times faster to differentiate on CPUs
    elif kernel.shape[2] < 8 or jax.default_backend() != "cpu":
        y = _convolution(x, kernel, pads)
    else:
        y = _for_cpu(x, kernel, pads)
    return y if bias is None else y + bias


def _convolution(x, kernel, pads):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _for_cpu(x, kernel, pads):
    """With the kernel's gradient as a product of matrices for each tap: XLA's own, a
    convolution with a kernel as large as the map, takes several times as long. There is
    no forward mode (jax.jvp) through it."""
    return _convolution(x, kernel, pads)


def _forward(x, kernel, pads):
    return _convolution(x, kernel, pads), (x, kernel)


def _backward(pads, saved, dy):
    x, kernel = saved
    dx = jax.vjp(lambda x: _convolution(x, kernel, pads), x)[1](dy)[0]
    padding = [(0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
    _, H, W, filters = dy.shape
    (rows, columns, F, _), dy = kernel.shape, dy.reshape(-1, filters)  # (BHW, filters)
    taps = [
        x[:, i : i + H, j : j + W].reshape(-1, F).T @ dy  # (F, filters)
        for i in range(rows)
        for j in range(columns)
    ]
    return dx, jnp.stack(taps).reshape(kernel.shape)


_for_cpu.defvjp(_forward, _backward)


def scan(fn, state, xs):
    """`state, y = fn(state, x)` over the first axis of xs (T, ...): the last state and
    ys (T, ...). States, xs and ys are tensors or nests of them."""
    return jax.lax.scan(fn, state, xs)


def fused(fn):
    """XLA fuses element-wise functions by itself."""
    return fn


@contextlib.contextmanager
def preserve_state(model):
    """Restores the variables' values if the block raises or is interrupted.

    Keras' `fit`, `evaluate` and `predict` empty the variables while they run, and do
    not always refill them after an error. The values are those of the last whole step,
    or those from before the block if there was none."""
    before = [(v, v.value) for v in _all_variables(model)]
    try:
        yield
    except BaseException:
        model.jax_state_sync()
        for v, value in before:
            if not _has_value(v) and not value.is_deleted():
                v.assign(value)
        raise


def sync_state(model):
    """Gives the variables the last step's values: Keras empties them while `fit` runs.
    What they are assigned after it, the next step begins with."""
    model.jax_state_sync()


def _all_variables(model):
    optimizer = model.optimizer.variables if model.compiled else []
    return [*model.variables, *optimizer, *model.metrics_variables]


def _has_value(v):
    try:
        return v.value is not None
    except TypeError:  # of an empty variable, Keras calls an initializer that is None
        return False


def concrete(x):
    """The values of `x` as NumPy, or None where they are not known yet."""
    if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
        return jax.device_get(x)
    return None
