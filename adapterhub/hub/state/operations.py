"""What a commit can do to a tree. Operations are carried out in the order given."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from adapterhub.digest import is_digest
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.paths import check_folder, check_path, shown

_PARENT = re.compile(r"[0-9a-f]{5,40}")


@dataclass(frozen=True)
class Add:
    """A file from a delivered blob. `size`, where the client says it, is compared."""

    path: str
    digest: str
    lfs: bool = False
    size: int | None = None


@dataclass(frozen=True)
class Delete:
    path: str


@dataclass(frozen=True)
class DeleteFolder:
    path: str


@dataclass(frozen=True)
class Copy:
    """A file or a folder, as it is in `revision`; in the parent of the commit where that is None.

    Other operations of the same commit do not change what is copied.
    """

    source: str
    path: str
    revision: str | None = None


Operation = Add | Delete | DeleteFolder | Copy


@dataclass(frozen=True)
class Request:
    """A commit to be made. `parent`: the commit (5 hex digits or more) that it must follow."""

    operations: tuple[Operation, ...]
    title: str
    message: str = ""
    parent: str | None = None

    def fingerprint(self, author: str) -> str:
        """The same for a repeated request, whatever its parent."""
        rows = [[type(each).__name__, *vars(each).values()] for each in self.operations]
        text = json.dumps([rows, self.title, self.message, author])
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def checked(request: Request, limits: Limits) -> Request:
    """With clean paths. Raises InvalidPath, InvalidRequest, TooLarge."""
    limits.check("operations", len(request.operations), "operations in one commit")
    parent = request.parent.lower() if request.parent is not None else None
    if parent is not None and not _PARENT.fullmatch(parent):
        raise InvalidRequest(
            f"the parent {shown(parent)} is not a commit", remedy="use 5 to 40 hex digits"
        )
    return Request(
        tuple(map(_operation, request.operations)),
        check_title(request.title, limits),
        check_text(request.message, "message", limits),
        parent,
    )


def check_title(title: str, limits: Limits) -> str:
    """Its first line. Raises InvalidRequest, TooLarge."""
    limits.check("title", len(title), "characters in the title")
    title = _text(title, "title").strip().split("\n")[0].strip()
    if not title:
        raise InvalidRequest("a commit needs a title", remedy="say what it does")
    return title


def check_text(text: str, what: str, limits: Limits) -> str:
    """Raises InvalidRequest, TooLarge."""
    limits.check("message", len(text), f"characters in the {what}")
    return _text(text, what)


def check_author(author: str) -> str:
    """Who stands in a commit: one line that cannot be read as another header."""
    if not author.strip() or len(author) > 200 or not author.isprintable() or set(author) & {*"<>"}:
        raise InvalidRequest(f"{shown(author)} cannot be an author", remedy="use a plain name")
    return author


def _operation(operation: Operation) -> Operation:
    if isinstance(operation, Add):
        check_path(operation.path)
        if not is_digest(operation.digest):
            raise InvalidRequest(
                f"{operation.digest!r} is not a sha256 digest", remedy="use sha256: and hex"
            )
        return operation
    if isinstance(operation, Delete):
        check_path(operation.path)
        return operation
    if isinstance(operation, DeleteFolder):
        return DeleteFolder(check_folder(operation.path))
    check_path(operation.source)
    return Copy(operation.source, check_path(operation.path), operation.revision)


def _text(text: str, what: str) -> str:
    """Text that may stand in a commit: newlines and tabs, but no other controls."""
    if any((ord(c) < 32 and c not in "\n\r\t") or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise InvalidRequest(f"the {what} has a control character", remedy="send plain text")
    return text.replace("\r\n", "\n")
