"""Talking to a TensorFlow Serving that serves kgen's exported models.

    client = kgen.serving.Client("http://localhost:8501", "gated_pixel_cnn")
    client.wait_until_ready()
    images = client.sample(4, seed=7)  # what model.sample(4, seed=7) draws
    nats = client.log_prob(images)

Over the REST API (https://www.tensorflow.org/tfx/serving/api_rest), with nothing but
Python's standard library and NumPy. Arrays go in and come out as the model's own
methods have them.
"""

import json
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np

from kgen import files
from kgen.random import image_seeds


class ServingError(RuntimeError):
    """What the server said, in its own words; `status` is HTTP's, None without one."""

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


class Client:
    """A served model.

    Args:
        url: of the REST API, such as "http://localhost:8501".
        name: the served model's.
        version: None for the newest.
        timeout: seconds to wait for an answer.
        max_batch: images of one request; more go in several.

    Raises (all methods): ServingError, if the server refuses; TimeoutError, if it takes
        longer; ConnectionError, if there is none.
    """

    def __init__(self, url, name, version=None, timeout=30.0, max_batch=64):
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(f"url must begin with http:// or https://; got {url!r}.")
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1; got {max_batch}.")
        self.url, self.name, self.version = url.rstrip("/"), name, version
        self.timeout, self.max_batch = timeout, max_batch

    # The model's methods

    def sample(self, n, seed=None, labels=None):
        """As `model.sample`: (n, H, W, C) uint8; with no seed, another draw each time.
        Conditional models want labels, (n,) or one for all."""
        seed = secrets.randbelow(2**31) if seed is None else seed
        seeds = _served(image_seeds(seed, n))
        return self._batched("sample", "uint8", seed=seeds, label=labels)

    def complete(self, images, known_rows, seed=None, labels=None):
        """As `model.complete`: (n, H, W, C) uint8."""
        images, n = _integers("images", images), len(images)
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
        images = _integers("images", images)
        return self._batched(signature, "float32", images=images, label=labels)

    # The server

    def status(self):
        """The states of the model's versions, {version: "AVAILABLE", ...}."""
        answer = self._answer(self._path())
        return {int(v["version"]): v["state"] for v in answer["model_version_status"]}

    def metadata(self):
        """The signatures as the server describes them."""
        return self._answer(f"{self._path()}/metadata")["metadata"]

    def wait_until_ready(self, seconds=60.0):
        """Returns when a version (that asked for) is available.

        Raises:
            TimeoutError: it is not, after so many seconds; with the last reason.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                states = self.status()
                wanted = [self.version] if self.version else list(states)
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
        """One request: {output: array-like} of a signature's inputs, arrays by name."""
        values = {name: np.asarray(value).tolist() for name, value in inputs.items()}
        body = {"signature_name": signature, "inputs": values}
        outputs = self._answer(f"{self._path()}:predict", body)["outputs"]
        return outputs

    def _path(self):
        version = f"/versions/{self.version}" if self.version else ""
        return f"/v1/models/{urllib.parse.quote(self.name)}{version}"

    def _batched(self, signature, dtype, label=None, **inputs):
        n = len(next(iter(inputs.values())))
        if label is not None:
            label = _integers("labels", np.broadcast_to(np.asarray(label), n))
            inputs["label"] = label
        parts = []
        for start in range(0, max(n, 1), self.max_batch):
            part = {k: v[start : start + self.max_batch] for k, v in inputs.items()}
            parts.append(self.predict(signature, **part))
        if isinstance(parts[0], dict):  # of several outputs
            return {k: _joined([p[k] for p in parts], dtype) for k in parts[0]}
        return _joined(parts, dtype)

    def _answer(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise ServingError(_words(error), error.code) from error
        except TimeoutError as error:
            raise TimeoutError(
                f"No answer from {self.url}{path} within {self.timeout:g} s."
            ) from error
        except urllib.error.URLError as error:
            raise ConnectionError(
                f"No TensorFlow Serving at {self.url} ({error.reason})."
            ) from error


def _words(error):
    """What the server said: {"error": ...} in JSON, if it is TensorFlow Serving."""
    text = error.read().decode(errors="replace")
    try:
        return json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}: {text.strip() or error.reason}"


def _served(seeds):
    """Seeds of kgen.random, (n, 2) words, as served ones, int64 (n,)."""
    return (seeds[:, 0].astype("int64") << 32) + seeds[:, 1]


def _integers(name, values):
    """JSON's 256 would become 0 in the server, without a word."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers; got {values.dtype}.")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise ValueError(
            f"{name}: expected values 0..255; got {values.min()}..{values.max()}."
        )
    return values


def _latents(z):
    z = np.asarray(z, "float32")
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ValueError(f"z: expected finite latents (n, L); got shape {z.shape}.")
    return z


def _joined(parts, dtype):
    return np.concatenate([np.asarray(part, dtype) for part in parts])


def write_config(folder, base_path=None):
    """Writes `<folder>/models.config`, which names all exported models in `folder`, for
    `tensorflow_model_server --model_config_file`.

    Args:
        folder: holds `<name>/<version>/saved_model.pb`.
        base_path: of the models as the server sees them, such as "/models" in a
            container; by default the folder's own absolute path.

    Returns: the file's path.

    Raises:
        ValueError: there is no exported model in the folder.
    """
    folder = Path(folder)
    names = sorted(
        {p.parent.parent.name for p in folder.glob("*/[0-9]*/saved_model.pb")}
    )
    if not names:
        raise ValueError(
            f"No exported model in '{folder}': expected <name>/<version>/"
            "saved_model.pb, as model.export writes it."
        )
    base = str(base_path or folder.resolve()).rstrip("/")
    entries = [
        f"  config {{\n    name: {json.dumps(name)}\n"
        f"    base_path: {json.dumps(f'{base}/{name}')}\n"
        '    model_platform: "tensorflow"\n  }\n'
        for name in names
    ]
    with files.atomic(folder / "models.config") as path:
        path.write_text(f"model_config_list {{\n{''.join(entries)}}}\n")
    return folder / "models.config"
