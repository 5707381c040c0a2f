"""TensorFlow adapter: state lives in the variables, gradients come from tapes."""

import contextlib
import functools
import threading

import tensorflow as tf

from kgen.backend.tensorflow_devices import process, replica_gradients, replica_loss

_thread = threading.local()  # MirroredStrategy runs a replica's step in its own


def step(fn):
    """Keras calls a TensorFlow step as it is written: stateful, `step(self, data)`.
    Logs of several workers it averages along a first axis, which they are given."""

    @functools.wraps(fn)
    def of_replica(self, data):
        logs = fn(self, data)
        if process()[1] == 1:
            return logs
        return {k: tf.reshape(v, [1]) for k, v in logs.items()}

    return of_replica


def minimize(model, fn, variables):
    """Differentiates `fn() -> (scalar loss, aux)` and updates `variables` alone.

    Returns `(loss, aux, gradients)`: unscaled, unscaled, and as the optimizer got them.
    Variables that the loss does not reach get zeros.
    """
    _thread.training = True
    try:
        with tf.GradientTape() as tape:
            loss, aux = fn()
            objective = model.optimizer.scale_loss(replica_loss(loss))
    finally:
        _thread.training = False
    gradients = tape.gradient(
        objective,
        [v.value for v in variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    gradients = replica_gradients(gradients)
    model.optimizer.apply(gradients, variables)
    return loss, aux, gradients


def input_gradient(model, fn, x):
    """d sum(fn(x)) / dx, with the shape of `x`; an outer gradient goes through it."""
    del model
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(fn(x))
    return tape.gradient(total, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def compile_function(model, fn, gradients=False):
    """`fn(*tensors)` as one graph; it reads the model's variables, and changes none.
    Gradients pass in any case."""
    del model, gradients
    graph = tf.function(fn, autograph=False, reduce_retracing=True)
    # A plain function: Keras would track a tf.function as a part of the model.
    return lambda *args: graph(*[tf.convert_to_tensor(a) for a in args])


def program_sizes():
    """Graphs serve all sizes."""
    return lambda n: n


def few_sizes(fn):
    """Graphs serve all sizes."""
    return fn


def record_gradients(gradients):
    """Only a tape of the caller's keeps a graph."""
    del gradients
    return contextlib.nullcontext()


def convolution(x, kernel, pads, bias=None):
    """x (B, H, W, F) with pads ((top, bottom), (left, right)) of zeros, negative ones
    cropping, times kernel (rows, columns, F, filters), plus bias (filters,).

    The gradients are spelled out, for TensorFlow's own of an unevenly padded
    convolution miss its fast kernels on CPUs, and unfused padding copies the map.
    """
    kernel = tf.convert_to_tensor(kernel)  # not a variable: custom gradients are strict
    if any(last < 0 for _, last in pads):
        (_, bottom), (_, right) = pads
        x = x[:, : min(bottom, 0) or None, : min(right, 0) or None]
    pads = tuple((first, max(last, 0)) for first, last in pads)

    @tf.custom_gradient
    def product(x, kernel):
        def gradient(dy):
            d_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=_pad(x, pads),
                filter_sizes=kernel.shape,
                out_backprop=dy,
                strides=[1] * 4,
                padding="VALID",
            )
            if 0 in x.shape[1:3]:  # oneDNN's kernels hand an empty result's input back
                return tf.zeros_like(x), d_kernel
            return _transposed_convolution(dy, kernel, pads), d_kernel

        return _convolve(x, kernel, pads), gradient

    y = product(x, kernel)
    return y if bias is None else tf.nn.bias_add(y, bias)  # fused; so is a sum after it


def _pad(x, pads):
    return tf.pad(x, [[0, 0], *pads, [0, 0]]) if any(map(any, pads)) else x


def _convolve(x, kernel, pads):
    """Padded within the convolution; but a map without rows or columns before it, for
    which TensorFlow's kernel divides by zero, and the process dies."""
    if 0 in x.shape[1:3]:
        return tf.nn.conv2d(_pad(x, pads), kernel, 1, "VALID")
    explicit = [[0, 0], *pads, [0, 0]] if any(map(any, pads)) else "VALID"
    return tf.nn.conv2d(x, kernel, 1, explicit)


def _transposed_convolution(dy, kernel, pads):
    """d(convolution)/dx, as the convolution of dy with the kernel turned round."""
    rows, columns = kernel.shape[:2]
    turned = tf.transpose(tf.reverse(kernel, [0, 1]), [0, 1, 3, 2])
    rests = [
        (size - 1 - first, size - 1 - last)
        for size, (first, last) in zip((rows, columns), pads, strict=True)
    ]
    # More padding than the kernel reaches: outputs that no input feeds.
    (top, bottom), (left, right) = [[max(-r, 0) for r in pair] for pair in rests]
    dy = dy[:, top : -bottom or None, left : -right or None]
    rests = [[max(r, 0) for r in pair] for pair in rests]
    return _convolve(dy, turned, rests)


def scan(fn, state, xs):
    """`state, y = fn(state, x)` over the first axis of xs (T, ...): the last state and
    ys (T, ...). States, xs and ys are tensors or nests of them."""
    leaves = tf.nest.flatten(xs)
    T = leaves[0].shape[0]
    reads = [tf.TensorArray(x.dtype, T).unstack(x) for x in leaves]

    def taken(t):
        return tf.nest.pack_sequence_as(xs, [x.read(t) for x in reads])

    # Shapes and types of ys, which a loop needs, for the price of a second trace.
    given = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), state)
    row = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), xs)
    traced = tf.function(fn, autograph=False).get_concrete_function(given, row)
    _, specs = traced.structured_outputs
    ys = [tf.TensorArray(y.dtype, T) for y in tf.nest.flatten(specs)]

    def one_step(t, state, ys):
        state, y = fn(state, taken(t))
        pairs = zip(ys, tf.nest.flatten(y), strict=True)
        return t + 1, state, [array.write(t, value) for array, value in pairs]

    _, state, ys = tf.while_loop(
        lambda t, *_: t < T, one_step, (tf.constant(0), state, ys), maximum_iterations=T
    )
    return state, tf.nest.pack_sequence_as(specs, [y.stack() for y in ys])


def fused(fn):
    """`fn(*tensors)`, element-wise over all axes but the last, as one loop in training
    and one for its gradient: by XLA, which is not wanted in exported graphs."""
    forward = tf.function(fn, jit_compile=True, autograph=False)

    @functools.partial(tf.function, jit_compile=True, autograph=False)
    def backward(dy, *xs):
        with tf.GradientTape() as tape:
            tape.watch(xs)
            y = fn(*xs)
        return tape.gradient(y, xs, dy)

    @tf.custom_gradient
    def compiled_fn(*xs):
        return forward(*xs), lambda dy: backward(dy, *xs)

    @functools.wraps(fn)
    def call(*xs):
        if not (getattr(_thread, "training", False) and tf.test.is_built_with_xla()):
            return fn(*xs)
        y = compiled_fn(*xs)
        # Graph optimisation loses sight of the shape in the call, and with it fusions.
        return tf.reshape(y, tf.concat([tf.shape(xs[0])[:-1], y.shape[-1:]], 0))

    return call


def preserve_state(model):
    """Variables keep their values while Keras runs."""
    del model
    return contextlib.nullcontext()


def sync_state(model):
    """Variables hold the last step's values at all times."""
    del model


def concrete(x):
    """The values of `x` as NumPy, or None where they are not known yet."""
    eager = isinstance(x, tf.Tensor) and hasattr(x, "numpy")  # symbolic ones lack it
    return x.numpy() if eager else None
