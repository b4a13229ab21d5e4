"""Pull requests, which the clients know as discussions. There are no others, and no comments."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from adapterhub.errors import NotSupported
from adapterhub.hub.server import diffs, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.repos import web_url
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.model import Commit, Pull
from adapterhub.hub.state.names import BRANCH
from adapterhub.hub.state.repositories import Repository

_PAGE = 50
_STATUSES = {"": "", "all": "", "open": "live", "closed": "closed", "draft": "draft"}
_DEFAULT_TITLE = "Changes"


async def listed(call: Call) -> Response:
    repository = await call.visible()
    status = call.query("status")
    if status not in (*_STATUSES, "merged"):
        raise InvalidRequest(f"status is {status[:40]!a}", remedy="open, closed, merged or all")
    author = call.query("author")
    start = _PAGE * call.number("p", 0, 10**6, least=0)
    if call.query("type") == "discussion":  # as opposed to pull_request
        return replies.as_json({"count": 0, "start": start, "discussions": []})
    wanted = _STATUSES.get(status, status)
    pulls = call.hub.pulls
    count = await call.thread(pulls.count, repository, status=wanted, author=author)
    found = await call.thread(
        pulls.list, repository, status=wanted, author=author, limit=_PAGE, offset=start
    )
    shown = [_head(repository, each) for each in found]
    return replies.as_json({"count": count, "start": start, "discussions": shown})


async def create(call: Call) -> Response:
    repository = await call.writable()
    said = await call.json()
    if not said.get("pullRequest"):
        raise NotSupported("this hub has pull requests and no discussions", remedy="open one")
    title, description = _text(said, "title"), _text(said, "description")
    author = (await call.who()).name
    pull = await call.change(
        call.hub.open_pull, repository, title.strip() or _DEFAULT_TITLE, description, author
    )
    answer = {
        "num": pull.number,
        "pullRequest": True,
        "url": f"{web_url(call, repository.id)}/discussions/{pull.number}",
    }
    return replies.as_json(answer)


async def details(call: Call) -> Response:
    repository = await call.readable()  # a diff is content
    number = _number(call)
    return replies.as_json(await call.heavy(_details, call, repository, number))


def _details(call: Call, repository: Repository, number: int) -> dict[str, Any]:
    hub = call.hub
    pull = hub.pulls.get(repository, number)
    base, head = hub.commits.get(repository, pull.base), hub.commits.get(repository, pull.head)
    own = hub.commits.chain(repository, head, head.depth - base.depth)
    answer = _head(repository, pull) | {
        "events": _events(pull, own),
        "changes": {"base": f"{BRANCH}{pull.target}", "mergeCommitId": pull.merged},
        "filesWithConflicts": list(hub.pulls.conflicts(repository, number)),
    }
    if call.query("diff"):
        store = call.service.registry.store
        changes = hub.commits.trees(repository).changes(base.tree, head.tree)
        answer["diff"] = diffs.unified(store, changes)
    return answer


def _head(repository: Repository, pull: Pull) -> dict[str, Any]:
    return {
        "title": pull.title,
        "num": pull.number,
        "author": {"name": pull.author},
        "createdAt": replies.stamp(pull.created),
        "status": pull.status,
        "repo": {"name": str(repository.id), "type": repository.id.kind},
        "isPullRequest": True,
    }


def _events(pull: Pull, commits: list[Commit]) -> list[dict[str, Any]]:
    """Its description, then its commits, the oldest first, then what became of it."""
    text = {"raw": pull.description, "html": "", "updatedAt": replies.stamp(pull.created)}
    opening = {"edited": False, "hidden": False, "latest": {**text, "author": _author(pull)}}
    events = [_event(pull, "comment", opening, 0)]
    for at, commit in enumerate(reversed(commits), 1):
        data = {"subject": commit.title, "oid": commit.id}
        events.append(_event(pull, "commit", data, at, commit.created))
    if pull.status in ("closed", "merged"):
        events.append(_event(pull, "status-change", {"status": pull.status}, len(events)))
    return events


def _event(
    pull: Pull, kind: str, data: dict[str, Any], at: int, when: int | None = None
) -> dict[str, Any]:
    return {
        "id": f"{pull.number:012x}{at:012x}",
        "type": kind,
        "author": _author(pull),
        "createdAt": replies.stamp(pull.created if when is None else when),
        "data": data,
    }


def _author(pull: Pull) -> dict[str, str]:
    return {"name": pull.author}


async def change_status(call: Call) -> Response:
    repository = await call.writable()
    status = _text(await call.json(), "status")
    pull = await call.change(call.hub.pulls.set_status, repository, _number(call), status)
    return replies.as_json({"newStatus": _event(pull, "status-change", {"status": status}, 1)})


async def rename(call: Call) -> Response:
    repository = await call.writable()
    number, title = _number(call), _text(await call.json(), "title")
    before = await call.thread(call.hub.pulls.get, repository, number)
    pull = await call.change(call.hub.pulls.rename, repository, number, title)
    data = {"from": before.title, "to": pull.title}
    return replies.as_json({"newTitle": _event(pull, "title-change", data, 1)})


async def merge(call: Call) -> Response:
    repository = await call.writable()
    author = (await call.who()).name
    made = await call.change(call.hub.merge, repository, _number(call), author)
    await call.moved()
    return replies.as_json({"commitOid": made.id, "success": True})


async def comment(call: Call) -> Response:
    await call.writable()
    raise NotSupported("this hub keeps no comments", remedy="write into the commit's description")


def _number(call: Call) -> int:
    text = call.params["number"]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequest(f"{text[:40]!a} is no number of a pull request", remedy="give one")
    return int(text)


def _text(said: dict[str, Any], key: str) -> str:
    value = said.get(key) or ""
    if not isinstance(value, str):
        raise InvalidRequest(f"{key} is not a text", remedy="send a text")
    return value


_ONE = "/api/{kind}/{repo}/discussions/{number}"
ROUTES = (
    Route("GET", "/api/{kind}/{repo}/discussions", listed),
    Route("POST", "/api/{kind}/{repo}/discussions", create),
    Route("GET", _ONE, details),
    Route("POST", f"{_ONE}/status", change_status),
    Route("POST", f"{_ONE}/title", rename),
    Route("POST", f"{_ONE}/merge", merge),
    Route("POST", f"{_ONE}/comment", comment),
)
