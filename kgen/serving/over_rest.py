"""The REST API (https://www.tensorflow.org/tfx/serving/api_rest), with nothing but
Python's standard library."""

import contextlib
import functools
import http.client
import json
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request

import numpy as np

from kgen.serving.errors import MAX_ANSWER, AttemptTimeout, ServingError


class _Deadline:
    """Shuts a socket down when the time of a whole request is over: the timeouts of
    sockets are of each read, and a byte a second would never be late."""

    def __init__(self, seconds):
        self.over = False
        self._socket = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def watch(self, connected):
        self._socket = connected
        self._timer.start()

    def _end(self):
        self.over = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._timer.cancel()


def _with_deadline(kind):
    class Connection(kind):
        def __init__(self, *args, deadline, **kwargs):
            super().__init__(*args, **kwargs)
            self.deadline = deadline

        def connect(self):
            super().connect()
            self.deadline.watch(self.sock)

    return Connection


_HTTP = _with_deadline(http.client.HTTPConnection)
_HTTPS = _with_deadline(http.client.HTTPSConnection)


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens connections that a deadline watches."""

    def __init__(self, deadline):
        urllib.request.HTTPHandler.__init__(self)
        urllib.request.HTTPSHandler.__init__(self)
        self.deadline = deadline

    def http_open(self, request):
        return self.do_open(functools.partial(_HTTP, deadline=self.deadline), request)

    def https_open(self, request):
        kind = functools.partial(_HTTPS, deadline=self.deadline, context=self._context)
        return self.do_open(kind, request)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: TensorFlow Serving sends none, and images go nowhere
    else."""

    def redirect_request(self, *args):
        return None


class Rest:
    """Requests about one model, as JSON; see Client for the arguments."""

    def __init__(self, url, name, version):
        self.url = url.rstrip("/")
        version = "" if version is None else f"/versions/{version}"
        self.path = f"/v1/models/{urllib.parse.quote(name)}{version}"

    def predict(self, signature, inputs, timeout):
        values = {name: np.asarray(value).tolist() for name, value in inputs.items()}
        body = {"signature_name": signature, "inputs": values}
        return self._answer(f"{self.path}:predict", "outputs", timeout, body)

    def status(self, timeout):
        states = self._answer(self.path, "model_version_status", timeout)
        return {int(v["version"]): v["state"] for v in states}

    def metadata(self, timeout):
        return self._answer(f"{self.path}/metadata", "metadata", timeout)

    def close(self):
        """Each request has a connection of its own."""

    def _answer(self, path, key, timeout, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        late = f"No answer from {self.url}{path} within {timeout:.3g} s."
        with _Deadline(timeout) as deadline:
            try:
                status, text = _fetch(request, timeout, deadline)
            except (OSError, http.client.HTTPException) as error:
                if deadline.over or isinstance(error, TimeoutError):
                    raise AttemptTimeout(late) from error
                reason = getattr(error, "reason", None) or repr(error)
                raise ConnectionError(
                    f"No TensorFlow Serving at {self.url} ({reason})."
                ) from error
        if deadline.over:  # in the middle of the answer
            raise AttemptTimeout(late)
        if status == 504:  # the server's own deadline, or a proxy's
            raise TimeoutError(f"No answer from {self.url}{path}: {_words(text, 504)}")
        if status != 200:
            raise ServingError(_words(text, status), status)
        if len(text) > MAX_ANSWER:
            raise ConnectionError(
                f"{self.url}{path} answers more than {MAX_ANSWER >> 20} MiB: lower "
                "max_batch."
            )
        try:
            return json.loads(text)[key]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConnectionError(
                f"What answers at {self.url} is no TensorFlow Serving: expected JSON "
                f"with '{key}'."
            ) from error


def _fetch(request, timeout, deadline):
    """(HTTP's status, the body)."""
    opener = urllib.request.build_opener(_Handler(deadline), _NoRedirect)
    try:
        with opener.open(request, timeout=timeout) as answer:
            return 200, answer.read(MAX_ANSWER + 1)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(10_000)


def _words(text, status):
    """What the server said: {"error": ...} in JSON, if it is TensorFlow Serving."""
    text = text.decode(errors="replace")
    try:
        return str(json.loads(text)["error"])
    except (KeyError, TypeError, RecursionError):
        pass
    except ValueError:  # TensorFlow's words may have \', which is not JSON
        match = re.fullmatch(r'\s*\{\s*"error":\s*"(.*)"\s*\}\s*', text, re.DOTALL)
        if match:
            return re.sub(r"\\(['\"\\/])", r"\1", match[1])
    return f"HTTP {status}: {text.strip() or http.client.responses.get(status, '')}"
