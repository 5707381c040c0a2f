"""The REST API (https://www.tensorflow.org/tfx/serving/api_rest), with nothing but
Python's standard library."""

import http.client
import json
import re
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

from kgen.serving.errors import ServingError


class Rest:
    """Requests about one model, as JSON; see Client for the arguments."""

    def __init__(self, url, name, version, timeout):
        self.url, self.timeout = url.rstrip("/"), timeout
        version = "" if version is None else f"/versions/{version}"
        self.path = f"/v1/models/{urllib.parse.quote(name)}{version}"

    def predict(self, signature, inputs):
        values = {name: np.asarray(value).tolist() for name, value in inputs.items()}
        body = {"signature_name": signature, "inputs": values}
        return self._answer(f"{self.path}:predict", "outputs", body)

    def status(self, timeout=None):
        states = self._answer(self.path, "model_version_status", timeout=timeout)
        return {int(v["version"]): v["state"] for v in states}

    def metadata(self):
        return self._answer(f"{self.path}/metadata", "metadata")

    def close(self):
        """Each request has a connection of its own."""

    def _answer(self, path, key, body=None, timeout=None):
        data = None if body is None else json.dumps(body).encode()
        timeout = timeout or self.timeout
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as to:
                return json.load(to)[key]
        except urllib.error.HTTPError as error:
            with error:
                words = _words(error)
            if error.code == 504:  # the server's own deadline, or a proxy's
                raise TimeoutError(
                    f"No answer from {self.url}{path}: {words}"
                ) from None
            raise ServingError(words, error.code) from error
        except TimeoutError as error:
            raise TimeoutError(
                f"No answer from {self.url}{path} within {timeout:g} s."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConnectionError(
                f"What answers at {self.url} is no TensorFlow Serving: expected JSON "
                f"with '{key}'."
            ) from error
        except (urllib.error.URLError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or repr(error)
            raise ConnectionError(
                f"No TensorFlow Serving at {self.url} ({reason})."
            ) from error


def _words(error):
    """What the server said: {"error": ...} in JSON, if it is TensorFlow Serving."""
    text = error.read().decode(errors="replace")
    try:
        return json.loads(text)["error"]
    except (KeyError, TypeError):
        pass
    except ValueError:  # TensorFlow's words may have \', which is not JSON
        match = re.fullmatch(r'\s*\{\s*"error":\s*"(.*)"\s*\}\s*', text, re.DOTALL)
        if match:
            return re.sub(r"\\(['\"\\/])", r"\1", match[1])
    return f"HTTP {error.code}: {text.strip() or error.reason}"
