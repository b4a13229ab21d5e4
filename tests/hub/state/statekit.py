"""Short ways to say what tests of the hub's state do."""

from __future__ import annotations

from collections.abc import Iterable

from adapterhub.hub.state.model import Committed
from adapterhub.hub.state.names import RepoId, parse_id
from adapterhub.hub.state.operations import Add, Delete, Operation, Request
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.hub.state.trees import File

ID = parse_id("ns/name")


class Clock:
    """Time that moves when told; starts at a fixed second."""

    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


def other(text: str, kind: str = "model") -> RepoId:
    return parse_id(text, kind)


def adds(hub: Hub, repository: Repository, files: dict[str, bytes]) -> tuple[Operation, ...]:
    return tuple(
        Add(path, hub.contents.put_bytes(repository, data).digest) for path, data in files.items()
    )


def commit(
    hub: Hub,
    repository: Repository,
    files: dict[str, bytes] | None = None,
    *more: Operation,
    gone: Iterable[str] = (),
    revision: str = "main",
    title: str = "change",
    parent: str | None = None,
    create_pr: bool = False,
) -> Committed:
    operations = (*map(Delete, gone), *adds(hub, repository, files or {}), *more)
    request = Request(operations, title, parent=parent)
    return hub.commit(repository, revision, request, "ann", create_pr=create_pr)


def read(hub: Hub, repository: Repository, revision: str = "main") -> dict[str, bytes]:
    """Every file of a revision but the first commit's, with its bytes."""
    found = {}
    for entry in hub.tree(repository, revision, recursive=True, limit=10_000).entries:
        if isinstance(entry.node, File) and entry.path != ".gitattributes":
            with hub.store.open_blob(entry.node.digest) as file:
                found[entry.path] = file.read()
    return found
