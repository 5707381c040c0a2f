"""Devices on PyTorch: a process for each, joined by torch.distributed."""

import atexit
import contextlib
import datetime
import os
import warnings

import keras
import torch

from kgen.batching import Share


def adapt(data, uneven=False):
    """Data in the form that `fit` handles fastest: of kgen.data.Batches a process
    gets its own part of each batch; other data are returned unchanged."""
    del uneven
    i, n = process()
    return Share(data, i, n) if n > 1 and hasattr(data, "set_epoch") else data


def allow_uneven_batches(data, batch_size):
    """For evaluation: parts need not be equal here."""
    del data, batch_size
    return contextlib.nullcontext()


def replica_rows(n):
    """(first, total): the n images at hand are rows first..first+n of the batch."""
    i, parts = process()
    if parts == 1:
        return 0, n
    total = int(_all_reduce(keras.ops.convert_to_tensor(n)))
    return min(i * (total // parts) + min(i, total % parts), total - n), total


def _all_reduce(x):
    torch.distributed.all_reduce(x)
    return x


def replica_mean(values):
    """The mean of values (B,), such that the mean over processes is that of the whole
    batch, also where one has more images than another."""
    n = process()[1]
    if n == 1:
        return values.mean()
    images = _all_reduce(torch.tensor(float(len(values)), device=values.device))
    return values.sum() * (n / images)


def replica_loss(loss):
    """Each process differentiates its own share of the mean."""
    return loss


def replica_gradients(gradients):
    """Averaged over the processes."""
    n = process()[1]
    if n == 1:
        return gradients
    return [_all_reduce(gradient.contiguous()) / n for gradient in gradients]


def replica_metrics(values, weight):
    """Per-image values {name: (B,)} and weights (B,) or None, as metrics are to have
    them: with several processes, means over all images, and their weight."""
    if process()[1] == 1:
        return values, weight
    with torch.no_grad():
        first = next(iter(values.values()))
        weight = torch.ones_like(first) if weight is None else weight.to(first.dtype)
        sums = torch.stack([(v * weight).sum() for v in [*values.values(), 1.0]])
        sums = _all_reduce(sums)
        means = torch.where(sums[-1] > 0, sums[:-1] / sums[-1], 0.0)  # of weights of 0
    return dict(zip(values, means, strict=True)), sums[-1]


def replica_sum(values):
    """The sum over the processes, for a metric's variables."""
    return values if process()[1] == 1 else _all_reduce(values)


def process():
    """(i, n): this is the i-th of n processes that train together."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def together(variables):
    """Gives all processes the first one's values, and waits for them."""
    if process()[1] == 1:
        return
    for v in variables:
        value = keras.ops.convert_to_tensor(v).detach().clone()
        torch.distributed.broadcast(value, 0)
        v.assign(value)
    torch.distributed.barrier()


_kept = []  # scopes that are open for the life of the process


_told = []  # whether the warning was given


def check_load():
    """Warns, once, if other processes have the cores that PyTorch's threads need: they
    wait for one another, and steps of small models take many times as long."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < 1.5 * cores or threads == 1 or torch.cuda.is_available() or _told:
        return
    _told.append(True)
    warnings.warn(
        f"The load of this machine is {load:.0f} on {cores} cores, and PyTorch takes "
        f"{threads} threads, which will wait for one another. Small models are faster "
        "with torch.set_num_threads(1) or OMP_NUM_THREADS=1.",
        stacklevel=2,
    )


def use(kind, count):
    """See kgen.distribute: a device for this process, one of those of torchrun."""
    if kind is None:
        kind = "gpu" if torch.cuda.is_available() else "cpu"
    found = torch.cuda.device_count() if kind == "gpu" else count
    world = int(os.environ.get("WORLD_SIZE", 1))
    if count not in (1, world) and world > 1:
        raise ValueError(f"{count} devices are asked for, of {world} processes.")
    if not found or (world == 1 and count > found):
        raise ValueError(
            f"PyTorch sees {found} of the {count} {kind.upper()} asked for."
        )
    if world == 1 and count > 1:
        raise ValueError(
            f"PyTorch takes a process for each device: start the script with `torchrun "
            f"--nproc-per-node={count}` in place of `python`."
        )
    if kind == "gpu":  # which Keras takes by itself
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    else:
        _kept.append(keras.device("cpu"))
        _kept[-1].__enter__()
    if world > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if kind == "gpu" else "gloo")
        atexit.register(_leave)


def _leave():
    """Together: who is left alone with open connections aborts. But not for long: the
    others may have come to an error."""
    distributed = torch.distributed
    if distributed.is_initialized():
        if distributed.get_backend() == "gloo":
            with contextlib.suppress(RuntimeError):
                distributed.monitored_barrier(timeout=datetime.timedelta(seconds=5))
        distributed.destroy_process_group()


def device():
    """For example '1 x GPU (NVIDIA H200)' or 'CPU', of all that train together."""
    n = process()[1]
    if keras.ops.zeros(()).device.type != "cuda":
        return "CPU" if n == 1 else f"{n} x CPU"
    return f"{n} x GPU ({torch.cuda.get_device_name()})"
