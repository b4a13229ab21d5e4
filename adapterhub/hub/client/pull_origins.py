"""Where versions of the registry came from, as the refs log keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.errors import AlreadyExists
from adapterhub.store import Store


@dataclass(frozen=True)
class Origin:
    """`path` is the folder (or file) of the adapter in its repository, "" for the root."""

    endpoint: str
    repository: str
    commit: str
    path: str

    @property
    def fields(self) -> dict[str, str]:
        """As the server, too, writes them, but for the endpoint."""
        return {
            "hub": self.repository,
            "endpoint": self.endpoint,
            "commit": self.commit,
            "subfolder": self.path,
        }

    @property
    def shown(self) -> str:
        return f"{self.repository}/{self.path}".rstrip("/")


def version_from(store: Store, name: str, origin: Origin) -> str | None:
    """The version of `name` that this very commit became; None where it is not there (any more)."""
    for each, digest in _origins(store, name):
        if each == origin.fields and digest in store.state(name).versions:
            return digest
    return None


def refuse_other(store: Store, name: str, origin: Origin) -> None:
    """Raises AlreadyExists for a name of which no version came from this place."""
    if not store.exists(name):
        return
    here = replace(origin, commit="").fields
    found = [each for each, _ in _origins(store, name)]
    if any({**each, "commit": ""} == here for each in found):
        return
    raise AlreadyExists(
        f"the name {name} is taken, by what came from {_shown(found)}",
        remedy=f"choose another: --name NAME (adapterhub history {name} tells more)",
    )


def _origins(store: Store, name: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Where versions of a live name came from, the latest first, and their digests."""
    if not store.exists(name):
        return
    for event in reversed(store.history(name)):
        if event.fields.get("origin") and event.fields.get("to"):
            yield event.fields["origin"], event.fields["to"]


def _shown(origins: list[Mapping[str, Any]]) -> str:
    last = origins[0] if origins else {}
    if "hub" in last:
        at = f" of {last.get('endpoint', 'the hub that this home serves')}"
        return f"{last['hub']}/{last.get('subfolder', '')}".rstrip("/") + at
    return str(last.get("path", "elsewhere"))
