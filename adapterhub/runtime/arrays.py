"""An adapter's tensors as torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    import torch


def torch_of(tensor: Tensor) -> torch.Tensor:
    """In fp32, on the CPU; the values are those of the file."""
    import torch

    return torch.from_numpy(np.array(tensor.read(), np.float32))
