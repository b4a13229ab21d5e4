"""AdaMix on a live model: its average, as the bottleneck that it is (`methods.adamix`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.adapter import Adapter
from adapterhub.errors import NotSupported
from adapterhub.methods.adamix import averaged
from adapterhub.runtime.hooks import Hooks, hooked

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plan(model: PreTrainedModel, adapter: Adapter, weight: float) -> Hooks:
    """As `hooks.Hooked`; raises InvalidAdapter as well, for experts that do not go together."""
    bottlenecks = hooked("bottleneck")
    if bottlenecks is None:
        raise NotSupported("bottlenecks are not attached by this version")
    return bottlenecks.plan(model, averaged(adapter), weight)
