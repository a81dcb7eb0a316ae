"""What can go wrong outside this process, as one tree: callers choose by class, people read the text."""


class FairleadError(Exception):
    """Base of all errors that the operator raises itself."""


class ApiError(FairleadError):
    """The API server answered with an error, or did not answer."""

    def __init__(self, status: int, verb: str, what: str, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{verb} {what}: {message}")
        self.status = status
        self.verb = verb
        self.what = what
        self.message = message
        self.retry_after_s = retry_after_s


class NotFoundError(ApiError):
    """404: the object, or its kind, does not exist."""


class ForbiddenError(ApiError):
    """401 or 403: this ServiceAccount may not do that."""


class ConflictError(ApiError):
    """409: somebody else was faster, or the name is taken."""


class GoneError(ApiError):
    """410: the version to go on from is too old; list again."""


class RefusedError(ApiError):
    """400 or 422: the object is not acceptable; trying again does not help."""


class OverloadedError(ApiError):
    """429 or 5xx: later."""


class UnreachableError(ApiError):
    """No answer within the time allowed, or no connection."""


class LeaseLostError(FairleadError):
    """Another replica leads, or the Lease could not be renewed in time."""


class LedgerError(FairleadError):
    """The ledger did not answer, or answered with something else than 200."""

    def __init__(self, call: str, message: str, status: int = 0) -> None:
        super().__init__(f"ledger {call}: {message}")
        self.status = status


_BY_STATUS: dict[int, type[ApiError]] = {
    400: RefusedError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: RefusedError,
}


def api_error(status: int, verb: str, what: str, message: str, retry_after_s: float = 0.0) -> ApiError:
    """The error for an HTTP status of the API server."""
    kind = _BY_STATUS.get(status, OverloadedError)
    return kind(status, verb, what, message, retry_after_s)
