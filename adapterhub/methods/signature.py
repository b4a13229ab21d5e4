"""What the tensors of an adapter tell about the base that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Signature:
    """`modules`: path → (out, in) of the weight that the method changes; None where nothing tells.

    For an embedding (out, in) is (vocabulary, dim), as it is stored. Of a convolution `in` is
    channels ÷ groups, without the kernel; for experts both are those of one expert. `whole`: what
    is saved of the model's own tensors, name → shape. Prompt methods have no modules: `width` is
    the size of the embeddings that the prompt stands among, `layers` and `kv_width` (kv heads ×
    head size) what a prefix for every layer tells.
    """

    modules: Mapping[str, tuple[int | None, int | None]] = field(default_factory=dict)
    whole: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    width: int | None = None
    layers: int | None = None
    kv_width: int | None = None
