"""A base: a checkpoint on disk, what identifies it, and the digests of its tensors.

Identity is (weights_root, config digest, tokenizer digest), each kept apart. Leaves are expensive
(every byte is hashed), so they are cached by path, size, mtime and inode.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub import digest, strictjson
from adapterhub.catalogue import Architecture, ModelClass, architecture
from adapterhub.errors import AdapterHubError, InvalidBase, NotSupported
from adapterhub.tensorfile import Checkpoint, FileTensor, open_checkpoint, tensor_digests

Progress = Callable[[int], None]
CONFIG = "config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)

# Who wrote a config, not what it says.
_VOLATILE = frozenset({"_name_or_path", "transformers_version"})


@dataclass(frozen=True)
class Base:
    """`config` is config.json as parsed; `fingerprints` are those of the files when opened.

    Files may spell a tensor otherwise than the class that config.json names: GPT-2 on the Hub holds
    `h.0.attn.c_attn.weight`, and its GPT2LMHeadModel `transformer.h.0.attn.c_attn.weight`.
    "Stored" names are those of the files.
    """

    path: Path
    config: Mapping[str, Any]
    checkpoint: Checkpoint
    on_note: Callable[[str], None] | None = None
    fingerprints: Mapping[Path, list[int]] = field(default_factory=dict)
    borrowed: Mapping[str, str] = field(default_factory=dict)  # see `in_memory`

    @property
    def tensors(self) -> Mapping[str, FileTensor]:
        return self.checkpoint.tensors

    @property
    def model_type(self) -> str | None:
        value = self.config.get("model_type")
        return value if isinstance(value, str) else None

    @cached_property
    def architecture(self) -> Architecture | None:
        """What the catalogue knows about this model type; None if nobody knows it."""
        if self.model_type is None:
            return None
        try:
            return architecture(self.model_type, on_note=self.on_note)
        except NotSupported:
            return None

    @cached_property
    def prefix(self) -> str:
        """The prefix that stored backbone tensors carry: "bert" for `bert.encoder…`, or ""."""
        if self.architecture is None or self.model_class is None:
            return ""
        others = sorted({found.prefix for found in self.architecture.classes.values()})
        candidates = (self.model_class.prefix, self.architecture.prefix, *others)
        return next((prefix for prefix in candidates if prefix and self._carries(prefix)), "")

    def _carries(self, prefix: str) -> bool:
        return any(name.startswith(f"{prefix}.") for name in self.tensors)

    @cached_property
    def model_class(self) -> ModelClass | None:
        """The class that the files were saved from: config's, or the bare model."""
        if self.architecture is None:
            return None
        named = self.config.get("architectures")
        name = named[0] if isinstance(named, list) and named else self.architecture.base_class
        found = self.architecture.class_named(name) if isinstance(name, str) else None
        return found or self.architecture.class_named(self.architecture.base_class)

    def is_backbone(self, tensor: str) -> bool:
        """Whether a stored tensor belongs to the bare model, not to a head."""
        if self.prefix:
            return tensor.startswith(f"{self.prefix}.")
        found = self.model_class
        return found is None or not found.is_head(tensor.rpartition(".")[0])

    def in_class(self, tensor: str) -> str:
        """The name under which `model_class` has a stored tensor."""
        if self.model_class is None or not self.is_backbone(tensor):
            return tensor
        return respelled(tensor, self.prefix, self.model_class.prefix)

    @cached_property
    def tied(self) -> Mapping[str, str]:
        """Tensors that the model has and the files lack → the stored tensor that each shares."""
        pairs = self.ties.items()
        return {a: b for a, b in pairs if a not in self.tensors and b in self.tensors}

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """Pairs that share one weight in the loaded model, stored once or twice; stored names."""
        return self.ties_in(self.model_class) if self.model_class else {}

    def ties_in(self, found: ModelClass) -> Mapping[str, str]:
        """The same for these files in a model of the class `found`."""
        pairs = found.tied_in(self.config).items()
        return {self.stored_as(a, found): self.stored_as(b, found) for a, b in pairs}

    def in_memory(self, found: ModelClass | None) -> Base:
        """A view of the base with the tensors that a model of the class `found` shares.

        `borrowed` maps each of them that the files lack to the stored tensor that it shares. Only
        names and shapes of a view are for use: its digests would be those of no checkpoint.
        """
        borrowed: dict[str, str] = {}
        for group in groups(self.ties_in(found) if found else {}):
            there = [name for name in group if name in self.tensors]
            borrowed |= {name: there[0] for name in group if there and name not in there}
        if not borrowed:
            return self
        shared = {name: self.tensors[partner] for name, partner in borrowed.items()}
        return self.with_tensors({**self.tensors, **shared}, borrowed)

    def with_tensors(self, tensors: Mapping[str, FileTensor], borrowed: Mapping[str, str]) -> Base:
        """A view, as `in_memory`, with other tensors."""
        return replace(
            self, checkpoint=replace(self.checkpoint, tensors=tensors), borrowed=borrowed
        )

    def stored_as(self, name: str, found: ModelClass) -> str:
        """What these files call the tensor that the class `found` calls `name`."""
        if found.is_head(name.rpartition(".")[0]):
            return name
        return respelled(name, found.prefix, self.prefix)

    @property
    def parameters(self) -> int:
        """Number of stored elements."""
        return sum(_elements(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        return tuple(sorted({tensor.dtype for tensor in self.tensors.values()}))

    @cached_property
    def structure_root(self) -> str:
        return digest.structure_root((name, t.shape) for name, t in self.tensors.items())

    @cached_property
    def config_digest(self) -> str:
        """sha256 of the canonical config, less who wrote it; non-finite numbers as strings."""
        kept = {key: value for key, value in self.config.items() if key not in _VOLATILE}
        try:
            return digest.of_bytes(digest.canonical(_finite(kept)))
        except (ValueError, RecursionError) as error:
            raise InvalidBase(f"{self.path / CONFIG}: {error}", remedy="correct it") from error

    @cached_property
    def tokenizer_digest(self) -> str | None:
        """Digest over the names and bytes of the tokenizer's files; None if there are none."""
        files = [name for name in TOKENIZER_FILES if (self.path / name).is_file()]
        if not files:
            return None
        listing = [[name, digest.of_bytes(self.bytes_of(name))] for name in files]
        return digest.of_bytes(digest.canonical(listing))

    def bytes_of(self, name: str) -> bytes:
        """Contents of a small file of the directory. Raises InvalidBase."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise InvalidBase(
                f"{self.path / name} cannot be read: {error.strerror}", remedy="check the file"
            ) from error

    def check_unchanged(self) -> None:
        """Raises InvalidBase if config.json or a weights file is not the one that was opened."""
        if changed := changed_file(self.fingerprints):
            raise InvalidBase(
                f"{changed} changed while it was in use", remedy="wait for its writer, try again"
            )

    def digests(
        self, cache: LeafCache | None = None, progress: Progress | None = None
    ) -> Mapping[str, bytes]:
        """D of every tensor (see `digest`), from the cache where the file is unchanged."""
        self.check_unchanged()
        result: dict[str, bytes] = {}
        for path in self.checkpoint.files:
            tensors = {name: t for name, t in self.tensors.items() if t.path == path}
            result |= _file_digests(path, tensors, cache, progress)
        return result

    def weights_root(self, cache: LeafCache | None = None, progress: Progress | None = None) -> str:
        return self.root_of(self.digests(cache, progress))

    def root_of(self, digests: Mapping[str, bytes]) -> str:
        """weights_root from the D of every tensor."""
        return digest.weights_root(
            (name, t.dtype, t.shape, digests[name]) for name, t in self.tensors.items()
        )


def open_base(path: Path, *, on_note: Callable[[str], None] | None = None) -> Base:
    """Open a checkpoint directory. Raises InvalidBase, naming what is missing or damaged."""
    try:
        path = path.resolve()
        is_directory = path.is_dir()
    except (OSError, RuntimeError) as error:  # no permission; a loop of links
        raise InvalidBase(f"{path} cannot be opened: {error}", remedy="check the path") from error
    if not is_directory:
        raise InvalidBase(
            f"{path} is not a directory", remedy="a base is a directory of safetensors + config"
        )
    if not (path / CONFIG).is_file():
        adapter = (path / "adapter_config.json").is_file()
        raise InvalidBase(
            f"{path} has no {CONFIG}",
            remedy="this is an adapter; give it as ADAPTER, not as BASE"
            if adapter
            else "a base is a directory of safetensors + config.json",
        )
    try:
        config = strictjson.load_object(path / CONFIG, constants=True)
        checkpoint = open_checkpoint(path)
    except AdapterHubError as error:
        raise InvalidBase(error.message, remedy=error.remedy, details=error.details) from error
    files = (path / CONFIG, *checkpoint.files)
    return Base(path, config, checkpoint, on_note, fingerprints(files))


def groups(ties: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """The tensors that share one weight, by pairs: what the others share, then the others."""
    found: dict[str, list[str]] = {}
    for name, source in ties.items():
        found.setdefault(source, [source]).append(name)
    return tuple(tuple(names) for names in found.values())


def respelled(name: str, old: str, new: str) -> str:
    """A backbone's name with the prefix `new` where it has `old`: `h.0` → `transformer.h.0`."""
    bare = name.removeprefix(f"{old}.") if old else name
    return f"{new}.{bare}" if new else bare


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# --- cached leaves ----------------------------------------------------------------------------


class LeafCache:
    """D of the tensors of a file, remembered for as long as the file is unchanged.

    One small JSON file per tensor file. A file that had changed within the two seconds before it
    was hashed is not remembered: another change might have left the same mtime. A damaged entry
    counts as absent.
    """

    QUIET_NS = 2_000_000_000

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, path: Path) -> Mapping[str, bytes] | None:
        try:
            entry = json.loads(self._place(path).read_bytes())
            if entry["stat"] != _fingerprint(path) or entry["check"] != _check(entry["digests"]):
                return None
            return {name: bytes.fromhex(value) for name, value in entry["digests"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def put(
        self, path: Path, fingerprint: list[int], digests: Mapping[str, bytes], hashed_ns: int
    ) -> None:
        """Remember; `hashed_ns` is when hashing began. Failing to is only slower next time."""
        if hashed_ns - fingerprint[1] < self.QUIET_NS:
            return
        place = self._place(path)
        values = {name: value.hex() for name, value in digests.items()}
        entry: dict[str, Any] = {"path": str(path), "stat": fingerprint, "digests": values}
        entry["check"] = _check(values)
        temporary = place.with_name(f"{place.name}.{secrets.token_hex(6)}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entry))
            temporary.replace(place)
        except (OSError, ValueError):  # also a path that is no text
            with suppress(OSError):
                temporary.unlink()

    def _place(self, path: Path) -> Path:
        return self.directory / f"{digest.sha256(os.fsencode(path)).hex()}.json"


def _check(digests: Mapping[str, str]) -> str:
    """Told apart from a digest of content: it only finds damage to the cache's own file."""
    return digest.of_bytes(json.dumps(digests).encode("ascii"))


def fingerprints(paths: Iterable[Path]) -> dict[Path, list[int]]:
    """For `changed_file`; empty for a file that is not there."""
    return {path: _fingerprint(path) if path.is_file() else [] for path in paths}


def changed_file(before: Mapping[Path, list[int]]) -> Path | None:
    """The first of these files that is not what it was, or None."""
    for path, fingerprint in before.items():
        if not path.is_file() or _fingerprint(path) != fingerprint:
            return path
    return None


def _fingerprint(path: Path) -> list[int]:
    """size, mtime, inode, device: what changes when a file does."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev]


def _file_digests(
    path: Path,
    tensors: Mapping[str, FileTensor],
    cache: LeafCache | None,
    progress: Progress | None,
) -> Mapping[str, bytes]:
    """D of the tensors of one file. Raises InvalidBase if it changes meanwhile."""
    known = cache.get(path) if cache else None
    if known is not None and known.keys() == tensors.keys():
        if progress:
            progress(sum(tensor.nbytes for tensor in tensors.values()))
        return known
    started, before = time.time_ns(), _fingerprint(path)
    digests = tensor_digests(tensors, progress=progress)
    if _fingerprint(path) != before:
        raise InvalidBase(
            f"{path} changed while it was read", remedy="wait for its writer, then try again"
        )
    if cache:
        cache.put(path, before, digests, started)
    return digests
