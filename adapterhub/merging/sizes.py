"""Sizes of shards, as people write them."""

from __future__ import annotations

from adapterhub.errors import InvalidOption

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(text: int | str | None) -> int | None:
    """Bytes from a number or a text such as "5GB" (10⁹) or "512MiB" (2²⁰). Raises InvalidOption."""
    if text is None:
        return None
    text = str(text)
    digits = text.strip().rstrip("BKMGTIbkmgti ")
    unit = text.strip()[len(digits) :].strip().upper()
    try:
        value = int(float(digits) * _UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        value = 0
    if value < 1:
        raise InvalidOption(f"{text!r} is not a size", remedy="for example 5GB or 512MiB")
    return value
