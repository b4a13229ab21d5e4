"""Ref logs: one file per name, one event per line, only ever appended to.

Events, each with `v`, `id`, `event`, `when` (UTC) and `who`:

    tag      tag, from, to, op, origin     `to` null: the tag is taken away
    card     set, unset                    fields of the card
    remove   digest                        null: the whole name
    restore  digest                        undoes the remove
    rename   from_name, to_name

A line with `"more": true` belongs to the same change as the line after it: readers see all of
the change or nothing.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapterhub.errors import IntegrityError, InvalidOption, StoreError
from adapterhub.store.names import LATEST, LOG_SUFFIX

VERSION = 1
KINDS = ("tag", "card", "remove", "restore", "rename")
MAX_EVENT = 1024 * 1024
_COMMON = ("v", "id", "event", "when", "who", "more")


@dataclass(frozen=True)
class Event:
    """One line of a ref log. `fields` holds what its kind adds: `tag`, `from`, `to` …"""

    id: str
    kind: str
    when: str
    who: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """What a ref log amounts to. A name without live versions is removed."""

    name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # live digest → when added
    removed: Mapping[str, str] = field(default_factory=dict)  # removed digest → when
    card: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    updated: str = ""
    tags_removed: Mapping[str, str] = field(default_factory=dict)  # of a name that was removed
    removed_at: str | None = None

    @property
    def live(self) -> bool:
        return bool(self.versions)

    @property
    def latest(self) -> str:
        return self.tags[LATEST]


@dataclass(frozen=True)
class Log:
    """The sound part of a ref log: its events, and its length in bytes."""

    name: str
    events: tuple[Event, ...] = ()
    end: int = 0

    @property
    def state(self) -> State:
        return fold(self.name, self.events)


# --- events ---------------------------------------------------------------------------------------


def now() -> str:
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """UTC with six digits of a second, so that the text sorts by time."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def who() -> str:
    """$ADAPTERHUB_USER, or user@host."""
    given = os.environ.get("ADAPTERHUB_USER")
    if given:
        return given
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without an account
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


def event(kind: str, **fields: Any) -> Event:
    """A new event, now and by this user. A trailing underscore is dropped: `from_` → `from`."""
    named = {key.removesuffix("_"): value for key, value in fields.items()}
    return Event(secrets.token_hex(16), kind, now(), who(), MappingProxyType(named))


def encode(events: tuple[Event, ...]) -> bytes:
    """The lines of one change. Raises InvalidOption for what JSON cannot hold."""
    lines = []
    for position, item in enumerate(events):
        record = {"v": VERSION, "id": item.id, "event": item.kind, "when": item.when}
        record |= {"who": item.who, **item.fields}
        if position + 1 < len(events):
            record["more"] = True
        lines.append(json_line(record))
    return b"".join(lines)


def json_line(record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        line = text.encode("utf-8") + b"\n"
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidOption(
            f"a value cannot be recorded as JSON: {error}",
            remedy="use text, finite numbers, lists and objects",
        ) from error
    if len(line) > MAX_EVENT:
        raise InvalidOption(
            f"the change takes {len(line)} bytes to record; at most {MAX_EVENT} are allowed",
            remedy="shorten the card or the origin",
        )
    return line


# --- reading --------------------------------------------------------------------------------------


def log_path(folder: Path, name: str) -> Path:
    return folder / f"{name}{LOG_SUFFIX}"


def read(folder: Path, name: str) -> Log:
    """The log of a name; an empty one where there is none. Raises IntegrityError, StoreError."""
    path = log_path(folder, name)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return Log(name)
    return parse(name, data, path)


def parse(name: str, data: bytes, path: Path) -> Log:
    records, ends = records_of(data, path)
    whole = len(records)
    while whole and records[whole - 1].get("more"):
        whole -= 1
    events = tuple(_event(record, path, n + 1) for n, record in enumerate(records[:whole]))
    return Log(name, events, ends[whole - 1] if whole else 0)


def records_of(data: bytes, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The JSON objects of a file of lines, and where each ends, in bytes.

    A torn tail is left out: what has no newline at the end, cannot be parsed there, or follows
    a zero byte (a page that a power failure kept from the disk). Raises IntegrityError for
    damage anywhere else.
    """
    sound = data.split(b"\0", 1)[0]
    lines = sound.split(b"\n")[:-1]
    records: list[dict[str, Any]] = []
    ends: list[int] = []
    end = 0
    for number, line in enumerate(lines, 1):
        end += len(line) + 1
        record = _parse_line(line)
        if record is None:
            if number == len(lines) and end == len(sound):
                break
            raise IntegrityError(
                f"line {number} of {path} is damaged",
                remedy="restore that file from a copy, or delete the line if nothing else helps",
            )
        records.append(record)
        ends.append(end)
    return records, ends


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _event(record: dict[str, Any], path: Path, number: int) -> Event:
    if record.get("v") != VERSION or record.get("event") not in KINDS:
        raise StoreError(
            f"line {number} of {path} is of a kind that this version does not know",
            remedy="upgrade adapterhub: a later version wrote it",
        )
    try:
        fields = {key: value for key, value in record.items() if key not in _COMMON}
        made = Event(record["id"], record["event"], record["when"], record["who"], fields)
        _check_fields(made)
    except (KeyError, TypeError) as error:
        raise IntegrityError(
            f"line {number} of {path} lacks what its event needs: {error}",
            remedy="restore that file from a copy",
        ) from error
    return made


def _check_fields(item: Event) -> None:
    """Raises KeyError or TypeError where `fold` could not use the event."""
    text: tuple[Any, ...] = (item.id, item.when, item.who)
    if item.kind == "tag":
        digest = item.fields["to"]
        text += (item.fields["tag"], item.fields["op"], "" if digest is None else digest)
    elif item.kind in ("remove", "restore"):
        digest = item.fields["digest"]
        text += ("" if digest is None else digest,)
    elif item.kind == "card":
        if not isinstance(item.fields["set"], dict) or not isinstance(item.fields["unset"], list):
            raise TypeError("`set` is not an object, or `unset` not a list")
        text += tuple(item.fields["unset"])
    if not all(isinstance(value, str) for value in text):
        raise TypeError("a field that should be text is not")


# --- folding --------------------------------------------------------------------------------------


@dataclass
class _Fold:
    tags: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    tags_removed: dict[str, str] = field(default_factory=dict)
    card_removed: dict[str, Any] = field(default_factory=dict)
    removed_at: str | None = None
    added: dict[str, str] = field(default_factory=dict)

    def tag(self, item: Event) -> None:
        digest = item.fields["to"]
        if digest is None:
            self.tags.pop(item.fields["tag"], None)
            return
        self.tags[item.fields["tag"]] = digest
        self.revive(digest, item.when)

    def revive(self, digest: str, when: str) -> None:
        self.removed.pop(digest, None)
        self.versions.setdefault(digest, self.added.setdefault(digest, when))

    def card_(self, item: Event) -> None:
        self.card.update(item.fields["set"])
        for key in item.fields["unset"]:
            self.card.pop(key, None)

    def remove(self, item: Event) -> None:
        digest = item.fields["digest"]
        if digest is not None:
            self.versions.pop(digest, None)
            self.removed[digest] = item.when
            self.tags = {tag: d for tag, d in self.tags.items() if d != digest}
            return
        self.tags_removed, self.tags = self.tags, {}
        self.card_removed, self.card = self.card, {}
        self.removed.update(dict.fromkeys(self.versions, item.when))
        self.versions = {}
        self.removed_at = item.when

    def restore(self, item: Event) -> None:
        digest = item.fields["digest"]
        if digest is not None:
            self.revive(digest, item.when)
            return
        for each in [d for d, when in self.removed.items() if when == self.removed_at]:
            self.revive(each, item.when)
        self.tags = {t: d for t, d in self.tags_removed.items() if d in self.versions}
        self.card = self.card_removed | self.card

    def rename(self, item: Event) -> None:
        pass


def fold(name: str, events: tuple[Event, ...]) -> State:
    """The state that `events` lead to, oldest first."""
    done = _Fold()
    steps = {"tag": done.tag, "card": done.card_, "remove": done.remove}
    steps |= {"restore": done.restore, "rename": done.rename}
    for item in events:
        steps[item.kind](item)
    return State(
        name,
        done.tags,
        done.versions,
        done.removed,
        done.card,
        created=events[0].when if events else "",
        updated=events[-1].when if events else "",
        tags_removed=done.tags_removed,
        removed_at=done.removed_at if not done.versions else None,
    )


def iterate(folder: Path) -> Iterator[str]:
    """Every name that has a log, in no order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                with os.scandir(entry.path) as inner:
                    yield from (
                        f"{entry.name}/{each.name.removesuffix(LOG_SUFFIX)}"
                        for each in inner
                        if each.name.endswith(LOG_SUFFIX)
                    )
            elif entry.name.endswith(LOG_SUFFIX):
                yield entry.name.removesuffix(LOG_SUFFIX)


def tag_history(events: tuple[Event, ...], tag: str) -> list[str]:
    """Every digest that a tag pointed at, oldest first."""
    moves = (e for e in events if e.kind == "tag" and e.fields["tag"] == tag)
    return [e.fields["to"] for e in moves if e.fields["to"] is not None]
