"""Which tensor names are taken, and how a name from a stranger is printed."""

from __future__ import annotations

import json
import re

# The longest name in a few hundred public checkpoints has fewer than 150 bytes.
MAX_NAME_BYTES = 1024

# C0 and C1 controls, delete, line separators, marks that reorder text, and lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def name_problem(name: str) -> str | None:
    """Why `name` cannot name a tensor, as the end of a sentence; None for a good name.

    A name has 1 to 1024 UTF-8 bytes and no control characters, line separators, lone surrogates
    or marks of text direction. Any other text is taken: names are never used as paths.
    """
    if not name:
        return "is empty"
    if name == "__metadata__":
        return "is reserved for the metadata"
    if found := _UNPRINTABLE.search(name):
        return f"holds the character U+{ord(found.group()):04X}"
    if (size := len(name.encode("utf-8"))) > MAX_NAME_BYTES:
        return f"has {size} bytes, at most {MAX_NAME_BYTES} are taken"
    return None


def shown(name: str) -> str:
    """`name` in quotes, in printable ASCII, shortened to some 100 characters."""
    text = json.dumps(name)
    return text if len(text) <= 100 else f'{text[:90]}…"'
