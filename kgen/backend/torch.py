"""PyTorch adapter: state lives in the variables, gradients from torch.autograd."""

import contextlib

import keras
import torch

from kgen.backend.torch_devices import replica_gradients, replica_loss


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


def compile_function(model, fn, gradients=False):
    """`fn(*tensors)`, eager, as Keras is on PyTorch. It reads the model's variables,
    and changes none; gradients are recorded only with `gradients`."""
    del model
    convert = keras.ops.convert_to_tensor

    def call(*args):
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            return fn(*[convert(a) for a in args])

    return call


def program_sizes():
    """Nothing is compiled."""
    return lambda n: n


def few_sizes(fn):
    """Nothing is compiled."""
    return fn


def record_gradients(gradients):
    """A context in which operations keep a graph only if `gradients` is true, and the
    surroundings record them."""
    return torch.set_grad_enabled(gradients and torch.is_grad_enabled())


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


def preserve_state(model):
    """Variables keep their values while Keras runs."""
    del model
    return contextlib.nullcontext()


def sync_state(model):
    """Variables hold the last step's values at all times."""
    del model


def concrete(x):
    """The values of `x` as NumPy, or None where they are not known yet."""
    if not isinstance(x, torch.Tensor) or x.device.type == "meta":
        return None
    return x.detach().cpu().numpy()
