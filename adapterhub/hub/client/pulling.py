"""`pull`: from a repository of a hub to a version of the registry, pinned to its commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError, AlreadyExists
from adapterhub.hub.client import network, pull_finding, pull_sidecar
from adapterhub.hub.client.pull_fetching import Fetcher, Progress, staged
from adapterhub.hub.client.pull_finding import Found
from adapterhub.hub.client.pull_listing import (
    MAIN,
    Listing,
    Spec,
    ask,
    parse,
    refuse_twins,
    resolve,
)
from adapterhub.hub.client.pull_origins import Origin, refuse_other, version_from
from adapterhub.hub.client.pull_records import (
    Records,
    is_offline,
    offline_commit,
    offline_listing,
)
from adapterhub.registry import Registry, adding, inspection, loading
from adapterhub.registry.adding import Added, Request
from adapterhub.store import LATEST, check_name, check_tag

_DESCRIBED = 500  # adapters of one repository whose configs are read for the list
_MAX_CONFIG_BYTES = 4 * 1024 * 1024
_SHOWN = 5


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

    origin: Origin
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
        found = asdict(self)
        del found["origin"]
        return {**self.origin.fields, **found}


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


OnPlan = Callable[[PullPlan], Progress | None] | None


def pull(
    repository: str,
    *,
    revision: str | None = None,
    name: str | None = None,
    all: bool = False,
    tag: str | Sequence[str] = (),
    allow_pickle: bool = False,
    registry: Registry | None = None,
    on_plan: OnPlan = None,
    on_list: Progress | None = None,
) -> tuple[Pulled, ...]:
    """An adapter of a hub ($HF_ENDPOINT) → a version in the registry, with its commit as origin.

    `repository`: `OWNER/NAME`, or `OWNER/NAME/FOLDER` where it holds several; `all` takes each of
    them, by itself, and tells of those that are refused. `revision`: a branch, tag or commit.
    `name`: by default `owner/name`, or `owner/name--folder`; a name that came from elsewhere is
    refused. `tag`: tags to move to the version too. `allow_pickle`: take .bin files. `on_plan` is
    given what was found and what will be taken, before that is downloaded, and returns a function
    that is told of bytes; `on_list` is told of files listed.

    Every file is hashed against what the hub states, and against adapterhub.json where there is
    one, before anything is added. A commit that the registry has is not asked for again.

    Raises NotFound, UnknownFormat for a model, InvalidOption where one of several is to be named,
    PickleRefused, IntegrityError, AlreadyExists, RemoteError.
    """
    spec = parse(repository)
    options = Options(name, (tag,) if isinstance(tag, str) else tuple(tag), all, allow_pickle)
    with nullcontext(registry) if registry is not None else Registry() as reg:
        return _Pull(reg, spec, options).run(revision, on_plan, on_list)


class _Pull:
    """One call. What it is told of the hub is kept in `records`."""

    def __init__(self, registry: Registry, spec: Spec, options: Options) -> None:
        self.store = registry.store
        self.home = registry.home
        self.spec = spec
        self.options = options
        self.records = Records(registry.home, spec)
        self.follows = False  # whether the card goes along: with main, not with an older revision

    def run(
        self, revision: str | None, on_plan: OnPlan, on_list: Progress | None
    ) -> tuple[Pulled, ...]:
        self.follows = revision in (None, MAIN)
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
        if self.options.every:
            return tuple(self._each(chosen, listing, fetcher))
        (one,) = chosen
        others = len(found) - 1 if one.path == "" else 0
        return (self._take(one, self._name(one), listing, fetcher, others),)

    # --- what the hub says

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
        configs = {one.path: one.config for one in found[:_DESCRIBED] if one.config}
        small = {k: entry for k, entry in configs.items() if entry.size <= _MAX_CONFIG_BYTES}
        paths = dict(zip(small, fetcher.fetch(list(small.values())), strict=True))
        return tuple(
            self._with_config(one, paths.get(one.path)) if one.is_file or one.path in paths else one
            for one in found
        )

    def _with_config(self, one: Found, path: Path | None) -> Found:
        """`path` is that of its config in the cache, where a stranger's other files may lie too."""
        if one.config is None or path is None:
            return pull_finding.described(one, None)
        with staged(self.home, [one.config], [path]) as place:
            return pull_finding.described(one, place / one.config.name)

    # --- what the registry knows

    def _name(self, one: Found) -> str:
        if self.options.name is None:
            return check_name(pull_finding.default_name(self.spec.repository, one.path))
        if not self.options.every:
            return self.options.name
        return check_name(pull_finding.sub_name(self.options.name, one.path))

    def _origin(self, commit: str, path: str) -> Origin:
        return Origin(network.host(), self.spec.repository, commit, path)

    def _known_without_list(self, commit: str) -> Pulled | None:
        """The version that this commit became when it was pulled before, if the name tells."""
        if self.options.every:
            return None
        path = self.spec.subfolder
        name = self.options.name or pull_finding.default_name(self.spec.repository, path)
        return self._known(name, self._origin(commit, path))

    def _known(self, name: str, origin: Origin) -> Pulled | None:
        version = version_from(self.store, name, origin)
        if version is None:
            return None
        changed = [self.store.tag(name, version, tag).events for tag in self.options.tags]
        manifest = self.store.manifest(version)
        return Pulled(
            origin=origin,
            name=name,
            version=f"{name}@{version}",
            status="updated" if any(changed) else "unchanged",
            method=manifest["method"],
            base=manifest["base"]["name"],
            parameters=manifest["parameters"],
            bytes=sum(entry["size"] for entry in manifest["files"]),
            notes=self._note_of_latest(name, version),
        )

    def _note_of_latest(self, name: str, version: str) -> tuple[str, ...]:
        latest = self.store.state(name).tags[LATEST]
        if latest == version:
            return ()
        text = f"{name}:latest is another version, {latest[:19]}, and stays so"
        return (f"{text} (adapterhub tag {name}@{version[:19]} latest)",)

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
                origin = self._origin(listing.commit, one.path)
                yield Pulled(
                    origin, name, None, "refused", error=error.message, remedy=error.remedy
                )

    def _take(
        self, one: Found, name: str, listing: Listing, fetcher: Fetcher, others: int
    ) -> Pulled:
        origin = self._origin(listing.commit, one.path)
        if (known := self._known(name, origin)) is not None:
            return known
        refuse_other(self.store, name, origin)
        pull_finding.refuse(one, self.spec, allow_pickle=self.options.allow_pickle)
        refuse_twins(listing, one.files)
        before = fetcher.downloaded
        added = self._added(one, name, origin, fetcher)
        return Pulled(
            origin=origin,
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

    def _added(self, one: Found, name: str, origin: Origin, fetcher: Fetcher) -> Added:
        if one.config is not None:
            (path,) = fetcher.fetch([one.config])
            pull_finding.refuse_format(self._with_config(one, path), self.spec)
        paths = fetcher.fetch(one.files)
        with staged(self.home, one.files, paths) as place, _named_after(origin.shown, place):
            before = adding.fingerprints(place)
            inside = place / one.files[0].name if one.is_file else place
            reading = loading.read(inside, self.options.allow_pickle)
            adapter = inspection.require(reading)
            notes = pull_sidecar.check(place, reading, adapter, origin.shown)
            request = Request(
                name, self.options.tags, origin=origin.fields, follow_card=self.follows
            )
            added = adding.add(self.store, reading, request, None, before)
        return replace(added, notes=(*added.notes, *notes))


def _left(one: Found, listing: Listing, others: int) -> list[str]:
    """What of the repository was not taken."""
    notes = []
    if one.aside:
        left = len(one.aside) - _SHOWN
        more = f" and {left} more" if left > 0 else ""
        notes.append(f"not taken: {', '.join(one.aside[:_SHOWN])}{more}")
    if others:
        text = f"{listing.repository} holds {others} more in its folders"
        notes.append(f"{text} (--all, or {listing.repository}/FOLDER)")
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
