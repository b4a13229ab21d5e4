"""`pull`: from a repository of a hub to a version of the registry, pinned to its commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError, AlreadyExists
from adapterhub.hub.client import network, pull_finding, pull_sidecar
from adapterhub.hub.client.pull_fetching import Fetcher, Progress, staged
from adapterhub.hub.client.pull_finding import Found
from adapterhub.hub.client.pull_listing import (
    Entry,
    Listing,
    Spec,
    ask,
    parse,
    refuse_twins,
    resolve,
)
from adapterhub.hub.client.pull_records import (
    Records,
    is_offline,
    offline_commit,
    offline_listing,
)
from adapterhub.registry import Registry, adding, inspection, loading
from adapterhub.registry.adding import Added, Request
from adapterhub.store import LATEST, Store, check_name, check_tag

_DESCRIBED = 500  # adapters of one repository whose configs are read for the list
_MAX_CONFIG_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class PullPlan:
    """What a repository holds at `commit`, and what will be taken; nothing of it is, where it could
    be several. `bytes` are those of all files to take, be they in the cache or not.
    """

    repository: str
    commit: str
    found: tuple[Found, ...]
    chosen: tuple[Found, ...]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.chosen)


@dataclass(frozen=True)
class Pulled:
    """One adapter of a repository: the version that it became, or why it was refused.

    `status`: "added"; "unchanged" where the registry has this commit of it; "updated" where only
    a tag or the card changed; "refused", and then `version` is None and `error` and `remedy` say
    why. `bytes` is the size of its stored files, `downloaded` what came over the wire for it.
    """

    endpoint: str
    repository: str
    commit: str
    subfolder: str
    name: str
    version: str | None
    status: str
    method: str | None = None
    base: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    downloaded: int = 0
    notes: tuple[str, ...] = ()
    error: str | None = None
    remedy: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    every: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        for tag in self.tags:
            check_tag(tag)


OnPlan = Callable[[PullPlan], Progress | None]


def pull(
    registry: Registry,
    repository: str,
    *,
    revision: str | None = None,
    options: Options,
    on_plan: OnPlan | None = None,
    on_list: Progress | None = None,
) -> tuple[Pulled, ...]:
    """`api.pull` says what it does."""
    spec = parse(repository)
    return _Pull(registry, spec, options).run(revision, on_plan, on_list)


class _Pull:
    def __init__(self, registry: Registry, spec: Spec, options: Options) -> None:
        self.store = registry.store
        self.home = registry.home
        self.spec = spec
        self.options = options
        self.records = Records(registry.home, spec)

    def run(
        self, revision: str | None, on_plan: OnPlan | None, on_list: Progress | None
    ) -> tuple[Pulled, ...]:
        commit = self._commit(revision)
        if (known := self._known_without_list(commit)) is not None:
            return (known,)
        listing = self._listing(commit, on_list)
        found = pull_finding.find(listing)
        chosen = pull_finding.choose(listing, found, self.spec, self.options.every)
        fetcher = Fetcher(listing)
        if not chosen:
            found = self._described(found, fetcher)
        plan = PullPlan(self.spec.repository, commit, found, chosen)
        fetcher.progress = on_plan(plan) if on_plan else None
        if not chosen:
            raise pull_finding.several(self.spec, found)
        if not self.options.every:
            others = len(found) - 1 if chosen[0].path == "" else 0
            return (self._take(chosen[0], self._name(chosen[0]), listing, fetcher, others),)
        return tuple(self._each(chosen, listing, fetcher))

    def _commit(self, revision: str | None) -> str:
        if is_offline():
            return offline_commit(self.spec, revision, self.records)
        commit = resolve(self.spec, revision)
        self.records.remember(revision, commit)
        return commit

    def _listing(self, commit: str, on_list: Progress | None) -> Listing:
        """A commit never changes: what was listed once need not be asked for again."""
        known = self.records.listing(commit)
        if known is None and is_offline():
            known = offline_listing(self.spec, commit)
        if known is None:
            known = ask(self.spec, commit, on_list)
            self.records.keep(known)
        return known

    def _described(self, found: Sequence[Found], fetcher: Fetcher) -> tuple[Found, ...]:
        """With what their configs say; only those of some, where there are very many."""
        first = [one for one in found[:_DESCRIBED] if _has_small_config(one)]
        paths = fetcher.fetch([one.config for one in first if one.config])
        read = {
            one.path: self._with_config(one, path) for one, path in zip(first, paths, strict=True)
        }
        return tuple(read.get(one.path, one) for one in found)

    def _with_config(self, one: Found, path: Path) -> Found:
        config = one.config
        if config is None:
            return pull_finding.described(one, None)
        with staged(self.home, [config], [path]) as place:
            return pull_finding.described(one, place / config.name)

    # --- names and origins

    def _name(self, one: Found) -> str:
        if self.options.name is None:
            return check_name(pull_finding.default_name(self.spec.repository, one.path))
        if not self.options.every:
            return self.options.name
        return check_name(pull_finding.sub_name(self.options.name, one.path))

    def _origin(self, commit: str, path: str) -> dict[str, str]:
        return {
            "hub": self.spec.repository,
            "endpoint": network.host(),
            "commit": commit,
            "subfolder": path,
        }

    def _known_without_list(self, commit: str) -> Pulled | None:
        """The version that this commit became when it was pulled before, if the name tells."""
        if self.options.every:
            return None
        path = self.spec.subfolder
        name = self.options.name or pull_finding.default_name(self.spec.repository, path)
        return self._known(name, commit, path)

    def _known(self, name: str, commit: str, path: str) -> Pulled | None:
        version = _version_from(self.store, name, self._origin(commit, path))
        if version is None:
            return None
        changed = [self.store.tag(name, version, tag).events for tag in self.options.tags]
        manifest = self.store.manifest(version)
        notes = ()
        if (latest := self.store.state(name).tags.get(LATEST)) != version:
            text = f"{name}:latest is another version, {(latest or '')[:19]}, and stays so"
            notes = (f"{text} (adapterhub tag {name}@{version[:19]} latest)",)
        return Pulled(
            **self._place(commit, path),
            name=name,
            version=f"{name}@{version}",
            status="updated" if any(changed) else "unchanged",
            method=manifest["method"],
            base=manifest["base"]["name"],
            parameters=manifest["parameters"],
            bytes=sum(entry["size"] for entry in manifest["files"]),
            notes=notes,
        )

    def _place(self, commit: str, path: str) -> dict[str, str]:
        where = {"endpoint": network.host(), "repository": self.spec.repository}
        return {**where, "commit": commit, "subfolder": path}

    # --- taking

    def _each(
        self, chosen: Sequence[Found], listing: Listing, fetcher: Fetcher
    ) -> Iterator[Pulled]:
        names: dict[str, str] = {}
        for one in chosen:
            name = self._name(one)
            try:
                if (first := names.setdefault(name, one.path)) != one.path:
                    raise AlreadyExists(
                        f"its name {name} is that of {first}", remedy="pull it by itself: --name"
                    )
                yield self._take(one, name, listing, fetcher, 0)
            except AdapterHubError as error:
                yield Pulled(
                    **self._place(listing.commit, one.path),
                    name=name,
                    version=None,
                    status="refused",
                    error=error.message,
                    remedy=error.remedy,
                )

    def _take(
        self, one: Found, name: str, listing: Listing, fetcher: Fetcher, others: int
    ) -> Pulled:
        if (known := self._known(name, listing.commit, one.path)) is not None:
            return known
        origin = self._origin(listing.commit, one.path)
        _refuse_stranger(self.store, name, origin)
        pull_finding.refuse(one, self.spec, allow_pickle=self.options.allow_pickle)
        refuse_twins(listing, one.files)
        before = fetcher.downloaded
        added = self._added(one, name, origin, fetcher)
        return Pulled(
            **self._place(listing.commit, one.path),
            name=name,
            version=added.version,
            status=added.status,
            method=added.method,
            base=added.base,
            parameters=added.parameters,
            bytes=added.bytes,
            downloaded=fetcher.downloaded - before,
            notes=(*added.notes, *_left(one, listing, others)),
        )

    def _added(self, one: Found, name: str, origin: Mapping[str, str], fetcher: Fetcher) -> Added:
        config = one.config
        if config is not None:
            (path,) = fetcher.fetch([config])
            pull_finding.refuse_format(self._with_config(one, path), self.spec)
        paths = fetcher.fetch(one.files)
        where = f"{self.spec.repository}/{one.path}".rstrip("/")
        with staged(self.home, one.files, paths) as place, _named_after(where, place):
            before = adding.fingerprints(place)
            inside = place / one.files[0].name if one.is_file else place
            reading = loading.read(inside, self.options.allow_pickle)
            adapter = inspection.require(reading)
            notes = pull_sidecar.check(place, reading, adapter, where)
            request = Request(name, self.options.tags, origin=origin)
            added = adding.add(self.store, reading, request, None, before)
        return replace(added, notes=(*added.notes, *notes))


def _has_small_config(one: Found) -> bool:
    return one.config is not None and one.config.size <= _MAX_CONFIG_BYTES


# --- what the registry knows ------------------------------------------------------------------


def _origins(store: Store, name: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Where versions of a live name came from, the latest first, and their digests."""
    if not store.exists(name):
        return
    for event in reversed(store.history(name)):
        if event.fields.get("origin") and event.fields.get("to"):
            yield event.fields["origin"], event.fields["to"]


def _version_from(store: Store, name: str, origin: Mapping[str, str]) -> str | None:
    for each, digest in _origins(store, name):
        if dict(each) == origin and digest in store.state(name).versions:
            return digest
    return None


def _refuse_stranger(store: Store, name: str, origin: Mapping[str, str]) -> None:
    """Raises AlreadyExists for a name that never came from this place."""
    if not store.exists(name):
        return
    here = {**origin, "commit": ""}
    if any({**each, "commit": ""} == here for each, _ in _origins(store, name)):
        return
    last = next((each for each, _ in _origins(store, name)), {})
    known = f"hub:{last['hub']} at {last.get('endpoint')}" if "hub" in last else last.get("path")
    raise AlreadyExists(
        f"the name {name} is taken, by what came from {known or 'elsewhere'}",
        remedy=f"choose another: --name NAME (adapterhub history {name} tells more)",
    )


# --- words ------------------------------------------------------------------------------------


def _left(one: Found, listing: Listing, others: int) -> list[str]:
    """What of the repository was not taken."""
    notes = []
    if one.aside:
        more = f" and {len(one.aside) - 5} more" if len(one.aside) > 5 else ""
        notes.append(f"not taken: {', '.join(one.aside[:5])}{more}")
    if others:
        notes.append(f"{others} more of its adapters lie in folders of the repository (--all)")
    if listing.odd:
        notes.append(f"{listing.odd} files with names that no disk should hold were not looked at")
    return notes


@contextmanager
def _named_after(where: str, place: Path) -> Iterator[None]:
    """Errors name the repository, not the directory where its files lay for a moment."""
    try:
        yield
    except AdapterHubError as error:
        error.message = error.message.replace(str(place), where)
        error.remedy = error.remedy.replace(str(place), where)
        error.details = tuple(detail.replace(str(place), where) for detail in error.details)
        error.args = (error.message,)
        raise


__all__ = ["Entry", "Found", "Options", "PullPlan", "Pulled", "pull"]
