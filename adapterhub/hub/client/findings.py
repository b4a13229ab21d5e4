"""What speaks against a push, or should be known before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """`message` is one sentence, `remedy` the command that mends it. An error stops the push."""

    code: str
    message: str
    remedy: str
    severity: str = WARNING

    @property
    def is_error(self) -> bool:
        return self.severity == ERROR

    def sentence(self) -> str:
        return f"{self.message} ({self.remedy})"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def error(code: str, message: str, remedy: str) -> Finding:
    return Finding(code, message, remedy, ERROR)


def warning(code: str, message: str, remedy: str) -> Finding:
    return Finding(code, message, remedy, WARNING)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, each finding once; otherwise in the order in which they came."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: not finding.is_error))
