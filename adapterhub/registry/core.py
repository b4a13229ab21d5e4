"""The registry: joins formats, store and catalogue. Its methods are the verbs of DESIGN §7."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adapterhub import formats
from adapterhub.adapter import Adapter
from adapterhub.base import LeafCache
from adapterhub.digest import PREFIX
from adapterhub.errors import (
    AdapterHubError,
    AlreadyExists,
    InvalidOption,
    NotFound,
)
from adapterhub.registry import (
    adding,
    checkout,
    diffs,
    fit,
    inspection,
    loading,
    looking,
    runs,
    sparse,
    storing,
    verifying,
)
from adapterhub.registry.adding import Added, BaseAtHand, Request
from adapterhub.registry.bases import Bases
from adapterhub.registry.identify import Identification
from adapterhub.registry.inspection import Inspection
from adapterhub.registry.loading import Loaded
from adapterhub.store import (
    Event,
    Filters,
    GcReport,
    Outcome,
    Ref,
    Row,
    Store,
    check_name,
    check_tag,
    parse_ref,
)

Progress = Callable[[int], None]
CARD_FIELDS = ("description", "licence", "language", "topics", "metrics")


class Registry:
    """A home on disk; a context manager, safe between threads and processes."""

    def __init__(
        self, home: str | Path | None = None, *, on_note: Callable[[str], None] | None = None
    ) -> None:
        """Open or create the home: `home`, $ADAPTERHUB_HOME, or the user's data directory."""
        self.store = Store(Path(home) if home is not None else None, on_note=on_note)
        self.cache = LeafCache(self.store.home / "cache" / "leaves")
        self.base = Bases(self.store.home / "bases", self.cache, on_note)

    @property
    def home(self) -> Path:
        return self.store.home

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- finding ------------------------------------------------------------------------------

    def load(self, text: str | Path, *, allow_pickle: bool = False) -> Loaded:
        """An ADAPTER: a ref or a path; `./` and `/` force a path, and what is both is refused.

        `hub:owner/name` is a repository in the Hugging Face cache. Raises what is wrong with it.
        """
        path = self.as_path(text)
        if path is not None:
            reading = loading.read(path, allow_pickle)
            with loading.said_of(path):
                return Loaded(str(path), inspection.require(reading), path)
        return self._loaded(*self.store.resolve(str(text)))

    def load_version(self, digest: str) -> Loaded:
        """The version with this digest, under whatever names. Raises NotFound."""
        return self._loaded("version", digest)

    def _loaded(self, name: str, digest: str) -> Loaded:
        manifest = self.store.manifest(digest)
        for entry in manifest["files"]:
            self.store.verify_blob(entry["sha256"])
        place = checkout.linked(self.store, digest, manifest)
        adapter = inspection.require(formats.read(place), values=False)
        return Loaded(
            f"{name}@{digest}", loading.overlaid(adapter, manifest), place, digest, manifest
        )

    def as_path(self, text: str | Path) -> Path | None:
        """The path that `text` means, or None if it means a ref. Raises InvalidName for both."""
        return looking.as_path(self.store, text)

    def inspect(self, text: str | Path, *, allow_pickle: bool = False) -> Inspection:
        """What is this? Damage is reported, not raised, as long as anything can be read.

        A path may also be one file, a bare config, or a repository's folder in the Hub's cache.
        """
        return looking.inspect(self.store, self.base, text, allow_pickle=allow_pickle)

    def inspect_runs(self, root: str | Path, *, allow_pickle: bool = False) -> Iterator[Inspection]:
        """Every adapter below the directory `root`, in the order of their paths.

        What cannot be read at all has a fatal problem that says why. Raises NotFound where there
        is no adapter.
        """
        return looking.inspect_runs(self.base, Path(root).expanduser(), allow_pickle=allow_pickle)

    def identify(self, text: str | Path, *, allow_pickle: bool = False) -> Identification:
        """Which base is this ADAPTER for? See `Bases.identify`. Raises what is wrong with it."""
        return self.base.identify(self.load(text, allow_pickle=allow_pickle).adapter)

    def holds_many(self, text: str | Path) -> Path | None:
        """The directory that `text` means, if it is not one adapter but has some in it."""
        return looking.holds_many(self.store, text)

    # --- adding -------------------------------------------------------------------------------

    def add(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        tag: str | Sequence[str] = (),
        base: str | Path | None = None,
        labels: Sequence[str] = (),
        new: bool = False,
        allow_pickle: bool = False,
        origin: Mapping[str, Any] | None = None,
        follow_card: bool = False,
        progress: Progress | None = None,
    ) -> Added:
        """Store the adapter at `path` as a new version of `name` (default: from the path).

        `hub:owner/name` is a repository in the Hugging Face cache. `origin` is what the log says
        of where it came from (default: the path). `follow_card`: what the card has from an earlier
        README.md goes along with this one; what people edited never does.

        With `base` (a BASE) it is checked against that base, whose digests are recorded and which
        is registered; `progress` is told of its bytes hashed. Whole weights with a FISH mask need
        it: their difference is stored, as native. The same bytes again change nothing.
        Raises what is wrong, before anything is stored.
        """
        path = looking.local(path)
        before = adding.fingerprints(path)
        reading = loading.read(path, allow_pickle)
        if base is not None and sparse.is_against(reading):
            storing.refuse_links(reading, self.store)
            found = self.base.resolve(base)
            with sparse.written(reading, found, allow_pickle, self.store) as native:
                return self.add(
                    native,
                    name=name or runs.default_name(reading.path),
                    tag=tag,
                    base=base,
                    labels=labels,
                    new=new,
                    origin=origin or {"path": str(reading.path.resolve())},
                    follow_card=follow_card,
                    progress=progress,
                )
        request = Request(
            name=check_name(name or runs.default_name(reading.path)),
            tags=tuple(check_tag(t) for t in ([tag] if isinstance(tag, str) else tag)),
            labels=tuple(labels),
            new=new,
            origin=origin or {"path": str(reading.path.resolve())},
            follow_card=follow_card,
        )
        adapter = inspection.require(reading)
        at_hand = self._at_hand(base, adapter, path, progress) if base is not None else None
        added = adding.add(self.store, reading, request, at_hand, before)
        if at_hand is not None:
            called = self.base.remember(at_hand.base, at_hand.weights_root)
            return replace(added, base=added.base or called)
        return added

    def _at_hand(
        self, text: str | Path, adapter: Adapter, path: Path, progress: Progress | None
    ) -> BaseAtHand:
        base = self.base.resolve(text)
        fit.check(base, adapter, name=str(path))  # before every byte of the base is hashed
        return BaseAtHand(base, base.weights_root(self.cache, progress))

    def add_runs(
        self,
        root: str | Path,
        *,
        name: str | None = None,
        tag: str | Sequence[str] = (),
        base: str | Path | None = None,
        labels: Sequence[str] = (),
        new: bool = False,
        allow_pickle: bool = False,
    ) -> Iterator[runs.Taken]:
        """`add --recursive`: every adapter below `root`, each taken or refused by itself.

        Names come from the paths below `root`, after `name` where it is given. A second path that
        would get the name of the first is refused. Raises NotFound where there is no adapter.
        """
        root = Path(root).expanduser()
        found = runs.below(root)
        names: dict[str, Path] = {}
        for path, wanted in runs.names(root, found, name):
            try:
                if (first := names.setdefault(wanted, path)) != path:
                    raise AlreadyExists(
                        f"its name {wanted} is that of {first}",
                        remedy="add it by itself: --name",
                    )
                added = self.add(
                    path,
                    name=wanted,
                    tag=tag,
                    base=base,
                    labels=labels,
                    new=new,
                    allow_pickle=allow_pickle,
                )
            except AdapterHubError as error:
                yield runs.refused(path, wanted, error)
            else:
                yield runs.taken(path, added)

    # --- looking ------------------------------------------------------------------------------

    def list(
        self,
        filters: Filters | None = None,
        *,
        order: str = "updated",
        limit: int = 50,
        offset: int = 0,
        after: str | None = None,
    ) -> tuple[Row, ...]:
        """One page of live names. `after` is the `cursor` of the last row of the page before."""
        return self.store.list(
            filters or Filters(), order=order, limit=limit, offset=offset, after=after
        )

    def count(self, filters: Filters | None = None) -> int:
        return self.store.count(filters or Filters())

    def search(
        self, text: str, filters: Filters | None = None, *, limit: int = 20
    ) -> tuple[Row, ...]:
        """Names whose text matches all words of `text`, best first."""
        return self.store.search(text, filters or Filters(), limit=limit)

    def show(self, ref: str) -> dict[str, Any]:
        """A version: its manifest, the card and tags of its name, and when it was added.

        `base_at` is the record of the registered base with the recorded weights, or None.
        """
        name, digest = self.store.resolve(ref)
        state = self.store.state(name)
        manifest = self.store.manifest(digest)
        return {
            "name": name,
            "digest": digest,
            "version": f"{name}@{digest}",
            "manifest": manifest,
            "base_at": self._base_at(manifest["base"]["weights_root"]),
            "card": dict(state.card),
            "tags": dict(state.tags),
            "versions": [{"digest": d, "added": when} for d, when in state.versions.items()],
            "origin": self._origin(name, digest),
        }

    def _base_at(self, weights_root: str | None) -> dict[str, Any] | None:
        if weights_root is None:
            return None
        records = (r for r in self.base.list() if r["weights_root"] == weights_root)
        return next(records, None)

    def _origin(self, name: str, digest: str) -> Mapping[str, Any] | None:
        found = None
        for event in self.store.history(name):
            if event.fields.get("to") == digest and event.fields.get("origin"):
                found = event.fields["origin"]
        return found

    def path(self, ref: str) -> Path:
        """A plain PEFT directory of this version, for other tools; its files are links."""
        _, digest = self.store.resolve(ref)
        return checkout.linked(self.store, digest, self.store.manifest(digest))

    def export(self, ref: str, out: str | Path) -> str:
        """Copy the original bytes and the manifest into a new directory; returns the version."""
        name, digest = self.store.resolve(ref)
        manifest = self.store.manifest(digest)
        for entry in manifest["files"]:
            self.store.verify_blob(entry["sha256"])
        checkout.copied(self.store, manifest, Path(out))
        return f"{name}@{digest}"

    def diff(self, left: str, right: str) -> diffs.Difference:
        sides = []
        for ref in (left, right):
            name, digest = self.store.resolve(ref)
            sides.append((f"{name}@{digest}", self.store.manifest(digest)))
        return diffs.diff(self.store, sides[0], sides[1])

    # --- names and tags -----------------------------------------------------------------------

    def edit(
        self, name: str, set: Mapping[str, Any] | None = None, unset: Iterable[str] = ()
    ) -> Outcome:
        """Change card fields: description, licence, language, topics, metrics."""
        wrong = sorted((builtins.set(set or {}) | builtins.set(unset)) - builtins.set(CARD_FIELDS))
        if wrong:
            raise InvalidOption(
                f"the card has no field {wrong[0]!r}", remedy=f"fields: {', '.join(CARD_FIELDS)}"
            )
        return self.store.edit_card(self._name_of(name), dict(set or {}), tuple(unset))

    def _name_of(self, ref: str) -> str:
        return self.store.resolve(ref)[0]

    def mv(self, old: str, new: str) -> Outcome:
        return self.store.rename(old, new)

    def rm(self, ref: str) -> Outcome:
        """Remove a name, or with `name@digest` that version; undone by `rollback` or `tag`."""
        parsed = parse_ref(ref)
        if parsed.digest_prefix is not None:
            return self.store.remove_version(*self.store.resolve(parsed))
        if parsed.tag is not None:
            raise InvalidOption(
                f"{ref} is a tag; a name or a version can be removed",
                remedy=f"adapterhub untag {parsed.name} {parsed.tag}, or rm {parsed.name}@DIGEST",
            )
        return self.store.remove_name(parsed.name)

    def tag(self, ref: str, tag: str) -> Outcome:
        """Point `tag` at a version; one that was removed comes back where its digest is given."""
        parsed = parse_ref(ref)
        try:
            name, digest = self.store.resolve(parsed)
        except NotFound:
            if parsed.digest_prefix is None or not self._is_removed(parsed):
                raise
            return self.store.rollback(parsed.name, tag, parsed.digest_prefix)
        return self.store.tag(name, digest, tag)

    def _is_removed(self, ref: Ref) -> bool:
        start = f"{PREFIX}{ref.digest_prefix}"
        return any(each.startswith(start) for each in self.store.restorable(ref.name))

    def untag(self, name: str, tag: str) -> Outcome:
        return self.store.untag(name, tag)

    def history(self, name: str) -> tuple[Event, ...]:
        return self.store.history(name)

    def rollback(self, name: str, tag: str, to: str | None = None) -> Outcome:
        return self.store.rollback(name, tag, to)

    # --- upkeep -------------------------------------------------------------------------------

    def verify(self, ref: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
        """Re-hash a version, or every version of every name; damage is listed, not raised.

        `progress` is told of files done. Returns the counts of versions and files, and `problems`.
        """
        return verifying.verify(self.store, ref, progress)

    def gc(self, *, dry_run: bool = False, grace_seconds: float = 86400.0) -> GcReport:
        """Delete what no name needs, nor has needed for 30 days, unless it is younger than that."""
        report = self.store.gc(grace_seconds=grace_seconds, dry_run=dry_run)
        if not dry_run:
            checkout.sweep(self.store, grace_seconds)
        return report

    def reindex(self) -> int:
        return self.store.reindex()
