"""Keys and values in front of an attention's own, by way of the cache that transformers hands it.

An attention of transformers 5 asks its cache for the keys and values to use: `update(key, value,
layer, …)`. Ours asks the model's own, if there is one, and puts the prefix before what comes back;
the mask gains columns that let every query see it. So nothing else in the model, its positions
least of all, learns of the prefix. (T5 counts a layer's keys for its relative positions, and so the
prefix with them, as it does in the library.) An attention that never asks for a cache: `attending`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import NotSupported

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prefixed:
    """`key`, `value`: (heads, prefix, size). `gate`: weight (1 or 2, hidden) and bias. `names`:
    those of the arguments of the attention's own forward pass."""

    key: torch.Tensor
    value: torch.Tensor
    gate: tuple[torch.Tensor, torch.Tensor] | None
    names: tuple[str, ...]

    def entered(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the attention's forward pass."""
        names = self.names
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        mask = "mask" if "mask" in names else "attention_mask"
        x = given["hidden_states"]
        key, value = self.of(x)
        inner = given.get("past_key_values")
        crossing = given.get("key_value_states") is not None
        kind = _CrossCache if crossing else Cache
        if not crossing:
            inner = getattr(inner, "self_attention_cache", inner)
        given[mask] = widened(module, given.get(mask), x, key, inner)
        given["past_key_values"] = kind(inner, key, value)
        return (), given

    def of(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values for the input x: (batch, heads, prefix, size)."""
        import torch

        shape = (x.shape[0], *self.key.shape)
        key, value = (part.to(x).expand(shape) for part in (self.key, self.value))
        if self.gate is None:
            return key, value
        weight, bias = (part.to(x) for part in self.gate)
        gate = torch.sigmoid(torch.nn.functional.linear(x, weight, bias)).mean(dim=1)
        return key * gate[:, 0].view(-1, 1, 1, 1), value * gate[:, -1].view(-1, 1, 1, 1)


class Cache:
    """What the attention takes for its cache: `inner`, and the prefix before what it gives."""

    def __init__(self, inner: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        self._inner, self._key, self._value = inner, key, value

    def update(self, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._inner is not None:
            key, value = self._inner.update(key, value, *args, **kwargs)
        return self._prefixed(key, value)

    def _prefixed(self, key: torch.Tensor, value: torch.Tensor) -> Any:
        import torch

        return torch.cat((self._key, key), dim=2), torch.cat((self._value, value), dim=2)

    def get_seq_length(self, *args: Any) -> Any:
        return 0 if self._inner is None else self._inner.get_seq_length(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _CrossCache(Cache):
    """Of an attention to the encoder; `inner` keeps that one's keys and values after a first
    pass."""

    def update(self, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        both, layer = self._inner, args[0]
        if both is not None and both.is_updated.get(layer):
            kept = both.cross_attention_cache.layers[layer]
            return self._prefixed(kept.keys, kept.values)
        if both is not None:
            key, value = both.cross_attention_cache.update(key, value, *args, **kwargs)
            both.is_updated[layer] = True
        return self._prefixed(key, value)

    def get_seq_length(self, *args: Any) -> Any:
        return 0


def widened(module: Any, mask: Any, x: torch.Tensor, key: torch.Tensor, inner: Any = None) -> Any:
    """The mask with a column for each row of the prefix, (batch or 1, 1, queries, keys)."""
    import torch

    if mask is None:
        if not getattr(module, "is_causal", False):
            return None
        mask = _causal(module, x, inner)  # the implementation's own would count the prefix
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        raise NotSupported(
            f"prefixes need a mask of four dimensions, which {module.config._attn_implementation} "
            "has not",
            remedy='load the model with attn_implementation="sdpa"',
        )
    open_to = torch.ones if mask.dtype == torch.bool else torch.zeros
    columns = open_to((*mask.shape[:-1], key.shape[2]), dtype=mask.dtype, device=mask.device)
    return torch.cat((columns, mask), dim=-1)


def _causal(module: Any, x: torch.Tensor, inner: Any) -> torch.Tensor:
    """What each query may see of the keys that the cache will give."""
    import torch

    queries, seen, length, first = x.shape[1], 0, x.shape[1], 0
    if inner is not None:
        seen = inner.get_seq_length(module.layer_idx)
        length, first = inner.get_mask_sizes(queries, module.layer_idx)
    at = torch.arange(queries, device=x.device)[:, None] + seen
    mask = (torch.arange(length, device=x.device)[None] + first <= at)[None, None]
    if module.config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, torch.finfo(x.dtype).min)
