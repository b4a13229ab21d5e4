"""What a path in a repository may be.

A path is written by one person and becomes a file on the disk of another, on any system. Refused
is what some system would read as another place, another file, or a piece of git's own data.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from adapterhub.hub.state.errors import InvalidPath

MAX_BYTES = 1024
MAX_PART_BYTES = 255
MAX_DEPTH = 32
_DRIVE = re.compile(r"[A-Za-z]:")
# Unseen by HFS+, which takes ".g\u200cit" for ".git"; and marks that reverse what people see.
_UNSEEN = {*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF}
_REFUSED_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_REMEDY = "use relative paths with `/` between ordinary names"


def check_path(path: object) -> str:
    """The path of a file, unchanged. Raises InvalidPath."""
    if not isinstance(path, str):
        raise InvalidPath(f"a path is a string, not {type(path).__name__}", remedy=_REMEDY)
    problem = _problem(path) or next(filter(None, map(_part_problem, path.split("/"))), "")
    if problem:
        raise InvalidPath(f"path {shown(path)} {problem}", remedy=_REMEDY)
    return path


def check_folder(path: object) -> str:
    """The path of a folder, without the `/` at its end. Raises InvalidPath."""
    return check_path(path[:-1] if isinstance(path, str) and path.endswith("/") else path)


def _problem(path: str) -> str:
    if not path:
        return "is empty"
    if any(unicodedata.category(c) in _REFUSED_CATEGORIES for c in path):
        return "has a control character"
    if any(ord(c) in _UNSEEN for c in path):
        return "has a character that nobody sees"
    if "\\" in path:
        return "has a backslash"
    if path.startswith("/") or _DRIVE.match(path):
        return "is absolute"
    if len(path.encode()) > MAX_BYTES:
        return f"is longer than {MAX_BYTES} bytes"
    depth = path.count("/") + 1
    return f"is {depth} folders deep; at most {MAX_DEPTH} are allowed" if depth > MAX_DEPTH else ""


def _part_problem(part: str) -> str:
    if not part:
        return "has an empty part"
    if part in (".", ".."):
        return f"has a part {part!r}"
    if part.rstrip(" .").casefold() in (".git", "git~1"):
        return f"has a part {part!r}, which is git's own"
    if len(part.encode()) > MAX_PART_BYTES:
        return f"has a part longer than {MAX_PART_BYTES} bytes"
    return ""


def fold(name: str) -> str:
    """What file systems that ignore case and normal forms make of a name."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def check_siblings(folder: str, names: Iterable[str]) -> None:
    """Raises InvalidPath where two names of one folder differ only in case or normal form."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(fold(name), name)
        if other != name:
            where = f"folder {shown(folder)}" if folder else "the repository"
            raise InvalidPath(
                f"{shown(name)} and {shown(other)} in {where} are one file where case is ignored",
                remedy="rename one of them",
            )


def shown(path: str) -> str:
    """A quoted form without control characters, cut where it would fill the screen."""
    return ascii(path if len(path) <= 120 else path[:117] + "...")
