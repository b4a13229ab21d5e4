"""What a pickle has torch's restricted loader call, held to what torch.save writes for tensors.

That loader imports nothing, and yet calls `bytearray(10**11)` or `torch.Tensor(10**9)`: a small
file that takes any amount of memory, or a tensor of whatever lay there before.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from adapterhub.formats import zips
from adapterhub.formats.pickle_names import MAGIC, Global, Machine, play

# More than any adapter has; the file's own size is the limit that counts.
_MOST_MEMBERS = 1_000_000
_MOST_OPCODES = 50_000_000
_BUILT_BY = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.(Size|serialization\._get_layout)"
)
_WRAPPED_BY = "torch._tensor._rebuild_from_type_v2"  # calls the function that it is given


def check(path: Path) -> None:
    """Raises ValueError, saying what is wrong."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            file.seek(0)
            _check_legacy(file)
            return
        found = zips.members(file.fileno(), _MOST_MEMBERS)
        # All of that name: which one a loader takes is its own affair.
        for member in found:
            if member.name.lower().endswith("data.pkl"):
                data = zips.stored(file.fileno(), member, member.size)
                _check_one(io.BytesIO(data))


def _check_legacy(file: io.BufferedReader) -> None:
    """torch's format before 1.6: magic, protocol, machine, content, keys; then raw bytes."""
    if _check_one(file) == MAGIC:
        for _ in range(4):
            _check_one(file)


def _check_one(stream: io.BufferedReader | io.BytesIO) -> Any:
    machine = play(stream, _Calls(), _MOST_OPCODES)
    if machine.cut:
        raise ValueError("is no pickle: it does not end")
    return machine.result


class _Calls(Machine):
    """Refuses a call that no tensor needs, and keeps no names."""

    def pairs(self, items: Any) -> None:
        pass

    def reduce(self) -> None:
        arguments, function = self.stack[-1:], self.stack[-2:-1]
        called = _name(function[0] if function else None)
        if called == _WRAPPED_BY and arguments and isinstance(arguments[0], tuple):
            called = _name(next(iter(arguments[0]), None))
        _refuse_other(called)
        super().reduce()

    def _other(self, opcode: Any) -> None:
        if opcode.name in ("NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"):
            made = self.stack[-2] if opcode.name == "NEWOBJ" and len(self.stack) > 1 else None
            _refuse_other(_name(made))
        super()._other(opcode)


def _name(function: Any) -> str:
    return function.name if isinstance(function, Global) else "something"


def _refuse_other(name: str) -> None:
    if _BUILT_BY.fullmatch(name) is None:
        raise ValueError(f"it asks for {name[:80]!a}, which is no tensor".replace("'", ""))
