"""What adapters of other methods add to a base, as far as a LoRA can hold it.

A product of factors stays one. A Hadamard product of two, as LoHa has it, is one as well,

    (w1_a·w1_b) ⊙ (w2_a·w2_b) = b·a    b[:, pr+q] = w1_a[:, p] ∘ w2_a[:, q],  a[pr+q] likewise

of rank r², LoKr's Kronecker product with a factored w2 is (w1 ⊗ w2_a)·(I ⊗ w2_b), and MiSS repeats
r rows, b·a with b = Mᵀ and a[k, i] = 1 where i mod r = k. Other changes are dense, and truncated.
What multiplies a weight is no sum, and hangs on the base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.base import Base
from adapterhub.composing import sites
from adapterhub.composing.inputs import Input
from adapterhub.composing.sites import Site
from adapterhub.errors import BaseMismatch, NotMergeable, NotSupported
from adapterhub.methods import (
    BiasDelta,
    Computed,
    Delta,
    LowRank,
    Meaning,
    Part,
    Replacement,
    Shaped,
    Transform,
    method,
)
from adapterhub.methods.computed import fp32
from adapterhub.methods.meaning import Values
from adapterhub.methods.mergeable import Roles, product
from adapterhub.registry.naming import Naming
from adapterhub.registry.shaped import settled, weight_shape
from adapterhub.tensorfile import DTYPES, ArrayTensor, Tensor, shown

# Methods whose change may be of any parameter: only the base tells what a module is.
_OF_ANYTHING = ("diff_pruning", "fishmask", "intrinsic_said")
# Transforms by PEFT's own code that are sums all the same.
ADDED_BY_PEFT = ("waveft",)


@dataclass(frozen=True)
class Addition:
    """What is added at a site: its one term, or else `scale`·`dense`; neither adds nothing.

    `bias`: what is added to the bias of the module.
    """

    site: Site
    dense: Tensor | None = None
    scale: float = 1.0
    bias: BiasDelta | None = None


@dataclass(frozen=True)
class Additive:
    """All that an adapter adds, and what it saves whole."""

    additions: tuple[Addition, ...]
    rest: Meaning


def additive(source: Input, base: Base | None) -> Additive:
    """Raises NotMergeable for what is no sum, NotSupported where a base is needed and not given,
    BaseMismatch."""
    adapter = source.adapter
    naming = Naming(base) if base else None
    meaning = _settled(source, naming)
    _refuse(source, meaning)
    parts = [_factored(adapter, part) for part in meaning]
    low = [part for part in parts if isinstance(part, LowRank)]
    found = [Addition(site) for site in sites.sites([source], [tuple(low)])]
    rest: list[Part] = []
    biases: dict[str, BiasDelta] = {}
    for part in parts:
        if isinstance(part, Delta) and part.parameter == "weight" and len(part.value.shape) > 1:
            found.append(Addition(_site(naming, part), part.value, part.scale))
        elif isinstance(part, BiasDelta):
            biases[part.module] = part
        elif isinstance(part, Delta):
            rest.append(_changed(source, naming, part))
        elif not isinstance(part, LowRank):
            rest.append(part)
    alone = [part for part in biases.values() if part.module not in _modules(found)]
    found += [_bias_alone(naming, part) for part in alone]
    return Additive(
        tuple(sorted(_with_biases(found, biases), key=lambda each: each.site.name)), tuple(rest)
    )


def _settled(source: Input, naming: Naming | None) -> Meaning:
    """The meaning, with the shapes of the base where some part waits for them."""
    adapter = source.adapter
    try:
        meaning = method(adapter.method).implementation.meaning(adapter)
    except NotMergeable as error:
        raise NotMergeable(
            f"there is no LoRA of {source.name}: {error.message}",
            details=error.details,
            remedy=error.remedy,
        ) from error
    waits = any(isinstance(part, Shaped) for part in meaning)
    waits |= adapter.method in (*_OF_ANYTHING, *ADDED_BY_PEFT)
    if naming is None and waits:
        raise NotSupported(
            f"{source.name} is {adapter.method}: what it adds hangs on the shapes of its base",
            remedy="give the base: --base BASE",
        )
    return (
        tuple(summed(part, adapter, naming) for part in settled(naming, meaning))
        if naming
        else meaning
    )


def summed(part: Part, adapter: Adapter, naming: Naming) -> Part:
    """What PEFT itself makes of nothing, where its method adds the same to every weight."""
    if not isinstance(part, Transform) or adapter.method not in ADDED_BY_PEFT:
        return part
    shape = weight_shape(naming, part.module)
    sources = tuple(adapter.modules[part.module][role] for role in part.roles)

    def compute() -> Values:
        return part.within(_Nowhere())(np.zeros((shape[0], math.prod(shape[1:])), np.float32))

    value = Computed(shape, lambda: compute().reshape(shape), sources, exact=False)
    return Delta(part.module, value, 1.0, part.roles)


class _Nowhere:
    """The surroundings of what hangs on none."""

    def read(self, module: str, parameter: str) -> Values | None:
        return None

    def linears(self) -> Mapping[str, tuple[int, int]] | None:
        return None

    def ordered(self, modules: Sequence[str]) -> list[str] | None:
        return None


def _refuse(source: Input, meaning: Meaning) -> None:
    odd = sorted({part.module for part in meaning if isinstance(part, Transform)})
    if odd:
        raise NotMergeable(
            f"{source.name} is {source.adapter.method}, which does not add to the weights of "
            f"{len(odd)} modules: no LoRA is the same for every base",
            details=odd,
            remedy="merge it into its base, and make a LoRA of that: adapterhub extract",
        )
    dora = sorted({p.module for p in meaning if isinstance(p, LowRank) and p.magnitude})
    if dora:
        raise NotMergeable(
            f"{source.name} is a DoRA: its magnitudes hang on the base's weights, and it cannot "
            "be truncated by itself",
            details=dora,
            remedy="merge it into its base, and make a LoRA of that: adapterhub extract",
        )


def _site(naming: Naming | None, part: Delta) -> Site:
    """Of a dense change. Without a base a matrix is taken for that of a linear layer."""
    shape = part.value.shape
    sites.refuse_empty(part.module, shape)
    if naming is not None:
        there = weight_shape(naming, part.module)
        if math.prod(there) != math.prod(shape) or there[0] != shape[0]:
            raise BaseMismatch(
                f"{part.module}: the adapter has a change of {list(shape)}, the base a weight of "
                f"{list(there)}"
            )
        shape = there
    embedding = naming is not None and naming.kind(part.module) == "Embedding"
    return sites.of_weight(part.module, shape, embedding=embedding)


def _changed(source: Input, naming: Naming | None, part: Delta) -> Replacement:
    """A vector that changes, as it is afterwards, in the base's dtype."""
    there = naming and naming.base.tensors.get(f"{naming.stored(part.module)}.{part.parameter}")
    if not there or there.shape != part.value.shape:
        raise NotSupported(
            f"{source.name} changes {shown(f'{part.module}.{part.parameter}')}, which a LoRA can "
            "only save whole",
            remedy="give its base: --base BASE",
        )
    value = fp32(there).astype(np.float64) + part.scale * fp32(part.value).astype(np.float64)
    made = ArrayTensor(value.astype(DTYPES[there.dtype]))
    return Replacement(part.module, part.parameter, made, f"{REPLACE}{part.parameter}")


def _modules(found: list[Addition]) -> set[str]:
    return {each.site.module for each in found if each.site.layout == "linear"}


def _bias_alone(naming: Naming | None, part: BiasDelta) -> Addition:
    """A bias whose weight stays as it is: beside factors of zeros, as wide as the base says."""
    if naming is None:
        raise NotSupported(
            f"{shown(part.module)}: only its bias changes, and a LoRA adds to it beside a weight",
            remedy="give the base: --base BASE",
        )
    return Addition(sites.of_weight(part.module, weight_shape(naming, part.module)))


def _with_biases(found: list[Addition], biases: Mapping[str, BiasDelta]) -> Iterator[Addition]:
    for each in found:
        yield replace(each, bias=biases.get(each.site.module))


# --- factors ----------------------------------------------------------------------------------


def _factored(adapter: Adapter, part: Part) -> Part:
    """In the place of a dense change that is a product of few factors, those; as LoRA has them."""
    if isinstance(part, LowRank) and adapter.method != "lora":
        return replace(part, roles=sites.ROLES)
    if not isinstance(part, Delta) or part.parameter != "weight":
        return part
    pair = _pair(adapter, part)
    if pair is None or pair[0].shape[0] > min(pair[0].shape[1], pair[1].shape[0]):
        return part
    return LowRank(part.module, *pair, part.scale, "linear", sites.ROLES)


def _pair(adapter: Adapter, part: Delta) -> tuple[Tensor, Tensor] | None:
    """a and b, or None for what has none."""
    roles = {role: adapter.modules[part.module][role] for role in part.roles}
    if adapter.method == "loha":
        return _loha(roles)
    if adapter.method == "lokr":
        return _lokr(roles)
    if adapter.method in ("miss", "bone"):
        (block,) = roles.values()
        return _miss(block, part.value.shape)
    return None


def _loha(roles: Roles) -> tuple[Tensor, Tensor] | None:
    if "hada_t1" in roles:
        return None
    a1, a2 = roles["hada_w1_b"], roles["hada_w2_b"]
    b1, b2 = roles["hada_w1_a"], roles["hada_w2_a"]
    ranks = a1.shape[0] * a2.shape[0]

    def rows() -> Values:
        return (fp32(a1)[:, None] * fp32(a2)[None]).reshape(ranks, -1)

    def columns() -> Values:
        return (fp32(b1)[:, :, None] * fp32(b2)[:, None]).reshape(-1, ranks)

    return (
        Computed((ranks, a1.shape[1]), rows, (a1, a2)),
        Computed((b1.shape[0], ranks), columns, (b1, b2)),
    )


def _miss(block: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """block: (r, out), or (r, m) where the m columns are repeated over the outputs, too."""
    (rank, columns), (out, into) = block.shape, shape

    def repeats() -> Values:
        found: Values = np.equal.outer(np.arange(rank), np.arange(into) % rank).astype(np.float32)
        return found

    return (
        Computed((rank, into), repeats, ()),
        Computed((out, rank), lambda: np.tile(fp32(block).T, (out // columns, 1)), (block,)),
    )


def _lokr(roles: Roles) -> tuple[Tensor, Tensor] | None:
    """(w1 ⊗ w2_a)·(I ⊗ w2_b), or (I ⊗ w2_a)·(w1 ⊗ w2_b), whichever has the lower rank."""
    if "lokr_w2" in roles or "lokr_t2" in roles:
        return None
    whole = roles.get("lokr_w1")
    one = fp32(whole) if whole else product(roles["lokr_w1_a"], roles["lokr_w1_b"])
    tall = one.shape[0] >= one.shape[1]
    unit = np.eye(min(one.shape), dtype=np.float32)
    a, b = roles["lokr_w2_b"], roles["lokr_w2_a"]
    left, right = (one, unit) if tall else (unit, one)
    sides = [n * m for n, m in zip(right.shape, a.shape, strict=True)]
    heights = [n * m for n, m in zip(left.shape, b.shape, strict=True)]
    return (
        Computed((sides[0], sides[1]), lambda: np.kron(right, fp32(a)), (a,)),
        Computed((heights[0], heights[1]), lambda: np.kron(left, fp32(b)), (b,)),
    )
