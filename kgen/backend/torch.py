"""The seam on PyTorch: state lives in the variables, gradients from torch.autograd."""

import atexit
import os

import keras
import torch

from kgen.batching import Share


def step(fn):
    """Keras calls a PyTorch step as it is written: stateful, `step(self, data)`."""
    return fn


def minimize(model, fn, variables):
    """Differentiates `fn() -> (scalar loss, aux)` and updates `variables` alone.

    Returns `(loss, aux, gradients)`: unscaled, unscaled, and as the optimizer got them.
    Variables that the loss does not reach get zeros.
    `autograd.grad`, for `backward` would fill the other network's `.grad` as well.
    """
    (loss, aux), gradients = fn(), []
    if variables:  # a frozen network has none, and autograd.grad refuses an empty list
        gradients = torch.autograd.grad(
            model.optimizer.scale_loss(replica_loss(loss)),
            [v.value for v in variables],
            materialize_grads=True,
        )
        gradients = replica_gradients(list(gradients))
        with torch.no_grad():
            model.optimizer.apply(gradients, variables)
    loss, aux = keras.tree.map_structure(lambda t: t.detach(), (loss, aux))
    return loss, aux, gradients


def input_gradient(model, fn, x):
    """d sum(fn(x)) / dx, with the shape of `x`; an outer gradient goes through it."""
    del model
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        total = fn(x).sum()
        return torch.autograd.grad(total, x, create_graph=True, materialize_grads=True)[
            0
        ]


def fed(data):
    """What `fit` is given, as it takes it best here: of kgen.data.Batches a process
    gets its own part of each batch, other data as they are."""
    i, n = process()
    return Share(data, i, n) if n > 1 and hasattr(data, "set_epoch") else data


def compiled(model, fn, gradients=False):
    """`fn(*tensors)`, eager, as Keras is on PyTorch. It reads the model's variables,
    and changes none; gradients are recorded only with `gradients`."""
    del model
    convert = keras.ops.convert_to_tensor

    def call(*args):
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            return fn(*[convert(a) for a in args])

    return call


def replica_rows(n):
    """(first, total): the n images at hand are rows first..first+n of the batch."""
    i, parts = process()
    if parts == 1:
        return 0, n
    total = int(_summed(torch.tensor(n)))
    return min(i * (total // parts) + min(i, total % parts), total - n), total


def _summed(x):
    torch.distributed.all_reduce(x)
    return x


def replica_mean(values):
    """The mean of values (B,), such that the mean over processes is that of the whole
    batch, also where one has more images than another."""
    n = process()[1]
    if n == 1:
        return values.mean()
    images = _summed(torch.tensor(float(len(values)), device=values.device))
    return values.sum() * (n / images)


def replica_loss(loss):
    """Each process differentiates its own share of the mean."""
    return loss


def replica_gradients(gradients):
    """Averaged over the processes."""
    n = process()[1]
    if n == 1:
        return gradients
    return [_summed(gradient.contiguous()) / n for gradient in gradients]


def replica_metrics(values, weight):
    """Per-image values {name: (B,)} and weights (B,) or None, as metrics are to have
    them: with several processes, means over all images, and their weight."""
    if process()[1] == 1:
        return values, weight
    with torch.no_grad():
        first = next(iter(values.values()))
        weight = torch.ones_like(first) if weight is None else weight.to(first.dtype)
        sums = torch.stack([(v * weight).sum() for v in [*values.values(), 1.0]])
        sums = _summed(sums)
    return dict(zip(values, sums[:-1] / sums[-1], strict=True)), sums[-1]


def convolution(x, kernel, pads, bias=None):
    """x (B, H, W, F) with pads ((top, bottom), (left, right)) of zeros, negative ones
    cropping, times kernel (rows, columns, F, filters), plus bias (filters,)."""
    functional = torch.nn.functional
    if any(map(any, pads)):  # it would copy
        x = functional.pad(x, (0, 0, *pads[1], *pads[0]))
    y = functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), bias)
    return y.permute(0, 2, 3, 1)


def scan(fn, state, xs):
    """`state, y = fn(state, x)` over the first axis of xs (T, ...): the last state and
    ys (T, ...). States, xs and ys are tensors or nests of them."""
    leaves = keras.tree.flatten(xs)
    ys = []
    for t in range(leaves[0].shape[0]):
        x = keras.tree.pack_sequence_as(xs, [leaf[t] for leaf in leaves])
        state, y = fn(state, x)
        ys.append(y)
    return state, keras.tree.map_structure(lambda *y: torch.stack(y), *ys)


def fused(fn):
    """PyTorch runs `fn` op by op."""
    return fn


def concrete(x):
    """The values of `x` as NumPy, or None where they are not known yet."""
    if not isinstance(x, torch.Tensor) or x.device.type == "meta":
        return None
    return x.detach().cpu().numpy()


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


def use(kind, count):
    """See kgen.distribute: a device for this process, one of those of torchrun."""
    if kind is None:
        kind = "gpu" if torch.cuda.is_available() else "cpu"
    found = torch.cuda.device_count() if kind == "gpu" else 1
    world = int(os.environ.get("WORLD_SIZE", 1))
    if not found or (count > found and kind == "gpu"):
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
    """Together: who is left alone with open connections aborts."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def device():
    """For example '1 x GPU (NVIDIA H200)' or 'CPU'."""
    if not torch.cuda.is_available():
        return "CPU"
    return f"{torch.cuda.device_count()} x GPU ({torch.cuda.get_device_name(0)})"
