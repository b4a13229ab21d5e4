"""JSON from strangers: one meaning per text, so no duplicate keys and no NaN."""

from __future__ import annotations

from collections import Counter
from json import JSONDecodeError, JSONDecoder
from typing import Any, NoReturn

__all__ = ["JSONDecodeError", "decode", "decode_document", "decode_string", "is_unicode"]


def decode(source: str) -> dict[str, Any]:
    """The object that `source` is; the caller has bounded its size and nesting.

    Raises:
        JSONDecodeError: not JSON; has `pos`.
        ValueError: JSON, but not an object, or with duplicate keys or numbers other than whole
            ones from 0 to 2^53.
    """
    value = _DECODER.decode(source)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def decode_document(source: str) -> dict[str, Any]:
    """The object that `source` is, with any numbers in it and nested as it may be.

    Raises:
        ValueError: not JSON (JSONDecodeError, with `pos`), not an object, duplicate keys, NaN,
            or nested too deeply for Python.
    """
    try:
        value = _DOCUMENTS.decode(source)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def decode_string(text: str, at: int) -> tuple[str, int]:
    """The string whose opening quote is at index `at`, and the index after its closing quote."""
    value, end = _DECODER.raw_decode(text, at)
    return str(value), end


def is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:100]!a} stands twice")
    return value


def _whole(digits: str) -> int:
    # "-0" too: other readers take it for a float.
    if digits.startswith("-"):
        raise ValueError(f"{digits[:20]} is negative, expected a whole number from 0 on")
    if len(digits) > 16 or int(digits) > 2**53:
        raise ValueError(f"{digits[:20]} is beyond 2^53")
    return int(digits)


def _no_number(digits: str) -> NoReturn:
    raise ValueError(f"{digits[:20]} is not a whole number")


_DECODER = JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_no_number, parse_constant=_no_number
)
_DOCUMENTS = JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)
