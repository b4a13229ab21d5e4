"""Every error that adapterhub raises on purpose.

    AdapterHubError
    ├── InvalidAdapter      its files contradict each other or cannot be parsed
    ├── InvalidBase         a base checkpoint that cannot be read
    ├── InvalidTensorFile   damaged or hostile tensor file; has `offset`
    ├── InvalidName         a name, tag or ref that breaks the rules of spelling
    ├── InvalidOption       an argument that makes no sense
    ├── SchemaError         a document that its schema refuses
    ├── UnknownFormat       no reader recognises these files
    ├── NotSupported        recognised by name, and not (yet) handled here
    │   └── NotMergeable    the mathematics, or this version, cannot fold it into a weight
    ├── PickleRefused       a pickle, and no consent to read it
    ├── BaseMismatch        adapter and base do not fit, or the base is not the recorded one
    ├── IntegrityError      stored bytes that no longer match their digest
    ├── NotFound            no such ref, file, base
    ├── AlreadyExists       refuses to overwrite
    ├── OutputError         cannot write: disk full, no permission, directory not empty
    ├── StoreError          the registry's home is unusable
    ├── RemoteError         a hub refuses, cannot be reached, or may not be asked; has `tries`
    │   └── RemoteConflict  the repository changed while we worked on it
    └── MissingExtra        an optional dependency is not installed

An error says what, where, got versus expected in `message`, and what to do next in `remedy`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class AdapterHubError(Exception):
    """Base of all named errors. `details` lists single findings, one sentence each."""

    def __init__(self, message: str, *, remedy: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = tuple(details)

    @property
    def code(self) -> str:
        """Kebab-case name of the class, as `--json` prints it: `BaseMismatch` → `base-mismatch`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()

    def __str__(self) -> str:
        lines = [self.message, *(f"  - {detail}" for detail in self.details)]
        if self.remedy:
            lines.append(f"Remedy: {self.remedy}")
        return "\n".join(lines)


class InvalidAdapter(AdapterHubError):
    pass


class InvalidBase(AdapterHubError):
    pass


class InvalidTensorFile(AdapterHubError):
    """`offset` is the byte in the file where the damage was seen, if it has a place."""

    def __init__(self, message: str, *, remedy: str = "", offset: int | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.offset = offset


class InvalidName(AdapterHubError):
    pass


class InvalidOption(AdapterHubError):
    pass


class SchemaError(AdapterHubError):
    pass


class UnknownFormat(AdapterHubError):
    pass


class NotSupported(AdapterHubError):
    pass


class NotMergeable(NotSupported):
    pass


class PickleRefused(AdapterHubError):
    pass


class BaseMismatch(AdapterHubError):
    pass


class IntegrityError(AdapterHubError):
    pass


class NotFound(AdapterHubError):
    pass


class AlreadyExists(AdapterHubError):
    pass


class OutputError(AdapterHubError):
    pass


class StoreError(AdapterHubError):
    pass


class RemoteError(AdapterHubError):
    """`status` is what the hub answered, if it did; `tries`, how often it was asked."""

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        details: Sequence[str] = (),
        status: int | None = None,
        tries: int = 1,
    ) -> None:
        super().__init__(message, remedy=remedy, details=details)
        self.status = status
        self.tries = tries


class RemoteConflict(RemoteError):
    pass


class MissingExtra(AdapterHubError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            remedy=f"pip install 'adapterhub[{extra}]'",
        )
