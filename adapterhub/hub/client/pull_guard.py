"""Watches the requests that huggingface_hub makes for a pull, through its client's own hooks.

huggingface_hub trusts the hub that it talks to. It follows the next page of a list wherever that
leads, with the token; it names files of its cache after the ETag that it is given; it reads answers
of any length. Here each of these has its limit. Without a watch the hooks do nothing; a thread that
works for a watched one has to run in a copy of its context.
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from adapterhub.errors import IntegrityError, RemoteError

MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_REQUESTS = 100
SLACK_BYTES = 64 * 1024  # a page that explains an error may be longer than the file
_SAFE_ETAG = re.compile(r'(W/)?"?[A-Za-z0-9_][\w.=+-]{0,127}"?', re.ASCII)
_ETAGS = ("etag", "x-linked-etag")
_PORTS = {"http": 80, "https": 443}


@dataclass
class Watch:
    """`limit` bytes at most in one answer, `requests` at most in all.

    `size` and `commit` are what the headers of a file must say, where they say anything.
    """

    origin: tuple[str, str, int | None]
    limit: int
    requests: int
    size: int | None = None
    commit: str | None = None
    seen: Iterator[int] = field(default_factory=lambda: itertools.count(1))


_WATCH: ContextVar[Watch | None] = ContextVar("_WATCH", default=None)
_INSTALLING = threading.Lock()


@contextmanager
def watching(
    *,
    limit: int | None = None,
    requests: int = MAX_REQUESTS,
    size: int | None = None,
    commit: str | None = None,
) -> Iterator[None]:
    """Watches what this thread asks of $HF_ENDPOINT. `limit`: MAX_ANSWER_BYTES by default."""
    from huggingface_hub import constants

    _install()
    most = MAX_ANSWER_BYTES if limit is None else limit
    token = _WATCH.set(Watch(_origin(constants.ENDPOINT), most, requests, size, commit))
    try:
        yield
    finally:
        _WATCH.reset(token)


def _install() -> None:
    """The hooks stay with the client, which huggingface_hub makes anew after some failures."""
    from huggingface_hub import get_session

    with _INSTALLING:
        hooks = get_session().event_hooks
        if _on_request not in hooks["request"]:
            hooks["request"].append(_on_request)
            hooks["response"].append(_on_response)
        logging.getLogger("huggingface_hub.file_download").addFilter(_is_loud)  # once


def _is_loud(record: logging.LogRecord) -> bool:
    """Lines about single tries have addresses with secrets in them."""
    return _WATCH.get() is None or not str(record.msg).startswith("Error while downloading")


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    port = parts.port or _PORTS.get(parts.scheme)
    return parts.scheme, (parts.hostname or "").lower(), port


# --- the hooks --------------------------------------------------------------------------------


def _on_request(request: Any) -> None:
    watch = _WATCH.get()
    if watch is None:
        return
    if next(watch.seen) > watch.requests:
        raise RemoteError(
            f"{watch.origin[1]} was asked {watch.requests} times and there is no end",
            remedy="do not trust this hub, or wait until it is well again",
            tries=watch.requests,
        )
    request.headers["accept-encoding"] = "identity"  # no small answer that unpacks to a large one
    if _origin(str(request.url)) != watch.origin:
        request.headers.pop("authorization", None)


def _on_response(response: Any) -> None:
    watch = _WATCH.get()
    if watch is None:
        return
    headers = response.headers
    if headers.get("content-encoding", "identity") != "identity":
        raise _refused(watch, "compresses an answer that was asked for as it is")
    if response.request.method == "HEAD" and not response.is_error:
        _check_file(watch, headers, response.is_redirect)
    for url in _xet_routes(response):
        if _origin(urljoin(str(response.request.url), url)) != watch.origin:
            for name in ("x-xet-hash", "x-xet-refresh-route"):  # it comes by plain HTTP then
                headers.pop(name, None)
    response.stream = _bounded(response.stream, watch)


def _check_file(watch: Watch, headers: Any, redirected: bool) -> None:
    """Of a file that will be downloaded: what its name in the cache is made of, and its size."""
    for name in _ETAGS:
        if name in headers and _SAFE_ETAG.fullmatch(headers[name]) is None:
            raise _refused(watch, f"sends the ETag {headers[name][:60]!a}, which names no file")
    commit = headers.get("x-repo-commit")
    if watch.commit and commit not in (None, watch.commit):
        raise _refused(watch, f"sends a file of commit {commit[:60]!a}, not of {watch.commit}")
    size = headers.get("x-linked-size") or (None if redirected else headers.get("content-length"))
    if watch.size is not None and size is not None and size != str(watch.size):
        raise _refused(watch, f"sends {size[:30]!a} bytes of a file of {watch.size}")


def _xet_routes(response: Any) -> list[str]:
    link = response.links.get("xet-auth", {}).get("url")
    return [url for url in (link, response.headers.get("x-xet-refresh-route")) if url]


def _refused(watch: Watch, what: str) -> IntegrityError:
    return IntegrityError(
        f"{watch.origin[1]} {what}; the download was stopped",
        remedy="do not trust this hub, or the network between",
    )


def _bounded(stream: Any, watch: Watch) -> Any:
    """`stream`, which fails where it is longer than it may be."""
    # httpx wants its own class here, and is another package in each generation of huggingface_hub
    kind = next(cls for cls in type(stream).__mro__ if cls.__name__ == "SyncByteStream")

    def pieces(self: Any) -> Iterator[bytes]:
        left = watch.limit
        for piece in stream:
            left -= len(piece)
            if left < 0:
                raise _refused(watch, f"sends more than the {watch.limit:,} bytes there can be")
            yield piece

    members = {"__iter__": pieces, "close": lambda self: stream.close()}
    return cast(Any, type("Bounded", (kind,), members)())
