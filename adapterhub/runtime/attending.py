"""Attentions that know no cache (DistilBERT, ViT) with keys and values in front of their own.

Their projections are cut into heads within one forward pass, where no hook comes between; so that
pass is ours here, with the module's own projections and transformers' own attention functions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterhub.errors import NotSupported
from adapterhub.runtime.hooks import Hooks, Undo
from adapterhub.runtime.prefix_cache import Prefixed, widened

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Projections = tuple[str, str, str, str]  # the names of query, key, value and output


@dataclass
class Attending:
    """The forward pass of `module`, whose heads are of `size`; the last prefix stands first."""

    module: Any
    projections: Projections
    size: int
    prefixes: list[Prefixed] = field(default_factory=list)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, Any]:
        import torch
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        module, x = self.module, hidden_states
        query, key, value = (self._heads(name, x) for name in self.projections[:3])
        for prefixed in self.prefixes:
            more = prefixed.of(x)
            key, value = torch.cat((more[0], key), dim=2), torch.cat((more[1], value), dim=2)
            attention_mask = widened(module, attention_mask, x, more[0])
        eager = sys.modules[type(module).__module__].eager_attention_forward
        run = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager)
        dropout = _dropout(module) if module.training else 0.0
        given = {"dropout": dropout, "scaling": module.scaling, **kwargs}
        output, weights = run(module, query, key, value, attention_mask, **given)
        output = output.reshape(*x.shape[:-1], -1).contiguous()
        return getattr(module, self.projections[3])(output), weights

    def _heads(self, name: str, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = getattr(self.module, name)(x)
        return made.view(*x.shape[:-1], -1, self.size).transpose(1, 2)


def _dropout(module: Any) -> float:
    found = getattr(module, "attention_dropout", None)
    return float(module.dropout.p if found is None else found)


def hooks(model: PreTrainedModel, path: str, prefixed: Prefixed, projections: Projections) -> Hooks:
    return Hooks(others=(partial(_attend, model, path, prefixed, projections),))


def _attend(
    model: PreTrainedModel, path: str, prefixed: Prefixed, projections: Projections
) -> Undo:
    module = model.get_submodule(path)
    own = module.__dict__.get("forward")
    ours = getattr(own, "__self__", None)
    if own is None:
        ours = Attending(module, projections, prefixed.key.shape[-1])
        module.__dict__["forward"] = ours.forward
    if not isinstance(ours, Attending):
        raise NotSupported(
            f"the forward pass of {path} is not its class's own: another tool has taken it over",
            remedy="remove that first, such as hooks of accelerate",
        )
    return _with(module, ours, prefixed)


def _with(module: Any, attending: Attending, prefixed: Prefixed) -> Undo:
    attending.prefixes.append(prefixed)

    def undo() -> None:
        attending.prefixes[:] = [one for one in attending.prefixes if one is not prefixed]
        if not attending.prefixes:
            module.__dict__.pop("forward", None)

    return undo
