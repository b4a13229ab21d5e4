"""Tensors of the result that shared one weight: do they still, or are they written apart?

transformers ties what config.json says is tied and the files hold once. Where a merge makes two
names of a weight differ, the result holds both, and its config.json says that nothing is tied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from adapterhub.base import groups
from adapterhub.errors import NotMergeable
from adapterhub.merging.rows import row_bytes
from adapterhub.merging.work import Row, Slab, Term, Work
from adapterhub.methods import Meaning, TokenRows
from adapterhub.registry.naming import Naming
from adapterhub.tensorfile import Tensor


@dataclass(frozen=True)
class Settled:
    """`shared`: names that are not written → the name of the tensor that they share.

    `untied`: config.json has to say that nothing is tied.
    """

    works: Mapping[str, Work]
    shared: Mapping[str, str] = field(default_factory=dict)
    untied: bool = False
    notes: tuple[str, ...] = ()


def settle(naming: Naming, works: Mapping[str, Work]) -> Settled:
    """Decide for all tied tensors; `works` by the names of `naming.base`, a view in memory.

    Raises NotMergeable where no config can say what the result would be.
    """
    apart: list[tuple[str, str]] = []
    ties = naming.base.ties_in(naming.result) if naming.result else {}
    for group in groups(ties):
        found = [(name, works[name]) for name in group if name in works]
        pairs = [(a[0], b[0]) for a, b in combinations(found, 2) if differ(a[1], b[1])]
        if pairs:
            refuse_unread(group, works)
            apart += pairs
    borrowed = {name: p for name, p in naming.base.borrowed.items() if name in works}
    if not apart:
        kept = {name: work for name, work in works.items() if name not in borrowed}
        return Settled(kept, borrowed)
    if naming.result is None or naming.result.tying not in ("by-default", "on-request"):
        return _beside(works, apart, borrowed)
    return Settled(works, untied=True, notes=(_note(apart, works),))


def _beside(
    works: Mapping[str, Work], apart: Sequence[tuple[str, str]], borrowed: Mapping[str, str]
) -> Settled:
    """For a class that ties whatever config.json says, unless the files hold different values."""
    for one, other in apart:
        if borrowed.get(one) == other or borrowed.get(other) == one:
            raise NotMergeable(
                f"{one} and {other} share one weight, and the adapter changes them differently; "
                "no config can say that of this model",
                remedy="train it with ensure_weight_tying=True, or give a base that stores both",
            )
    kept = {name: work for name, work in works.items() if name not in borrowed}
    return Settled(kept, borrowed, notes=(_note(apart, works),))


def _note(apart: Sequence[tuple[str, str]], works: Mapping[str, Work]) -> str:
    names = sorted({works[name].name for pair in apart for name in pair})
    return f"untied: {', '.join(names[:-1])} and {names[-1]} now differ"


def refuse_unread(group: Sequence[str], works: Mapping[str, Work]) -> None:
    """T5's and BART's `shared` only lends its weight: what PEFT adds to it, no token meets."""
    source = group[0]
    readers = [name for name in group[1:] if name.endswith("embed_tokens.weight")]
    changed = {name for name in group if name in works and _touched(works[name])}
    if readers and source in changed and not changed & set(readers):
        raise NotMergeable(
            f"the adapter changes {source}, which the model never reads itself: it reads "
            f"{' and '.join(readers)}, to which PEFT does not carry the change",
            remedy="train with target_modules naming embed_tokens instead",
        )


# What heads and embeddings are called, of which nothing else is known.
_TIEABLE = re.compile(
    r"(^|\.)(embed_tokens|word_embeddings?|wte|shared|embed_in|tok_embeddings|lm_head|embed_out)$"
)


def refuse_unknown(naming: Naming, meaning: Meaning) -> None:
    """Raises NotMergeable where nobody knows what shares a weight that is to be changed.

    That is for an architecture of which nothing is known. Files that hold another weight of that
    shape, as a head's, show that nothing is tied, and so may config.json.
    """
    base = naming.base
    if naming.result is not None or base.config.get("tie_word_embeddings") is False:
        return
    for part in meaning:
        embeds = isinstance(part, TokenRows) or getattr(part, "layout", "") == "embedding"
        if not embeds and not _TIEABLE.search(part.module):
            continue
        name = f"{naming.stored(part.module)}.weight"
        shape = base.tensors[name].shape if name in base.tensors else ()
        others = (other for other in base.tensors if other != name)
        if not any(base.tensors[other].shape == shape for other in others):
            raise NotMergeable(
                f"{part.module}: nothing is known of model_type {base.model_type!r}, so that it "
                "cannot be seen which tensors share this weight",
                remedy="say tie_word_embeddings=false in config.json if none does",
            )


# --- alike ------------------------------------------------------------------------------------


def differ(one: Work, other: Work) -> bool:
    """Whether the merge gives two tensors that shared a weight different values.

    Tensors that the base stores both, and nobody touches, are as they were.
    """
    if not (_touched(one) or _touched(other)):
        return False
    return not (
        same_bytes(one.value, other.value)
        and _all_alike(one.slabs, other.slabs)
        and len(one.rows) == len(other.rows)
        and all(_same_row(a, b) for a, b in zip(one.rows, other.rows, strict=True))
    )


def _touched(work: Work) -> bool:
    return bool(work.slabs or work.rows or work.replaces)


def _same_row(one: Row, other: Row) -> bool:
    if one.first != other.first or one.value.dtype != other.value.dtype:
        return False
    if one.value is other.value and one.index == other.index:
        return True
    return row_bytes(one.value, one.index) == row_bytes(other.value, other.index)


def _all_alike(one: Sequence[Slab], other: Sequence[Slab]) -> bool:
    return len(one) == len(other) and all(map(_alike, one, other))


def _alike(one: Slab, other: Slab) -> bool:
    if one.magnitude is not None or other.magnitude is not None:
        return False  # a norm over tokens is not one over dimensions
    if one.change is not None or other.change is not None:
        return False
    if (one.first, len(one.terms)) != (other.first, len(other.terms)):
        return False
    turned = one.transposed != other.transposed
    if (one.shape[::-1] if turned else one.shape) != other.shape:
        return False
    return all(_same_term(a, b, turned) for a, b in zip(one.terms, other.terms, strict=True))


def _same_term(one: Term, other: Term, turned: bool) -> bool:
    """Whether two products are equal, of which one may be the other transposed: (B·A)ᵀ = Aᵀ·Bᵀ.

    Then they are equal to the last bit, since the formula adds up over the rank in one order.
    """
    if one.scale != other.scale or one.source != other.source:
        return False
    if one.a is None or other.a is None:
        return one.a is other.a and same_bytes(one.b, other.b)
    if not turned:
        return same_bytes(one.a, other.a) and same_bytes(one.b, other.b)
    return _same_turned(one.a, other.b) and _same_turned(one.b, other.a)


def _same_turned(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape[::-1]:
        return False
    return np.ascontiguousarray(one.read().T).tobytes() == other.read().tobytes()


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal in dtype, shape and every byte; reads no more than needed."""
    if one is other or one == other:
        return True
    if (one.dtype, one.shape, one.nbytes) != (other.dtype, other.shape, other.nbytes):
        return False
    return all(a == b for a, b in zip(one.pieces(), other.pieces(), strict=True))
