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
from kgen.seeds import image_seeds
from kgen.serving.errors import AttemptTimeout, ServingError
from kgen.serving.over_rest import Rest
from kgen.serving.signatures import Signatures


class Client:
    """A served model.

    Args:
        url: of the REST API, such as "http://localhost:8501", or of gRPC, such as
            "grpc://localhost:8500"; https:// and grpcs:// are encrypted.
        name: the served model's.
        version: its number; None for the newest.
        timeout: seconds to wait for the whole answer to a request. A server that is
            busy (429, 503) is asked again within them.
        max_batch: images of one request; more go in several. A server that batches
            refuses more than its own max_batch_size, 64 as `write_config` has it.

    Threads may share a client. It is a context manager; `close` ends its connection.

    Before its first request a client reads the types and shapes of the signatures and,
    from the signature `limits`, the ranges of their inputs. Exports of earlier versions
    of kgen have no `limits`; their graphs check the ranges.

    Raises (all methods): ServingError, if the server refuses; TimeoutError, if it takes
        longer; ConnectionError, if there is none, or its answer is not what the model
        has (another number of rows, NaN, images that are no bytes, over 64 MiB);
        ValueError, before anything is sent, if an input has the wrong type, shape or
        range, is missing, or is none of the signature's.
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
        self._signatures = None  # read with the first request
        self._server = over(self.url, name, version)

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
        seeds = _served_seeds(image_seeds(seed, n))
        return self._in_batches("sample", "uint8", seed=seeds, label=labels)

    def complete(self, images, known_rows, seed=None, labels=None):
        """As `model.complete`: (n, H, W, C) uint8."""
        images = np.asarray(images)
        n = len(images)
        seed = secrets.randbelow(2**31) if seed is None else seed
        rows = np.broadcast_to(np.asarray(known_rows), n)
        inputs = {"known_rows": rows, "seed": _served_seeds(image_seeds(seed, n))}
        return self._in_batches(
            "complete", "uint8", images=images, label=labels, **inputs
        )

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
        return self._in_batches("decode", "float32", z=np.asarray(z), label=labels)

    def generate(self, z, labels=None):
        """A GAN's G(z) of latents (n, L): float32 (n, H, W, C)."""
        return self._in_batches("generate", "float32", z=np.asarray(z), label=labels)

    def _of_images(self, signature, images, labels):
        images = np.asarray(images)
        return self._in_batches(signature, "float32", images=images, label=labels)

    # The server

    def status(self):
        """The states of the model's versions, {version: "AVAILABLE", ...}."""
        return self._server.status(self.timeout)

    def metadata(self):
        """The signatures as the server describes them, as its REST API does."""
        return self._server.metadata(self.timeout)

    def limits(self):
        """The ranges of inputs: {"levels": of images, "num_classes": of labels, 0 for a
        model without}; None for an export of an earlier version of kgen."""
        return self._read_signatures(self._deadline()).limits

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
        end = self._deadline()
        inputs, known = self._check(signature, inputs, end)
        return self._ask(signature, inputs, known, end)

    def _in_batches(self, signature, dtype, label=None, **inputs):
        n, end = len(_first(inputs)), self._deadline()
        if n == 0:  # JSON has no shape for it, and a batching server no batch
            return self._read_signatures(end).empty_outputs(signature)
        if label is not None:
            inputs["label"] = np.broadcast_to(np.asarray(label), n)
        inputs, known = self._check(signature, inputs, end)
        parts = []
        for start in range(0, n, self.max_batch):
            part = {k: v[start : start + self.max_batch] for k, v in inputs.items()}
            answer, rows = self._ask(signature, part, known, end), len(_first(part))
            parts.append(
                _check_answer(answer, dtype, rows, f"{self.name}'s '{signature}'")
            )
            end = self._deadline()
        if isinstance(parts[0], dict):  # of several outputs
            return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        return np.concatenate(parts)

    # Signatures. They may change with the version, so that none refuse an input but
    # those that have just been read.

    def _read_signatures(self, end, again=False):
        """The signatures, read once, or `again`."""
        signatures = self._signatures
        if signatures is None or again:
            metadata = self._ask_again(self._server.metadata, end)
            signatures = Signatures(self.name, metadata)
            if "limits" in signatures.described:
                index = {"index": np.zeros(1, "int64")}
                signatures.set_limits(self._predict("limits", index, end))
            self._signatures = signatures
        return signatures

    def _check(self, signature, inputs, end):
        """The inputs, see Signatures.check, and the signatures that they are for."""
        before = self._signatures
        known = self._read_signatures(end)
        try:
            return known.check(signature, inputs), known
        except (ServingError, ValueError):
            if before is None or not self._have_changed(known, end):
                raise
        known = self._read_signatures(end)
        return known.check(signature, inputs), known

    def _have_changed(self, known, end):
        """Whether the server has other signatures than those `known`, by now."""
        return self.version is None and self._read_signatures(end, again=True) != known

    def _ask(self, signature, inputs, known, end):
        """The server's answer to inputs that have been checked."""
        try:
            return self._predict(signature, inputs, end)
        except ServingError as error:
            if error.status != 400 or not self._have_changed(known, end):
                raise
        inputs, _ = self._check(signature, inputs, end)
        return self._predict(signature, inputs, end)

    # Requests

    def _deadline(self):
        return time.monotonic() + self.timeout

    def _predict(self, signature, inputs, end):
        def ask(timeout):
            return self._server.predict(signature, inputs, timeout)

        outputs = self._ask_again(ask, end)
        if isinstance(outputs, dict):
            return {k: np.asarray(v) for k, v in outputs.items()}
        return np.asarray(outputs)

    def _ask_again(self, ask, end):
        """`ask(timeout)` until the server is not busy or the time is over; each attempt
        has the seconds that are left."""
        pause, busy = 0.05, None
        while True:
            try:
                return ask(max(1e-3, end - time.monotonic()))
            except AttemptTimeout as error:
                before = f", after it was busy ({busy})" if busy else ""
                raise TimeoutError(
                    f"No answer from {self.url} within {self.timeout:g} s{before}."
                ) from error
            except ServingError as error:
                busy = error  # 429, 503: RESOURCE_EXHAUSTED, UNAVAILABLE
                late = time.monotonic() + 2.0 * pause > end
                if error.status not in (429, 503) or late:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))  # clients do not keep step
            pause = min(2.0 * pause, 1.0)


def _grpc():
    try:
        from kgen.serving.over_grpc import Grpc
    except ImportError as error:
        raise ImportError(
            "grpc:// needs tensorflow-serving-api: pip install 'kgen[serving]'. Over "
            f"http:// nothing is needed. ({error})"
        ) from error
    return Grpc


def _served_seeds(seeds):
    """Seeds of kgen.random, (n, 2) words, as served ones, int64 (n,)."""
    return (seeds[:, 0].astype("int64") << 32) + seeds[:, 1]


def _first(arrays):
    return next(iter(arrays.values()))


def _check_seconds(**values):
    for name, value in values.items():
        if not is_number(value) or not 0.0 <= value < 1e9:
            raise ValueError(f"{name} must be a number of seconds; got {value!r}.")


def _check_answer(answer, dtype, rows, whose):
    """An answer's arrays as `dtype`: as many rows as were asked for, finite, and images
    of bytes, for 300 would become 44."""
    if isinstance(answer, dict):
        return {
            k: _check_answer(v, dtype, rows, f"{whose} {k}") for k, v in answer.items()
        }
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
