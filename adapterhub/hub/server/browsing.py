"""Folders and paths of a revision."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import Response

from adapterhub.hub.server import infos, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.model import Commit, Entry
from adapterhub.hub.state.trees import Folder

_PAGE, _EXPANDED_PAGE, _MOST = 1000, 100, 10_000
_CURSOR = re.compile(r"([0-9a-f]{40}):(.+)", re.DOTALL)


async def tree(call: Call) -> Response:
    """A page of a folder, or with `recursive` of all that is below it."""
    repository = await call.visible()
    expand = call.flag("expand")
    revision, after = _place(call)
    page = await call.thread(
        call.hub.tree,
        repository,
        revision,
        call.params["path"].strip("/"),
        recursive=call.flag("recursive"),
        expand=expand,
        limit=call.number("limit", _EXPANDED_PAGE if expand else _PAGE, _MOST),
        after=after,
    )
    headers = {"X-Repo-Commit": page.commit.id}
    if page.after is not None:
        cursor = f"{page.commit.id}:{page.after}"
        headers |= replies.next_page(call.url, call.request, cursor=cursor)
    return replies.as_json([_entry(each) for each in page.entries], headers=headers)


def _place(call: Call) -> tuple[str, str]:
    """Revision and path to go on from: a cursor keeps to the commit of the first page."""
    cursor = call.query("cursor")
    if not cursor:
        return call.rev, ""
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise InvalidRequest("the cursor is damaged", remedy="list from the start")
    return found[1], found[2]


async def paths_info(call: Call) -> Response:
    """What lies at these paths; those at which nothing lies are left out."""
    repository = await call.visible()
    if "json" in call.request.headers.get("content-type", ""):
        said = await call.json()
        paths, expand = said.get("paths", []), bool(said.get("expand"))
        paths = [paths] if isinstance(paths, str) else paths
    else:
        form = await call.form()
        paths, expand = form.get("paths", []), form.get("expand", [""])[-1].lower() == "true"
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise InvalidRequest("paths is no list of texts", remedy="send paths=a&paths=b")
    found = await call.thread(call.hub.paths, repository, call.rev, paths, expand=expand)
    headers = {"X-Repo-Commit": found.commit.id}
    return replies.as_json([_entry(each) for each in found.entries], headers=headers)


def _entry(entry: Entry) -> dict[str, Any]:
    node = entry.node
    answer: dict[str, Any]
    if isinstance(node, Folder):
        answer = {"type": "directory", "oid": node.oid, "size": 0, "path": entry.path}
    else:
        answer = {"type": "file", "oid": node.oid, "size": node.size, "path": entry.path}
        if node.lfs:
            answer["lfs"] = {"oid": node.sha256, **infos.sizes(node)}
    if entry.last is not None:
        answer["lastCommit"] = _last(entry.last)
    return answer


def _last(commit: Commit) -> dict[str, str]:
    return {
        "id": commit.id,
        "title": commit.title,
        "date": replies.stamp(commit.created),
    }


ROUTES = (
    Route("GET", "/api/{kind}/{repo}/tree/{rev}/{path:rest}", tree),
    Route("POST", "/api/{kind}/{repo}/paths-info/{rev}", paths_info),
)
