"""`add`: from files to a version. Everything is checked before the first byte is stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub import digest, schema, strictjson
from adapterhub.adapter import REPLACE, Adapter, Reading
from adapterhub.base import Base
from adapterhub.errors import AdapterHubError, InvalidAdapter, InvalidOption, NotFound
from adapterhub.formats import card as cards
from adapterhub.formats.roots import tensors_root
from adapterhub.registry import checkout, fit, manifests, storing
from adapterhub.registry.inspection import require
from adapterhub.registry.manifests import BaseRecord
from adapterhub.store import Store

BASE_PROBLEMS = ("no-base", "local-base", "unpinned-base")
README = "readme"
Fingerprints = Mapping[str, tuple[int, int, int] | None]


@dataclass(frozen=True)
class Added:
    """`status`: "added"; "unchanged" where the name's latest is this very version; "updated" where
    it is, and a tag or the card changed. `base` is the base's name, `bytes` the size of all files.
    """

    name: str
    digest: str
    status: str
    method: str
    base: str | None
    parameters: int
    bytes: int
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        return f"{self.name}@{self.digest}"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "version": self.version}


@dataclass(frozen=True)
class Request:
    """What the user asked for. `labels` replace those found beside the adapter.

    `follow_card`: what the card has from an earlier README.md goes along with the new one, also
    where the version is the same; what people edited stays in any case.
    """

    name: str
    tags: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    new: bool = False
    origin: Mapping[str, Any] | None = None
    follow_card: bool = False

    def __post_init__(self) -> None:
        if len(set(self.labels)) != len(self.labels) or not all(self.labels):
            raise InvalidOption(
                f"labels must be different and not empty: {', '.join(self.labels)}",
                remedy="--labels O,SRC,REL,TGT",
            )


@dataclass(frozen=True)
class BaseAtHand:
    """A base that the user named, and its weights_root."""

    base: Base
    weights_root: str


def add(
    store: Store,
    reading: Reading,
    request: Request,
    at_hand: BaseAtHand | None,
    before: Fingerprints,
) -> Added:
    """Store an adapter that was checked, and move its name's `latest` to it.

    `before` are the fingerprints of its files before they were read: raises InvalidAdapter where
    one has changed since.
    """
    adapter = require(reading, values=False)
    sidecar = _sidecar(reading)
    labels = _labels(request, sidecar, adapter)
    record = _base_record(adapter, at_hand, sidecar)
    storing.refuse_links(reading, store)
    with storing.as_stored(reading, sidecar, store) as sources, store.writing():
        stored = [storing.put(store, source) for source in sources]
        _check_unchanged(store, reading, before)
        manifest = manifests.build(
            adapter,
            files=stored,
            root=tensors_root(storing.stored_tensors(store, sources, stored)),
            labels=labels,
            base=record,
            lineage=sidecar.get("lineage"),
        )
        version = store.put_manifest(manifest)
        card, notes = _card(store, request, version, reading)
        outcome = store.add_version(
            request.name,
            version,
            tags=request.tags,
            origin=request.origin,
            card=card,
            expect_new=request.new,
        )
    settled = BASE_PROBLEMS if record.weights_root else ()  # a base whose digest is known
    problems = [p for p in reading.problems if not (p.fatal or p.code in settled)]
    moved = outcome.previous != version
    return Added(
        name=outcome.name,
        digest=version,
        status="added" if moved else "updated" if outcome.events else "unchanged",
        method=adapter.method,
        base=record.name,
        parameters=adapter.parameters,
        bytes=sum(file.size for file in stored),
        notes=(*(p.sentence().replace(" REF ", f" {request.name} ") for p in problems), *notes),
    )


def _labels(request: Request, sidecar: Mapping[str, Any], adapter: Adapter) -> tuple[str, ...]:
    """Raises InvalidOption where the user's do not go with the head that the adapter brings."""
    weights = [t for _, role, t in adapter.tensors() if role == f"{REPLACE}weight"]
    rows = {tensor.shape[0] for tensor in weights if len(tensor.shape) == 2}
    count = len(request.labels)
    if count and rows and count not in rows and adapter.task in fit.LABELLED:
        sizes = " or ".join(str(size) for size in sorted(rows))
        raise InvalidOption(
            f"{count} labels were given, and the adapter's head has {sizes} rows",
            remedy="give one label for each row, in order",
        )
    return request.labels or tuple(sidecar.get("labels", ())) or adapter.labels


def _card(
    store: Store, request: Request, version: str, reading: Reading
) -> tuple[Mapping[str, Any] | None, list[str]]:
    """What README.md adds to the card, and a note of what it would change: people's words stay."""
    try:
        state = store.state(request.name)
    except NotFound:
        return reading.card or None, []
    if version in state.versions and not request.follow_card:
        return None, []
    open_to_it = _open(state.card, request.follow_card)
    new = {k: v for k, v in reading.card.items() if k not in state.card or k in open_to_it}
    kept = [k for k, v in reading.card.items() if k not in new and v != state.card[k]]
    if not kept:
        return new or None, []
    text = f"the card of {request.name} keeps its own {', '.join(kept)}; README.md says otherwise"
    return new or None, [f"{text} (adapterhub edit {request.name})"]


def _open(card: Mapping[str, Any], follow: bool) -> set[str]:
    """The fields of a card that another README.md may change."""
    if not follow:
        return {README}
    said, _ = cards.fields(str(card.get(README, "")))
    return {README, *(key for key, value in card.items() if said.get(key) == value)}


def _base_record(
    adapter: Adapter, at_hand: BaseAtHand | None, sidecar: Mapping[str, Any]
) -> BaseRecord:
    if at_hand is None and sidecar:
        return BaseRecord(**sidecar["base"])
    if at_hand is None:
        return manifests.base_record(adapter, None, None)
    return manifests.base_record(adapter, at_hand.base, at_hand.weights_root)


def _sidecar(reading: Reading) -> Mapping[str, Any]:
    """The manifest that an exported adapter carries, if it is about these very files."""
    directory = reading.path if reading.path.is_dir() else reading.path.parent
    path = directory / checkout.MANIFEST
    if not path.is_file():
        return {}
    try:
        manifest = strictjson.load_object(path)
        schema.check(manifest, "manifest", what=str(path))
    except AdapterHubError:
        return {}  # a foreign adapterhub.json, such as that of a merge, says nothing about this
    said = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    here = {file.name: digest.of_file(file.path) for file in reading.files}
    return manifest if said == here else {}


def fingerprints(path: Path) -> Fingerprints:
    """Size, mtime and inode of the files beside `path`, or in it."""
    try:
        with os.scandir(path if path.is_dir() else path.parent) as entries:
            return {entry.name: _fingerprint(Path(entry.path)) for entry in entries}
    except OSError:
        return {}  # the reader of the format says what is wrong


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _check_unchanged(store: Store, reading: Reading, before: Fingerprints) -> None:
    for file in reading.files:
        if storing.is_blob(store, file.path):  # which never changes, and was just made young
            continue
        if before.get(file.path.name) != _fingerprint(file.path):
            raise InvalidAdapter(
                f"{file.path} changed while it was added",
                remedy="wait until its writer is done, and add it again",
            )
