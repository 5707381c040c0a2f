"""Devices on JAX: one partitioned program, in one process or in several."""

import contextlib
import os

import jax
import jax.numpy as jnp
import keras
from jax.experimental import multihost_utils

from kgen.batching import Share, Still


def adapt(data, uneven=False):
    """Data in the form that `fit` handles fastest: of kgen.data.Batches a process
    gets its own part of each batch; other data are returned unchanged."""
    del uneven
    i, n = process()
    if not hasattr(data, "set_epoch"):
        return data
    if (n > 1 or not isinstance(data, Still)) and not _divisible(data, None):
        raise ValueError(
            "JAX divides batches among devices equally, and these have, or leave, a "
            "number of images that cannot be: choose another batch_size, or leave the "
            "rest of each epoch out by Batches(..., drop_remainder=True)."
        )
    return Share(data, i, n) if n > 1 else data


def _divisible(data, batch_size):
    distribution = keras.distribution.distribution()
    devices = 1 if distribution is None else distribution.num_model_replicas
    if devices == 1:
        return True
    if hasattr(data, "set_epoch"):
        ends = {0, len(data) - 1}
        sizes = [len(keras.tree.flatten(data[i])[0]) for i in ends]
    elif hasattr(data, "shape") or isinstance(data, tuple):
        images = len(keras.tree.flatten(data)[0])
        sizes = [min(batch_size, images), images % batch_size]
    else:
        return False  # not known
    return not any(size % devices for size in sizes)


@contextlib.contextmanager
def allow_uneven_batches(data, batch_size):
    """For evaluation: where batches cannot be divided equally, each of this process'
    devices computes all of them."""
    distribution = keras.distribution.distribution()
    if process()[1] > 1 or _divisible(data, batch_size):
        yield
        return
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def replica_rows(n):
    """One program computes the whole batch: all rows."""
    return 0, n


def replica_mean(values):
    """One program over the global batch: a mean is the global mean already."""
    return jnp.mean(values)


def replica_loss(loss):
    """As it is, for it is of the global batch."""
    return loss


def replica_gradients(gradients):
    """Reduced by the partitioned program itself."""
    return gradients


def replica_metrics(values, weight):
    """Of the global batch as they are."""
    return values, weight


def replica_sum(values):
    """Of the global batch as they are."""
    return values


def process():
    """(i, n): this is the i-th of n processes that train together."""
    return jax.process_index(), jax.process_count()


def together(variables):
    """Waits for the other processes, whose variables are the same as ours."""
    del variables
    if process()[1] > 1:
        multihost_utils.sync_global_devices("kgen")


def check_load():
    """XLA's threads do not wait for one another as PyTorch's do."""


def use(kind, count):
    """See kgen.distribute: the default device, or data parallelism over several."""
    if "KERAS_DISTRIBUTION_JOB_ADDRESSES" in os.environ:
        keras.distribution.initialize()
    if kind != "gpu" and count > 1:  # where the CPU is what there is
        jax.config.update("jax_num_cpu_devices", count)
    try:
        devices = jax.devices(kind)
    except RuntimeError as error:
        raise ValueError(f"JAX has no {kind.upper()} here ({error}).") from error
    if len(devices) < count:
        raise ValueError(f"JAX sees {len(devices)} of the {count} devices asked for.")
    if count > 1 or process()[1] > 1:
        chosen = devices if process()[1] > 1 else devices[:count]
        names = [f"{d.platform}:{d.id}" for d in chosen]
        parallel = keras.distribution.DataParallel(
            devices=names, auto_shard_dataset=False
        )
        keras.distribution.set_distribution(parallel)
    else:
        jax.config.update("jax_default_device", devices[0])


def device():
    """For example '1 x GPU (NVIDIA H200)' or 'CPU', of all that train together."""
    distribution = keras.distribution.distribution()
    n = 1 if distribution is None else distribution.num_model_replicas
    chosen = jax.config.jax_default_device or jax.devices()[0]
    if chosen.platform == "cpu":
        return "CPU" if n == 1 else f"{n} x CPU"
    return f"{n} x {chosen.platform.upper()} ({chosen.device_kind})"
