"""How a change of refs becomes true: all of it or nothing, with one fsync.

    commit lock → settle what the last writer left → read states, decide →
    intent record, fsync          from here on the change is made
    ref log, fsync                (and its folder, where the log is new)
    index rows                    a cache, and the sign that the log was flushed

One writer at a time, of whatever name: a change takes milliseconds, SQLite and the intents file
would line writers up anyway, and so at most the last record can be unfinished while processes
die. After a power failure more may be missing from the ref logs, so opening settles all records.

Records stay in intents.jsonl until there are `COMPACT` of them. Then the index is flushed, which is
one fsync, and the file is emptied. So no change costs more than six, that of its manifest included.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError, IntegrityError, StoreError
from adapterhub.store import files, refs
from adapterhub.store.home import Home
from adapterhub.store.index import Index
from adapterhub.store.names import check_name
from adapterhub.store.refs import Event, Log

COMPACT = 64


@dataclass(frozen=True)
class Change:
    """Events to append to the log of `name`; with `source`, that name's log moves there first."""

    name: str
    events: tuple[Event, ...]
    source: str | None = None


@dataclass(frozen=True)
class Record:
    """A change as intents.jsonl keeps it; `lines` goes into the ref log as it is."""

    id: str
    name: str
    source: str | None
    lines: bytes

    @property
    def touched(self) -> tuple[str, ...]:
        return (self.name,) if self.source is None else (self.source, self.name)


class Journal:
    def __init__(
        self, home: Home, index: Index, lock: files.ThreadLock, note: Callable[[str], None]
    ) -> None:
        self._home = home
        self._index = index
        self._lock = lock
        self._note = note
        self._settled = False

    def log(self, name: str) -> Log:
        return refs.read(self._home.refs, name)

    def commit(self, decide: Callable[[Callable[[str], Log]], Change]) -> Change:
        """Makes true what `decide` returns; it reads logs through its argument.

        No other change happens between those reads and the change. Raises OutputError with the
        old state kept where the disk is full, and whatever `decide` raises.
        """
        with files.named_errors(self._home.root), self._lock():
            records, end = self._read()
            self._settle(records[-1:] if self._settled else records)
            self._settled = True
            change = decide(self.log)
            if change.events:
                lines = refs.encode(change.events)
                record = Record(change.events[0].id, change.name, change.source, lines)
                made_folder = self._make(record, end)
                self._refresh([record])
                if len(records) + 1 >= COMPACT and not made_folder:
                    self._compact([*records, record])
        return change

    def recover(self) -> None:
        """Settles what killed writers left. Where one is at work, it does so itself."""
        with files.named_errors(self._home.root):
            if self._home.intents.stat().st_size == 0:
                self._settled = True
                return
            try:
                with self._lock(wait=0.0):
                    self._settle(self._read()[0])
                    self._settled = True
            except StoreError:
                return

    def settle(self) -> None:
        """As `recover`, for a caller that waits for the writer to end."""
        with files.named_errors(self._home.root), self._lock():
            self._settle(self._read()[0])
            self._settled = True

    # --- the intents file

    def _read(self) -> tuple[list[Record], int]:
        """The sound records, and where they end, in bytes. Raises IntegrityError."""
        path = self._home.intents
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return [], 0
        found, ends = refs.records_of(data, path)
        return [_record(each, path) for each in found], ends[-1] if ends else 0

    def _make(self, record: Record, end: int) -> bool:
        """Whether a namespace's folder had to be made for it."""
        fields = {"id": record.id, "name": record.name, "source": record.source}
        line = refs.json_line({**fields, "lines": record.lines.decode()})
        made_folder = self._make_folder(refs.log_path(self._home.refs, record.name))
        files.append(self._home.intents, end, line, sync=True)
        try:
            self._apply(record)
        except OSError as error:
            if not self._is_in(record.id, record.name):
                files.cut(self._home.intents, end, sync=True)
                raise
            self._note(f"{record.name} is changed; its log is not flushed yet: {error}")
            self._clean_up(record)
        return made_folder

    def _make_folder(self, path: Path) -> bool:
        """The folder of a log; whether it had to be made."""
        if not files.mkdir(path.parent):
            return False
        files.fsync_path(path.parent.parent)
        return True

    def _apply(self, record: Record) -> None:
        path = refs.log_path(self._home.refs, record.name)
        self._make_folder(path)
        if record.source is None:
            is_new = not path.exists()
            files.append(path, self.log(record.name).end, record.lines, sync=True)
            if is_new:
                files.fsync_path(path.parent)
            return
        source = refs.log_path(self._home.refs, record.source)
        data = source.read_bytes()[: self.log(record.source).end]
        with files.temporary(self._home.tmp) as (fd, temporary):
            files.write_all(fd, data + record.lines, temporary)
            files.publish(fd, temporary, path, 0o644)
        self._unlink(source)

    def _unlink(self, path: Path) -> None:
        files.unlink(path)
        files.fsync_path(path.parent)

    # --- what was left over

    def _settle(self, records: Sequence[Record]) -> None:
        """Repeats the changes that are in no ref log, and indexes those that no row knows of."""
        for position, record in enumerate(records):
            try:
                if not self._is_done(record, records[position + 1 :]):
                    self._redo(record)
                elif self._behind([record]):
                    self._flush(record)
                self._clean_up(record)
            except AdapterHubError as error:
                self._note(f"a change of {record.name} could not be settled: {error.message}")
        self._refresh(records)

    def _flush(self, record: Record) -> None:
        """Its writer may have died between writing the log and flushing it."""
        for name in record.touched:
            path = refs.log_path(self._home.refs, name)
            files.fsync_path(path)
            files.fsync_path(path.parent)

    def _is_in(self, event_id: str, name: str) -> bool:
        return any(event.id == event_id for event in self.log(name).events)

    def _is_done(self, record: Record, later: Iterable[Record]) -> bool:
        """Looks also where later renames took the log."""
        name, places = record.name, [record.name]
        for each in later:
            if each.source == name:
                name = each.name
                places.append(name)
        return any(self._is_in(record.id, place) for place in places)

    def _redo(self, record: Record) -> None:
        path = refs.log_path(self._home.refs, record.name)
        events = refs.parse(record.name, record.lines, path).events
        state = self.log(record.name).state
        for event in events:
            if event.kind == "tag" and event.fields["from"] != state.tags.get(event.fields["tag"]):
                self._note(f"a change of {record.name} was left out: its tags have moved since")
                return
        if record.source is not None and not self.log(record.source).events:
            self._note(f"a rename of {record.source} was left out: its log is gone")
            return
        self._apply(record)

    def _clean_up(self, record: Record) -> None:
        """Removes the old log of a rename that ended between its two steps."""
        if record.source is None or not self._is_in(record.id, record.name):
            return
        old, new = self.log(record.source).events, self.log(record.name).events
        same = bool(old) and old[0].id == new[0].id
        if same and not any(event.id == record.id for event in old):
            self._unlink(refs.log_path(self._home.refs, record.source))

    # --- the index

    def _refresh(self, records: Iterable[Record]) -> None:
        """Brings the rows of the touched names up to date; a failure is noted, and no more."""
        try:
            for name, log in self._behind(records):
                self._index.update(log) if log.events else self._index.forget(name)
        except (sqlite3.Error, AdapterHubError) as error:
            self._note(f"the index is behind ({error}); `adapterhub reindex` makes it again")

    def _behind(self, records: Iterable[Record]) -> list[tuple[str, Log]]:
        names = dict.fromkeys(name for record in records for name in record.touched)
        logs = [(name, self.log(name)) for name in names]
        return [(name, log) for name, log in logs if self._index.last(name) != _last(log)]

    def _compact(self, records: Sequence[Record]) -> None:
        """Empties the intents file, once nothing depends on it any more."""
        try:
            if self._behind(records):
                return
            self._index.sync()
        except (sqlite3.Error, AdapterHubError) as error:
            self._note(f"intents.jsonl is not emptied yet: {error}")
            return
        # Not flushed: the next record is, and until then the old ones only say what is so.
        files.cut(self._home.intents, 0, sync=False)


def _last(log: Log) -> str | None:
    return log.events[-1].id if log.events else None


def _record(record: dict[str, Any], path: Path) -> Record:
    try:
        source = record["source"]
        check_name(record["name"])
        if source is not None:
            check_name(source)
        return Record(str(record["id"]), record["name"], source, record["lines"].encode())
    except (KeyError, AttributeError, AdapterHubError) as error:
        raise IntegrityError(
            f"{path} holds a record that is no change of a name: {error}",
            remedy=f"move {path.name} away, then run `adapterhub reindex`",
        ) from error
