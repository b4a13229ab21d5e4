"""File contents and manifests, named by their sha256 and never changed.

<tree>/ab/abcd…      the 256 folders exist from the start, so none has to be made durable later
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from adapterhub import digest as digests
from adapterhub.errors import IntegrityError, NotFound, OutputError, StoreError
from adapterhub.store import files
from adapterhub.store.home import Home

PIECE = 1024 * 1024
WRITEBACK = 16 * 1024 * 1024
_VERIFY = "`adapterhub verify` lists what is damaged; add the adapter again to heal it"


@dataclass(frozen=True)
class Tree:
    """One content-addressed tree; `kind` is how messages call its files."""

    home: Home
    folder: Path
    kind: str

    def path(self, digest: str) -> Path:
        """Where the content of this digest lies, if it does. Raises StoreError."""
        if not digests.is_digest(digest):
            raise StoreError(f"{digest!r} is not a sha256 digest", remedy="give `sha256:` and hex")
        digits = digest.removeprefix(digests.PREFIX)
        return self.folder / digits[:2] / digits

    def has(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """Bytes. Raises IntegrityError where the content is missing."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError as error:
            raise self._missing(digest) from error

    def open(self, digest: str) -> BinaryIO:
        """Raises IntegrityError where the content is missing."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError as error:
            raise self._missing(digest) from error

    def verify(self, digest: str) -> None:
        """Reads and hashes all of it. Raises IntegrityError."""
        with self.open(digest) as file:
            found = _hash(file)
        if found != digest:
            raise IntegrityError(
                f"{self.kind} {digest} is damaged: its bytes hash to {found}", remedy=_VERIFY
            )

    def put_bytes(self, data: bytes) -> str:
        """Stores `data`, durably; two fsyncs, three in a new folder, one if it is there already."""
        digest = digests.of_bytes(data)
        target = self.path(digest)
        with files.named_errors(self.home.root):
            if not self._refresh(target, digest, len(data)):
                with files.temporary(self.home.tmp) as (fd, path):
                    files.write_all(fd, data, path)
                    self._publish(fd, path, target)
        return digest

    def put_file(self, source: Path) -> tuple[str, int]:
        """Stores a copy of a file and returns its digest and size in bytes.

        What is hashed is what is written, also where the source changes meanwhile. Raises
        NotFound or OutputError.
        """
        with open_source(source) as file, files.named_errors(self.home.root):  # noqa: SIM117
            with files.temporary(self.home.tmp) as (fd, path):
                digest, size = _copy(file, fd, path)
                self.settle(fd, path, digest, size)
        return digest, size

    def settle(self, fd: int, path: Path, digest: str, size: int) -> None:
        """Moves a written temporary to its place, unless its content is there already."""
        target = self.path(digest)
        if not self._refresh(target, digest, size):
            self._publish(fd, path, target)

    def _publish(self, fd: int, path: Path, target: Path) -> None:
        if files.mkdir(target.parent):
            files.fsync_path(self.folder)
        files.publish(fd, path, target)

    def _refresh(self, target: Path, digest: str, size: int) -> bool:
        """Whether the content is there, and sound; makes it young, and its name durable, if so.

        It is read for that: to add an adapter again heals damaged bytes.
        """
        try:
            found = target.stat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        with target.open("rb") as file:
            if _hash(file) != digest:
                return False
        files.touch(target)
        files.fsync_path(target.parent)  # whoever wrote it may have died before this
        return True

    def delete(self, digest: str) -> None:
        files.unlink(self.path(digest))

    def iterate(self) -> Iterator[tuple[str, os.stat_result]]:
        """Digest and status of everything stored. Files with other names are passed over."""
        for folder in sorted(filter(Path.is_dir, self.folder.iterdir())):
            with os.scandir(folder) as entries:
                for entry in entries:
                    digest = digests.PREFIX + entry.name
                    if digests.is_digest(digest) and entry.name.startswith(folder.name):
                        yield digest, entry.stat(follow_symlinks=False)

    def _missing(self, digest: str) -> IntegrityError:
        return IntegrityError(f"{self.kind} {digest} is missing from the store", remedy=_VERIFY)


def open_source(source: Path) -> BinaryIO:
    try:
        return source.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {source}", remedy="check the path") from error
    except OSError as error:
        raise OutputError(
            f"cannot read {source}: {error.strerror}", remedy="check its permissions"
        ) from error


def _hash(file: BinaryIO) -> str:
    hasher = hashlib.sha256()
    while piece := file.read(PIECE):
        hasher.update(piece)
    return digests.PREFIX + hasher.hexdigest()


def _copy(file: BinaryIO, fd: int, path: Path) -> tuple[str, int]:
    hasher = hashlib.sha256()
    size = 0
    while piece := file.read(PIECE):
        hasher.update(piece)
        files.write_all(fd, piece, path)
        size += len(piece)
    return digests.PREFIX + hasher.hexdigest(), size


@dataclass
class Arriving:
    """A content that comes in pieces; nothing of it is visible before `commit`.

    Either `write` each in order, or `write_at` in any order and `hash_up_to` what is there. `size`
    is how many bytes have been hashed.
    """

    _tree: Tree
    _fd: int
    _path: Path
    size: int = 0
    _waiting: int = 0
    _hasher: Any = field(default_factory=hashlib.sha256)

    def write(self, piece: bytes | memoryview) -> None:
        """Raises OutputError where the disk is full."""
        with files.named_errors(self._tree.home.root):
            files.write_all(self._fd, piece, self._path)
        self._hasher.update(piece)
        self.size += len(piece)
        self._written(len(piece))

    def write_at(self, offset: int, piece: bytes | memoryview) -> None:
        """At or behind `size` only: what lies before has been hashed."""
        with files.named_errors(self._tree.home.root):
            files.write_all_at(self._fd, offset, piece, self._path)
        self._written(len(piece))

    def hash_up_to(self, end: int) -> None:
        """Reads and hashes from `size` to `end`."""
        with files.named_errors(self._tree.home.root), self._path.open("rb") as file:
            file.seek(self.size)
            while self.size < end and (piece := file.read(min(PIECE, end - self.size))):
                self._hasher.update(piece)
                self.size += len(piece)

    def _written(self, count: int) -> None:
        """Keeps the disk busy meanwhile, so that `commit` has little to wait for."""
        self._waiting += count
        if self._waiting >= WRITEBACK:
            self._waiting = 0
            files.start_writeback(self._fd)

    @property
    def digest(self) -> str:
        """Of what has been written so far."""
        return digests.PREFIX + str(self._hasher.hexdigest())

    def commit(self) -> str:
        """Stores what was written, durably, and returns its digest. Once, and the last call."""
        digest = self.digest
        with files.named_errors(self._tree.home.root):
            self._tree.settle(self._fd, self._path, digest, self.size)
        return digest


class Blobs(Tree):
    def __init__(self, home: Home) -> None:
        super().__init__(home, home.blobs, "blob")

    @contextmanager
    def arriving(self) -> Iterator[Arriving]:
        with files.named_errors(self.home.root), files.temporary(self.home.tmp) as (fd, path):
            yield Arriving(self, fd, path)


class Manifests(Tree):
    """Canonical JSON documents: what a version is."""

    def __init__(self, home: Home) -> None:
        super().__init__(home, home.manifests, "manifest")

    def put(self, document: Mapping[str, Any]) -> str:
        """Stores a document and returns its digest. Raises StoreError if it is not JSON."""
        try:
            data = digests.canonical(document)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"the manifest is not canonical JSON: {error}") from error
        return self.put_bytes(data)

    def get(self, digest: str) -> dict[str, Any]:
        """The document, hashed at every read. Raises IntegrityError."""
        with self.open(digest) as file:
            data = file.read()
        if digests.of_bytes(data) != digest:
            raise IntegrityError(
                f"manifest {digest} is damaged: its bytes hash to {digests.of_bytes(data)}",
                remedy=_VERIFY,
            )
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"manifest {digest} is not JSON", remedy=_VERIFY) from error
        if not isinstance(document, dict):
            raise IntegrityError(f"manifest {digest} is not a JSON object", remedy=_VERIFY)
        return document
