"""Whose tokenizer comes along: the base's, or that of the adapters, whole in either case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapterhub import strictjson
from adapterhub.base import TOKENIZER_FILES, Base
from adapterhub.errors import AdapterHubError, NotFound, SchemaError
from adapterhub.merging.work import Source

LIMIT_BYTES = 256 * 1024 * 1024  # the largest tokenizer.json in use are a tenth of it
# Files that hold tokens and their numbers, and that can be read here.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt")


def chosen(
    base: Base, sources: Sequence[Source], rows: int | None
) -> tuple[Mapping[str, Path], tuple[str, ...]]:
    """`(name in the result → where it lies, what the report says)`; `rows`: tokens of the result.

    Raises NotFound for a file that cannot be read.
    """
    own = {n: base.path / n for n in sorted(TOKENIZER_FILES) if (base.path / n).is_file()}
    bringing = [source for source in sources if source.tokenizer]
    if all(_same(source.tokenizer, own) for source in bringing):
        return own, ()
    names = " and ".join(source.name for source in bringing)
    if why := _unfit(bringing, rows):
        whose = f"the base's, not that of {names}" if own else f"left out, which {names} brings"
        return own, (f"the tokenizer is {whose}: {why}",)
    first = bringing[0].tokenizer
    return dict(sorted(first.items())), (f"the tokenizer is that of {names}",)


def _same(one: Mapping[str, Path], other: Mapping[str, Path]) -> bool:
    return one.keys() == other.keys() and all(
        _size_of(one[name]) == _size_of(other[name])
        and _bytes_of(one[name]) == _bytes_of(other[name])
        for name in one
    )


def _size_of(path: Path) -> int:
    with _named_errors(path):
        return path.stat().st_size


def _bytes_of(path: Path) -> bytes:
    with _named_errors(path):
        return path.read_bytes()


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotFound(
            f"{path} cannot be read: {error.strerror}", remedy="check the file"
        ) from error


def _unfit(bringing: Sequence[Source], rows: int | None) -> str:
    """Why the adapters' tokenizer cannot be taken; "" if it can."""
    first, *rest = (source.tokenizer for source in bringing)
    large = [name for name, path in first.items() if _size_of(path) > LIMIT_BYTES]
    if large:
        return f"{large[0]} is larger than {LIMIT_BYTES:,} bytes"
    if any(not _same(first, other) for other in rest):
        return "they differ"
    if rows is None:
        return "nothing is known of the number of tokens of this model"
    try:
        highest = highest_id(first)
    except AdapterHubError as error:
        return error.message
    if highest is None:
        readable = f"none of {', '.join(_VOCABULARIES)} among {', '.join(sorted(first))}"
        return f"it cannot be seen whether its tokens fit, for there is {readable}"
    if highest >= rows:
        return f"it has a token with the number {highest}, and the result {rows} rows"
    return ""


def highest_id(files: Mapping[str, Path]) -> int | None:
    """The highest number of a token; None where no file that can be read has the vocabulary.

    Raises SchemaError or NotFound for a file that says something else than it should.
    """
    found = next((name for name in _VOCABULARIES if name in files), None)
    if found is None:
        return None
    ids = [*_ids_in(found, files[found])]
    if "added_tokens.json" in files:
        path = files["added_tokens.json"]
        ids += _numbers(_document(path).values(), path)
    if "tokenizer_config.json" in files:
        path = files["tokenizer_config.json"]
        decoder = _document(path).get("added_tokens_decoder")
        ids += _spelled(decoder if isinstance(decoder, dict) else (), path)
    return max(ids, default=None)


def _ids_in(name: str, path: Path) -> Iterator[int]:
    if name == "vocab.txt":
        yield len(_bytes_of(path).splitlines()) - 1
    elif name == "vocab.json":
        yield from _numbers(_document(path).values(), path)
    else:
        yield from _in_tokenizer(_document(path), path)


def _in_tokenizer(document: Mapping[str, Any], path: Path) -> Iterator[int]:
    """Of tokenizer.json: `model.vocab`, a table or a list whose places are numbers, and added."""
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from _numbers(vocabulary.values(), path)
    elif isinstance(vocabulary, list):
        yield len(vocabulary) - 1
    else:
        raise _malformed(path, "has no model.vocab")
    added = document.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        yield from _numbers([token.get("id") if isinstance(token, dict) else None], path)


def _document(path: Path) -> dict[str, Any]:
    return strictjson.load_object(path, limit=LIMIT_BYTES)


def _numbers(values: Iterable[Any], path: Path) -> Iterator[int]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise _malformed(path, "holds a token whose number is none")
        yield value


def _spelled(keys: Iterable[str], path: Path) -> Iterator[int]:
    for key in keys:
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise _malformed(path, "holds a token whose number is none")
        yield int(key)


def _malformed(path: Path, why: str) -> SchemaError:
    return SchemaError(f"{path.name} {why}", remedy="save the tokenizer anew")
