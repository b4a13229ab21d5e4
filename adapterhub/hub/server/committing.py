"""Preupload, commit, and copies between repositories."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from adapterhub.errors import AdapterHubError
from adapterhub.hub.server import bodies, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.commitbody import MOST_BYTES, CommitBody
from adapterhub.hub.server.patterns import (
    MAX_BYTES,
    Attributes,
    Ignore,
    parse_attributes,
    parse_ignore,
)
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import EntryNotFound, InvalidRequest
from adapterhub.hub.state.model import Committed
from adapterhub.hub.state.names import parse_id
from adapterhub.hub.state.operations import Request
from adapterhub.hub.state.paths import check_path
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.trees import File

MOST_FILES = 1000
TEXT_BYTES = 10 * 1024 * 1024
SAMPLE_BYTES = 1024
PATTERN_SECONDS = 5.0
_AGAIN = "send what the Hub's clients send"


# --- preupload


async def preupload(call: Call) -> Response:
    """For each file: how to send it, whether not to, and the id of what lies at its path now."""
    repository = await call.writable()
    document = await call.json()
    files = document.get("files")
    if not isinstance(files, list) or len(files) > MOST_FILES:
        raise InvalidRequest(f"files is a list of at most {MOST_FILES}", remedy=_AGAIN)
    ignore = document.get("gitIgnore")
    if ignore is not None and not isinstance(ignore, str):
        raise InvalidRequest("gitIgnore is a text", remedy=_AGAIN)
    answer = await call.thread(_preupload, call, repository, files, ignore)
    return replies.as_json({"files": answer})


def _preupload(
    call: Call, repository: Repository, files: Sequence[Any], ignore: str | None
) -> list[dict[str, Any]]:
    asked = [_asked(each) for each in files]
    listing = call.hub.paths(repository, call.rev, [path for path, _, _ in asked])
    now = {entry.path: entry.node for entry in listing.entries}
    text = ignore if ignore is not None else _text(call, repository, ".gitignore")
    ignored, attributes = parse_ignore(text), _attributes(call, repository)
    until, answer = time.monotonic() + PATTERN_SECONDS, []
    for file in asked:
        answer.append(_plan(file, now.get(file[0]), ignored, attributes))
        if time.monotonic() > until:
            raise InvalidRequest(
                f"its .gitignore and .gitattributes need more than {PATTERN_SECONDS:.0f} s",
                remedy="use fewer and simpler patterns",
            )
    return answer


def _asked(item: object) -> tuple[str, int, bytes]:
    """Path, size in bytes, and the first bytes of the file."""
    if not isinstance(item, dict):
        raise InvalidRequest("a file is an object", remedy=_AGAIN)
    path, size, sample = item.get("path"), item.get("size"), item.get("sample") or ""
    if not isinstance(path, str) or type(size) is not int or size < 0:
        raise InvalidRequest("a file has a path and a size in bytes", remedy=_AGAIN)
    check_path(path)
    try:
        return path, size, base64.b64decode(sample)[:SAMPLE_BYTES]
    except (binascii.Error, TypeError, ValueError):
        raise InvalidRequest("the sample of a file is base64", remedy=_AGAIN) from None


def _plan(
    file: tuple[str, int, bytes], node: object, ignored: Ignore, attributes: Attributes
) -> dict[str, Any]:
    path, size, sample = file
    plan: dict[str, Any] = {
        "path": path,
        "uploadMode": "lfs" if _is_large(path, size, sample, attributes) else "regular",
        "shouldIgnore": ignored.ignores(path),
    }
    if isinstance(node, File):
        plan["oid"] = node.sha256 if node.lfs else node.oid
    return plan


def _is_large(path: str, size: int, sample: bytes, attributes: Attributes) -> bool:
    if size == 0:
        return False
    said = attributes.lfs(path)
    if size > TEXT_BYTES or said is not None:
        return size > TEXT_BYTES or bool(said)
    return _is_binary(sample)


def _is_binary(sample: bytes) -> bool:
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 3:  # otherwise a character that the sample cuts
            return True
    return b"\0" in sample


def _attributes(call: Call, repository: Repository) -> Attributes:
    return parse_attributes(_text(call, repository, ".gitattributes"))


def _text(call: Call, repository: Repository, path: str) -> str:
    """The beginning of a file in the repository; nothing where there is none."""
    try:
        found = call.hub.file(repository, call.rev, path)
    except EntryNotFound:
        return ""
    with call.service.registry.store.open_blob(found.file.digest) as file:
        return file.read(MAX_BYTES).decode("utf-8", "replace")


# --- commit


async def commit(call: Call) -> Response:
    repository = await call.writable()
    author = (await call.who()).name
    store = call.service.registry.store
    body = CommitBody(store, call.hub.limits)
    try:
        await bodies.receive(call, body.feed, MOST_BYTES)
        request = await call.thread(body.finish)
    finally:
        await call.thread(body.close)

    def carry_out() -> Committed:
        with store.writing():
            call.hub.contents.deliver_all(repository, body.digests)
            return _committed(call, repository, request, author)

    made = await call.change(carry_out)
    await call.moved()
    return replies.as_json(_answer(call, repository, made))


def _committed(call: Call, repository: Repository, request: Request, author: str) -> Committed:
    pull = call.flag("create_pr")
    return call.hub.commit(repository, call.rev, request, author, create_pr=pull)


def _answer(call: Call, repository: Repository, made: Committed) -> dict[str, Any]:
    prefix = "" if repository.id.kind == "model" else f"{repository.id.kind}s/"
    page = f"{call.url}/{prefix}{repository.id}"
    answer = {
        "success": True,
        "commitOid": made.commit.id,
        "commitUrl": f"{page}/commit/{made.commit.id}",
        "hookOutput": "",
    }
    if made.pull is not None:
        answer["pullRequestUrl"] = f"{page}/discussions/{made.pull}"
    return answer


# --- copies between repositories


async def duplicate(call: Call) -> Response:
    """Delivers files of LFS from this repository, which the caller may read, to one that the
    caller may write; a commit there names them then.
    """
    source = await call.readable()
    document = await call.json()
    target, files = document.get("target"), document.get("files")
    if not isinstance(target, dict) or not isinstance(files, list) or len(files) > MOST_FILES:
        raise InvalidRequest(f"give a target and at most {MOST_FILES} files", remedy=_AGAIN)
    id = parse_id(target.get("name"), target.get("type") or "model")
    caller = await call.signed_in("a copy")
    into = await call.thread(call.hub.access.write, caller, id)
    failed = await call.change(_share, call, source, into, files)
    return replies.as_json({"failed": failed})


def _share(
    call: Call, source: Repository, into: Repository, files: Sequence[Any]
) -> list[dict[str, str]]:
    failed = []
    for each in files:
        oid = str(each.get("sha256")) if isinstance(each, Mapping) else ""
        try:
            call.hub.contents.share(source, into, f"sha256:{oid}")
        except AdapterHubError as error:
            failed.append({"sha256": oid, "error": error.message})
    return failed


ROUTES = (
    Route("POST", "/api/{kind}/{repo}/preupload/{rev}", preupload),
    Route("POST", "/api/{kind}/{repo}/commit/{rev}", commit),
    Route("POST", "/api/{kind}/{repo}/lfs-files/duplicate", duplicate),
)
