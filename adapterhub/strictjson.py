"""Reading JSON documents of strangers: bounded, without duplicate keys, without NaN."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from adapterhub.errors import NotFound, SchemaError

LIMIT_BYTES = 4 * 1024 * 1024
_LFS = b"version https://git-lfs.github.com/spec/"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(data: bytes | str, *, constants: bool = False) -> Any:
    """Parse `data`. Raises ValueError, saying what is wrong; never RecursionError.

    Every number of the result fits a float, and every text can be encoded as UTF-8. With
    `constants`, NaN and ±Infinity are let in (some model configs hold them); otherwise they are
    refused.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    try:
        document = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=float if constants else _refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
        if _SURROGATE.search(text):
            _refuse_lone_surrogates(document)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:80]!a} occurs twice")
        result[key] = value
    return result


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _whole(digits: str) -> int:
    _finite(digits)  # first, since it takes linear time and int() does not
    return int(digits)


def _refuse_lone_surrogates(document: Any) -> None:
    try:
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise ValueError(f"a text holds U+{code:04X} alone, which is no character") from None


def load_object(path: Path, *, limit: int = LIMIT_BYTES, constants: bool = False) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes. Raises NotFound or SchemaError."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise SchemaError(
            f"{path} is larger than {limit:,} bytes, too large for a config",
            remedy="check that this is the right file",
        )
    if data.startswith(_LFS):
        text = f"{path} is a Git-LFS pointer, not the file itself"
        raise SchemaError(text, remedy="git lfs pull, or download the file again")
    try:
        document = loads(data, constants=constants)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise SchemaError(
            f"{path} is not valid JSON: {error}", remedy="correct or re-export it"
        ) from error
    if not isinstance(document, dict):
        raise SchemaError(
            f"{path} holds a JSON {type(document).__name__}, expected an object",
            remedy="check that this is the right file",
        )
    return document
