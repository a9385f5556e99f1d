"""The catalogue of errors. The first line of a docstring is the title a person reads; statuses live in the gateway."""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """Something could not be done."""

    code = "error"
    #: Whether the same may succeed later, with nothing changed by us.
    transient = False

    def __init__(self, message: str | None = None, **details: Any) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0].rstrip("."))
        self.details = details

    @property
    def message(self) -> str:
        return str(self.args[0])


class Invalid(Error):
    """The request is not valid."""

    code = "invalid"


class Unauthenticated(Error):
    """A valid credential is required."""

    code = "unauthenticated"


class Forbidden(Error):
    """The credential does not allow this."""

    code = "forbidden"


class NotFound(Error):
    """There is no such thing."""

    code = "not_found"


class AlreadyExists(Error):
    """Something of that name exists."""

    code = "already_exists"


class InvalidState(Error):
    """That cannot be done in the present state."""

    code = "invalid_state"


class Ended(InvalidState):
    """It has ended; nothing can be added to it."""

    code = "ended"


class RecentSync(Error):
    """A full sync was completed recently; pass force to run another."""

    code = "recent_sync"


class Conflict(Error):
    """Somebody else changed the same thing at the same time."""

    code = "conflict"
    transient = True


class PlanChanged(Error):
    """The world has moved since that plan was made."""

    code = "plan_changed"


class Held(Error):
    """A guard holds the plan until somebody confirms it."""

    code = "held"


class KeyReused(Error):
    """The idempotency key was used with another request."""

    code = "key_reused"


class Gone(Error):
    """The cursor belongs to a history that is no longer served."""

    code = "gone"


class LeaseLost(Error):
    """Another worker holds the lease now."""

    code = "lease_lost"


class RateLimited(Error):
    """Too many requests."""

    code = "rate_limited"


class TooLarge(Error):
    """The request is larger than allowed."""

    code = "too_large"


class UnsupportedMedia(Error):
    """The content type or encoding is not supported."""

    code = "unsupported_media"


class StorageFull(Error):
    """There is no space left."""

    code = "storage_full"


class SyncFailed(Error):
    """Synchronization operation failed."""

    code = "sync_failed"


class Unavailable(Error):
    """The service cannot do this right now; try again."""

    code = "unavailable"
    transient = True


class RemoteRefused(Error):
    """The remote system refuses what was asked; trying again changes nothing."""

    code = "remote_refused"


class RemoteUnavailable(Error):
    """The remote system does not answer as it should; it may later."""

    code = "remote_unavailable"
    transient = True


class RemoteBusy(RemoteUnavailable):
    """The remote system asks to be left alone for a while; `retry_after` says for how many seconds."""

    code = "remote_busy"


class TimedOut(Error):
    """The deadline passed before the work could be done."""

    code = "timed_out"
    transient = True


def catalogue(kind: type[Error] = Error) -> dict[str, type[Error]]:
    """code -> class, of an error and all below it; whoever has no code of its own goes by the one above."""
    found = {kind.code: kind} if "code" in vars(kind) else {}
    for below in kind.__subclasses__():
        found |= catalogue(below)
    return found


def is_transient(code: str) -> bool:
    """Whether what failed with that code may succeed later."""
    found = catalogue().get(code)
    return found is not None and found.transient
