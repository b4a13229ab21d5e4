"""The model card's front matter: what an adapter's README.md says to machines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from adapterhub.adapter import Problem

LIMIT_BYTES = 1024 * 1024
FRONT_LIMIT = 64 * 1024
MAX_DEPTH = 30
MAX_TOKENS = 20_000  # half a second; cards with long tables of results have some 10,000
_FENCED = re.compile(r"---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


def read(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Card fields (licence, language, topics, readme) of a README.md; empty if there is none."""
    unlicensed = Problem("no-licence", "no licence is stated", "adapterhub edit REF --licence ID")
    if not path.is_file():
        return {}, [unlicensed]
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        return {}, [Problem("card", f"README.md cannot be read: {error.strerror}"), unlicensed]
    if len(data) > LIMIT_BYTES:
        return {}, [Problem("card", "README.md is larger than 1 MiB and is left aside"), unlicensed]
    text, problems = decoded(data)
    found, front_problems = fields(text)
    problems += front_problems
    return found, problems if "licence" in found else [*problems, unlicensed]


def fields(text: str) -> tuple[dict[str, Any], list[Problem]]:
    """Card fields of a README.md's text."""
    front, problems = front_matter(text.replace("\r\n", "\n"))
    fields: dict[str, Any] = {"readme": text}
    licence = front.get("license")
    if isinstance(licence, str) and licence:
        fields["licence"] = licence
    if languages := _words(front.get("language")):
        fields["language"] = languages
    # `base_model:…` tags repeat what the manifest knows better.
    topics = [word for word in _words(front.get("tags")) if not word.startswith("base_model:")]
    if topics:
        fields["topics"] = topics
    return fields, problems


def decoded(data: bytes) -> tuple[str, list[Problem]]:
    """A card's text, also where it is not UTF-8 throughout."""
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        text = f"README.md is not UTF-8 from byte {error.start} on; what is not is shown as \ufffd"
        return data.decode("utf-8-sig", errors="replace"), [Problem("card", text)]


def _words(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [word for word in values if isinstance(word, str) and word]


def front_matter(text: str) -> tuple[dict[str, Any], list[Problem]]:
    """The YAML between the fences at the start of a card; empty where it has none or is refused."""
    if not re.match(r"---[ \t]*\n", text):
        return {}, []
    found = _FENCED.match(text)
    if found is None:
        return {}, [Problem("card", "the front matter of README.md has no end")]
    front = found.group(1)
    if len(front) > FRONT_LIMIT:
        return {}, [Problem("card", "the front matter of README.md is larger than 64 KiB")]
    import yaml

    try:
        if why := trick(front):
            return {}, [Problem("card", f"the front matter of README.md {why}")]
        value = yaml.safe_load(front)
    except Exception as error:  # a tag like !!int fails in as many ways as Python does
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return {}, [
            Problem("card", f"the front matter of README.md is not valid YAML: {first[:200]}")
        ]
    return (value, []) if isinstance(value, dict) else ({}, [])


def trick(front: str) -> str:
    """What makes a small text cost much, and no card needs: aliases, depth, many small parts."""
    import yaml

    depth = 0
    for count, token in enumerate(yaml.scan(front, yaml.SafeLoader)):
        if count > MAX_TOKENS:
            return f"has more than {MAX_TOKENS} parts"
        if isinstance(token, yaml.AliasToken):
            return "uses YAML aliases"
        name = type(token).__name__
        depth += name.endswith("StartToken") - name.endswith("EndToken")
        if depth > MAX_DEPTH:
            return f"is nested deeper than {MAX_DEPTH} levels"
    return ""
