"""Every error that a caller can see. The type says whose fault it is; only `protocols` turns a code into a status.

Codes are gRPC's canonical names (https://grpc.io/docs/guides/status-codes/), because they are the finer of the
two vocabularies: HTTP statuses follow from them, not the other way round.
"""

from __future__ import annotations

from typing import ClassVar

_MOST_CHARACTERS = 1600  # many errors repeat what was sent, which may be as long as a body


def _fit_to_send(message: str) -> str:
    """The message as any wire can carry it: not endless, and without halves of characters (lone surrogates)."""
    if len(message) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        message = f"{message[:half]} … {message[-half:]}"
    return message if message.isascii() else message.encode(errors="replace").decode()


class PenstockError(Exception):
    """The one base. `str(error)` says what was got, what was allowed and what to do; it never holds internals."""

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False
    reason: ClassVar[str] = "internal"  # the value of the `reason` label in metrics: a closed set

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        message = _fit_to_send(message)
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidInput(PenstockError):
    """The caller sent something that can never work. `parameter` is the part of the request, as its protocol calls it,
    and `problem` the kind of fault, for protocols that say so ("" is unsaid)."""

    code, reason = "INVALID_ARGUMENT", "invalid"

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, parameter: str = "", problem: str = ""
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.parameter = parameter
        self.problem = problem


class TooLarge(InvalidInput):
    """The caller sent more than a limit allows (HTTP 413)."""

    code, reason = "OUT_OF_RANGE", "too_large"


class Unauthenticated(PenstockError):
    """No key, or a wrong one."""

    code, reason = "UNAUTHENTICATED", "unauthenticated"


class PermissionDenied(PenstockError):
    """The key is right, the operation is not allowed here."""

    code, reason = "PERMISSION_DENIED", "denied"


class NotFound(PenstockError):
    """No such model, version, label or route."""

    code, reason = "NOT_FOUND", "not_found"


class AlreadyExists(PenstockError):
    """The name is taken."""

    code, reason = "ALREADY_EXISTS", "already_exists"


class Unsupported(PenstockError):
    """The operation exists in the protocol, but not for this model or this server."""

    code, reason = "UNIMPLEMENTED", "unsupported"


class QuotaExceeded(PenstockError):
    """The caller's own quota is used up (HTTP 429)."""

    code, retryable, reason = "RESOURCE_EXHAUSTED", True, "quota"


class Overloaded(PenstockError):
    """The queue is full, or the deadline cannot be met by waiting in it."""

    code, retryable, reason = "UNAVAILABLE", True, "queue_full"


class NotReady(PenstockError):
    """The model is known, but no version of it can answer at this moment (starting, stopping, failed to load)."""

    code, retryable, reason = "UNAVAILABLE", True, "not_ready"


class WorkerLost(PenstockError):
    """The worker died or was stuck while it held this request; nobody knows whether user code had an effect.

    `begun`: user code may have seen the request; when it has not, the request may run elsewhere. `doubtful`: another
    one may be to blame, because the worker was at other batches too, or was killed by somebody. `died_at`: when
    (monotonic seconds), the same for all that one worker held.
    """

    code, retryable, reason = "UNAVAILABLE", True, "worker_lost"

    def __init__(
        self, message: str, *, retry_after_s: float | None = None, begun: bool = True, doubtful: bool = False,
        died_at: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(message, retry_after_s=retry_after_s)
        self.begun = begun
        self.doubtful = doubtful
        self.died_at = died_at


class DeadlineExceeded(PenstockError):
    """The request's one deadline passed: in the queue, in the batch or in user code."""

    code, reason = "DEADLINE_EXCEEDED", "deadline"


class Cancelled(PenstockError):
    """The caller left."""

    code, reason = "CANCELLED", "cancelled"


class ServableError(PenstockError):
    """The model's own code raised; the message is its last line, the traceback is in the log."""

    code, reason = "INTERNAL", "model_error"


class LoadError(PenstockError):
    """A version could not be loaded, warmed or checked. Its fault stays with it: the old version serves on.
    `shortage` says that the machine lacked something, so that the same may work later."""

    code, reason = "INTERNAL", "load_failed"

    def __init__(self, message: str, *, retry_after_s: float | None = None, shortage: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.shortage = shortage


class Internal(PenstockError):
    """Ours."""


_BY_NAME: dict[str, type[PenstockError]] = {
    kind.__name__: kind
    for kind in (
        InvalidInput, TooLarge, Unauthenticated, PermissionDenied, NotFound, AlreadyExists, Unsupported, QuotaExceeded,
        Overloaded, NotReady, WorkerLost, DeadlineExceeded, Cancelled, ServableError, LoadError, Internal,
    )
}  # fmt: skip


def rebuild(name: str, message: str, retry_after_s: float | None = None) -> PenstockError:
    """The error that another process described by its type's name; an unknown name becomes `Internal`."""
    return _BY_NAME.get(name, Internal)(message, retry_after_s=retry_after_s)
