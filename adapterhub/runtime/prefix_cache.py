"""Keys and values in front of an attention's own, by way of the cache that transformers hands it.

An attention of transformers 5 asks its cache for the keys and values to use: `update(key, value,
layer, …)`. Ours asks the model's own, if there is one, and puts the prefix before what comes back;
the mask gains columns that let every query see it. So nothing else in the model, its positions
least of all, learns of the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import NotSupported

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prefixed:
    """`key`, `value`: (heads, prefix, size). `gate`: weight (1 or 2, hidden) and bias."""

    key: torch.Tensor
    value: torch.Tensor
    gate: tuple[torch.Tensor, torch.Tensor] | None

    def entered(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the attention's forward pass."""
        names = ("hidden_states", "attention_mask")
        if len(args) > len(names):
            args, more = args[: len(names)], args[len(names) :]
            kwargs = {**dict(zip(_names(module)[len(names) :], more, strict=False)), **kwargs}
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        x = given["hidden_states"]
        key, value = self._of(x)
        inner = given.get("past_key_values")
        seen = inner.get_seq_length(module.layer_idx) if inner is not None else 0
        given["attention_mask"] = _widened(module, given.get("attention_mask"), x, key, seen)
        given["past_key_values"] = Cache(inner, key, value)
        return (), given

    def _of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        shape = (x.shape[0], *self.key.shape)
        key, value = (part.to(x).expand(shape) for part in (self.key, self.value))
        if self.gate is None:
            return key, value
        weight, bias = (part.to(x) for part in self.gate)
        gate = torch.sigmoid(torch.nn.functional.linear(x, weight, bias)).mean(dim=1)
        return key * gate[:, 0].view(-1, 1, 1, 1), value * gate[:, -1].view(-1, 1, 1, 1)


def _names(module: Any) -> list[str]:
    import inspect

    return list(inspect.signature(module.forward).parameters)


class Cache:
    """What the attention takes for its cache: `inner`, and the prefix before what it gives."""

    def __init__(self, inner: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        self._inner, self._key, self._value = inner, key, value

    def update(self, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        import torch

        if self._inner is not None:
            key, value = self._inner.update(key, value, *args, **kwargs)
        return torch.cat((self._key, key), dim=2), torch.cat((self._value, value), dim=2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _widened(module: Any, mask: Any, x: torch.Tensor, key: torch.Tensor, seen: int) -> Any:
    """The mask with a column for each row of the prefix, (batch or 1, 1, queries, keys)."""
    import torch

    queries, length = x.shape[1], key.shape[2]
    if mask is None:
        if not getattr(module, "is_causal", False):
            return None
        own = torch.ones(queries, queries + seen, dtype=torch.bool, device=x.device)
        mask = own.tril(seen)[None, None]  # the implementation's own would count the prefix
        if module.config._attn_implementation == "eager":
            mask = torch.zeros_like(mask, dtype=x.dtype).masked_fill(
                ~mask, torch.finfo(x.dtype).min
            )
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        raise NotSupported(
            f"prefixes need a mask of four dimensions, which {module.config._attn_implementation} "
            "has not",
            remedy='load the model with attn_implementation="sdpa"',
        )
    open_to = torch.ones if mask.dtype == torch.bool else torch.zeros
    columns = open_to((*mask.shape[:-1], length), dtype=mask.dtype, device=mask.device)
    return torch.cat((columns, mask), dim=-1)
