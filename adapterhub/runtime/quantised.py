"""LoRA beside weights that bitsandbytes has quantised (QLoRA, https://arxiv.org/abs/2305.14314).

    y = layer(x) + c · B·(A·x)        A: (rank, in), B: (out, rank), both fp32

The weight stays as it is; what cannot be added to the output is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from adapterhub.errors import BaseMismatch, InvalidAdapter, NotMergeable
from adapterhub.kernels.operands import first_nonfinite
from adapterhub.merging.work import Source
from adapterhub.methods import BiasDelta, LowRank, Meaning, Part
from adapterhub.methods.computed import fp32
from adapterhub.runtime.hooks import Hooks
from adapterhub.runtime.live import Live
from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    import torch

_PARAMETERS = ("Params4bit", "Int8Params")


def plan(live: Live, source: Source, meaning: Meaning) -> tuple[Hooks, Meaning]:
    """What goes beside quantised weights, and the parts that remain for the others.

    Raises BaseMismatch with all that does not fit, NotMergeable, InvalidAdapter.
    """
    modules = _modules(live)
    if not modules:
        return Hooks(), meaning
    mine, rest, misfits = [], [], []
    for part in meaning:
        path = live.naming.stored(part.module)
        module = modules.get(path)
        if module is None or _is_of_bias(part):
            rest.append(part)
            continue
        _refuse(part)
        if isinstance(part, LowRank):
            misfits += _misfit(part, module)
            mine.append((path, part))
    if misfits:
        raise BaseMismatch(
            f"{source.name} does not fit this {type(live.model).__name__}: {len(misfits)} "
            f"mismatch{'es' if len(misfits) > 1 else ''}",
            details=misfits,
            remedy="check that this is the base it was trained on: adapterhub show REF",
        )
    beside = [(path, Beside(part, source)) for path, part in mine]
    nbytes = sum(item.nbytes for _, item in beside)
    return Hooks(after=tuple(beside), nbytes=nbytes), tuple(rest)


def _is_of_bias(part: Part) -> bool:
    return isinstance(part, BiasDelta) or getattr(part, "parameter", None) == "bias"


def _modules(live: Live) -> Mapping[str, Any]:
    """Modules whose weight bitsandbytes holds, by their paths."""
    return {
        name: module
        for name, module in live.model.named_modules()
        if type(getattr(module, "weight", None)).__name__ in _PARAMETERS
    }


def _refuse(part: Part) -> None:
    plain = isinstance(part, LowRank) and part.layout == "linear" and part.parameter is None
    if plain and isinstance(part, LowRank) and part.magnitude is None:
        return
    what = type(part).__name__
    if isinstance(part, LowRank):
        what = "a DoRA magnitude" if part.magnitude else f"the layout {part.layout}"
    raise NotMergeable(
        f"{part.module} is quantised by bitsandbytes, and {what} needs the weight itself; only "
        "plain low-rank factors go beside it",
        remedy="load the base in bfloat16 and attach to that",
    )


def _misfit(part: LowRank, module: Any) -> list[str]:
    got = [part.b.shape[0], *part.a.shape[1:]]
    expected = [module.out_features, module.in_features]
    if got == expected:
        return []
    return [
        f"{part.module}: the adapter has factors of shape {got}, the base a weight of {expected}"
    ]


class Beside:
    """The hook of one module. `nbytes`: of both factors, for each device that they were used on."""

    def __init__(self, part: LowRank, source: Source) -> None:
        import torch

        scale = part.scale * source.weight
        self._b = torch.from_numpy(np.float32(scale) * _finite(part.b, part, source))
        self._a = torch.from_numpy(_finite(part.a, part, source))
        self._there: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self.nbytes = self._a.nbytes + self._b.nbytes

    def __call__(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        import torch

        x = args[0] if args else next(iter(kwargs.values()))
        if x.device not in self._there:
            self._there[x.device] = (self._a.to(x.device), self._b.to(x.device))
        a, b = self._there[x.device]
        more = torch.nn.functional.linear(torch.nn.functional.linear(x.to(a.dtype), a), b)
        return output + more.to(output.dtype)


def _finite(tensor: Tensor, part: LowRank, source: Source) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = np.ascontiguousarray(fp32(tensor))
    where = first_nonfinite(values)
    if where is not None:
        raise InvalidAdapter(
            f"{source.name}: {part.module} has a factor that is NaN or infinite at {list(where)}",
            remedy="this adapter diverged in training; take an earlier checkpoint",
        )
    return values
