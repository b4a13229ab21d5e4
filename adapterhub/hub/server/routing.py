"""Which handler answers a request: templates over the raw path, as the clients' quoting needs it.

Clients quote revisions and tree paths with `safe=""`: `refs%2Fpr%2F1` is one segment. So templates
are matched against the path as it was sent, and each value is unquoted by itself afterwards.

    {kind}      models, datasets or spaces
    {repo}      `name` or `namespace/name`; the longer reading is tried first
    {path:rest} everything that is left, slashes included, perhaps nothing
    {other}     one segment
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from adapterhub.errors import AdapterHubError, InvalidOption

if TYPE_CHECKING:
    from starlette.responses import Response

    from adapterhub.hub.server.call import Call

    Handler = Callable[[Call], Awaitable[Response]]

LONGEST_PATH = 8192
_FIELD = re.compile(r"\{(\w+)(:rest)?\}")
_PATTERNS = {"kind": "models|datasets|spaces", "repo": "[^/]+(?:/[^/]+)?"}


@dataclass(frozen=True)
class Route:
    """`methods`: one or more, separated by spaces; GET does not imply HEAD."""

    methods: str
    template: str
    handler: Handler


@dataclass(frozen=True)
class Match:
    """`params` are unquoted. `template` names the route in logs and metrics."""

    handler: Handler
    template: str
    params: Mapping[str, str]


class Router:
    """Routes in their order; the first whose template and method fit answers."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple((compiled(r.template), r.methods.split(), r) for r in routes)

    def find(self, method: str, raw_path: bytes) -> Match | tuple[str, ...]:
        """The match, or the methods that this path has (none: it means nothing here).

        Raises InvalidOption for a path that is too long or not quoted UTF-8.
        """
        path = _ascii(raw_path)
        allowed: list[str] = []
        for pattern, methods, route in self._routes:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if method in methods:
                values = {name: _unquoted(text or "") for name, text in found.groupdict().items()}
                return Match(route.handler, route.template, values)
            allowed += methods
        return tuple(dict.fromkeys(allowed))


def compiled(template: str) -> re.Pattern[str]:
    out, at = "", 0
    for field in _FIELD.finditer(template):
        name, rest = field[1], field[2]
        out += re.escape(template[at : field.start()])
        inner = ".*" if rest else _PATTERNS.get(name, "[^/]+")
        if rest:  # the slash before it may be missing with it
            out = out.removesuffix("/") + f"(?:/(?P<{name}>{inner}))?"
        else:
            out += f"(?P<{name}>{inner})"
        at = field.end()
    return re.compile(out + re.escape(template[at:]), re.ASCII)


def _ascii(raw: bytes) -> str:
    if len(raw) > LONGEST_PATH:
        raise _refused(f"has {len(raw)} bytes; {LONGEST_PATH} are allowed")
    try:
        return raw.split(b"?", 1)[0].decode("ascii")
    except UnicodeDecodeError:
        raise _refused("is not quoted") from None


def _unquoted(text: str) -> str:
    try:
        return unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise _refused("is not quoted UTF-8") from None


def _refused(why: str) -> AdapterHubError:
    return InvalidOption(f"the address {why}", remedy="correct the address")
