"""The body of a commit request: NDJSON in, a `Request` of the hub's state out.

    {"key": "header", "value": {"summary", "description", "parentCommit"?}}
    {"key": "file", "value": {"path", "content", "encoding": "base64"}}
    {"key": "lfsFile", "value": {"path", "algo": "sha256", "oid", "size"?}}
    {"key": "deletedFile" | "deletedFolder", "value": {"path"}}

Contents become blobs while they arrive; they belong to the repository only when all of the body
was read. What a broken request leaves in the store is nobody's, and `gc` collects it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from adapterhub import digest as digests
from adapterhub import strictjson
from adapterhub.errors import AdapterHubError
from adapterhub.hub.server.ndjson import PLACEHOLDER, Base64, Lines, decoded
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.operations import Add, Delete, DeleteFolder, Operation, Request
from adapterhub.store import Arriving, Store

MOST_BYTES = 2 * 2**30  # of a request
_WAITING_BYTES = 4 * 1024 * 1024
_WRITERS = 8  # small files wait for the disk, and not for each other


class CommitBody:
    """`feed` the body, then `finish`; `close` in any case. Not for several threads at once."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._lines = Lines(self._line, self._long)
        self._header: Mapping[str, Any] | None = None
        self._operations: list[Operation] = []
        self._long_file: _LongFile | None = None
        self._waiting: dict[str, bytes] = {}
        self._waiting_bytes = 0
        self.digests: list[str] = []

    def feed(self, piece: bytes) -> None:
        """Raises InvalidRequest, TooLarge, OutputError."""
        self._lines.feed(piece)

    def finish(self) -> Request:
        """`digests` are stored then, and to be delivered before the request is carried out."""
        self._lines.finish()
        self._store_waiting()
        if self._header is None:
            raise _wrong("the commit has no header line")
        text = {name: self._header.get(name) or "" for name in ("summary", "description")}
        parent = self._header.get("parentCommit")
        if not all(isinstance(each, str) for each in (*text.values(), parent or "")):
            raise _wrong("summary, description and parentCommit are texts")
        operations = tuple(self._operations)
        return Request(operations, text["summary"], text["description"], parent or None)

    def close(self) -> None:
        if self._long_file is not None:
            self._long_file.close()
            self._long_file = None

    def _long(self, piece: bytes) -> None:
        if self._long_file is None:
            self._long_file = _LongFile(self._store, self._check_size)
        self._long_file.feed(piece)

    def _line(self, text: bytes) -> None:
        key, value = _parsed(text)
        if key == "header":
            if self._header is not None:
                raise _wrong("the commit has two header lines")
            self._header = value
        elif key in _OPERATIONS:
            self._add(_OPERATIONS[key](value))
        elif key == "file":
            self._add(self._file(value))
        else:
            raise _wrong(f"the commit has a line of the unknown kind {str(key)[:40]!a}")
        if self._long_file is not None:
            raise _wrong("a line has a longer text than is allowed there")

    def _add(self, operation: Operation) -> None:
        self._operations.append(operation)
        self._limits.check("operations", len(self._operations), "operations in one commit")

    def _file(self, value: Mapping[str, Any]) -> Operation:
        content = value.get("content")
        if value.get("encoding") != "base64" or not isinstance(content, str):
            raise _wrong("a file has its content as a text in base64, and says so")
        long_file, self._long_file = self._long_file, None
        if long_file is None:
            return Add(_path(value), self._small(_ascii(content)))
        with long_file:
            if content != PLACEHOLDER:
                raise _wrong("a line has a longer text than is allowed there")
            digest = long_file.commit()
        self.digests.append(digest)
        return Add(_path(value), digest)

    def _small(self, content: bytes) -> str:
        data = decoded(content)
        self._check_size(len(data))
        digest = digests.of_bytes(data)
        self._waiting[digest] = data
        self._waiting_bytes += len(data)
        if self._waiting_bytes > _WAITING_BYTES:
            self._store_waiting()
        return digest

    def _store_waiting(self) -> None:
        if not self._waiting:
            return
        with ThreadPoolExecutor(_WRITERS) as pool:
            found = [
                digest for digest, _ in pool.map(self._store.put_blob_bytes, self._waiting.values())
            ]
        self.digests += found
        self._waiting, self._waiting_bytes = {}, 0

    def _check_size(self, size: int) -> None:
        self._limits.check("regular_size", size, "bytes of a file within a commit")


class _LongFile:
    """A file whose base64 is longer than a line may be: decoded into the store as it comes."""

    def __init__(self, store: Store, check: Callable[[int], None]) -> None:
        self._stack = ExitStack()
        self._blob: Arriving = self._stack.enter_context(store.arriving_blob())
        self._check = check
        self._base64 = Base64(self._write)

    def __enter__(self) -> _LongFile:
        return self

    def __exit__(self, *about: object) -> None:
        self.close()

    def feed(self, text: bytes) -> None:
        self._base64.feed(text)

    def _write(self, data: bytes) -> None:
        self._check(self._blob.size + len(data))
        self._blob.write(data)

    def commit(self) -> str:
        self._base64.finish()
        return self._blob.commit()

    def close(self) -> None:
        self._stack.close()


def _parsed(text: bytes) -> tuple[object, Mapping[str, Any]]:
    try:
        document = strictjson.loads(text)
    except ValueError as error:
        raise _wrong(f"a line of the commit is not JSON: {error}") from error
    value = document.get("value") if isinstance(document, dict) else None
    if not isinstance(value, dict):
        raise _wrong('a line of the commit is not {"key": …, "value": {…}}')
    return document.get("key"), value


def _path(value: Mapping[str, Any]) -> str:
    path = value.get("path")
    if not isinstance(path, str):
        raise _wrong("a line of the commit has no path")
    return path


def _lfs_file(value: Mapping[str, Any]) -> Operation:
    """Without a size it is a copy of what this repository has already."""
    oid, size = value.get("oid"), value.get("size")
    if value.get("algo", "sha256") != "sha256" or not isinstance(oid, str):
        raise _wrong("an lfsFile is named by its sha256")
    if size is not None and type(size) is not int:
        raise _wrong("the size of an lfsFile is a number of bytes")
    return Add(_path(value), digests.PREFIX + oid, lfs=True, size=size)


_OPERATIONS: Mapping[object, Callable[[Mapping[str, Any]], Operation]] = {
    "lfsFile": _lfs_file,
    "deletedFile": lambda value: Delete(_path(value)),
    "deletedFolder": lambda value: DeleteFolder(_path(value)),
}


def _ascii(text: str) -> bytes:
    return text.encode("ascii", "replace")


def _wrong(message: str) -> AdapterHubError:
    return InvalidRequest(message, remedy="send what the Hub's clients send")
