"""The model card's front matter: what an adapter's README.md says to machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterhub.adapter import Problem

LIMIT_BYTES = 1024 * 1024
FRONT_LIMIT = 64 * 1024


def read(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Card fields (licence, language, topics, readme) of a README.md; empty if there is none."""
    unlicensed = Problem("no-licence", "no licence is stated", "adapterhub edit REF --licence ID")
    if not path.is_file():
        return {}, [unlicensed]
    with path.open("rb") as file:
        data = file.read(LIMIT_BYTES + 1)
    if len(data) > LIMIT_BYTES:
        return {}, [Problem("card", "README.md is larger than 1 MiB and is left aside"), unlicensed]
    text = data.decode("utf-8", errors="replace")
    front, problems = _front_matter(text)
    fields: dict[str, Any] = {"readme": text}
    licence = front.get("license")
    if isinstance(licence, str) and licence:
        fields["licence"] = licence
    else:
        problems.append(unlicensed)
    for field, name in (("language", "language"), ("tags", "topics")):
        if words := _words(front.get(field)):
            fields[name] = words
    return fields, problems


def _words(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [word for word in values if isinstance(word, str) and word]


def _front_matter(text: str) -> tuple[dict[str, Any], list[Problem]]:
    if not text.startswith("---\n"):
        return {}, []
    front, end, _ = text[4:].partition("\n---")
    if not end or len(front) > FRONT_LIMIT:
        return {}, [Problem("card", "the front matter of README.md has no end")]
    import yaml

    try:
        # An alias can make a small text a huge document; model cards have no use for one.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(front, yaml.SafeLoader)):
            return {}, [Problem("card", "the front matter of README.md uses YAML aliases")]
        value = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return {}, [Problem("card", f"the front matter of README.md is not valid YAML: {first}")]
    return (value, []) if isinstance(value, dict) else ({}, [])
