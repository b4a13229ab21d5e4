"""Branches, tags, commits; the history squashed; files of LFS."""

from __future__ import annotations

import html
from typing import Any

from starlette.responses import Response

from adapterhub.errors import NotSupported
from adapterhub.hub.server import infos, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.model import Commit, Ref
from adapterhub.hub.state.names import BRANCH, PULL, TAG
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.trees import File

_PAGE, _MOST = 50, 1000


async def refs(call: Call) -> Response:
    repository = await call.visible()
    found = await call.thread(call.hub.refs.list, repository)
    answer: dict[str, Any] = {
        "branches": [_ref(ref) for ref in found if ref.name.startswith(BRANCH)],
        "converts": [],
        "tags": [_ref(ref) for ref in found if ref.name.startswith(TAG)],
    }
    if call.flag("include_prs"):
        answer["pullRequests"] = [_ref(ref) for ref in found if ref.name.startswith(PULL)]
    return replies.as_json(answer)


def _ref(ref: Ref) -> dict[str, str]:
    return {"name": ref.short, "ref": ref.name, "targetCommit": ref.target}


async def commits(call: Call) -> Response:
    """The newest first. A cursor is the last commit of the page before; `p` counts pages, as
    some clients do.
    """
    repository = await call.visible()
    limit = call.number("limit", _PAGE, _MOST)
    skip = call.number("p", 0, 10**6, least=0) * limit
    revision, after = _start(call)
    page = await call.thread(call.hub.log, repository, revision, limit=limit + skip, after=after)
    headers = {"X-Total-Count": str(page.total)}
    if page.after is not None and not skip:
        newest = revision if after else page.commits[0].id
        headers |= replies.next_page(call.url, call.request, cursor=f"{newest}:{page.after}")
    formatted = "formatted" in call.queries("expand")
    shown = [_commit(each, formatted) for each in page.commits[skip:]]
    return replies.as_json(shown, headers=headers)


def _start(call: Call) -> tuple[str, str | None]:
    cursor = call.query("cursor")
    newest, _, after = cursor.partition(":")
    return (newest, after) if newest and after else (call.rev, None)


def _commit(commit: Commit, formatted: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": commit.id,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author}],
        "date": replies.stamp(commit.created),
        "parents": [commit.parent] if commit.parent else [],
    }
    if formatted:
        texts = {"title": commit.title, "message": commit.message}
        answer["formatted"] = {key: html.escape(text) for key, text in texts.items()}
    return answer


async def create_branch(call: Call) -> Response:
    repository = await call.writable()
    said = await call.json()
    start = _text(said, "startingPoint")
    await call.change(call.hub.refs.create_branch, repository, call.params["branch"], start or None)
    return replies.as_json({})


async def delete_branch(call: Call) -> Response:
    repository = await call.writable()
    await call.change(call.hub.refs.delete_branch, repository, call.params["branch"])
    return replies.as_json({})


async def create_tag(call: Call) -> Response:
    repository = await call.writable()
    said = await call.json()
    name, message = _text(said, "tag"), _text(said, "message")
    await call.change(call.hub.refs.create_tag, repository, name, call.rev, message)
    return replies.as_json({})


async def delete_tag(call: Call) -> Response:
    repository = await call.writable()
    await call.change(call.hub.refs.delete_tag, repository, call.rev)
    return replies.as_json({})


async def squash(call: Call) -> Response:
    repository = await call.writable()
    said = await call.json()
    title = _text(said, "message") or f"Super-squash branch '{call.rev}'"
    author = (await call.who()).name
    made = await call.change(call.hub.squash, repository, call.rev, title, author)
    await call.moved()
    return replies.as_json({"commitOid": made.id})


async def lfs_files(call: Call) -> Response:
    """Large files of what branches, tags and pull requests point at."""
    repository = await call.writable()
    return replies.as_json(await call.thread(_lfs_files, call, repository))


def _lfs_files(call: Call, repository: Repository) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for ref in call.hub.refs.list(repository):
        when = replies.stamp(call.hub.commit_of(repository, ref.target).created)
        for entry in infos.files(call, repository, ref.target):
            if isinstance(entry.node, File) and entry.node.lfs:
                row = _lfs_file(entry.path, entry.node, ref.name, when)
                found.setdefault(entry.node.sha256, row)
    return list(found.values())


def _lfs_file(path: str, file: File, ref: str, when: str) -> dict[str, Any]:
    return {
        "fileOid": file.sha256,
        "oid": file.sha256,
        "filename": path,
        "size": file.size,
        "pushedAt": when,
        "ref": ref,
    }


async def delete_lfs_files(call: Call) -> Response:
    await call.writable()
    raise NotSupported(
        "this hub does not take files out of revisions that exist",
        remedy="delete them in a commit, then super-squash the branch: history lets them go",
    )


def _text(said: dict[str, Any], key: str) -> str:
    value = said.get(key) or ""
    if not isinstance(value, str):
        raise InvalidRequest(f"{key} is not a text", remedy="send a text")
    return value


ROUTES = (
    Route("GET", "/api/{kind}/{repo}/refs", refs),
    Route("GET", "/api/{kind}/{repo}/commits/{rev}", commits),
    Route("POST", "/api/{kind}/{repo}/branch/{branch}", create_branch),
    Route("DELETE", "/api/{kind}/{repo}/branch/{branch}", delete_branch),
    Route("POST", "/api/{kind}/{repo}/tag/{rev}", create_tag),
    Route("DELETE", "/api/{kind}/{repo}/tag/{rev}", delete_tag),
    Route("POST", "/api/{kind}/{repo}/super-squash/{rev}", squash),
    Route("GET", "/api/{kind}/{repo}/lfs-files", lfs_files),
    Route("POST", "/api/{kind}/{repo}/lfs-files/batch", delete_lfs_files),
)
