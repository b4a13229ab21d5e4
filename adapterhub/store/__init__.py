"""The store: blobs, manifests, ref logs, and the index that is derived from them.

It knows nothing of what adapters mean. `Store` is its whole surface.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from adapterhub.errors import AdapterHubError, InvalidOption, NotFound, StoreError
from adapterhub.store import files, query, verbs
from adapterhub.store import home as homes
from adapterhub.store.blobs import Arriving, Blobs, Manifests
from adapterhub.store.gc import Collector, GcReport, blobs_of
from adapterhub.store.index import Index, failure, is_damage
from adapterhub.store.journal import Change, Journal
from adapterhub.store.names import (
    LATEST,
    Ref,
    check_name,
    check_tag,
    digest_prefix,
    parse_ref,
)
from adapterhub.store.query import Filters, Row
from adapterhub.store.refs import Event, Log, State
from adapterhub.store.verbs import Outcome

__all__ = [
    "LATEST",
    "Arriving",
    "Event",
    "Filters",
    "GcReport",
    "Outcome",
    "Ref",
    "Row",
    "State",
    "Store",
    "check_name",
    "check_tag",
    "parse_ref",
]

T = TypeVar("T")
ANY = Filters()
_GC_SECONDS = 3600.0


class Store:
    """A registry's home on disk; made where it does not exist.

    Safe between threads and processes. `on_note` is told what a person should know but need not
    act upon. Raises OutputError, StoreError, NotSupported.
    """

    def __init__(
        self, home: Path | str | None = None, *, on_note: Callable[[str], None] | None = None
    ) -> None:
        note = on_note or (lambda text: None)
        root = Path(home).expanduser() if home is not None else homes.default()
        self._home = homes.prepare(root.absolute(), note)
        lock = files.ThreadLock(self._home.lock("commit"), "a writer")
        self._blobs = Blobs(self._home)
        self._manifests = Manifests(self._home)
        self._index = Index(self._home, self._manifests.get, lock, note)
        self._journal = Journal(self._home, self._index, lock, note)
        self._writers = 0
        self._writing = threading.local()
        self._mutex = threading.Lock()
        self._shared = ExitStack()
        self._journal.recover()

    @staticmethod
    def default_home() -> Path:
        """$ADAPTERHUB_HOME, or the platform's directory for data of the user."""
        return homes.default()

    @property
    def home(self) -> Path:
        return self._home.root

    def close(self) -> None:
        self._index.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- contents

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keeps `gc` away. Hold it from the first `put` until the ref that needs it is made.

        Threads of one store share it, and it may be nested.
        """
        with self._mutex, files.named_errors(self.home):
            if self._writers == 0:
                # a collector that waits holds the gate, so that new writers let it in
                with files.lock(self._home.lock("gate"), shared=True, wait=_GC_SECONDS):
                    gc = self._home.lock("gc")
                    self._shared.enter_context(files.lock(gc, shared=True, wait=_GC_SECONDS))
            self._writers += 1
        depth = getattr(self._writing, "depth", 0)
        self._writing.depth = depth + 1
        try:
            yield
        finally:
            self._writing.depth = depth
            with self._mutex:
                self._writers -= 1
                if self._writers == 0:
                    self._shared.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if getattr(self._writing, "depth", 0):
            raise StoreError("gc was asked for within writing()", remedy="call it afterwards")
        gate, gc = self._home.lock("gate"), self._home.lock("gc")
        with files.lock(gate, wait=_GC_SECONDS), files.lock(gc, wait=_GC_SECONDS):
            yield

    def put_blob_file(self, path: Path) -> tuple[str, int]:
        """Stores a copy of a file: its digest, and its size in bytes."""
        with self.writing():
            return self._blobs.put_file(Path(path))

    def put_blob_bytes(self, data: bytes) -> tuple[str, int]:
        with self.writing():
            return self._blobs.put_bytes(data), len(data)

    @contextmanager
    def arriving_blob(self) -> Iterator[Arriving]:
        """A blob written in pieces, hashed on the way: `write` each, then `commit`, or it is gone.

        Any thread may write, one at a time. Hold `writing()` from `commit` until the ref that
        needs the blob is made, not before: an upload may take hours.
        """
        with self._blobs.arriving() as arriving:
            yield arriving

    def open_blob(self, digest: str) -> BinaryIO:
        """For reading. Raises IntegrityError where it is missing."""
        return self._blobs.open(digest)

    def blob_path(self, digest: str) -> Path:
        """Where the blob lies, if it does. Do not write there."""
        return self._blobs.path(digest)

    def has_blob(self, digest: str) -> bool:
        return self._blobs.has(digest)

    def blob_size(self, digest: str) -> int:
        return self._blobs.size(digest)

    def verify_blob(self, digest: str) -> None:
        """Reads and hashes all of it. Raises IntegrityError."""
        self._blobs.verify(digest)

    def put_manifest(self, document: Mapping[str, Any]) -> str:
        """Stores a document as canonical JSON and returns its digest."""
        with self.writing():
            return self._manifests.put(document)

    def manifest(self, digest: str) -> dict[str, Any]:
        """The document, hashed at every read. Raises IntegrityError."""
        return self._manifests.get(digest)

    def is_whole(self, digest: str) -> bool:
        """Whether the manifest is sound and none of its files' blobs is missing."""
        try:
            self._check_whole(digest)
        except AdapterHubError:
            return False
        return True

    def _check_whole(self, digest: str) -> None:
        for each in blobs_of(self.manifest(digest)):
            self._blobs.size(each)

    # --- refs: reading

    def state(self, name: str) -> State:
        """Tags, versions and card of a name. Raises NotFound where it is unknown or removed."""
        log = self._journal.log(check_name(name))
        return verbs.live(log, () if log.events else self._nearest_or_none(name))

    def exists(self, name: str) -> bool:
        return self._journal.log(check_name(name)).state.live

    def resolve(self, ref: str | Ref) -> tuple[str, str]:
        """The name and the digest that a ref means. Raises InvalidName, NotFound."""
        parsed = parse_ref(ref) if isinstance(ref, str) else ref
        return parsed.name, verbs.find(self.state(parsed.name), parsed)

    def history(self, name: str) -> tuple[Event, ...]:
        """Every event of a name, oldest first; of a removed name too. Raises NotFound."""
        log = self._journal.log(check_name(name))
        if not log.events:
            raise verbs.unknown(name, self._nearest_or_none(name))
        return log.events

    def restorable(self, name: str, removed_days: float = verbs.REMOVED_DAYS) -> tuple[str, ...]:
        """Digests of removed versions that `rollback --to` can still bring back."""
        state = self._journal.log(check_name(name)).state
        kept = verbs.kept(state, removed_days)
        return tuple(each for each in state.removed if each in kept and self.is_whole(each))

    def _nearest_or_none(self, name: str) -> tuple[str, ...]:
        try:
            return self.nearest(name)
        except AdapterHubError:
            return ()

    # --- refs: changing

    def add_version(
        self,
        name: str,
        digest: str,
        *,
        tags: Iterable[str] = (),
        origin: Mapping[str, Any] | None = None,
        card: Mapping[str, Any] | None = None,
        expect_new: bool = False,
    ) -> Outcome:
        """Moves `latest` (and `tags`) of a name to a stored manifest.

        Status `added`, or `unchanged` where all of it was so already. Raises AlreadyExists for a
        name that is there and `expect_new`, IntegrityError where the manifest is missing.
        """
        check_name(name)
        wanted = [check_tag(tag) for tag in tags]
        with self.writing():
            self._check_whole(digest)
            return self._commit(
                name, lambda log: verbs.add(log, digest, wanted, origin, card, expect_new)
            )

    def tag(self, name: str, digest: str, tag: str, *, expect: str | None = None) -> Outcome:
        """Points a tag at a version of this name; with `expect`, only if it points there now."""
        check_tag(tag)
        return self._commit(name, lambda log: verbs.tag(log, digest, tag, expect))

    def untag(self, name: str, tag: str) -> Outcome:
        """Takes a tag away. Raises InvalidOption for `latest`, NotFound."""
        check_tag(tag)
        return self._commit(name, lambda log: verbs.untag(log, tag))

    def rollback(self, name: str, tag: str, to: str | None = None) -> Outcome:
        """Points a tag at the last other digest that it pointed at, or at `to` (a prefix).

        Brings removed names (`rollback NAME latest`) and removed versions (with `to`) back.
        """
        check_tag(tag)
        prefix = digest_prefix(to) if to is not None else None
        days = verbs.REMOVED_DAYS
        with self.writing():
            return self._commit(
                name, lambda log: verbs.rollback(log, tag, prefix, self.is_whole, days)
            )

    def remove_version(self, name: str, digest: str) -> Outcome:
        """Removes a version; the last one of a name removes the name."""
        return self._commit(name, lambda log: verbs.remove_version(log, digest))

    def remove_name(self, name: str) -> Outcome:
        return self._commit(name, verbs.remove_name)

    def rename(self, old: str, new: str) -> Outcome:
        """Gives a name, with its history, another spelling. Raises AlreadyExists, NotFound."""
        check_name(old)
        check_name(new)
        if old == new:
            raise InvalidOption(f"{old} has that name already", remedy="choose another name")
        done: list[Outcome] = []

        def decide(read: Callable[[str], Log]) -> Change:
            done.append(verbs.rename(read(old), read(new)))
            return Change(new, done[0].events, source=old)

        self._make(old, decide)
        return done[0]

    def edit_card(
        self,
        name: str,
        set: Mapping[str, Any] | None = None,
        unset: Iterable[str] = (),
    ) -> Outcome:
        """Sets and removes fields of the card. Raises InvalidOption for a value of a wrong type."""
        gone = tuple(unset)
        return self._commit(name, lambda log: verbs.edit(log, set or {}, gone))

    def _commit(self, name: str, verb: Callable[[Log], Outcome]) -> Outcome:
        check_name(name)
        done: list[Outcome] = []

        def decide(read: Callable[[str], Log]) -> Change:
            done.append(verb(read(name)))
            return Change(name, done[0].events)

        self._make(name, decide)
        return done[0]

    def _make(self, name: str, decide: Callable[[Callable[[str], Log]], Change]) -> None:
        try:
            self._journal.commit(decide)
        except NotFound:
            if not self._journal.log(name).events:
                raise verbs.unknown(name, self._nearest_or_none(name)) from None
            raise

    # --- index

    def list(
        self,
        filters: Filters = ANY,
        *,
        order: str = "updated",
        limit: int = 50,
        offset: int = 0,
        after: str | None = None,
    ) -> tuple[Row, ...]:
        """A page of live names, the newest first, or sorted by `order="name"`.

        `after` is the `cursor` of the last row of the page before. Raises InvalidOption.
        """
        return self._ask(lambda c: query.page(c, filters, order, limit, offset, after))

    def count(self, filters: Filters = ANY) -> int:
        return self._ask(lambda c: query.count(c, filters))

    def search(self, text: str, filters: Filters = ANY, *, limit: int = 20) -> tuple[Row, ...]:
        """Names whose texts contain every word (or its beginning), best first."""
        return self._ask(lambda c: query.search(c, text, filters, limit))

    def names(self, prefix: str = "", limit: int | None = None) -> tuple[str, ...]:
        """Live names that begin with `prefix`, sorted."""
        return self._ask(lambda c: query.names(c, prefix, limit))

    def nearest(self, name: str, limit: int = 3) -> tuple[str, ...]:
        """Live names that `name` may be a misspelling of, best first."""
        return self._ask(lambda c: query.nearest(c, name, limit))

    def reindex(self) -> int:
        """Derives the index anew from manifests and ref logs; the number of live names."""
        return self._index.reindex()

    def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Asks once more after making the index again, if it turns out to be damaged."""
        try:
            return question(self._index.connection())
        except sqlite3.Error as error:
            if not is_damage(error):
                raise failure(error, self._home) from error
        self._index.replace()
        try:
            return question(self._index.connection())
        except sqlite3.Error as error:
            raise failure(error, self._home) from error

    def gc(
        self,
        *,
        grace_seconds: float = 86400.0,
        removed_days: float = verbs.REMOVED_DAYS,
        dry_run: bool = False,
    ) -> GcReport:
        """Deletes what no name needs and what is older than the grace period.

        What a server of the hub keeps here stays, too. Raises IntegrityError, with nothing deleted,
        where a ref log, a needed manifest or hub.db cannot be read.
        """
        collector = Collector(
            self._home, self._manifests, self._blobs, self._alone, self._journal.settle
        )
        return collector.run(
            grace_seconds=grace_seconds, removed_days=removed_days, dry_run=dry_run
        )
