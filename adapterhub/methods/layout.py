"""How the tensors of a method hang together, as short texts.

    "hada_w1_a: out r; hada_w1_b: r in"      roles, and the sizes of their dimensions
    "oft_R.weight: blocks n"                 a name is the same size wherever it stands in a module
    "vera_lambda_d: @r"                      … with @, in all of the adapter
    "boft_s: out 1"                          a number is that size
    "hira_A: r in *"                         _ is any size, * any further dimensions
    "psoft_R.vector_a?: r"                   may be missing
    "vera_A+: @r _"                          may be missing where save_projection is false
    "peanut_encoders.{n}.weight?: r r"       {n} is any part without dots

A role is the ending of the tensor's name in PEFT; only `trainable_tokens_delta` is `token_rows`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from adapterhub.tensorfile import Tensor

Sizes = dict[str, int]
_ANY = ("_", "*")


@dataclass(frozen=True)
class Size:
    """The config field that must say the same as a size, and the field with its exceptions.

    `unless`: a field that, when it is set, lets the size be smaller; `open`: one that lets it be
    any. `clamped`: peft makes it no larger than the smaller side of the weight. `either`: peft has
    a pattern and does not always follow it, so that the field itself will do.
    """

    field: str
    pattern: str = ""
    unless: str = ""
    open: str = ""
    clamped: bool = False
    either: bool = False


@dataclass(frozen=True)
class Role:
    """One entry of a form."""

    name: str
    dims: tuple[str, ...]
    need: str  # "", "?" or "+"
    pattern: re.Pattern[str]


class Misfit(Exception):
    """Tensors that contradict each other; the text says how."""


Derive = Callable[[Sizes, Mapping[str, Any]], Sizes]


@dataclass(frozen=True)
class Layout:
    """`forms`: the tensors that a module may have; `shared`: those that belong to no module.

    `out`, `into`: the sizes whose product is a side of the weight. `sizes`: what the config says
    of a size. `derive` gives sizes that follow from others; it raises Misfit. `whole`: parts of
    names from which on the rest is kept as it stands, one role for each tensor.
    """

    forms: tuple[str, ...] = ()
    shared: str = ""
    out: tuple[str, ...] = ("out",)
    into: tuple[str, ...] = ("in",)
    rank: str = ""
    sizes: Mapping[str, Size] = field(default_factory=dict)
    derive: Derive | None = None
    whole: tuple[str, ...] = ()

    def roles(self) -> tuple[str, ...]:
        """Every role that a module may have, `{n}` for what differs."""
        found = (role.name for form in self.forms for role in parse(form))
        return tuple(dict.fromkeys(found))

    def shared_roles(self) -> tuple[str, ...]:
        return tuple(role.name for role in parse(self.shared))


@cache
def parse(form: str) -> tuple[Role, ...]:
    found = []
    for entry in filter(None, (part.strip() for part in form.split(";"))):
        head, _, dims = entry.partition(": ")
        name = head.rstrip("?+")
        pattern = re.compile(re.escape(name).replace(r"\{n\}", r"[^.]+"))
        found.append(Role(name, tuple(dims.split()), head[len(name) :], pattern))
    return tuple(found)


def role_of(form: str, name: str) -> Role | None:
    return next((role for role in parse(form) if role.pattern.fullmatch(name)), None)


def lacking(form: str, names: Sequence[str], *, saved: bool) -> list[str]:
    """The roles that a form needs and that are not there; `saved`: save_projection."""
    needed = [r for r in parse(form) if r.need == "" or (r.need == "+" and saved)]
    return [role.name for role in needed if not any(role.pattern.fullmatch(n) for n in names)]


def foreign(form: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if role_of(form, name) is None]


def bind(form: str, tensors: Mapping[str, Tensor], known: Mapping[str, int]) -> Sizes:
    """The sizes in these tensors, on top of those `known`. Raises Misfit."""
    found = dict(known)
    for name, tensor in tensors.items():
        role = role_of(form, name)
        if role is not None:
            _bind_one(name, role.dims, tensor.shape, found)
    return found


def _bind_one(name: str, dims: Sequence[str], shape: tuple[int, ...], found: Sizes) -> None:
    expected = f"expected ({', '.join(dim.lstrip('@') for dim in dims)})"
    rest = bool(dims) and dims[-1] == "*"
    wanted = dims[:-1] if rest else dims
    if len(shape) < len(wanted) or (len(shape) > len(wanted) and not rest):
        raise Misfit(f"{name} is {list(shape)}, {expected}")
    for dim, size in zip(wanted, shape, strict=False):
        if dim in _ANY:
            continue
        known = int(dim) if dim.isdigit() else found.setdefault(dim, size)
        if known != size:
            said = "" if dim.isdigit() else f" with {dim.lstrip('@')} = {known}"
            raise Misfit(f"{name} is {list(shape)}, {expected}{said}")


def product(names: Sequence[str], sizes: Mapping[str, int]) -> int | None:
    """None where one of them is not known."""
    result = 1
    for name in names:
        if name not in sizes:
            return None
        result *= sizes[name]
    return result
