"""What a server answers when it refuses, and how much it may answer."""

MAX_ANSWER = 64 * 2**20  # bytes


class ServingError(RuntimeError):
    """What the server said, in its own words; `status` is HTTP's, None without one.
    Over gRPC it is the HTTP status that the REST API has for the same error."""

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


class AttemptTimeout(TimeoutError):
    """One attempt took longer than the time that it had."""
