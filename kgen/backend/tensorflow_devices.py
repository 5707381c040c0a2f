"""Devices on TensorFlow: strategies of tf.distribute, whose replicas run one step."""

import contextlib
import os

import tensorflow as tf


def adapt(data, uneven=False):
    """Data in the form that `fit` handles fastest: of Batches a tf.data.Dataset
    that tunes nothing. Where it does, as in what Keras makes, TensorFlow 2.21 can end
    an epoch by waiting for the tuner to wake, which sleeps longer and longer while an
    epoch lasts. With several workers, int32: they cannot reduce bytes, as Keras does.
    `uneven`: the first epoch is shorter than the others, and a step may ask for more
    than is left of it.
    """
    several = process()[1] > 1
    if several and hasattr(data, "shape"):
        return tf.cast(data, "int32")
    if not hasattr(data, "set_epoch") or uneven:  # Keras' own may end early
        return data

    def batches():
        for i in range(len(data)):
            yield data[i]

    def spec(x):
        x = tf.convert_to_tensor(x)
        return tf.TensorSpec([None, *x.shape[1:]], x.dtype)

    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=tf.nest.map_structure(spec, data[0])
    )
    # Keras counts steps by it. At the early end of a shorter epoch TensorFlow would
    # raise, but CutEpoch ends that epoch before a step asks for more.
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(data)))
    options = tf.data.Options()
    options.autotune.enabled = False
    if several:
        if isinstance(data[0], tuple):
            raise ValueError(
                "Keras takes images only, without labels, where TensorFlow has several "
                "workers: use the devices of one, or another backend."
            )
        dataset = dataset.map(lambda x: tf.cast(x, "int32"))
    return dataset.prefetch(2).with_options(options)


def allow_uneven_batches(data, batch_size):
    """For evaluation: parts need not be equal here."""
    del data, batch_size
    return contextlib.nullcontext()


def _replica():
    """The context of this replica and the number of them; None, 1 without others."""
    context = tf.distribute.get_replica_context()
    n = tf.distribute.get_strategy().num_replicas_in_sync
    return (None, 1) if context is None or n == 1 else (context, n)


def replica_rows(n):
    """(first, total): the n images at hand are rows first..first+n of the batch."""
    context, parts = _replica()
    if parts == 1:
        return 0, n
    i = context.replica_id_in_sync_group
    total = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(n))
    first = i * (total // parts) + tf.minimum(i, total % parts)
    return tf.minimum(first, total - n), total


def replica_mean(values):
    """The mean of values (B,), such that the mean over replicas is that of the whole
    batch, also where one has more images than another."""
    context, n = _replica()
    if n == 1:
        return tf.reduce_mean(values)
    images = tf.cast(tf.shape(values)[0], values.dtype)
    images = context.all_reduce(tf.distribute.ReduceOp.SUM, images)
    return tf.reduce_sum(values) * (n / images)


def replica_loss(loss):
    """A replica's share: the optimizer sums gradients over replicas, it does not
    average them, so a mean over the local batch is N times too large."""
    replicas = _replica()[1]
    return loss / replicas if replicas > 1 else loss


def replica_gradients(gradients):
    """Summed over replicas by the optimizer itself."""
    return gradients


def replica_metrics(values, weight):
    """As they are: metrics' variables are summed over replicas when they are read."""
    return values, weight


def replica_sum(values):
    """As they are: metrics' variables are summed over replicas when they are read."""
    return values


def process():
    """(i, n): this is the i-th of n processes that train together."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or not resolver.cluster_spec():
        return 0, 1
    workers = resolver.cluster_spec().num_tasks("worker")
    return int(resolver.task_id or 0), workers


def together(variables):
    """Waits for the other workers. A strategy's variables are one by themselves."""
    del variables
    strategy = tf.distribute.get_strategy()
    if process()[1] > 1:
        ones = strategy.run(lambda: tf.constant(1.0))
        strategy.reduce(tf.distribute.ReduceOp.SUM, ones, axis=None)


def check_load():
    """TensorFlow's threads do not wait for one another as PyTorch's do."""


_kept = []  # scopes that are open for the life of the process


def use(kind, count):
    """See kgen.distribute: visible devices, and the scope of a strategy over them."""
    config = tf.config
    if kind is None:
        kind = "gpu" if config.list_physical_devices("GPU") else "cpu"
    found = config.list_physical_devices(kind.upper())
    if not found or (kind == "gpu" and count > len(found)):
        raise ValueError(
            f"TensorFlow sees {len(found)} of the {count} {kind.upper()} asked for."
        )
    config.set_visible_devices(found[:count] if kind == "gpu" else [], "GPU")
    if kind == "cpu" and count > 1:
        parts = [config.LogicalDeviceConfiguration()] * count
        config.set_logical_device_configuration(found[0], parts)
    if "TF_CONFIG" in os.environ:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif count > 1:
        strategy = tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)])
    else:
        return
    _kept.append(strategy.scope())
    _kept[-1].__enter__()


def device():
    """For example '1 x GPU (NVIDIA H200)' or 'CPU', of all that train together."""
    n = tf.distribute.get_strategy().num_replicas_in_sync
    gpus = tf.config.get_visible_devices("GPU")
    if not gpus:
        return "CPU" if n == 1 else f"{n} x CPU"
    details = tf.config.experimental.get_device_details(gpus[0])
    return f"{n} x GPU ({details.get('device_name', 'unknown')})"
