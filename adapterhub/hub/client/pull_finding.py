"""Which adapters a repository holds, and which of its files each needs, from names alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub import formats
from adapterhub.adapter import Reading
from adapterhub.base import TOKENIZER_FILES
from adapterhub.errors import (
    AdapterHubError,
    InvalidAdapter,
    InvalidOption,
    NotFound,
    NotSupported,
    PickleRefused,
    UnknownFormat,
)
from adapterhub.formats import Format
from adapterhub.formats.claims import claim
from adapterhub.formats.sight import CONFIG, MAX_LOOKS, Sight
from adapterhub.hub.client.pull_listing import Entry, Listing, Spec
from adapterhub.registry import checkout, runs

README = "README.md"
MAX_BESIDE_BYTES = 256 * 1024 * 1024  # of a config, a tokenizer, a card
# A pickle, and the file that is taken in its place where both are there.
_PICKLES = {
    "adapter_model.bin": "adapter_model.safetensors",
    "adapter_model.pt": "adapter_model.safetensors",
    "pytorch_adapter.bin": "adapter.safetensors",
    "pytorch_model_head.bin": "model_head.safetensors",
}
_OWN = (*_PICKLES, *dict.fromkeys(_PICKLES.values()), "adapters.safetensors", "adapters.npz")
_BESIDE = (
    *(CONFIG, "head_config.json", "adapter_fusion_config.json", "adapter_setup.json"),
    *("config.json", checkout.MANIFEST, README, *TOKENIZER_FILES),
)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".lora")
_T_FEW = re.compile(r".*finish\.pt", re.DOTALL)
_MODEL = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|onnx|msgpack|h5)", re.DOTALL)
_SHOWN = 6
_MOST_TEXT = 200


@dataclass(frozen=True)
class Found:
    """An adapter in a repository. `path` is its folder (or its one file), "" for the root.

    `files` are those that it needs; `pickles` those of them that are pickles; `aside` the names of
    what else lies in its folder. `format`, `method` and `base` are known once its config was read.
    """

    path: str
    files: tuple[Entry, ...]
    pickles: tuple[Entry, ...] = ()
    aside: tuple[str, ...] = ()
    is_file: bool = False
    format: str | None = None
    method: str | None = None
    base: str | None = None

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0] if self.is_file else self.path

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    @property
    def config(self) -> Entry | None:
        return next((entry for entry in self.files if entry.name == CONFIG), None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "subfolder": self.path,
            "format": self.format,
            "method": self.method,
            "base": self.base,
            "bytes": self.bytes,
            "files": [entry.path for entry in self.files],
        }


def find(listing: Listing) -> tuple[Found, ...]:
    """In the order of their paths, the root first."""
    folders: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in listing.entries:
        folders[entry.folder][entry.name] = entry
    found = [one for folder in sorted(folders) for one in _in_folder(folder, folders[folder])]
    return tuple(found)


def _in_folder(folder: str, files: Mapping[str, Entry]) -> list[Found]:
    if any(part.startswith(".") for part in folder.split("/") if part):
        return []
    weights = _weights(files)
    if CONFIG in files:
        own = [name for name in _OWN if name in files and _PICKLES.get(name) not in files]
        return [_found(folder, files, own or weights[:MAX_LOOKS])]
    if weights and all(name.endswith(".npy") for name in weights):
        return [_single(files, name) for name in weights]
    return [_single(files, name) for name in weights if _T_FEW.fullmatch(name)]


def _weights(files: Mapping[str, Entry]) -> tuple[str, ...]:
    """Names of files that may be an adapter's weights: no optimizer's, no model's."""
    here = Path()
    return Sight(here, here, tuple(sorted(files))).weights


def _found(folder: str, files: Mapping[str, Entry], weights: Sequence[str]) -> Found:
    names = [*weights, *(name for name in dict.fromkeys(_BESIDE) if name in files)]
    aside = sorted(set(files) - set(names) - {".gitattributes"})
    pickles = tuple(files[name] for name in weights if name.endswith(_PICKLED))
    return Found(folder, tuple(files[name] for name in names), pickles, tuple(aside))


def _single(files: Mapping[str, Entry], name: str) -> Found:
    """Of a format without config: its one file is the adapter."""
    entry = files[name]
    names = [name, *([README] if README in files else [])]
    pickles = (entry,) if name.endswith(_PICKLED) else ()
    return Found(entry.path, tuple(files[n] for n in names), pickles, is_file=True)


# --- choosing ---------------------------------------------------------------------------------


def choose(listing: Listing, found: Sequence[Found], spec: Spec, every: bool) -> tuple[Found, ...]:
    """Those that `spec` means; () where it could mean several. Raises what `nothing` raises."""
    within = [one for one in found if _is_below(one.path, spec.subfolder)]
    if not within:
        raise nothing(listing, found, spec)
    if every or len(within) == 1:
        return tuple(within)
    return tuple(one for one in within if one.path == spec.subfolder)


def _is_below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def several(spec: Spec, found: Sequence[Found]) -> InvalidOption:
    within = [one for one in found if _is_below(one.path, spec.subfolder)]
    first = within[0].path
    return InvalidOption(
        f"{spec.shown} holds {len(within)} adapters, and none at its root",
        remedy=f"name one of them, such as {spec.repository}/{first}; or take all: --all",
        details=[one.path for one in within[:20]],
    )


def nothing(listing: Listing, found: Sequence[Found], spec: Spec) -> AdapterHubError:
    """Why there is no adapter: another folder, a model, a merged model, or nothing known."""
    inside = [entry for entry in listing.entries if _is_below(entry.path, spec.subfolder)]
    if not inside:
        where = f"; it has adapters in {_some([o.path or '.' for o in found])}" if found else ""
        what = f"nothing at {spec.subfolder}" if spec.subfolder else "no files"
        return NotFound(
            f"{spec.repository} has {what} at commit {listing.commit[:12]}{where}",
            remedy="check the spelling, and --revision",
        )
    names = sorted((entry.path for entry in inside), key=lambda path: (path.count("/"), path))
    seen = f"seen: {_some(names)}"
    configs = [entry for entry in inside if entry.name == "config.json"]
    if configs and any(_MODEL.fullmatch(entry.name) for entry in inside):
        merged = any(entry.name == checkout.MANIFEST for entry in inside)
        return UnknownFormat(
            f"{spec.shown} holds a {'merged ' if merged else ''}model, not an adapter; {seen}",
            remedy=f"hf download {spec.repository}; adapterhub base add {spec.repository} then "
            "registers it as a base",
        )
    return UnknownFormat(
        f"{spec.shown} holds no adapter of a format that can be pulled; {seen}",
        remedy=f"hf download {spec.repository}; adapterhub inspect hub:{spec.repository} then "
        "says what it is",
    )


def _some(names: Sequence[str]) -> str:
    left = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {left:,} more" if left > 0 else "")


# --- before anything is downloaded ------------------------------------------------------------


def refuse(one: Found, spec: Spec, *, allow_pickle: bool) -> None:
    """Raises PickleRefused without consent, InvalidAdapter for what cannot be what it is called."""
    where = f"{spec.repository}/{one.path}".rstrip("/")
    if one.pickles and not allow_pickle:
        raise PickleRefused(
            f"{where} has its weights in a pickle, which can run code when it is read; nothing "
            "was downloaded",
            remedy="--allow-pickle reads its tensors and nothing else",
            details=[f"{entry.path} ({entry.size:,} bytes)" for entry in one.pickles],
        )
    for entry in one.files:
        if entry.name in _BESIDE and entry.size > MAX_BESIDE_BYTES:
            raise InvalidAdapter(
                f"{spec.repository}: {entry.path} has {entry.size:,} bytes, at most "
                f"{MAX_BESIDE_BYTES:,} are read",
                remedy="ask its owner what it is",
            )
        if not (entry.sha256 or entry.blob):
            raise InvalidAdapter(
                f"{spec.repository}: the hub gives no digest of {entry.path} to check it against",
                remedy="is HF_ENDPOINT a hub?",
            )


# --- once the config is there -----------------------------------------------------------------


def described(one: Found, config: Path | None) -> Found:
    """With format, method and base, as far as the names of files and `config`, which lies in a
    directory of its own, tell them.
    """
    if config is None:
        name = "t5x_prompt" if one.path.endswith(".npy") else "tfew"
        return replace(one, format=name)
    names = (entry.name for entry in one.files)
    sight = Sight(config.parent, config.parent, tuple(sorted(names)))
    row = _recognised(sight)
    reading = _read(row, sight) if row else None
    base = claim(sight.config).name
    return replace(
        one,
        format=row.name if row else formats.UNKNOWN,
        method=reading.method if reading else None,
        base=base[:_MOST_TEXT] if base else None,
    )


def _recognised(sight: Sight) -> Format | None:
    rows: Iterable[Format] = formats.TABLE.values()
    return next((row for row in rows if row.implementation.recognises(sight)), None)


def _read(row: Format, sight: Sight) -> Reading | None:
    try:
        return row.implementation.read(sight, allow_pickle=False)
    except (AdapterHubError, OSError):
        return None


def refuse_format(one: Found, spec: Spec) -> None:
    """Raises NotSupported for a format that this version only names: before its weights come."""
    row = formats.TABLE.get(one.format or "")
    if row is not None and not row.reads:
        raise NotSupported(
            f"{spec.repository}/{one.path}".rstrip("/") + f" is in the format of {row.title}, "
            "which this version names and does not take; its weights were not downloaded",
            remedy=f"adapterhub formats tells more; hf download {spec.repository} takes the files",
        )


# --- names ------------------------------------------------------------------------------------


def default_name(repository: str, path: str = "") -> str:
    """`ns/name`, and `ns/name--sub` for an adapter in the folder (or file) `sub`, as a server
    calls it too.
    """
    name = runs.spelled(repository)
    return f"{name}{_suffix(path)}"


def sub_name(name: str, path: str) -> str:
    """For `--all` with a name: that of one of several adapters."""
    return f"{name}{_suffix(path)}"


def _suffix(path: str) -> str:
    bare = re.sub(r"\.(npy|pt)$", "", path)
    return f"--{runs.spelled(bare.replace('/', '--'))}" if path else ""
