"""adapterhub.json beside a pulled adapter: what its publisher says, held against the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub import schema, strictjson
from adapterhub.adapter import REPLACE, Adapter, Reading
from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.formats import stored
from adapterhub.formats.peft import looks_like_path
from adapterhub.formats.roots import tensors_root
from adapterhub.hub.client.pull_fetching import sha256_of
from adapterhub.methods import method
from adapterhub.registry import checkout, fit
from adapterhub.registry.bases import short_name
from adapterhub.registry.inspection import rank_summary
from adapterhub.tensorfile import Tensor

_MOST = 8


def check(directory: Path, reading: Reading, adapter: Adapter, where: str) -> tuple[str, ...]:
    """Notes on an adapterhub.json that this version cannot use; () where it has none, or agrees.

    Raises IntegrityError, with every difference as a detail, where it contradicts the files.
    """
    path = directory / checkout.MANIFEST
    if not path.is_file():
        return ()
    try:
        document = strictjson.load_object(path)
    except AdapterHubError as error:
        raise _refused(where, [error.message.replace(str(path), path.name)]) from error
    if document.get("kind") != "adapter" or document.get("schema") != 1:
        kind = f"kind {document.get('kind')!a:.40}, schema {document.get('schema')!a:.40}"
        return (f"{checkout.MANIFEST} says nothing that this version understands ({kind})",)
    try:
        schema.check(document, "manifest", what=checkout.MANIFEST)
    except AdapterHubError as error:
        raise _refused(where, [error.message, *error.details]) from error
    if found := _files(document, reading) or _facts(document, adapter, reading):
        raise _refused(where, found)
    return ()


def _refused(where: str, found: Sequence[str]) -> IntegrityError:
    return IntegrityError(
        f"{checkout.MANIFEST} of {where} contradicts the files beside it; nothing was added",
        remedy="ask its owner to push it again; or download it, remove adapterhub.json, and add it",
        details=found[:_MOST],
    )


def _files(document: Mapping[str, Any], reading: Reading) -> list[str]:
    said = {entry["path"]: (entry["size"], entry["sha256"]) for entry in document["files"]}
    here = {}
    for file in reading.files:
        size, sha256 = sha256_of(file.path)
        here[file.name] = (size, f"sha256:{sha256}")
    lacking = [f"it lists {name}, which is not there" for name in sorted(said.keys() - here)]
    extra = [f"it does not list {name}" for name in sorted(here.keys() - said)]
    differ = [
        f"{name} has {here[name][0]} bytes and {here[name][1]}, it says {size} and {sha256}"
        for name, (size, sha256) in sorted(said.items())
        if name in here and here[name] != (size, sha256)
    ]
    return [*lacking, *extra, *differ]


def _facts(document: Mapping[str, Any], adapter: Adapter, reading: Reading) -> list[str]:
    """What it says of the adapter, and what the files show."""
    ranks = rank_summary(adapter) or {}
    rank = document["rank"] or {}
    pairs = {
        "format": (document["format"], adapter.format),
        "method": (document["method"], adapter.method),
        "variants": (
            sorted(document["variants"]),
            sorted(method(adapter.method).variants(adapter.config)),
        ),
        "lowest rank": (rank.get("min"), ranks.get("min")),
        "highest rank": (rank.get("max"), ranks.get("max")),
        "alpha": (document["alpha"], adapter.config.get("lora_alpha")),
        "dtype": (document["dtype"], "+".join(adapter.dtypes)),
        "number of parameters": (document["parameters"], adapter.parameters),
        "task": (document["task"], adapter.task),
        "adapter root": (document["adapter_root"], _root(reading)),
        "base": (document["base"]["name"], _base_name(document["base"], adapter)),
        "base's revision": (document["base"]["revision"], _revision(document["base"], adapter)),
        "base's quantisation": (document["base"]["quantization"], adapter.base.quantization),
    }
    differ = [
        f"its {name} is {said!a:.100}, the files show {here!a:.100}"
        for name, (said, here) in pairs.items()
        if said != here
    ]
    return [*differ, *_labels(document["labels"], adapter)]


def _root(reading: Reading) -> str:
    """As `add` makes it: over the tensors of the files, by their names there."""
    weights = [file for file in reading.files if file.kind == "weights"]
    found: dict[str, Tensor] = {}
    for file in weights:
        found |= stored.tensors(file.name, file.path)
    return tensors_root(found)


def _is_shortened(base: Mapping[str, Any], adapter: Adapter) -> bool:
    """Of a base that was named by a path, a manifest keeps the last part once digests tell more."""
    name = adapter.base.name
    return name is not None and base["weights_root"] is not None and looks_like_path(name)


def _base_name(base: Mapping[str, Any], adapter: Adapter) -> str | None:
    name = adapter.base.name
    return short_name(name) if name is not None and _is_shortened(base, adapter) else name


def _revision(base: Mapping[str, Any], adapter: Adapter) -> str | None:
    return None if _is_shortened(base, adapter) else adapter.base.revision


def _labels(labels: Sequence[str], adapter: Adapter) -> list[str]:
    weights = [t for _, role, t in adapter.tensors() if role == f"{REPLACE}weight"]
    rows = {tensor.shape[0] for tensor in weights if len(tensor.shape) == 2}
    if not labels or not rows or len(labels) in rows or adapter.task not in fit.LABELLED:
        return []
    sizes = " or ".join(str(size) for size in sorted(rows))
    return [f"it has {len(labels)} labels, the adapter's head has {sizes} rows"]
