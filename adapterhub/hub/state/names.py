"""Ids of repositories and names of branches and tags."""

from __future__ import annotations

import re
from dataclasses import dataclass

from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.paths import shown

KINDS = ("model", "dataset", "space")
MAX_PART = 96
MAX_REF = 200
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
# The first part of an id is the first part of an address, and these mean something else there.
_RESERVED = """
api datasets spaces models kernels buckets cas xet lfs upload v1 v2 health metrics login settings
"""
RESERVED = frozenset(_RESERVED.split())
_CHARACTERS = (
    f"of at most {MAX_PART} ASCII letters, digits, `_.-` each, no `--` or `..`, with a letter, "
    "digit or `_` at both ends"
)
_REF_PART = re.compile(r"[^\x00-\x20\x7f~^:?*\[\\]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
BRANCH, TAG, PULL = "refs/heads/", "refs/tags/", "refs/pr/"


@dataclass(frozen=True, order=True)
class RepoId:
    """`namespace/name`, or a bare `name` where the namespace is empty."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def parse_id(text: object, kind: str = "model") -> RepoId:
    """Raises InvalidRequest for what the clients of the Hub would refuse, too."""
    if kind not in KINDS:
        raise InvalidRequest(f"no such type of repository: {kind!r}", remedy=f"use {KINDS}")
    if not isinstance(text, str):
        raise InvalidRequest(
            f"an id is a string, not {type(text).__name__}", remedy="use namespace/name"
        )
    parts = text.split("/")
    problem = _id_problem(text, parts)
    if problem:
        raise InvalidRequest(
            f"repository id {shown(text)} {problem}",
            remedy=f"use [namespace/]name {_CHARACTERS}",
        )
    return RepoId(kind, parts[0] if len(parts) == 2 else "", parts[-1])


def check_namespace(text: str, what: str = "namespace") -> str:
    """`what` it is called where it is wrong. Raises InvalidRequest."""
    problem = "has a `/`" if "/" in text else _id_problem(f"{text}/x", [text, "x"])
    if problem:
        raise InvalidRequest(
            f"the {what} {shown(text)} {problem.replace('a part with ', '')}",
            remedy=f"one {_CHARACTERS.replace(' each', '')}",
        )
    return text


def _id_problem(text: str, parts: list[str]) -> str:
    if len(parts) > 2:
        return f"has {len(parts)} parts"
    if not all(_PART.fullmatch(part) for part in parts):
        return "has a part with other characters, or of another length"
    if "--" in text or ".." in text:
        return "has `--` or `..`"
    if parts[-1].lower().endswith(".git"):
        return "ends with .git"
    return "begins with a reserved word" if parts[0].lower() in RESERVED else ""


def check_ref_name(name: object, what: str) -> str:
    """The name of a branch or tag, by the rules of git. Raises InvalidRequest."""
    if not isinstance(name, str) or not _is_ref_name(name):
        raise InvalidRequest(
            f"{what} {shown(str(name))} is not a name of a {what}",
            remedy="use letters, digits and `._/-`, no `..`, not 40 hexadecimal digits",
        )
    return name


def _is_ref_name(name: str) -> bool:
    if not 0 < len(name) <= MAX_REF or not name.isprintable() or _COMMIT.fullmatch(name):
        return False
    if name.startswith(("refs/", "-")) or ".." in name or "@{" in name or name in ("@", "HEAD"):
        return False
    return all(
        _REF_PART.fullmatch(part) and not part.startswith(".") and not part.endswith((".lock", "."))
        for part in name.split("/")
    )
