"""What the hub hands out: commits, refs, pages of them, pull requests, callers."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.hub.state.names import BRANCH, PULL, TAG
from adapterhub.hub.state.trees import File, Node

ALL = "*"


@dataclass(frozen=True)
class Commit:
    """`id`: 40 hex digits. `created` in seconds since 1970. `depth` is 1 for a first commit.

    `tree` is the key of the root folder; `number` grows with every commit of the hub.
    """

    id: str
    parent: str | None
    tree: str
    author: str
    created: int
    title: str
    message: str
    fingerprint: str
    depth: int
    number: int


@dataclass(frozen=True)
class Committed:
    """`ref` is what moved; `pull` its number, where that is a pull request.

    `repeated`: the request had been carried out before, and nothing was changed by this one.
    """

    commit: Commit
    ref: str
    pull: int | None
    repeated: bool


@dataclass(frozen=True)
class Entry:
    """A file or folder of a revision; `last`: the commit that changed it last, where asked for."""

    path: str
    node: Node
    last: Commit | None = None


@dataclass(frozen=True)
class Listing:
    """A page of a folder in `commit`; `after` asks for the next page, None where there is none."""

    commit: Commit
    entries: tuple[Entry, ...]
    after: str | None


@dataclass(frozen=True)
class Log:
    """A page of commits, the newest first; `total` of all pages together."""

    commits: tuple[Commit, ...]
    total: int
    after: str | None


@dataclass(frozen=True)
class Found:
    """A file in a revision. Its bytes are the store's: `store.open_blob(file.digest)`."""

    commit: Commit
    path: str
    file: File


@dataclass(frozen=True)
class Ref:
    """`name` in full, as `refs/heads/main`; `target` is a commit's id."""

    name: str
    target: str
    message: str = ""

    @property
    def short(self) -> str:
        """`main` of `refs/heads/main`; the number of a pull request."""
        return self.name.removeprefix(BRANCH).removeprefix(TAG).removeprefix(PULL)


@dataclass(frozen=True)
class Pull:
    """A pull request. `status`: draft, open, closed, merged; `target`: the branch it is for.

    `base` is the commit it started from, `head` its last one, `merged` what the merge made.
    """

    number: int
    title: str
    description: str
    author: str
    status: str
    target: str
    base: str
    head: str
    merged: str | None
    created: int

    @property
    def ref(self) -> str:
        return f"{PULL}{self.number}"


@dataclass(frozen=True)
class Token:
    """Everything of a token but its secret. Times in seconds since 1970.

    `namespaces` is `("*",)` for all. `role`: read or write.
    """

    id: str
    label: str
    role: str
    namespaces: tuple[str, ...]
    created: int
    expires: int | None
    used: int | None
    revoked: int | None


@dataclass(frozen=True)
class Caller:
    """Who asks: `token` None is nobody known. `name` is the author of what they commit."""

    name: str = "anonymous"
    token: Token | None = None


ANONYMOUS = Caller()
