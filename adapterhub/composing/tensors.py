"""Tensors of adapters that are composed one by one: read in fp64, written in fp32."""

from __future__ import annotations

import numpy as np

from adapterhub.composing.factored import Matrix, finite
from adapterhub.composing.inputs import Input
from adapterhub.errors import NotMergeable
from adapterhub.tensorfile import ArrayTensor, Tensor

Place = tuple[str, str]  # module and role
Tensors = dict[Place, Tensor]


def value_of(source: Input, place: Place, tensor: Tensor) -> Matrix:
    """In fp64. Raises NotMergeable for NaN and infinity."""
    return finite(np.asarray(tensor.read(), np.float64), f"{source.name}: {named(place)} has")


def rounded(place: Place, values: Matrix) -> ArrayTensor:
    """To fp32, once. Raises NotMergeable for what becomes infinite."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if not np.isfinite(single).all():
        raise NotMergeable(f"{named(place)} becomes infinite", remedy="give smaller weights")
    return ArrayTensor(single)


def named(place: Place) -> str:
    return ".".join(filter(None, place))
