"""What layers that stand beside a model's own tell of it: the width they connect to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from adapterhub.adapter import Adapter
from adapterhub.methods.signature import Signature

# AdapterHub's bottlenecks: with a norm before, the projection is the second of its sequence. Of an
# AdaMix every expert is alike.
_DOWN = re.compile(r"adapter_down\.\d+\.weight|MoA_A\.deepspeed_experts\.0\.weight")
_LAYER = re.compile(r"(.*?)(?:^|\.)(\d+)(?:\.|$)")


def bottlenecks(adapter: Adapter) -> Signature | None:
    """Of an adapter with projections down, (bottleneck, width); None of any other.

    They stand at the output of layers, not on modules with a weight of their own, so that only
    the width and the number of layers tell; the latter where no layer was left out.
    """
    found = _down(adapter)
    if not found:
        return None
    widths = {width for _, _, width in found}
    width = widths.pop() if len(widths) == 1 else None
    return Signature(width=width, layers=_layers(module for module, _, _ in found))


def widths(adapter: Adapter) -> dict[str, int]:
    """Module → width of its bottleneck."""
    return {module: width for module, width, _ in _down(adapter)}


def _down(adapter: Adapter) -> list[tuple[str, int, int]]:
    """`(module, width of the bottleneck, width of the model)` of every projection down."""
    return [
        (module, *tensor.shape)
        for module, role, tensor in adapter.tensors()
        if _DOWN.fullmatch(role) and len(tensor.shape) == 2
    ]


def _layers(modules: Iterable[str]) -> int | None:
    stacks: dict[str, set[int]] = defaultdict(set)
    for module in modules:
        if place := _LAYER.match(module):
            stacks[place[1]].add(int(place[2][:6]))
    counts = {len(numbers) for numbers in stacks.values()}
    whole = all(numbers == set(range(len(numbers))) for numbers in stacks.values())
    return counts.pop() if whole and len(counts) == 1 else None
