"""Devices: one by its name, or several that train together, on the backend's engine.

    kgen.distribute.use("gpu")  # one GPU; an error if there is none
    kgen.distribute.use("gpu:4")  # four of them
    kgen.distribute.use(2)  # two of what there is
    kgen.distribute.use("cpu:2")  # two virtual CPUs, to try things out

To be called first of all: before models are made and before the backend's first work.

    TensorFlow   `MirroredStrategy`; with TF_CONFIG, `MultiWorkerMirroredStrategy`
    JAX          `keras.distribution.DataParallel`; several hosts: with the environment
                 variables of `keras.distribution.initialize`, or that called before
    PyTorch      a process for each device, started by `torchrun --nproc-per-node=4`

Batches are global: `kgen.data.Batches(images, batch_size=64)` is 64 images a step, of
which each device computes its part. Give every process all of the data. Arrays go to
`fit` as they are: Keras divides them among the devices of one process and among
TensorFlow's workers, but each process of JAX or PyTorch trains on all it is given.

Weights and metrics end as on one device, noise included; but Keras' Dropout and batch
normalisation are of each device's part of the batch (on JAX of the whole). All
processes train; files are written by the first alone.
"""

from kgen import backend


def use(devices):
    """Chooses the devices for all that comes after in this process.

    Args:
        devices: "cpu" or "gpu" or "cpu:n" or "gpu:n" for n of them; or n, of GPUs where
            there are any.

    Raises:
        ValueError: there are not so many, or `devices` is none of these.
        RuntimeError: the backend has begun to use its devices.
    """
    kind, _, count = str(devices).partition(":")
    if kind.isdecimal() and not count:
        kind, count = None, kind
    if kind not in (None, "cpu", "gpu") or not (count or "1").isdecimal():
        raise ValueError(
            f"devices must be 'cpu', 'gpu', 'cpu:n', 'gpu:n' or a number n; got "
            f"{devices!r}."
        )
    if int(count or 1) < 1:
        raise ValueError(f"devices must be at least one; got {devices!r}.")
    backend.use(kind, int(count or 1))


def process():
    """(i, n): this is the i-th of n processes that train together."""
    return backend.process()


def wait(model=None):
    """Waits for the other processes; with a model, its weights become the first one's
    (which they are already, but on PyTorch)."""
    backend.together(model.variables if model else [])
