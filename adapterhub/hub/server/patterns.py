"""The patterns of .gitignore and .gitattributes.

They come from strangers and are matched against names from strangers, so matching a part of a path
takes time linear in both: a `*` becomes an atomic group, which never gives back what it took.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_BYTES = 256 * 1024
MAX_LINES = 1000
MAX_PATTERN = 1024
MAX_PARTS = 32  # no path is deeper
_QUOTED = re.compile(r'\s*"([^"\\]+)"(?=\s)')
_ANYWHERE = "**"
_STAR = "*"


@dataclass(frozen=True)
class Pattern:
    """`parts`: one regular expression for each part of a path; None stands for `**`."""

    parts: tuple[re.Pattern[str] | None, ...]
    folders_only: bool

    def matches(self, path: tuple[str, ...], is_folder: bool) -> bool:
        """Whether all of `path` fits."""
        if self.folders_only and not is_folder:
            return False
        first, *others = self.parts
        if first is None and len(others) == 1 and others[0] is not None:  # as most of them are
            return others[0].fullmatch(path[-1]) is not None
        return self._reaches_end(path)

    def _reaches_end(self, path: tuple[str, ...]) -> bool:
        # reached[i]: the pattern's parts so far fit the first i parts of the path
        reached = [True] + [False] * len(path)
        for index, part in enumerate(self.parts):
            if True not in reached:
                return False
            if part is None:
                # `a/**` is what lies below a
                least = reached.index(True) + (index == len(self.parts) - 1)
                reached = [at >= least for at in range(len(reached))]
            else:
                pairs = zip(reached, path, strict=False)
                reached = [
                    False,
                    *(was and part.fullmatch(name) is not None for was, name in pairs),
                ]
        return reached[-1]


@dataclass(frozen=True)
class Ignore:
    """What a .gitignore says: (pattern, whether it ignores), in order."""

    rules: tuple[tuple[Pattern, bool], ...]

    def ignores(self, path: str) -> bool:
        """A file; what lies in an ignored folder is ignored whatever else is said."""
        parts = tuple(path.split("/"))
        return any(self._says(parts[:end], end < len(parts)) for end in range(1, len(parts) + 1))

    def _says(self, parts: tuple[str, ...], is_folder: bool) -> bool:
        found = (yes for rule, yes in reversed(self.rules) if rule.matches(parts, is_folder))
        return next(found, False)


def parse_ignore(text: str) -> Ignore:
    """Lines that mean nothing are passed over, as git does; so is what exceeds the limits."""
    rules = []
    for line in _lines(text):
        if line.startswith("#"):
            continue
        negated = line.startswith("!")
        pattern = _pattern(_trimmed(line[1:] if negated else line))
        if pattern is not None:
            rules.append((pattern, not negated))
    return Ignore(tuple(rules))


@dataclass(frozen=True)
class Attributes:
    """What a .gitattributes says of LFS: (pattern, whether it is for LFS), in order."""

    rules: tuple[tuple[Pattern, bool], ...]

    def lfs(self, path: str) -> bool | None:
        """None where nothing is said."""
        parts = tuple(path.split("/"))
        found = (yes for rule, yes in reversed(self.rules) if rule.matches(parts, False))
        return next(found, None)


def parse_attributes(text: str) -> Attributes:
    rules = []
    for line in _lines(text):
        quoted = _QUOTED.match(line)
        text, *words = (quoted[1], *line[quoted.end() :].split()) if quoted else line.split()
        if text.startswith(("#", "!", "[attr]")) or text.endswith("/"):
            continue
        pattern = _pattern(text)
        said = [word for word in words if word.lstrip("-!").split("=")[0] == "filter"]
        if pattern is not None and said:
            rules.append((pattern, said[-1] == "filter=lfs"))
    return Attributes(tuple(rules))


def _lines(text: str) -> Iterator[str]:
    for line in text[:MAX_BYTES].removeprefix("\ufeff").split("\n")[:MAX_LINES]:
        stripped = line.rstrip("\r")
        if stripped.strip() and len(stripped) <= MAX_PATTERN:
            yield stripped


def _trimmed(line: str) -> str:
    """Without spaces at its end, unless the last one is escaped."""
    bare = line.rstrip(" ")
    escaped = len(bare) < len(line) and (len(bare) - len(bare.rstrip("\\"))) % 2
    return bare + " " if escaped else bare


def _pattern(text: str) -> Pattern | None:
    folders_only = text.endswith("/")
    parts = [part for part in text.rstrip("/").split("/") if part]
    parts = [p for at, p in enumerate(parts) if p != _ANYWHERE or parts[at - 1 : at] != [p]]
    if not parts or len(parts) > MAX_PARTS:
        return None
    anchored = "/" in text.rstrip("/")
    if not anchored:
        parts.insert(0, _ANYWHERE)
    try:
        compiled = tuple(None if part == _ANYWHERE else _part(part) for part in parts)
    except re.error:
        return None
    return Pattern(compiled, folders_only)


def _part(text: str) -> re.Pattern[str]:
    """A part of a path: every `*` takes the least that lets the fixed text behind it follow."""
    first, *rest = _split_at_stars(_tokens(text))
    out = "".join(first)
    for fixed in rest[:-1]:
        out += f"(?>.*?{''.join(fixed)})" if fixed else ""
    out += ".*" + "".join(rest[-1]) if rest else ""
    return re.compile(out, re.DOTALL)


def _split_at_stars(tokens: list[str]) -> list[list[str]]:
    out: list[list[str]] = [[]]
    for token in tokens:
        if token == _STAR:
            out.append([])
        else:
            out[-1].append(token)
    return out


def _tokens(text: str) -> list[str]:
    """Each a regular expression for one character, or a star."""
    out: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        end = at + 1
        if char == "*":
            out.append(_STAR)
        elif char == "?":
            out.append(".")
        elif char == "[" and (close := _closing(text, at)):
            out.append(_class(text[at + 1 : close]))
            end = close + 1
        else:
            end += char == "\\" and end < len(text)
            out.append(re.escape(text[end - 1]))
        at = end
    return out


def _closing(text: str, at: int) -> int:
    """Index of the `]` that ends the class which begins at `at`; 0 for none."""
    start = at + 2 if text[at + 1 : at + 2] in ("!", "^") else at + 1
    return max(text.find("]", start + 1), 0)


def _class(inner: str) -> str:
    negated = inner[:1] in ("!", "^")
    body = inner[1:] if negated else inner
    # `[`, `&`, `~`, `|` are escaped for the day when `re` gives sets of sets a meaning
    body = re.sub(r"[\\\[\]^&~|]", lambda found: "\\" + found[0], body)
    return f"[{'^' if negated else ''}{body}]"
