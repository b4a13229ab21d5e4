"""What a pull request changes, as a diff in git's form; contents only of small texts."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable, Iterator

from adapterhub.hub.state.trees import File, Node
from adapterhub.store import Store

_TEXT_BYTES = 64 * 1024
_DIFF_CHARACTERS = 512 * 1024
_DIFF_SECONDS = 3.0  # one file takes a third of a second where its lines were chosen for that
_NULL = "0" * 40
_NO_NEWLINE = "\n\\ No newline at end of file\n"


def unified(store: Store, changes: Iterable[tuple[str, Node | None, Node | None]]) -> str:
    """`changes`: path, what was there, what is. Ends with a note where it grows too long."""
    parts: list[str] = []
    length, until = 0, time.monotonic() + _DIFF_SECONDS
    for path, before, after in changes:
        old = before if isinstance(before, File) else None
        new = after if isinstance(after, File) else None
        if old is None and new is None:  # a folder; its files come by themselves
            continue
        part = "".join(_lines(store, path, old, new))
        length += len(part)
        if length > _DIFF_CHARACTERS or time.monotonic() > until:
            return "".join([*parts, "# the diff is longer than what is shown here\n"])
        parts.append(part)
    return "".join(parts)


def _lines(store: Store, path: str, old: File | None, new: File | None) -> Iterator[str]:
    yield f"diff --git a/{path} b/{path}\n"
    if old is None:
        yield "new file mode 100644\n"
    if new is None:
        yield "deleted file mode 100644\n"
    yield f"index {old.oid if old else _NULL}..{new.oid if new else _NULL}\n"
    names = (f"a/{path}" if old else "/dev/null", f"b/{path}" if new else "/dev/null")
    texts = _text(store, old), _text(store, new)
    if texts[0] is None or texts[1] is None:
        yield f"Binary files {names[0]} and {names[1]} differ\n"
        return
    for line in difflib.unified_diff(_split(texts[0]), _split(texts[1]), *names):
        yield line if line.endswith("\n") else line + _NO_NEWLINE


def _split(text: str) -> list[str]:
    """As git does, at new lines and nowhere else."""
    *whole, rest = text.split("\n")
    return [f"{line}\n" for line in whole] + ([rest] if rest else [])


def _text(store: Store, file: File | None) -> str | None:
    """None for what is large or no text."""
    if file is None:
        return ""
    if file.lfs or file.size > _TEXT_BYTES:
        return None
    with store.open_blob(file.digest) as blob:
        data = blob.read()
    try:
        return None if b"\0" in data else data.decode("utf-8")
    except UnicodeDecodeError:
        return None
