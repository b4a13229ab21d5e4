"""Answers: JSON, and errors with the headers that clients act upon."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from adapterhub.errors import (
    AdapterHubError,
    AlreadyExists,
    BaseMismatch,
    IntegrityError,
    InvalidName,
    InvalidOption,
    NotFound,
    NotSupported,
    OutputError,
    SchemaError,
    StoreError,
)

# Only what passes by itself may be 5xx: clients repeat those.
_STATUS: tuple[tuple[type[AdapterHubError], int], ...] = (
    (NotFound, 404),
    (AlreadyExists, 409),
    (IntegrityError, 422),
    (InvalidName, 400),
    (InvalidOption, 400),
    (SchemaError, 400),
    (BaseMismatch, 400),
    (NotSupported, 400),
    (OutputError, 507),
    (StoreError, 503),
)


def as_json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    body = text.encode("utf-8", "replace")  # half a character in one row must not cost all others
    return Response(body, status, headers, media_type="application/json")


def plain(value: str, media_type: str = "text/plain") -> Response:
    return Response(value.encode(), media_type=f"{media_type}; charset=utf-8")


def nothing() -> Response:
    return Response(status_code=204)


def stamp(seconds: float) -> str:
    """`2026-11-21T09:00:00.000Z`, the one form that clients parse."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def next_page(url: str, request: Request, **changed: str | int) -> dict[str, str]:
    """The header that leads clients to the next page: this address, on the server at `url`, with
    the parameters `changed`. Clients take it as it stands, so it must be absolute.
    """
    query = [(k, v) for k, v in request.query_params.multi_items() if k not in changed]
    query += [(k, str(v)) for k, v in changed.items()]
    path = request.scope["raw_path"].split(b"?")[0].decode("ascii")
    return {"Link": f'<{url}{path}?{urlencode(query)}>; rel="next"'}


def status_of(error: AdapterHubError) -> int:
    """`error.status` where it has one (hub.state.errors), else by its class."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status
    return next((code for kind, code in _STATUS if isinstance(error, kind)), 400)


def of_error(error: AdapterHubError, more: Mapping[str, Any] | None = None) -> Response:
    """Status, X-Error-Code and X-Error-Message; the body repeats the message for people.

    `more` are further fields of the body.
    """
    headers = {"X-Error-Message": header_text(error.message)}
    if code := getattr(error, "error_code", None):
        headers["X-Error-Code"] = code
    if commit := getattr(error, "commit", None):
        headers["X-Repo-Commit"] = commit
    if (status := status_of(error)) == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="adapterhub"'
    text = f"{error.message} ({error.remedy})" if error.remedy else error.message
    return as_json({"error": text, "code": error.code, **(more or {})}, status, headers)


def plain_error(status: int, message: str, **headers: str) -> Response:
    """For what is no error of ours: an unknown address, a wrong method."""
    return as_json(
        {"error": message or HTTPStatus(status).phrase},
        status,
        {"X-Error-Message": header_text(message), **headers},
    )


def header_text(text: str) -> str:
    """A header holds one line of Latin-1 at most; other characters become `?`."""
    flat = " ".join(text.split())[:500]
    return "".join(c if 32 <= ord(c) < 127 else "?" for c in flat)
