"""What the files of mergeable methods share: whole tensors, and that no tensor is left over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import NotMergeable
from adapterhub.kernels import Factor, merge_low_rank
from adapterhub.methods.computed import fp32
from adapterhub.methods.meaning import Meaning, Part, Replacement, Values, roles_of
from adapterhub.methods.patterns import Patterns
from adapterhub.methods.table import method
from adapterhub.tensorfile import Tensor

Roles = Mapping[str, Tensor]


def adapted(adapter: Adapter) -> Iterator[tuple[str, Roles]]:
    """Each module that the method itself changes, and its own roles."""
    for module, roles in adapter.modules.items():
        own = {role: t for role, t in roles.items() if not role.startswith(REPLACE)}
        if module and own:
            yield module, own


def replacements(adapter: Adapter) -> Iterator[Replacement]:
    """Whole tensors: heads, and what `bias` trained."""
    for module, role, tensor in adapter.tensors():
        if role.startswith(REPLACE):
            yield Replacement(module, role.removeprefix(REPLACE), tensor, role)


def complete(
    adapter: Adapter, own: Iterable[Part], idle: Iterable[tuple[str, str, str]] = ()
) -> Meaning:
    """`own` and the whole tensors. Raises NotMergeable where a tensor is neither used nor `idle`.

    What belongs to no module is shared by all, and so is used.
    """
    _refuse_unknown(adapter)
    found = (*own, *replacements(adapter))
    used = {(part.module, role) for part in found for role in roles_of(part)}
    used |= {(module, role) for module, role, _ in idle}
    rest = [f"{m}.{r}" for m, r, _ in adapter.tensors() if m and (m, r) not in used]
    if rest:
        raise NotMergeable(
            f"{len(rest)} tensors of this adapter are outside the formula of {adapter.method}",
            details=rest[:20],
            remedy="load it with peft, or re-export without them",
        )
    return found


def _refuse_unknown(adapter: Adapter) -> None:
    """A field that this version does not know may change what the tensors mean."""
    known = method(adapter.method).fields()
    unknown = sorted(f for f, value in adapter.config.items() if value and f not in known)
    if unknown:
        raise NotMergeable(
            "adapter_config.json sets fields that this version does not know, and one of them may "
            "change what the tensors mean",
            details=unknown[:20],
            remedy="upgrade adapterhub, or merge with the version of peft that wrote the adapter",
        )


class Settings:
    """Fields of an adapter's config, with what PEFT takes where it is silent."""

    def __init__(self, adapter: Adapter) -> None:
        self._config = adapter.config
        self._properties = method(adapter.method).properties

    def get(self, field: str) -> Any:
        """The config's value; the schema's default where there is none, or null."""
        value = self._config.get(field)
        return self._properties.get(field, {}).get("default") if value is None else value

    def given(self, field: str) -> Any:
        """As `get`, but null stays null, which PEFT takes for no."""
        return self._config[field] if field in self._config else self.get(field)

    def of(self, module: str, field: str, pattern: str) -> Any:
        """As `get`, and what the first key of the field `pattern` that matches the module says.

        Raises InvalidAdapter for keys that cannot be used.
        """
        rows = self._config.get(pattern)
        found = Patterns(rows, field=pattern).find(module) if isinstance(rows, Mapping) else None
        return self.get(field) if found is None else found

    def over_rank(self, module: str, alpha: str = "alpha") -> float:
        """alpha / r in fp64, each by its pattern."""
        rank = self.of(module, "r", "rank_pattern")
        return float(self.of(module, alpha, "alpha_pattern")) / int(rank)


def product(b: Tensor, a: Tensor) -> Values:
    """b · a in the order of DESIGN §4, so the same bits everywhere; b: (m, k), a: (k, n)."""
    return multiplied(fp32(b), fp32(a))


def multiplied(b: Values, a: Values) -> Values:
    """`product` of what is in memory."""
    factor = Factor(np.ascontiguousarray(a), np.ascontiguousarray(b), np.float32(1.0))
    return merge_low_rank(np.zeros((b.shape[0], a.shape[1]), np.float32), [factor])
