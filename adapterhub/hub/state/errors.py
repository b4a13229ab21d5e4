"""Errors of the hub, each with the HTTP status and the X-Error-Code that clients act upon.

Clients retry 408, 429 and 5xx and give up on the rest, so no lasting fault has one of these.
"""

from __future__ import annotations

from adapterhub.errors import AdapterHubError, AlreadyExists, InvalidName, InvalidOption, NotFound


class RepoNotFound(NotFound):
    """Not there, or private: who may not read it cannot tell the two apart."""

    status = 404
    error_code = "RepoNotFound"


class RevisionNotFound(NotFound):
    status = 404
    error_code = "RevisionNotFound"


class EntryNotFound(NotFound):
    """No such file or folder; `commit` is the revision that was looked at, if there was one."""

    status = 404
    error_code = "EntryNotFound"

    def __init__(self, message: str, *, remedy: str = "", commit: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.commit = commit


class Unauthorized(AdapterHubError):
    """A token that is wrong, expired or revoked."""

    status = 401
    error_code = None


class Forbidden(AdapterHubError):
    status = 403
    error_code: str | None = None


class GatedRepo(Forbidden):
    error_code = "GatedRepo"


class Conflict(AlreadyExists):
    """Something of that name is there already, or two changes exclude each other."""

    status = 409
    error_code = None


class Stale(AdapterHubError):
    """The branch has moved on from the parent that the commit names; `head` is where it is."""

    status = 412
    error_code = None

    def __init__(self, message: str, *, remedy: str = "", head: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.head = head


class InvalidPath(InvalidName):
    status = 400
    error_code = None


class InvalidRequest(InvalidOption):
    status = 400
    error_code = None


class TooLarge(AdapterHubError):
    status = 413
    error_code = None
