"""Object ids as git computes them: sha1 over `<type> <length>\\0` and the object's bytes.

They are for show and for clients, which compare them; what content something has is always
decided by sha256, since two contents with one sha1 can be made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import BinaryIO

_PIECE = 1024 * 1024


def _oid(kind: str, body: bytes) -> str:
    head = f"{kind} {len(body)}\0".encode()
    return hashlib.sha1(head + body, usedforsecurity=False).hexdigest()


def blob_oid(file: BinaryIO, size: int) -> tuple[str, str]:
    """Id of a file's content as a git blob, and its sha256 in hex, in one read."""
    sha1 = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    sha256 = hashlib.sha256()
    while piece := file.read(_PIECE):
        sha1.update(piece)
        sha256.update(piece)
    return sha1.hexdigest(), sha256.hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of a file of LFS."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()


def pointer_oid(sha256: str, size: int) -> str:
    return _oid("blob", pointer(sha256, size))


def tree_oid(entries: Iterable[tuple[str, str, bool]]) -> str:
    """Id of a folder with `(name, oid, is a folder)`; git sorts folders as if they ended in `/`."""
    ordered = sorted(entries, key=lambda entry: entry[0].encode() + (b"/" if entry[2] else b""))
    body = b"".join(
        (b"40000 " if folder else b"100644 ") + name.encode() + b"\0" + bytes.fromhex(oid)
        for name, oid, folder in ordered
    )
    return _oid("tree", body)


def commit_oid(
    tree: str, parent: str | None, author: str, created: int, text: str, content: str
) -> str:
    """Id of a commit; `created` in seconds since 1970, UTC.

    `content` (the key of the tree, a sha256) goes into a header of its own, so that no two
    contents share a commit id even where their sha1 is made to collide.
    """
    who = f"{author} <> {created} +0000"
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else [])]
    lines += [f"author {who}", f"committer {who}", f"content sha256:{content}", "", text]
    return _oid("commit", "\n".join(lines).encode())
