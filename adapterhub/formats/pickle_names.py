"""Names and shapes of the tensors in a `torch.save` file, without unpickling it.

The opcodes are read as data (`pickletools.genops`) and played on a stack of inert values: nothing
is imported, built or called. What torch saves is a dict whose values are calls of
`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, …)`; such a call becomes a `Seen`
with `size`, everything else that is not a container stays opaque. Values are never read here;
`pickles` does that, with consent.
"""

from __future__ import annotations

import io
import os
import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from adapterhub.formats import zips
from adapterhub.tensorfile import name_problem

# What holds 10,000 tensors, and is played in about half a second.
MAX_BYTES = 4 * 1024 * 1024
MAX_OPCODES = 300_000
MAX_NAMES = 20_000
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of torch's format before 1.6
_LONGEST_SHAPE = 32
_FEW = 8  # attributes of a parameter, as transformers' `_is_hf_initialized`
_PARAMETERS = frozenset(f"torch._utils._rebuild_parameter{state}" for state in ("", "_with_state"))

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Names:
    """Name → shape, None where that does not show; `extras` are names of other values.

    `cut`: the stream goes on after what was read of it.
    """

    shapes: Mapping[str, Shape | None]
    extras: tuple[str, ...] = ()
    cut: bool = False


class _Opaque:
    """A value of which nothing is known."""


@dataclass(frozen=True)
class Global:
    name: str


@dataclass(frozen=True)
class Seen:
    """A tensor that would be built here."""

    shape: Shape | None


_OPAQUE, _MARK = _Opaque(), _Opaque()


def names(fd: int) -> Names:
    """Raises ValueError, saying what is wrong with the file."""
    if os.pread(fd, 2, 0) == b"PK":
        return _listed(play(_from_archive(fd), Machine()))
    stream = io.BytesIO(os.pread(fd, MAX_BYTES, 0))
    machine = play(stream, Machine())
    if machine.result == MAGIC:  # then the protocol, then what the machine was like
        for _ in range(3):
            machine = play(stream, Machine())
    return _listed(machine)


def _from_archive(fd: int) -> io.BytesIO:
    found = [m for m in zips.members(fd) if m.name == "data.pkl" or m.name.endswith("/data.pkl")]
    if len(found) != 1:
        raise ValueError("is a zip archive without data.pkl, not one of torch.save")
    return io.BytesIO(zips.stored(fd, found[0], MAX_BYTES))


class Machine:
    """The stack machine of pickles, over inert values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.tensors: dict[str, Shape | None] = {}
        self.others: dict[str, None] = {}
        self.result: Any = None
        self.cut = True

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if act := _ACTIONS.get(name):
            act(self, argument)
        elif name in _VALUES:
            self.stack.append(argument)
        else:
            self._other(opcode)

    def _other(self, opcode: pickletools.OpcodeInfo) -> None:
        before = opcode.stack_before
        if pickletools.markobject in before:
            self.marked()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self.pop()
        for made in opcode.stack_after:
            self.stack.append(_MARK if made is pickletools.markobject else _OPAQUE)

    def pop(self) -> Any:
        if not self.stack:
            raise ValueError("is no pickle: its stack runs empty")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """The values above the last mark, which goes too."""
        items = []
        while (value := self.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def drop(self) -> None:
        self.pop()

    def drop_marked(self) -> None:
        self.marked()

    def put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1] if self.stack else _OPAQUE

    def get(self, argument: int) -> None:
        self.stack.append(self.memo.get(argument, _OPAQUE))

    def pairs(self, items: Sequence[Any]) -> None:
        """Of the dict on top of the stack."""
        others = []
        for key, value in zip(items[::2], items[1::2], strict=False):
            if not isinstance(key, str) or name_problem(key):
                continue
            if isinstance(value, Seen):
                self.tensors[key] = value.shape
            elif not isinstance(value, _Dict):
                self.others[key] = None
                others.append(key)
        target = self.stack[-1] if self.stack else None
        if others and isinstance(target, _Dict) and len(target.others) < _FEW:
            self.stack[-1] = _Dict((*target.others, *others[:_FEW]))
        if len(self.tensors) + len(self.others) > MAX_NAMES:
            raise _Enough

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if isinstance(function, Global) and function.name in _PARAMETERS:
            for state in arguments if isinstance(arguments, tuple) else ():
                for name in state.others if isinstance(state, _Dict) else ():
                    self.others.pop(name, None)  # an attribute that somebody gave the parameter
        self.stack.append(_called(function, arguments))

    def global_named(self) -> None:
        name, module = self.pop(), self.pop()
        known = isinstance(name, str) and isinstance(module, str)
        self.stack.append(Global(f"{module}.{name}") if known else _OPAQUE)


class _Enough(Exception):
    pass


class _Dict(_Opaque):
    """A dict, and the names of a few of its values that are no tensors."""

    def __init__(self, others: tuple[str, ...] = ()) -> None:
        self.others = others


_DICT = _Dict()


def _called(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global):
        return _OPAQUE
    if function.name.startswith("torch._utils._rebuild_tensor"):
        return Seen(_shape(arguments))
    if function.name in _PARAMETERS and isinstance(arguments, tuple):
        return arguments[0] if arguments and isinstance(arguments[0], Seen) else Seen(None)
    return _DICT if function.name == "collections.OrderedDict" else _OPAQUE


def _shape(arguments: Any) -> Shape | None:
    if not isinstance(arguments, tuple) or len(arguments) < 3:
        return None
    size = arguments[2]
    if not isinstance(size, tuple) or len(size) > _LONGEST_SHAPE:
        return None
    return size if all(type(extent) is int and 0 <= extent < 2**53 for extent in size) else None


def _tuple_of(count: int) -> Callable[[Machine, Any], None]:
    def act(machine: Machine, _: Any) -> None:
        items = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(items[::-1]))

    return act


def _setitem(machine: Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.pairs((key, value))


def _dict(machine: Machine, _: Any) -> None:
    items = machine.marked()
    machine.stack.append(_DICT)
    machine.pairs(items)


def _persistent(machine: Machine, _: Any) -> None:
    machine.pop()
    machine.stack.append(_OPAQUE)


def _global(machine: Machine, argument: Any) -> None:
    machine.stack.append(Global(str(argument).replace(" ", ".", 1)))


def _build(machine: Machine, _: Any) -> None:
    machine.pop()  # the state goes into the object below it, which stays


_ACTIONS: Mapping[str, Callable[[Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.stack.append(_MARK),
    "POP": lambda machine, _: machine.drop(),
    "POP_MARK": lambda machine, _: machine.drop_marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1] if machine.stack else None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, n: machine.put(n)),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, n: machine.get(n)),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "EMPTY_DICT": lambda machine, _: machine.stack.append(_DICT),
    "DICT": _dict,
    "SETITEM": _setitem,
    "SETITEMS": lambda machine, _: machine.pairs(machine.marked()),
    "APPEND": lambda machine, _: machine.drop(),
    "APPENDS": lambda machine, _: machine.drop_marked(),
    "ADDITEMS": lambda machine, _: machine.drop_marked(),
    "REDUCE": lambda machine, _: machine.reduce(),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda machine, _: machine.global_named(),
    "BINPERSID": _persistent,
    "BUILD": _build,
}
_VALUES = frozenset(
    (
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    )
)


def play(stream: BinaryIO, machine: Machine, most: int = MAX_OPCODES) -> Machine:
    """One pickle of the stream, up to its STOP or the limits. Raises ValueError."""
    try:
        for opcode, argument in _opcodes(stream, most):
            if opcode.name == "STOP":
                machine.result, machine.cut = machine.stack and machine.stack[-1], False
                break
            machine.step(opcode, argument)
    except _Enough:
        pass
    return machine


def _opcodes(stream: BinaryIO, most: int) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    read = pickletools.genops(stream)
    for _ in range(most):
        try:
            opcode, argument, _position = next(read)
        except StopIteration:
            return
        except (ValueError, OverflowError, IndexError, EOFError) as error:
            if stream.tell() >= MAX_BYTES:
                return  # it goes on where nobody looked
            said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise ValueError(f"is no pickle: {said!a}") from None
        yield opcode, argument


def _listed(machine: Machine) -> Names:
    others = tuple(name for name in machine.others if name not in machine.tensors)
    return Names(dict(machine.tensors), others, machine.cut)
