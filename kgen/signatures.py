"""What the signatures of an exported model take and return; see kgen/export.py."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Input:
    """A tensor (B, *shape) that a signature takes.

    Args:
        dtype: as it is served: "int32", "int64", "float32" or "uint8", which clients
            take. TensorFlow Serving casts JSON to it before the graph sees it.
        shape: without the batch.
        interval: (least, most), both allowed; None for any value. The graph refuses
            other values.
        kind: how the function takes it: None, as it is served; "image", as uint8 where
            256 levels suffice; "seed", an int64 as its two words, int32 (B, 2), the
            high one first; "latent", as it is, refused unless finite and below 1e4.
    """

    dtype: str
    shape: tuple = ()
    interval: tuple | None = None
    kind: str | None = None

    @property
    def example(self):
        """A value that the graph takes."""
        return self.interval[0] if self.interval else 0


@dataclasses.dataclass(frozen=True)
class Output:
    """A tensor (B, *shape) that a signature returns."""

    dtype: str
    shape: tuple = ()


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function of symbolic tensors that is exported.

    Args:
        function: of the inputs, positional, in their order. It returns the output, or
            a tuple of several in their order.
        inputs: {name: Input}.
        outputs: {name: Output}.
    """

    function: Callable
    inputs: dict
    outputs: dict
