"""The spelling of names, tags and refs.

part  = [a-z0-9]([a-z0-9._-]*[a-z0-9])?      at most 128 characters
name  = part | part "/" part                 the first of two is the namespace
tag   = part
ref   = name | name ":" tag | name "@" digest          ":latest" is implied
digest = ["sha256:"] 4 to 64 hexadecimal digits        a unique prefix is enough
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapterhub.errors import InvalidName

LATEST = "latest"
MAX_PART = 128
MIN_PREFIX = 4
LOG_SUFFIX = ".jsonl"
_PART = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_HEX = re.compile(r"[0-9a-f]{4,64}")
_RULE = "small letters, digits, '.', '_' and '-', beginning and ending with a letter or digit"


@dataclass(frozen=True)
class Ref:
    """A parsed ref. Neither tag nor digest prefix means the tag `latest`."""

    name: str
    tag: str | None = None
    digest_prefix: str | None = None

    def __str__(self) -> str:
        if self.digest_prefix is not None:
            return f"{self.name}@sha256:{self.digest_prefix}"
        return f"{self.name}:{self.tag or LATEST}"


def check_name(name: str) -> str:
    """The name itself, if it is well spelt. Raises InvalidName with a proposal."""
    parts = name.split("/")
    if len(parts) > 2:
        raise _refuse("name", name, "has more than one '/'")
    for part in parts:
        problem = _problem(part)
        if problem:
            raise _refuse("name", name, problem)
    if len(parts) == 2 and parts[0].endswith(LOG_SUFFIX):
        raise _refuse("name", name, f"has a namespace that ends in {LOG_SUFFIX}, as ref logs do")
    return name


def check_tag(tag: str) -> str:
    """The tag itself, if it is well spelt. Raises InvalidName with a proposal."""
    problem = _problem(tag)
    if problem:
        raise _refuse("tag", tag, problem)
    return tag


def parse_ref(ref: str) -> Ref:
    """`name`, `name:tag`, `name@sha256:abcd` or `name@abcd`. Raises InvalidName."""
    name, at, digest = ref.partition("@")
    name, colon, tag = name.partition(":")
    if at and colon:
        raise InvalidName(
            f"ref {_shown(ref)} has both a tag and a digest",
            remedy="name a version by its tag (name:tag) or by its digest (name@sha256:...)",
        )
    check_name(name)
    if at:
        return Ref(name, digest_prefix=digest_prefix(digest))
    return Ref(name, tag=check_tag(tag) if colon else None)


def digest_prefix(text: str) -> str:
    """The hexadecimal digits of a digest or of the beginning of one. Raises InvalidName."""
    digits = text.removeprefix("sha256:")
    if _HEX.fullmatch(digits):
        return digits
    raise InvalidName(
        f"digest {_shown(text)} is not {MIN_PREFIX} to 64 hexadecimal digits",
        remedy=f"give at least {MIN_PREFIX} digits of 0-9 and a-f, as `adapterhub history` prints",
    )


def propose(text: str) -> str | None:
    """A valid spelling close to `text`, or None where nothing is left of it."""
    pieces = [re.sub(r"[^a-z0-9._-]+", "-", piece.lower()) for piece in text.split("/")]
    parts = [piece[:MAX_PART].strip("._-") for piece in pieces]
    parts = [part for part in parts if part]
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0]
    rest = "-".join(parts[1:])[:MAX_PART].strip("._-")
    space = parts[0].removesuffix(LOG_SUFFIX).strip("._-")
    return f"{space}/{rest}" if space else rest


def _problem(part: str) -> str:
    if not part:
        return "is empty" if part == "" else ""
    if len(part) > MAX_PART:
        return f"has a part of {len(part)} characters; at most {MAX_PART} are allowed"
    return "" if _PART.fullmatch(part) else f"is not made of {_RULE}"


def _refuse(kind: str, text: str, problem: str) -> InvalidName:
    proposal = propose(text.replace("/", "-") if kind == "tag" else text)
    remedy = f"try {proposal!r}" if proposal else f"use {_RULE}"
    return InvalidName(f"{kind} {_shown(text)} {problem}", remedy=remedy)


def _shown(text: str) -> str:
    """A quoted form without control characters, cut where it would fill the screen."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
