"""Model cards: the front matter of a README.md as JSON, and what is wrong with it."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from typing import Any

from adapterhub.formats import card as cards

LIMIT_BYTES = cards.LIMIT_BYTES
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(?:/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?")
_WORDS = ("tags", "language", "base_model", "datasets", "metrics")
# Names of arguments of the clients' card classes: as keys of a card they would break a listing.
_REFUSED = frozenset(("self", "ignore_metadata_errors"))
_EMPTY = "empty or missing yaml metadata in repo card"


def front(data: bytes) -> dict[str, Any]:
    """The front matter as JSON values; empty where there is none that can be read."""
    found, _ = cards.front_matter(_text(data))
    return _tidy(found)


def validate(content: str) -> tuple[list[str], list[str]]:
    """Errors, for which clients keep the card back, and warnings, which they print."""
    if len(content.encode("utf-8", "replace")) > LIMIT_BYTES:
        return ["the card is larger than 1 MiB"], []
    found, problems = cards.front_matter(_text(content.encode("utf-8", "replace")))
    errors = [problem.message for problem in problems]
    errors += [
        f"{key} must be a text"
        for key in ("license", "library_name", "pipeline_tag")
        if not isinstance(found.get(key), str | None)
    ]
    errors += [
        f"{key} must be a text or a list of texts"
        for key in _WORDS
        if not _are_words(found.get(key))
    ]
    warnings = [] if found or errors else [_EMPTY]
    for base in words(found.get("base_model")):
        if not HUB_ID.fullmatch(base):
            warnings.append(f"base_model {base[:100]!a} is no id of a model on a hub")
    return errors, warnings


def words(value: Any) -> list[str]:
    """A text or a list of texts, as a list of different ones; anything else is left out."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return list(dict.fromkeys(word for word in values if isinstance(word, str) and word))


def _text(data: bytes) -> str:
    return cards.decoded(data)[0].replace("\r\n", "\n")


def _are_words(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(isinstance(each, str | None) for each in values)


def _tidy(front: Mapping[Any, Any]) -> dict[str, Any]:
    """JSON values only, and of the types that clients rely on."""
    plain: dict[str, Any] = _plain(front)
    plain = {key: value for key, value in plain.items() if key not in _REFUSED}
    if "tags" in plain:
        plain["tags"] = words(plain["tags"])
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and abs(value) >= 2**63:  # Python refuses to spell the longest ones
        return None
    if isinstance(value, datetime.date | datetime.datetime):
        return value.isoformat()
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, int | float | bool | None) else str(value)
