"""The arithmetic of a merge on tensors in memory: the same kernel, and so the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub import kernels
from adapterhub.merging.compute import FLOATS, explained, merge_range
from adapterhub.merging.factors import Ready, make_ready, read_bytes
from adapterhub.merging.ranges import item_bytes
from adapterhub.merging.work import Source, Work
from adapterhub.runtime.live import LiveTensor, in_memory
from adapterhub.tensorfile import ArrayTensor, Tensor, usable_cores
from adapterhub.tensorfile.reading import buffer

if TYPE_CHECKING:
    import torch

_STEP = 1 << 21  # elements that are computed at once


@dataclass(frozen=True)
class Named:
    """What error messages need to know: the adapters by their numbers."""

    sources: tuple[Source, ...]


def change(
    works: Mapping[str, Work],
    values: Mapping[str, Tensor],
    held: Mapping[str, torch.Tensor],
    sources: Sequence[Source],
) -> None:
    """Give each tensor of `held` that `works` names what the work makes of `values`.

    On all cores, the largest tensors first. Raises InvalidAdapter, InvalidBase and NotMergeable for
    values that are not finite, and what reading raises; some tensors are changed by then.
    """
    named = Named(tuple(sources))
    ordered = sorted(works, key=lambda name: -works[name].size)
    pool = ThreadPoolExecutor(max(1, min(usable_cores(), len(works))), "attach")
    try:
        jobs = [
            pool.submit(_change, _valued(works[name], values.get(name)), held[name], named)
            for name in ordered
        ]
        for job in jobs:
            job.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _valued(work: Work, value: Tensor | None) -> Work:
    if work.replaces or value is None:
        return work
    if isinstance(value, LiveTensor):
        value = in_memory(value.live) if value.original is None else value.original
    return replace(work, value=value)


def _change(work: Work, held: torch.Tensor, named: Named) -> None:
    import torch

    with torch.no_grad():
        here = held.detach()
        own = here.device.type == "cpu" and here.is_contiguous() and work.shape == here.shape
        made = here if own else torch.empty(work.shape, dtype=here.dtype)
        compute(work, made, named)
        if not own:
            put(held, made)
    touched(held)


def compute(work: Work, target: torch.Tensor, named: Named) -> None:
    """Write what `work` makes to `target`, of its shape and dtype, on the CPU in C order."""
    array = in_memory(target).array
    if not work.size:
        return
    raw = _bytes(array)
    if work.value.dtype not in FLOATS:
        read_bytes(work.value, 0, raw)
        return
    ready = [_ready(work, number, named) for number in range(len(work.slabs))]
    stored, written = item_bytes(work.value.dtype), item_bytes(work.dtype)
    given = _whole(work.value)
    room = None if given is not None else buffer(min(_STEP, work.size) * stored).data
    for first in range(0, work.size, _STEP):
        count = min(_STEP, work.size - first)
        if given is not None:
            source = given[first * stored : (first + count) * stored]
        else:
            source = room[: count * stored]  # type: ignore[index]
            read_bytes(work.value, first * stored, source)
        place = raw[first * written : (first + count) * written]
        merge_range(work, ready, named, source, place, first)


def _ready(work: Work, number: int, named: Named) -> Ready:
    try:
        return make_ready(work, work.slabs[number])
    except kernels.NonFinite as error:
        raise explained(error, work, work.slabs[number], named) from error


def _whole(value: Tensor) -> memoryview | None:
    """The bytes of what is in memory already."""
    if isinstance(value, ArrayTensor) and value.array.flags.c_contiguous:
        return _bytes(value.array)
    return None


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The memory of a C-order array."""
    return array.reshape(-1).view(np.uint8).data


def put(held: torch.Tensor, value: torch.Tensor) -> None:
    """Give `held` the values of another tensor, and its shape where that differs."""
    import torch

    with torch.inference_mode() if held.is_inference() else torch.no_grad():
        if held.shape == value.shape:
            copy(held.detach(), value.detach())
        else:
            held.data = value.detach().to(held.device, held.dtype, copy=True)
    touched(held)


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """The values of a tensor of the same shape.

    By one thread where it is bytes to bytes: torch's own threads, which wait for each other in a
    loop, take many times as long where others want the cores.
    """
    plain = all(t.device.type == "cpu" and t.is_contiguous() for t in (target, source))
    if plain and target.dtype == source.dtype and target.numel():
        _bytes(in_memory(target).array)[:] = _bytes(in_memory(source).array)
    else:
        target.copy_(source)


def touched(tensor: torch.Tensor) -> None:
    """Tell autograd, so that no backward pass takes old values for new ones."""
    import torch

    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)
