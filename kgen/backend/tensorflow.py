"""The seam on TensorFlow: state lives in the variables, gradients come from tapes."""

import tensorflow as tf


def step(fn):
    """Keras calls a TensorFlow step as it is written: stateful, `step(self, data)`."""
    return fn


def minimize(model, fn, variables):
    """Differentiates `fn() -> (scalar loss, aux)` and updates `variables` alone.

    Returns `(loss, aux)`, unscaled. Variables that the loss does not reach get zeros.
    """
    with tf.GradientTape() as tape:
        loss, aux = fn()
        objective = model.optimizer.scale_loss(replica_loss(loss))
    gradients = tape.gradient(
        objective,
        [v.value for v in variables],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    model.optimizer.apply(replica_gradients(gradients), variables)
    return loss, aux


def input_gradient(model, fn, x):
    """d sum(fn(x)) / dx, with the shape of `x`; an outer gradient goes through it."""
    del model
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(fn(x))
    return tape.gradient(total, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def compiled(model, fn, gradients=False):
    """`fn(*tensors)` as one graph; it reads the model's variables, and changes none.
    Gradients pass in any case."""
    del model, gradients
    graph = tf.function(fn, autograph=False, reduce_retracing=True)
    # A plain function: Keras would track a tf.function as a part of the model.
    return lambda *args: graph(*[tf.convert_to_tensor(a) for a in args])


def replica_loss(loss):
    """A replica's share: the optimizer sums gradients over replicas, it does not
    average them, so a mean over the local batch is N times too large."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    return loss / replicas if replicas > 1 else loss


def replica_gradients(gradients):
    """Summed over replicas by the optimizer itself."""
    return gradients


def concrete(x):
    """The values of `x` as NumPy, or None where they are not known yet."""
    return x.numpy() if isinstance(x, tf.__internal__.EagerTensor) else None


def device():
    """For example '1 x GPU (NVIDIA H200)' or 'CPU'."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    details = tf.config.experimental.get_device_details(gpus[0])
    return f"{len(gpus)} x GPU ({details.get('device_name', 'unknown')})"
