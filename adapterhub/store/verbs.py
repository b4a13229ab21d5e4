"""What each verb changes: from the log of a name to the events to append. No input, no output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from adapterhub.errors import AlreadyExists, InvalidOption, NotFound
from adapterhub.store.names import LATEST, Ref
from adapterhub.store.refs import Event, Log, State, event, stamp, tag_history

REMOVED_DAYS = 30.0
_CARD: dict[str, type] = {
    "description": str,
    "licence": str,
    "topics": list,
    "language": list,
    "metrics": dict,
}
_KIND: dict[type, str] = {str: "text", list: "a list of texts", dict: "an object"}


@dataclass(frozen=True)
class Outcome:
    """What a verb did. `events` is empty where nothing had to change.

    `status` is one of added, unchanged, tagged, untagged, rolled back, restored, removed, renamed,
    edited. `digest` is what the tag (or `latest`) points at now, `previous` what it pointed at.
    """

    name: str
    status: str
    digest: str | None
    previous: str | None
    events: tuple[Event, ...]


def outcome(
    name: str, status: str, events: list[Event], digest: str | None, previous: str | None = None
) -> Outcome:
    return Outcome(name, status if events else "unchanged", digest, previous, tuple(events))


# --- moving tags ----------------------------------------------------------------------------------


def add(
    log: Log,
    digest: str,
    tags: Iterable[str],
    origin: Mapping[str, Any] | None,
    card: Mapping[str, Any] | None,
    expect_new: bool,
) -> Outcome:
    state = log.state
    if expect_new and state.live:
        raise AlreadyExists(
            f"the name {log.name} is taken, by {state.latest}",
            remedy="choose another name, or leave out --new to make a new version of it",
        )
    wanted = dict.fromkeys([LATEST, *tags])
    moved = [_move(state, tag, digest, "add", origin) for tag in wanted]
    events = [each for each in moved if each is not None]
    events += edit_events(state, card or {}, ())
    return outcome(log.name, "added", events, digest, state.tags.get(LATEST))


def tag(log: Log, digest: str, name: str, expect: str | None) -> Outcome:
    state = live(log)
    if digest not in state.versions:
        raise _not_a_version(state, digest)
    previous = state.tags.get(name)
    if expect is not None and previous != expect:
        raise AlreadyExists(
            f"{log.name}:{name} points at {previous}, expected {expect}",
            remedy="look at `adapterhub history` and decide again",
        )
    moved = _move(state, name, digest, "tag", None)
    return outcome(log.name, "tagged", [moved] if moved else [], digest, previous)


def untag(log: Log, name: str) -> Outcome:
    state = live(log)
    if name == LATEST:
        raise InvalidOption(
            f"the tag {LATEST} cannot be taken away; every name has it",
            remedy=f"move it: adapterhub tag {log.name}@sha256:... {LATEST}",
        )
    if name not in state.tags:
        raise no_such_tag(state, name)
    events = [event("tag", tag=name, from_=state.tags[name], to=None, op="untag", origin=None)]
    return outcome(log.name, "untagged", events, None, state.tags[name])


def _move(
    state: State, tag: str, digest: str, op: str, origin: Mapping[str, Any] | None
) -> Event | None:
    if state.tags.get(tag) == digest:
        return None
    where = dict(origin) if origin is not None else None
    return event("tag", tag=tag, from_=state.tags.get(tag), to=digest, op=op, origin=where)


# --- going back -----------------------------------------------------------------------------------


def rollback(
    log: Log, name: str, to: str | None, is_whole: Callable[[str], bool], days: float
) -> Outcome:
    """The tag goes to `to` (a digest's hexadecimal prefix), or to the digest before the last.

    A removed name comes back as it was, a removed version comes back when `to` names it; both
    only where `is_whole` says that `gc` has not collected it.
    """
    state = log.state
    if not log.events:
        raise unknown(log.name)
    if not state.live and to is None and name in state.tags_removed:
        return _restore(log, name, is_whole)
    digest = _one(state, to) if to is not None else _before(log, name)
    if digest in state.removed and not is_whole(digest):
        raise _collected(log.name, digest, days)
    events = [event("restore", digest=digest)] if digest in state.removed else []
    tags = [name] if state.live else dict.fromkeys([LATEST, name])
    moved = [_move(state, each, digest, "rollback", None) for each in tags]
    events += [each for each in moved if each is not None]
    return outcome(log.name, "rolled back", events, digest, state.tags.get(name))


def _restore(log: Log, name: str, is_whole: Callable[[str], bool]) -> Outcome:
    state = log.state
    for digest in state.tags_removed.values():
        if not is_whole(digest):
            raise _collected(log.name, digest, REMOVED_DAYS)
    events = [event("restore", digest=None)]
    return outcome(log.name, "restored", events, state.tags_removed[name])


def _before(log: Log, tag: str) -> str:
    """The latest digest in the tag's history that it does not point at now and that is live."""
    state = log.state
    current = state.tags.get(tag)
    for digest in reversed(tag_history(log.events, tag)):
        if digest != current and digest in state.versions:
            return digest
    raise NotFound(
        f"{log.name}:{tag} has nothing to go back to",
        remedy=f"see `adapterhub history {log.name}`, and name a version with --to",
    )


def _one(state: State, prefix: str) -> str:
    return one_digest(state.name, prefix, [*state.versions, *state.removed])


def _collected(name: str, digest: str, days: float) -> NotFound:
    return NotFound(
        f"{name}@{digest} was removed, and its contents are gone; they are kept for {days:g} days",
        remedy="add the adapter again",
    )


# --- removing and renaming ------------------------------------------------------------------------


def remove_version(log: Log, digest: str) -> Outcome:
    """`latest` moves to the version it pointed at before; other tags on the digest go with it."""
    state = live(log)
    if digest not in state.versions:
        raise _not_a_version(state, digest)
    if len(state.versions) == 1:
        return remove_name(log)
    events = []
    if state.latest == digest:
        events.append(_move(state, LATEST, _remaining(log, digest), "rm", None))
    for name, pointed in state.tags.items():
        if name != LATEST and pointed == digest:
            events.append(event("tag", tag=name, from_=digest, to=None, op="rm", origin=None))
    events.append(event("remove", digest=digest))
    done = [each for each in events if each is not None]
    now = state.latest if state.latest != digest else done[0].fields["to"]
    return outcome(log.name, "removed", done, now, digest)


def _remaining(log: Log, digest: str) -> str:
    state = log.state
    for each in reversed(tag_history(log.events, LATEST)):
        if each != digest and each in state.versions:
            return each
    return next(each for each in reversed(list(state.versions)) if each != digest)


def remove_name(log: Log) -> Outcome:
    state = live(log)
    return outcome(log.name, "removed", [event("remove", digest=None)], None, state.latest)


def rename(old: Log, new: Log) -> Outcome:
    state = live(old)
    if new.state.live:
        raise AlreadyExists(f"the name {new.name} is taken", remedy="choose another name")
    if new.events:
        raise AlreadyExists(
            f"the name {new.name} was removed, and its history is kept",
            remedy=f"choose another name; `adapterhub rollback {new.name} latest` restores it",
        )
    events = [event("rename", from_name=old.name, to_name=new.name)]
    return outcome(new.name, "renamed", events, state.latest, state.latest)


# --- cards ----------------------------------------------------------------------------------------


def edit(log: Log, fields: Mapping[str, Any], unset: Iterable[str]) -> Outcome:
    state = live(log)
    events = edit_events(state, fields, unset)
    return outcome(log.name, "edited", events, state.latest, state.latest)


def edit_events(state: State, fields: Mapping[str, Any], unset: Iterable[str]) -> list[Event]:
    """No event where the card says all of it already. Raises InvalidOption."""
    for key, value in fields.items():
        _check_field(key, value)
    new = {key: value for key, value in fields.items() if state.card.get(key, ...) != value}
    gone = [key for key in unset if key in state.card and key not in fields]
    return [event("card", set=new, unset=gone)] if new or gone else []


def _check_field(key: str, value: Any) -> None:
    kind = _CARD.get(key, object)
    fits = isinstance(value, kind)
    if kind is list and fits:
        fits = all(isinstance(each, str) for each in value)
    if not fits:
        raise InvalidOption(
            f"the card's {key} is {type(value).__name__}, expected {_KIND[kind]}",
            remedy=f"give {_KIND[kind]}",
        )


# --- finding --------------------------------------------------------------------------------------


def live(log: Log, nearest: tuple[str, ...] = ()) -> State:
    """The state of a name that is there. Raises NotFound."""
    state = log.state
    if state.live:
        return state
    if log.events:
        raise NotFound(
            f"the name {log.name} was removed on {(state.removed_at or '')[:10]}",
            remedy=f"adapterhub rollback {log.name} {LATEST} restores it",
        )
    raise unknown(log.name, nearest)


def unknown(name: str, nearest: tuple[str, ...] = ()) -> NotFound:
    remedy = "`adapterhub list` shows the names"
    if nearest:
        remedy = f"did you mean {' or '.join(nearest)}? {remedy}"
    return NotFound(f"no adapter is called {name}", remedy=remedy)


def find(state: State, ref: Ref) -> str:
    """The digest that a ref means. Raises NotFound."""
    if ref.digest_prefix is not None:
        versions = [each for each in state.versions if _matches(each, ref.digest_prefix)]
        if not versions and any(_matches(each, ref.digest_prefix) for each in state.removed):
            raise _not_a_version(state, one_digest(state.name, ref.digest_prefix, state.removed))
        return one_digest(state.name, ref.digest_prefix, state.versions)
    tag = ref.tag or LATEST
    if tag not in state.tags:
        raise no_such_tag(state, tag)
    return state.tags[tag]


def one_digest(name: str, prefix: str, digests: Iterable[str]) -> str:
    found = [each for each in digests if _matches(each, prefix)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFound(
            f"{name} has no version that begins with {prefix}",
            remedy=f"`adapterhub history {name}` shows its versions",
        )
    raise NotFound(
        f"{prefix} is the beginning of {len(found)} versions of {name}",
        remedy="give more digits of one of them",
        details=[f"{name}@{each}" for each in found],
    )


def _matches(digest: str, prefix: str) -> bool:
    return digest.startswith("sha256:" + prefix.removeprefix("sha256:"))


def no_such_tag(state: State, tag: str) -> NotFound:
    known = ", ".join(sorted(state.tags))
    return NotFound(
        f"{state.name} has no tag {tag}; its tags are {known}",
        remedy=f"adapterhub tag {state.name}@{state.latest[:19]} {tag} sets it",
    )


def _not_a_version(state: State, digest: str) -> NotFound:
    if digest in state.removed:
        return NotFound(
            f"{state.name}@{digest} was removed on {state.removed[digest][:10]}",
            remedy=f"adapterhub rollback {state.name} {LATEST} --to {digest[:19]} restores it",
        )
    return NotFound(
        f"{digest} is not a version of {state.name}",
        remedy=f"`adapterhub history {state.name}` shows its versions",
    )


def kept(state: State, days: float) -> set[str]:
    """Digests that `gc` must keep: live ones, and what was removed within `days` days."""
    since = stamp(datetime.now(UTC) - timedelta(days=days))
    return {*state.versions, *(d for d, when in state.removed.items() if when > since)}
