"""The REST API (https://www.tensorflow.org/tfx/serving/api_rest), with nothing but
Python's standard library."""

import json
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

from kgen.serving.errors import ServingError


class Rest:
    """Requests about one model, as JSON; see Client for the arguments."""

    def __init__(self, url, name, version, timeout):
        self.url, self.timeout = url.rstrip("/"), timeout
        version = f"/versions/{version}" if version else ""
        self.path = f"/v1/models/{urllib.parse.quote(name)}{version}"

    def predict(self, signature, inputs):
        values = {name: np.asarray(value).tolist() for name, value in inputs.items()}
        body = {"signature_name": signature, "inputs": values}
        return self._answer(f"{self.path}:predict", body)["outputs"]

    def status(self, timeout=None):
        states = self._answer(self.path, timeout=timeout)["model_version_status"]
        return {int(v["version"]): v["state"] for v in states}

    def metadata(self):
        return self._answer(f"{self.path}/metadata")["metadata"]

    def close(self):
        """Each request has a connection of its own."""

    def _answer(self, path, body=None, timeout=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout or self.timeout) as to:
                return json.load(to)
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
