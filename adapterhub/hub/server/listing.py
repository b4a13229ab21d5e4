"""`/api/models?search=…&filter=…`: what there is, a page at a time."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from starlette.responses import Response

from adapterhub.errors import NotSupported
from adapterhub.hub.server import infos, replies
from adapterhub.hub.server.call import Call
from adapterhub.hub.server.routing import Route
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.model import ALL, Caller
from adapterhub.hub.state.names import KINDS
from adapterhub.hub.state.repositories import Repository

_LIMIT = 1000
_MOST_WORDS = 50
_SORTS = {
    "": "updated",
    "lastModified": "updated",
    "trendingScore": "updated",  # neither are counted here, and all are 0
    "likes": "updated",
    "downloads": "updated",
    "createdAt": "created",
}
_UNKNOWN = ("inference", "inference_provider", "num_parameters", "apps", "emissions_thresholds")


async def models(call: Call) -> Response:
    """Filters are tags, all of which must be there; `search` is a part of the id."""
    caller = await call.who()
    if not call.service.settings.public_read:
        await call.signed_in("a list of repositories")
    if unknown := [name for name in _UNKNOWN if call.queries(name)]:
        raise NotSupported(f"this hub cannot filter by {unknown[0]}", remedy="leave it out")
    limit = call.number("limit", _LIMIT, _LIMIT)
    found = await call.thread(_page, call, caller, limit + 1)
    headers = {}
    if len(found) > limit:
        found = found[:limit]
        headers = replies.next_page(call.url, call.request, cursor=_cursor(call, found[-1]))
    fields = _fields(call)
    return replies.as_json([_listed(call, each, fields) for each in found], headers=headers)


def _page(call: Call, caller: Caller, limit: int) -> list[Repository]:
    order, ascending = _order(call)
    search, labels = call.query("search"), _labels(call)
    if (count := len(search.split()) + len(labels)) > _MOST_WORDS:
        raise InvalidRequest(
            f"{count} words and filters; at most {_MOST_WORDS} are taken", remedy="ask for less"
        )
    return list(
        call.hub.access.list(
            caller,
            kind=call.kind,
            namespace=call.query("author") or None,
            search=search,
            labels=labels,
            gated=_gated(call),
            order=order,
            ascending=ascending,
            limit=limit,
            after=_after(call.query("cursor")),
        )
    )


def _order(call: Call) -> tuple[str, bool]:
    sort = call.query("sort")
    if sort not in _SORTS:
        raise InvalidRequest(f"sort is {sort[:40]!a}", remedy=f"one of {', '.join(_SORTS)}")
    direction = call.query("direction", "-1")
    if direction not in ("1", "-1"):
        raise InvalidRequest(f"direction is {direction[:40]!a}", remedy="1 or -1")
    return _SORTS[sort], direction == "1"


def _labels(call: Call) -> list[str]:
    """Of `filter`, also separated by commas as old clients do, and of the filters of their own."""
    wanted = [part for value in call.queries("filter") for part in value.split(",")]
    wanted += [call.query(name) for name in ("pipeline_tag", "library", "language")]
    return [label for label in wanted if label]


def _gated(call: Call) -> bool | None:
    return call.flag("gated") if call.query("gated") else None


def _fields(call: Call) -> list[str]:
    if wanted := call.queries("expand"):
        return list(wanted)
    fields = [infos.OWN, *infos.LISTED]
    fields += ["cardData"] if call.flag("full") or call.flag("cardData") else []
    return fields + (["config"] if call.flag("config") else [])


def _listed(call: Call, repository: Repository, fields: list[str]) -> dict[str, Any]:
    values = infos.basics(repository, repository.indexed)
    return infos.chosen(values | infos.card_fields(repository.info), fields)


def _cursor(call: Call, last: Repository) -> str:
    value = last.created if _order(call)[0] == "created" else last.updated
    return base64.urlsafe_b64encode(f"{value}.{last.key}".encode()).decode()


def _after(cursor: str) -> tuple[int, int] | None:
    if not cursor:
        return None
    try:
        value, key = base64.urlsafe_b64decode(cursor).decode("ascii").split(".")
        return int(value[:20]), int(key[:20])
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest("the cursor is damaged", remedy="list from the start") from error


async def own(call: Call) -> Response:
    """Of all kinds, what is in the namespaces of the caller's token, or in the one asked for."""
    caller = await call.signed_in("a list of one's own repositories")
    found = await call.thread(_own, call, caller)
    total = sum(each.stored for each in found) or 1
    return replies.as_json([_stored(each, total) for each in found])


def _own(call: Call, caller: Caller) -> list[Repository]:
    namespaces = caller.token.namespaces if caller.token else ()
    found: list[Repository] = []
    for kind in KINDS:
        after: tuple[int, int] | None = None
        while True:
            page = call.hub.access.list(
                caller,
                kind=kind,
                namespace=call.params.get("namespace"),
                limit=_LIMIT,
                after=after,
            )
            found += [r for r in page if ALL in namespaces or r.id.namespace in namespaces]
            if len(page) < _LIMIT:
                break
            after = (page[-1].updated, page[-1].key)
    return found


def _stored(repository: Repository, total: int) -> dict[str, Any]:
    return {
        "id": str(repository.id),
        "type": repository.id.kind,
        "updatedAt": replies.stamp(repository.updated),
        "visibility": "private" if repository.private else "public",
        "storage": repository.stored,
        "storagePercent": 100 * repository.stored / total,
    }


ROUTES = (
    Route("GET", "/api/{kind}", models),
    Route("GET", "/api/settings/repositories", own),
    Route("GET", "/api/organizations/{namespace}/settings/repositories", own),
)
