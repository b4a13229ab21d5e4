"""Random projections that PEFT makes anew from a seed, where they are not saved.

They are those of torch's generator on the CPU, so the numbers hang on torch: the same in every
version so far, promised by none. (peft 0.21.2: tuners/{vera,pvera,randlora,tinylora}/model.py)
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from adapterhub.methods.meaning import Values

if TYPE_CHECKING:
    import torch

Pair = tuple[Values, Values]


@lru_cache(maxsize=1)
def vera(seed: int, rank: int, out: int, into: int) -> Pair:
    """A: (rank, into) and B: (out, rank), uniform between ±√(6 / columns)."""
    generator = _generator(seed)
    return _uniform((rank, into), generator), _uniform((out, rank), generator)


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Values:
    import torch

    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return _numpy(torch.empty(shape).uniform_(-bound, bound, generator=generator))


@lru_cache(maxsize=1)
def pvera(seed: int, rank: int, out: int, into: int) -> Pair:
    """A: (2·rank, into), of which the first half is the mean, and B: (out, rank)."""
    import torch

    generator, init = _generator(seed), torch.nn.init.kaiming_uniform_
    a = init(torch.empty(2 * rank, into), generator=generator)
    return _numpy(a), _numpy(init(torch.empty(out, rank), generator=generator))


@lru_cache(maxsize=1)
def randlora(seed: int, rank: int, large: int, small: int, sparsity: float | None) -> Pair:
    """A: (rank, 1, small) and B: (large, ⌈small/rank⌉, rank), each over its standard deviation.

    Dense ones are drawn in bf16, as PEFT does wherever there is bf16. With a `sparsity` s they are
    −1, 0 and 1, with probabilities 1/2s, 1 − 1/s and 1/2s.
    """
    import torch

    generator, count = _generator(seed), math.ceil(small / rank)
    if sparsity is not None:
        a = torch.rand((rank, 1, small), generator=generator)
        b = torch.rand((large, count, rank), generator=generator)
        a, b = _signs(a, sparsity), _signs(b, sparsity)
    else:
        a = _dense((rank, 1, small), generator)
        b = torch.cat([_dense((large, 1, rank), generator) for _ in range(count)], dim=1)
    return _numpy(a / a.std()), _numpy(b / b.std())


def _dense(shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    import torch

    empty = torch.empty(shape, dtype=torch.bfloat16)
    return torch.nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=generator)


def _signs(uniform: torch.Tensor, sparsity: float) -> torch.Tensor:
    edge = 1 / (2 * sparsity)
    return (uniform > 1 - edge).float() - (uniform < edge).float()


def tinylora(seed: int, count: int, rank: int) -> Values:
    """P: (count, rank, rank), normal with variance 1/rank."""
    import torch

    size = (count, rank, rank)
    return _numpy(torch.normal(0.0, 1.0 / rank**0.5, size=size, generator=_generator(seed)))


def _generator(seed: int) -> torch.Generator:
    import torch

    return torch.Generator(device="cpu").manual_seed(seed)


def _numpy(tensor: torch.Tensor) -> Values:
    return np.asarray(tensor.float().numpy(), np.float32)
