"""What a repository is: the answer of `/api/models/…`, whole or the fields asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from adapterhub.hub.server import facts, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.facts import Facts
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state import objects
from adapterhub.hub.state.model import Entry
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.trees import File

_PAGE = 10_000
_CARD_CHARACTERS = 8000
OWN = "adapterhub"  # our own field: what the registry made of the repository
LISTED = (
    *("author", "createdAt", "lastModified", "private", "gated", "disabled", "downloads", "likes"),
    *("tags", "pipeline_tag", "library_name", "sha"),
)
_DEFAULT = (OWN, *LISTED, "cardData", "config", "siblings", "usedStorage")  # of one repository


async def info(call: Call) -> Response:
    """Of main, or of `{rev}`; then card, files and tags are those of that revision."""
    repository = await call.visible()
    wanted = call.queries("expand")
    fields = wanted or _DEFAULT
    body = await call.thread(_described, call, repository, fields, call.flag("blobs"))
    return replies.as_json(body)


def _described(
    call: Call, repository: Repository, fields: tuple[str, ...], blobs: bool
) -> dict[str, Any]:
    commit = call.hub.commit_of(repository, call.rev)
    said = facts.gather(call.hub, call.service.registry.store, repository, commit.id)
    indexed = repository.info if repository.indexed == commit.id else {}
    values = basics(repository, commit.id)
    values |= card_fields(as_info(said, indexed) | {"card": said.card})
    if call.params.get("rev"):
        values["lastModified"] = replies.stamp(commit.created)
    if "siblings" in fields:
        values["siblings"] = [sibling(e, blobs) for e in files(call, repository, commit.id)]
    if "childrenModelCount" in fields:
        values["childrenModelCount"] = _children(call, repository)
    return chosen(values, fields)


def chosen(values: Mapping[str, Any], fields: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """The id, and those fields that there are: the Hub has more than this server knows of."""
    names = ("id", "modelId") if values["kind"] == "model" else ("id",)
    return {k: values[k] for k in (*names, *fields) if values.get(k) is not None}


def basics(repository: Repository, sha: str | None) -> dict[str, Any]:
    id = repository.id
    return {
        "kind": id.kind,
        "id": str(id),
        "modelId": str(id),
        "author": id.namespace or None,
        "sha": sha,
        "lastModified": replies.stamp(repository.updated),
        "createdAt": replies.stamp(repository.created),
        "private": repository.private,
        "gated": repository.gated or False,
        "disabled": False,
        "downloads": 0,
        "downloadsAllTime": 0,
        "likes": 0,
        "usedStorage": repository.stored,
    }


def as_info(said: Facts, indexed: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON that is kept for listings. `indexed`: what the registry found in this commit."""
    adapters = indexed.get("adapters", [])
    tags = [*said.tags, *(tag for each in adapters for tag in each.get("tags", ()))]
    return {
        "card": _listed_card(said.card),
        "config": said.config,
        "tags": facts.labels(tags),
        "library": said.library or ("peft" if adapters else None),
        "pipeline": said.pipeline,
        "bases": list(said.bases),
        "relation": said.relation,
        "adapters": adapters,
        "problems": indexed.get("problems", []),
    }


def _listed_card(card: Mapping[str, Any]) -> dict[str, Any]:
    """A listing has a thousand of these; who wants all of a card asks for the repository."""
    sizes = {key: len(key) + len(json.dumps(value)) for key, value in card.items()}
    kept, total = {}, 0
    for key in sorted(sizes, key=lambda each: sizes[each]):
        total += sizes[key]
        if total > _CARD_CHARACTERS:
            break
        kept[key] = card[key]
    return {key: card[key] for key in card if key in kept}


def card_fields(info: Mapping[str, Any]) -> dict[str, Any]:
    bases = info.get("bases", [])
    related = {"relation": info.get("relation"), "models": [{"id": each} for each in bases]}
    own = {k: info[k] for k in ("adapters", "problems") if info.get(k)}
    return {
        "cardData": info.get("card") or None,
        "config": info.get("config") or None,
        "tags": info.get("tags", []),
        "library_name": info.get("library"),
        "pipeline_tag": info.get("pipeline"),
        "baseModels": related if bases else None,
        "model-index": info.get("card", {}).get("model-index"),
        OWN: own or None,
    }


def files(call: Call, repository: Repository, commit: str) -> list[Entry]:
    """All files of a commit. Raises EntryNotFound."""
    found: list[Entry] = []
    after: str | None = ""
    while after is not None:
        page = call.hub.tree(repository, commit, recursive=True, limit=_PAGE, after=after)
        found += [entry for entry in page.entries if isinstance(entry.node, File)]
        after = page.after
    return found


def sibling(entry: Entry, blobs: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"rfilename": entry.path}
    if blobs and isinstance(entry.node, File):
        answer |= {"size": entry.node.size, "blobId": entry.node.oid}
        if entry.node.lfs:
            answer["lfs"] = {"sha256": entry.node.sha256, **sizes(entry.node)}
    return answer


def sizes(file: File) -> dict[str, int]:
    """In bytes: of the file, and of what git would keep in its place."""
    pointer = objects.pointer(file.sha256, file.size)
    return {"size": file.size, "pointerSize": len(pointer)}


def _children(call: Call, repository: Repository) -> int:
    tag = f"base_model:{repository.id}"
    listed = call.hub.repositories.list(labels=(tag,), readable=(), limit=_PAGE)
    return len(listed)


ROUTES = (
    Route("GET", "/api/{kind}/{repo}/revision/{rev}", info),
    Route("GET", "/api/{kind}/{repo}", info),  # after all that has words behind the id
)
