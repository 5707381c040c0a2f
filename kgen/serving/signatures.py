"""The signatures of a served model, and the checks of their inputs.

A server that batches requests fails all requests of a batch for one with a bad value.
So the client checks what the graph of the model checks, before it sends.
"""

import operator

import numpy as np

from kgen.serving.errors import ServingError

_DTYPES = {
    "DT_UINT8": "uint8",
    "DT_INT32": "int32",
    "DT_INT64": "int64",
    "DT_FLOAT": "float32",
}
_LARGEST_Z = 1e4  # as in the graph: see kgen/export.py


class Signatures:
    """What a served model takes and returns.

    Args:
        name: of the served model.
        metadata: as `Client.metadata` returns them.

    Attributes:
        described: {signature: its part of the metadata}.
        limits: {"levels": of images, "num_classes": of labels, 0 for none}, or None
            where they are not known.

    Raises:
        ConnectionError: the metadata are not TensorFlow Serving's.
    """

    def __init__(self, name, metadata):
        self.name, self.limits = name, None
        try:
            self.described = dict(metadata["signature_def"]["signature_def"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConnectionError(
                f"The metadata of '{name}' are not TensorFlow Serving's: "
                f"{metadata!r:.200}."
            ) from error

    def __eq__(self, other):
        return (self.described, self.limits) == (other.described, other.limits)

    def set_limits(self, answer):
        """Takes the limits from the answer of the signature `limits`."""
        try:
            (levels,), (classes,) = answer["levels"], answer["num_classes"]
            levels, classes = operator.index(levels), operator.index(classes)
            if not 2 <= levels <= 2**16 or classes < 0:
                raise ValueError
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ConnectionError(
                f"'{self.name}' has limits that no model of kgen has: {answer!r:.200}."
            ) from error
        self.limits = {"levels": levels, "num_classes": classes}

    def tensors(self, signature, way):
        """The "inputs" or "outputs" of a signature: {name: (dtype, sizes)}, the sizes
        without the batch, -1 for any.

        Raises:
            ServingError: there is no such signature.
            ConnectionError: it has other types than models of kgen.
        """
        described = self.described.get(signature)
        if not isinstance(described, dict):
            raise ServingError(f"'{self.name}' has no signature {signature!r}.", 400)
        tensors = {}
        try:
            for name, tensor in described[way].items():
                dims = tensor["tensor_shape"].get("dim", [])
                sizes = [int(dim["size"]) for dim in dims]
                tensors[name] = _DTYPES[tensor["dtype"]], sizes[1:]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConnectionError(
                f"'{self.name}' describes {way} of '{signature}' that no model of kgen "
                f"has: {described!r:.200}."
            ) from error
        return tensors

    def empty_outputs(self, signature):
        """A signature's answer to an empty batch: an array, or a dict of several."""
        outputs = self.tensors(signature, "outputs")
        if any(size < 0 for _, sizes in outputs.values() for size in sizes):
            raise ConnectionError(
                f"'{self.name}' describes no sizes of the outputs of '{signature}'."
            )
        empty = {k: np.zeros((0, *sizes), d) for k, (d, sizes) in outputs.items()}
        return empty if len(empty) > 1 else next(iter(empty.values()))

    def check(self, signature, inputs):
        """The inputs, arrays by name, in the types that the signature takes.

        Raises:
            ValueError: where the graph would refuse them, or the server misread them.
        """
        specs = self.tensors(signature, "inputs")
        for name in inputs.keys() ^ specs.keys():
            verb = "takes no" if name in inputs else "needs"
            what = "labels" if name == "label" else name
            raise ValueError(f"'{self.name}' {verb} {what} in '{signature}'.")
        inputs = {k: cast_exactly(specs[k][0], k, v) for k, v in inputs.items()}
        rows = len(np.atleast_1d(next(iter(inputs.values()))))
        for name, value in inputs.items():
            sizes = [rows, *specs[name][1]]
            pairs = zip(sizes, value.shape, strict=False)
            if value.ndim != len(sizes) or any(a not in (-1, b) for a, b in pairs):
                sizes = ", ".join("any" if size == -1 else f"{size}" for size in sizes)
                raise ValueError(
                    f"{name} must be of shape ({sizes}); got {value.shape}."
                )
        self._check_ranges(inputs)
        return inputs

    def _check_ranges(self, inputs):
        highest = {}
        if self.limits:
            highest["images"] = self.limits["levels"] - 1
            highest["label"] = self.limits["num_classes"] - 1
        if inputs.keys() >= {"known_rows", "images"}:
            highest["known_rows"] = inputs["images"].shape[1]
        for name in inputs.keys() & highest.keys():
            check_range(name, inputs[name], 0, highest[name])
        z = inputs.get("z")
        if z is not None and not np.all(np.abs(z) < _LARGEST_Z):  # nor NaN
            raise ValueError(f"z must be finite latents, |z| < {_LARGEST_Z:g}.")


def cast_exactly(dtype, name, values):
    """An array of this type. Values that it does not have raise: the server would read
    256 as 0 and 3.7 as 3."""
    values = np.asarray(values)
    if values.dtype == dtype:
        return values
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    if values.dtype.kind not in "iu" and values.size:
        raise ValueError(f"{name} must be integers; got {values.dtype}.")
    limits = np.iinfo(dtype)
    check_range(name, values, limits.min, limits.max)
    return values.astype(dtype)


def check_range(name, values, least, most):
    if values.size and (values.min() < least or values.max() > most):
        got = f"{values.min()}..{values.max()}"
        raise ValueError(f"{name} must be in {least}..{most}; got {got}.")
