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
        return self._call("sample", labels, seed=_served_seeds(seed, n))

    def complete(self, images, known_rows, seed=None, labels=None):
        """As `model.complete`: (n, H, W, C) uint8."""
        images = np.asarray(images)
        rows = np.broadcast_to(np.asarray(known_rows), len(images))
        seeds = _served_seeds(seed, len(images))
        return self._call(
            "complete", labels, images=images, known_rows=rows, seed=seeds
        )

    def log_prob(self, images, labels=None):
        """log p(x) in nats: (n,) float32, of exact models."""
        return self._call("log_prob", labels, images=images)

    def elbo(self, images, labels=None):
        """The bound of a VAE in nats: (n,) float32."""
        return self._call("elbo", labels, images=images)

    def encode(self, images, labels=None):
        """(mean, log_var) of a VAE's posterior, float32 (n, L) each."""
        both = self._call("encode", labels, images=images)
        if not isinstance(both, dict) or not both.keys() >= {"mean", "log_var"}:
            raise ConnectionError(
                f"'{self.name}' answers no mean and log_var to 'encode'."
            )
        return both["mean"], both["log_var"]

    def reconstruct(self, images, labels=None):
        """A VAE's expected images, float32 (n, H, W, C)."""
        return self._call("reconstruct", labels, images=images)

    def discriminate(self, images, labels=None):
        """A GAN's D(x), logits, float32 (n,)."""
        return self._call("discriminate", labels, images=images)

    def decode(self, z, labels=None):
        """A VAE's expected images of latents (n, L): float32 (n, H, W, C)."""
        return self._call("decode", labels, z=z)

    def generate(self, z, labels=None):
        """A GAN's G(z) of latents (n, L): float32 (n, H, W, C)."""
        return self._call("generate", labels, z=z)

    def _call(self, signature, labels, **arrays):
        """`call` with labels, one for each row or one for all; None for no labels."""
        if labels is not None:
            n = len(_first(arrays))
            arrays["label"] = np.broadcast_to(np.asarray(labels), n) if n else []
        return self.call(signature, **arrays)

    def call(self, signature, /, **arrays):
        """The answer of any signature, also of one that no model of kgen has.

        Args:
            signature: its name, such as "log_prob".
            **arrays: its inputs by their names, (n, ...) each, as the server describes
                them in `metadata`; converted to the described dtype.

        Returns: the output, NumPy (n, ...), in the dtype that the server describes; of
            several outputs a dict of them. More than `max_batch` rows go in several
            requests, each within `timeout`.

        Raises: see Client.
        """
        arrays, end = {k: np.asarray(v) for k, v in arrays.items()}, self._deadline()
        if arrays and all(a.shape[:1] == (0,) for a in arrays.values()):
            # JSON has no shape for it, and a batching server no batch
            return self._read_signatures(end).empty_outputs(signature)
        inputs, known = self._check(signature, arrays, end)
        n, parts = len(_first(inputs)), []
        for start in range(0, n, self.max_batch):
            part = {k: v[start : start + self.max_batch] for k, v in inputs.items()}
            answer = self._ask(signature, part, known, end)
            parts.append(self._check_answer(signature, answer, len(_first(part)), end))
            end = self._deadline()
        joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        return joined if len(joined) > 1 else _first(joined)

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

    def _check_answer(self, signature, answer, rows, end):
        """{output: array} of an answer, as the server describes them."""
        outputs = self._read_signatures(end).tensors(signature, "outputs")
        if len(outputs) == 1 and not isinstance(answer, dict):
            answer = dict.fromkeys(outputs, answer)
        if not isinstance(answer, dict) or answer.keys() != outputs.keys():
            names = " and ".join(outputs)
            raise ConnectionError(f"'{self.name}' answers no {names} to '{signature}'.")
        return {
            k: _check_values(v, outputs[k][0], rows, f"{self.name}'s '{signature}' {k}")
            for k, v in answer.items()
        }

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


def _served_seeds(seed, n):
    """The seeds of images 0..n-1 as they are served, int64 (n,); of a random run, if
    `seed` is None."""
    words = image_seeds(secrets.randbelow(2**31) if seed is None else seed, n)
    return (words[:, 0].astype("int64") << 32) + words[:, 1]


def _first(arrays):
    return next(iter(arrays.values()))


def _check_seconds(**values):
    for name, value in values.items():
        if not is_number(value) or not 0.0 <= value < 1e9:
            raise ValueError(f"{name} must be a number of seconds; got {value!r}.")


def _check_values(values, dtype, rows, whose):
    """An answer's array as `dtype`: as many rows as were asked for, finite, and of
    integers only those that it has, for 300 as a byte would become 44."""
    expected = f"{whose}: expected {rows} rows of {dtype}"
    if values.dtype.kind not in "fiu" or values.shape[:1] != (rows,):
        raise ConnectionError(f"{expected}; got {values.dtype} {values.shape}.")
    if not np.isfinite(values).all():
        raise ConnectionError(f"{expected}; got NaN or infinity among them.")
    if np.dtype(dtype).kind in "iu":
        limits, low, high = np.iinfo(dtype), values.min(), values.max()
        if values.dtype.kind == "f" or low < limits.min or high > limits.max:
            raise ConnectionError(f"{expected}; got {low}..{high}.")
    return values.astype(dtype)
