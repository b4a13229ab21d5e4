"""From a shard to whole files: what it says is checked against the xorbs, then files are rebuilt.

Nothing is written before every file of the shard was checked. A file becomes a blob only if its
sha256 is the one that the shard names, and is delivered at once, so a shard that fails or a process
that dies at its second file leaves the first one delivered, and the same shard may come again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from adapterhub import digest as digests
from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.hub.xet import hashing, shard, xorb
from adapterhub.hub.xet.stored import Damaged, Stored
from adapterhub.hub.xet.xorbs import Space
from adapterhub.store import Store

MAX_FILE_BYTES = 200 * 2**30
BATCH_BYTES = 2 * 2**20
KNOWN_XORBS = 16
_MIN_CHUNK_BYTES = 1024  # on average; clients cut at 8 KiB or more, but for the last of a file
_AGAIN = "repeat the upload with an unmodified client"


@dataclass(frozen=True)
class Delivered:
    """A file that is now a blob: `digest` "sha256:…", `size` in bytes, `hash` as Xet spells it."""

    digest: str
    size: int
    hash: str


def register(
    store: Store,
    space: Space,
    data: bytes,
    deliver: Callable[[str, int], object],
    *,
    admit: Callable[[str, int], object] = lambda digest, size: None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> tuple[Delivered, ...]:
    """Makes every file of a shard (`data`, its bytes) a blob of the store.

    `deliver(digest, size)` is called once for each, within `store.writing()`, when the blob is
    durable; `admit(digest, size)` before it is rebuilt, and may raise. Memory: `data`
    and a few MB, whatever the size of the files.

    Raises IntegrityError or NotSupported, with nothing delivered, for a shard that is damaged,
    contradicts the xorbs, or refers to others than those of this space; IntegrityError for a file
    whose bytes have another sha256; NotFound where the epoch is over; OutputError.
    """
    parsed = shard.parse(data)
    shelf = _Shelf(space)
    with space.errors(), _ending_epochs(space):
        for file in parsed.files():
            _check(file, shelf, max_file_bytes)
        done = []
        for file in parsed.files():
            admit(_expected(file), file.size)
            done.append(_settle(store, space, shelf, file, deliver))
        return tuple(done)


class _Unknown(IntegrityError):
    """A shard names a xorb that this epoch does not have."""


@contextmanager
def _ending_epochs(space: Space) -> Iterator[None]:
    """A client would refer to the same xorbs again and again, as long as the address lasts."""
    try:
        yield
    except (_Unknown, Damaged):
        space.retire()
        raise


class _Shelf:
    """The xorbs of one space; the tables of those used last stay in memory."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._known: OrderedDict[bytes, Stored] = OrderedDict()

    def take(self, digest: bytes, where: str) -> Stored:
        """Raises IntegrityError where this repository did not send it in this epoch."""
        found = self._known.pop(digest, None) or self.space.open(digest)
        if found is None:
            raise _Unknown(
                f"{where} refers to xorb {hashing.to_hex(digest)}, which was not uploaded to this "
                f"repository in epoch {self.space.epoch}",
                remedy="repeat the upload: everything will be sent afresh",
            )
        self._known[digest] = found
        if len(self._known) > KNOWN_XORBS:
            self._known.popitem(last=False)
        return found


def _check(file: shard.File, shelf: _Shelf, most: int) -> None:
    """Everything that a shard says of a file, but its sha256."""
    if file.sha256 is None:
        raise _bad(f"the shard has no sha256 entry for {file.name}")
    if file.size > most:
        raise _bad(f"{file.name} has {file.size} bytes; this hub takes at most {most}")
    chunks = int((file.terms["end"].astype(np.int64) - file.terms["start"]).sum())
    if chunks > xorb.MAX_CHUNKS + file.size // _MIN_CHUNK_BYTES:
        raise _bad(f"{file.name} has {chunks} chunks for {file.size} bytes; clients make fewer")
    tree = hashing.Tree()
    for index in range(len(file.terms)):
        _check_term(file, index, shelf, tree)
    found = tree.file_hash()
    if found != file.hash:
        raise _bad(f"the chunks of {file.name} have the hash {hashing.to_hex(found)}")


def _check_term(file: shard.File, index: int, shelf: _Shelf, tree: hashing.Tree) -> None:
    where = f"term {index} of {file.name}"
    term = file.terms[index]
    found = shelf.take(bytes(term["xorb"]), where)
    start, end = int(term["start"]), int(term["end"])
    if end > len(found.table):
        raise _bad(
            f"{where} takes chunks {start} to {end} of {found.name}, which has {len(found.table)}"
        )
    size = int(found.ends[end] - found.ends[start])
    if size != term["bytes"]:
        raise _bad(f"{where} claims {term['bytes']} bytes; its chunks have {size}")
    hashes = found.hashes(start, end)
    if file.ranges is not None and hashing.range_hash(hashes) != bytes(file.ranges["hash"][index]):
        raise _bad(f"{where} has a verification entry that does not match its chunks")
    width = hashing.HASH_BYTES
    for at, length in enumerate(found.table["length"][start:end].tolist()):
        tree.add(hashes[at * width : (at + 1) * width], length)


def _settle(
    store: Store,
    space: Space,
    shelf: _Shelf,
    file: shard.File,
    deliver: Callable[[str, int], object],
) -> Delivered:
    """A client that lost patience asks again: that request waits for the first and finds it done.

    What was done before is hashed once more, as everything is that is added to the store again.
    """
    expected = _expected(file)
    with space.alone(file.name):
        if space.rebuilt(file.hash) == (expected, file.size) and _is_sound(store, expected):
            with store.writing():
                deliver(expected, store.blob_size(expected))
        else:
            _rebuild(store, shelf, file, expected, deliver)
            space.remember(file.hash, expected, file.size)
    return Delivered(expected, file.size, hashing.to_hex(file.hash))


def _expected(file: shard.File) -> str:
    """Digest of the blob; hf_xet 1.8 writes zeros for the sha256 of no bytes."""
    if not len(file.terms) and file.sha256 == "0" * 64:
        return digests.of_bytes(b"")
    return f"{digests.PREFIX}{file.sha256}"


def _is_sound(store: Store, digest: str) -> bool:
    try:
        store.verify_blob(digest)
    except IntegrityError:
        return False
    return True


def _rebuild(
    store: Store,
    shelf: _Shelf,
    file: shard.File,
    expected: str,
    deliver: Callable[[str, int], object],
) -> None:
    with store.arriving_blob() as blob:
        for piece in _pieces(file, shelf):
            blob.write(piece)
        if blob.digest != expected:
            for found, start, end in _ranges(file, shelf):
                found.verify(start, end)
            raise _bad(f"the bytes of {file.name} have {blob.digest}; the shard says {expected}")
        with store.writing():
            deliver(blob.commit(), blob.size)


def _ranges(file: shard.File, shelf: _Shelf) -> Iterator[tuple[Stored, int, int]]:
    """Ranges of chunks, in the order of the file, of `BATCH_BYTES` at most or one chunk."""
    for index, term in enumerate(file.terms):
        found = shelf.take(bytes(term["xorb"]), f"term {index} of {file.name}")
        start, last = int(term["start"]), int(term["end"])
        while start < last:
            fits = np.searchsorted(found.ends, found.ends[start] + BATCH_BYTES, "right") - 1
            end = min(max(int(fits), start + 1), last)
            yield found, start, end
            start = end


def _pieces(file: shard.File, shelf: _Shelf) -> Iterator[bytes]:
    with shelf.space.errors():  # else an epoch that went would pass for a fault of the store
        for found, start, end in _ranges(file, shelf):
            yield found.read(start, end)


def _bad(message: str) -> AdapterHubError:
    return IntegrityError(message, remedy=_AGAIN)
