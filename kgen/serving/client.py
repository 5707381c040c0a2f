"""A client of TensorFlow Serving, with the models' own methods.

    client = kgen.serving.Client("http://localhost:8501", "gated_pixel_cnn")
    client.wait_until_ready()
    images = client.sample(4, seed=7)  # what model.sample(4, seed=7) draws
    nats = client.log_prob(images)

Over REST, for which Python's standard library is enough, or over gRPC, which is faster
for it sends no text, with `tensorflow-serving-api` (the extra `serving`). Arrays go in
and come out as the models' methods have them.
"""

import operator
import random
import secrets
import time
import urllib.parse

import numpy as np

from kgen.checks import is_number, positive
from kgen.random import image_seeds
from kgen.serving.errors import ServingError
from kgen.serving.over_rest import Rest

# What the signatures take; gRPC sends types as they are.
_DTYPES = {
    "images": "uint8",
    "seed": "int64",
    "label": "int64",
    "known_rows": "int64",
    "z": "float32",
}
_OF = {"DT_UINT8": "uint8", "DT_FLOAT": "float32"}  # what they give


class Client:
    """A served model.

    Args:
        url: of the REST API, such as "http://localhost:8501", or of gRPC, such as
            "grpc://localhost:8500"; https:// and grpcs:// are encrypted.
        name: the served model's.
        version: its number; None for the newest.
        timeout: seconds to wait for a whole answer. A server that is busy (429, 503) is
            asked again within them.
        max_batch: images of one request; more go in several. A server that batches
            refuses more than its own max_batch_size, 64 as `write_config` has it.

    Threads may share a client. It is a context manager; `close` ends its connection.

    Raises (all methods): ServingError, if the server refuses; TimeoutError, if it takes
        longer; ConnectionError, if there is none, or its answer is not what the model
        has (another number of rows, NaN, images that are no bytes, over 64 MiB);
        ValueError, what it would misread.
        ImportError (at once): gRPC without `tensorflow-serving-api`.
    """

    def __init__(self, url, name, version=None, timeout=30.0, max_batch=64):
        scheme = urllib.parse.urlsplit(url).scheme
        if scheme not in ("http", "https", "grpc", "grpcs"):
            wanted = "http://, https://, grpc:// or grpcs://"
            raise ValueError(f"url must begin with {wanted}; got {url!r}.")
        if version is not None:
            version = operator.index(version)
        positive(max_batch=max_batch)
        _check_seconds(timeout=timeout)
        self.url, self.name, self.version = url.rstrip("/"), name, version
        self.timeout, self.max_batch = timeout, max_batch
        over = Rest if scheme.startswith("http") else _grpc()
        self._takes_labels = {}  # of each signature that has been asked with labels
        self._server = over(self.url, name, version, timeout)

    def close(self):
        """Ends the connection that gRPC keeps open."""
        self._server.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    # The model's methods

    def sample(self, n, seed=None, labels=None):
        """As `model.sample`: (n, H, W, C) uint8; with no seed, another draw each time.
        Conditional models want labels, (n,) or one for all."""
        seed = secrets.randbelow(2**31) if seed is None else seed
        seeds = _served(image_seeds(seed, n))
        return self._batched("sample", "uint8", seed=seeds, label=labels)

    def complete(self, images, known_rows, seed=None, labels=None):
        """As `model.complete`: (n, H, W, C) uint8."""
        images = _images(images)
        n = len(images)
        seed = secrets.randbelow(2**31) if seed is None else seed
        rows = np.broadcast_to(np.asarray(known_rows), n)
        inputs = {"known_rows": rows, "seed": _served(image_seeds(seed, n))}
        return self._batched("complete", "uint8", images=images, label=labels, **inputs)

    def log_prob(self, images, labels=None):
        """log p(x) in nats: (n,) float32, of exact models."""
        return self._of_images("log_prob", images, labels)

    def elbo(self, images, labels=None):
        """The bound of a VAE in nats: (n,) float32."""
        return self._of_images("elbo", images, labels)

    def encode(self, images, labels=None):
        """(mean, log_var) of a VAE's posterior, float32 (n, L) each."""
        both = self._of_images("encode", images, labels)
        if not isinstance(both, dict) or not both.keys() >= {"mean", "log_var"}:
            raise ConnectionError(
                f"'{self.name}' answers no mean and log_var to 'encode'."
            )
        return both["mean"], both["log_var"]

    def reconstruct(self, images, labels=None):
        """A VAE's expected images, float32 (n, H, W, C)."""
        return self._of_images("reconstruct", images, labels)

    def discriminate(self, images, labels=None):
        """A GAN's D(x), logits, float32 (n,)."""
        return self._of_images("discriminate", images, labels)

    def decode(self, z, labels=None):
        """A VAE's expected images of latents (n, L): float32 (n, H, W, C)."""
        return self._batched("decode", "float32", z=_latents(z), label=labels)

    def generate(self, z, labels=None):
        """A GAN's G(z) of latents (n, L): float32 (n, H, W, C)."""
        return self._batched("generate", "float32", z=_latents(z), label=labels)

    def _of_images(self, signature, images, labels):
        images = _images(images)
        return self._batched(signature, "float32", images=images, label=labels)

    # The server

    def status(self):
        """The states of the model's versions, {version: "AVAILABLE", ...}."""
        return self._server.status()

    def metadata(self):
        """The signatures as the server describes them, as its REST API does."""
        return self._server.metadata()

    def wait_until_ready(self, seconds=60.0):
        """Returns when a version (that asked for) is available.

        Raises:
            TimeoutError: it is not, after so many seconds; with the last reason.
        """
        _check_seconds(seconds=seconds)
        end = time.monotonic() + seconds
        while True:
            try:
                states = self._server.status(max(1.0, end - time.monotonic()))
                wanted = states if self.version is None else [self.version]
                if any(states.get(v) == "AVAILABLE" for v in wanted):
                    return
                reason = f"versions are {states}"
            except (ServingError, OSError) as error:
                reason = str(error)
            if time.monotonic() >= end:
                raise TimeoutError(
                    f"'{self.name}' is not ready at {self.url} after {seconds:g} s: "
                    f"{reason}"
                )
            time.sleep(min(0.2, max(0.0, end - time.monotonic())))

    def predict(self, signature, **inputs):
        """One request, of arrays by name; the output's array, or, where a signature has
        several, a dict of them. REST has no types: int64 and float64 come back."""
        typed = {k: _as(_DTYPES.get(k), k, v) for k, v in inputs.items()}
        outputs = self._ask_again(signature, typed)
        if isinstance(outputs, dict):
            return {k: np.asarray(v) for k, v in outputs.items()}
        return np.asarray(outputs)

    def _ask_again(self, signature, inputs):
        """`predict` of the server, until it is not busy or the time is over."""
        end, pause = time.monotonic() + self.timeout, 0.05
        while True:
            try:
                return self._server.predict(signature, inputs)
            except ServingError as error:
                busy = error.status in (429, 503)  # RESOURCE_EXHAUSTED, UNAVAILABLE
                if not busy or time.monotonic() + pause > end:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))  # clients do not keep step
            pause = min(2.0 * pause, 1.0)

    def _batched(self, signature, dtype, label=None, **inputs):
        n = len(_first(inputs))
        if label is not None:
            inputs["label"] = np.broadcast_to(np.asarray(label), n)
            if isinstance(self._server, Rest):
                self._check_takes_labels(signature)
        if n == 0:  # JSON has no shape for it, and a batching server no batch
            return self._nothing(signature)
        parts = []
        for start in range(0, n, self.max_batch):
            part = {k: v[start : start + self.max_batch] for k, v in inputs.items()}
            answer, rows = self.predict(signature, **part), len(_first(part))
            parts.append(_checked(answer, dtype, rows, f"{self.name}'s '{signature}'"))
        if isinstance(parts[0], dict):  # of several outputs
            return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        return np.concatenate(parts)

    def _check_takes_labels(self, signature):
        """A label that a model has no use for is ignored over REST; gRPC refuses it."""
        if signature not in self._takes_labels:
            inputs = self._described(signature).get("inputs") or {}
            self._takes_labels[signature] = "label" in inputs
        if not self._takes_labels[signature]:
            raise ValueError(f"'{self.name}' takes no labels in '{signature}'.")

    def _described(self, signature):
        """What the metadata say of a signature."""
        try:
            signatures = self.metadata()["signature_def"]["signature_def"]
            described = signatures.get(signature)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConnectionError(
                f"The metadata of '{self.name}' at {self.url} are not TensorFlow "
                "Serving's."
            ) from error
        if not isinstance(described, dict):
            raise ServingError(f"'{self.name}' has no signature {signature!r}.", 400)
        return described

    def _nothing(self, signature):
        """A signature's outputs for an empty batch, by what the server says of them."""
        outputs, empty = self._described(signature).get("outputs"), {}
        try:
            for name, tensor in outputs.items():
                dims = tensor["tensor_shape"].get("dim", [])
                sizes = [int(dim["size"]) for dim in dims]
                empty[name] = np.zeros((0, *sizes[1:]), _OF[tensor["dtype"]])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ConnectionError(
                f"'{self.name}' describes outputs of '{signature}' that no model of "
                f"kgen has: {outputs!r:.200}."
            ) from error
        return empty if len(empty) > 1 else _first(empty)


def _grpc():
    try:
        from kgen.serving.over_grpc import Grpc
    except ImportError as error:
        raise ImportError(
            "grpc:// needs tensorflow-serving-api: pip install 'kgen[serving]'. Over "
            f"http:// nothing is needed. ({error})"
        ) from error
    return Grpc


def _served(seeds):
    """Seeds of kgen.random, (n, 2) words, as served ones, int64 (n,)."""
    return (seeds[:, 0].astype("int64") << 32) + seeds[:, 1]


def _as(dtype, name, values):
    """An array of the type that the signature takes. What would not be the same in it
    is refused: 256 would become 0, 3.7 become 3, in the server or here, without a word.
    """
    values = np.asarray(values)
    if dtype is None or values.dtype == dtype:
        return values
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    if values.dtype.kind not in "iu" and values.size:
        raise ValueError(f"{name}: expected integers; got {values.dtype}.")
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    if values.size and (values.min() < least or values.max() > most):
        got = f"{values.min()}..{values.max()}"
        raise ValueError(f"{name}: expected values {least}..{most}; got {got}.")
    return values.astype(dtype)


def _images(values):
    return _as("uint8", "images", values)


def _latents(z):
    z = np.asarray(z, "float32")
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError(f"z: expected finite latents (n, L); got shape {z.shape}.")
    return z


def _first(arrays):
    return next(iter(arrays.values()))


def _check_seconds(**values):
    for name, value in values.items():
        if not is_number(value) or not 0.0 <= value < 1e9:
            raise ValueError(f"{name} must be a number of seconds; got {value!r}.")


def _checked(answer, dtype, rows, whose):
    """An answer's arrays as `dtype`: as many rows as were asked for, finite, and images
    of bytes, for 300 would become 44."""
    if isinstance(answer, dict):
        return {k: _checked(v, dtype, rows, f"{whose} {k}") for k, v in answer.items()}
    expected = f"{whose}: expected {rows} rows of {dtype}"
    if answer.dtype.kind not in "fiu" or answer.shape[:1] != (rows,):
        raise ConnectionError(f"{expected}; got {answer.dtype} {answer.shape}.")
    if not np.isfinite(answer).all():
        raise ConnectionError(f"{expected}; got NaN or infinity among them.")
    if dtype == "uint8":
        whole = answer.dtype.kind in "iu" and 0 <= answer.min() and answer.max() <= 255
        if not whole:
            raise ConnectionError(f"{expected}; got {answer.min()}..{answer.max()}.")
    return answer.astype(dtype)
