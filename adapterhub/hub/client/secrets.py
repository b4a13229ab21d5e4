"""Strings that look like somebody's token, key or password."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST = 5  # of one text; who sees five looks at the file


@dataclass(frozen=True)
class Secret:
    """Where one was seen, never what it is."""

    kind: str
    line: int


_START = r"(?<![A-Za-z0-9_-])"
# A digit tells a token from a long word with hyphens.
_KINDS = (
    ("a Hugging Face token", rf"{_START}(?:hf_|api_org_)[A-Za-z0-9]{{20,}}"),
    ("a token of adapterhub", rf"{_START}ahub_[0-9a-f]{{20,}}"),
    ("an API key (sk-…)", rf"{_START}sk-(?=[\w-]*\d)[A-Za-z0-9_-]{{20,}}"),
    ("a GitHub token", rf"{_START}(?:gh[pousr]_[A-Za-z0-9]{{30,}}|github_pat_\w{{22,}})"),
    ("a GitLab token", rf"{_START}glpat-[\w-]{{20,}}"),
    ("a Slack token", rf"{_START}xox[abeprs]-[\w-]{{10,}}"),
    ("an AWS key", rf"{_START}(?:AKIA|ASIA)[0-9A-Z]{{16}}(?![0-9A-Za-z])"),
    ("an AWS secret", r"(?i:aws_?secret_?(?:access_?)?key)[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9/+]{40}"),
    ("a Google key", rf"{_START}AIza[\w-]{{35}}"),
    ("a private key", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY"),
    ("an Authorization header", r"(?i:\bBearer)\s+(?=[\w.~+/-]*\d)[\w.~+/-]{20,}"),
    ("a password in an address", r"://[^/\s:@\"'<>]{1,100}:[^/\s@\"'<>]{3,200}@"),
    (
        "an API key",
        r"(?i:[\"']?(?:api_?key|secret_?key|access_?token|auth_?token|password))[\"']?\s*[:=]\s*"
        r"[\"'](?=[^\"'\s]*\d)[^\"'\s{}$<>]{16,}[\"']",
    ),
)
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _KINDS)


def secrets(text: str) -> Iterator[Secret]:
    """The first few, in the order of `_KINDS`."""
    count = 0
    for kind, pattern in _PATTERNS:
        for found in pattern.finditer(text):
            yield Secret(kind, text.count("\n", 0, found.start()) + 1)
            count += 1
            if count == MOST:
                return
