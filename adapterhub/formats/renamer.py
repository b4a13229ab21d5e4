"""One table of names, compiled both ways.

A row pairs a key on disk with a module path and a role: `("{module}.lora_A.weight", "lora_A")`.
`{module}` stands for a dotted path, `{name}` for one part without dots, which may also occur in
the role. The first row that matches a key wins; writing uses the row of the role, and writes only
what would be read back as the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PLACE = re.compile(r"\{module\}|\{name\}")


class Renamer:
    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = [(_compile(key), key, role) for key, role in rows]

    def read(self, key: str) -> tuple[str, str] | None:
        """`(module, role)` of a key on disk, or None if no row knows it."""
        for pattern, _, role in self._rows:
            if found := pattern.fullmatch(key):
                parts = found.groupdict()
                return parts.get("module", ""), role.replace("{name}", parts.get("name", ""))
        return None

    def write(self, module: str, role: str) -> str | None:
        """The key on disk of `(module, role)`, or None if the format cannot say it."""
        for _, key, row_role in self._rows:
            if found := _compile(row_role).fullmatch(role):
                name = _fill(key, module, found.groupdict().get("name", ""))
                # A module path may look like the suffix of another row.
                return name if self.read(name) == (module, role) else None
        return None


def _fill(template: str, module: str, name: str) -> str:
    parts = {"{module}": module, "{name}": name}
    return _PLACE.sub(lambda place: parts[place.group()], template)


def _compile(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    pattern = pattern.replace(r"\{module\}", r"(?P<module>[^.]+(?:\.[^.]+)*)", 1)
    pattern = pattern.replace(r"\{name\}", r"(?P<name>[^.]+)", 1)
    return re.compile(pattern)
