"""What layers do with a pair of factors in PEFT, where it is not what their weight alone says."""

from __future__ import annotations

import re
from collections.abc import Mapping

from adapterhub.adapter import Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods import LowRank
from adapterhub.registry.fit import Naming

_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\b")
_NEWEST_KNOWN = (0, 21)
_CONVOLUTIONS: Mapping[str, str] = {
    "Grouped": "it is a convolution of several groups, for which PEFT has no merge",
    "Padded": "it is a convolution that does not pad with zeros, as the adapter's does",
}


def refuse_convolution(naming: Naming, module: str) -> None:
    """Raises NotMergeable for a convolution whose sum with the product is not the sum of both."""
    kind = naming.kind(module) or ""
    for start, why in _CONVOLUTIONS.items():
        if kind.startswith(f"{start}Conv"):
            raise NotMergeable(
                f"{module} cannot be merged: {why}",
                remedy="load the adapter with peft, or retrain without this module",
            )


def times(naming: Naming, adapter: Adapter, part: LowRank) -> int:
    """How often PEFT adds the product: once, but for the `out_proj` of torch's MultiheadAttention.

    Trained together with its attention, up to peft 0.21 it counts twice in every forward pass
    (https://github.com/huggingface/peft/pull/3774); trained alone never, since the attention takes
    the bare weight. Raises NotMergeable for a peft of which this is not known.
    """
    attention, _, name = part.module.rpartition(".")
    attention = attention.removesuffix(".base_layer")
    packed = f"{naming.stored(attention)}.in_proj_weight"
    if name != "out_proj" or not attention or packed not in naming.base.tensors:
        return 1
    if "lora_A" not in adapter.modules.get(attention, {}):
        return 0
    text = adapter.config.get("peft_version")
    found = _VERSION.match(text) if isinstance(text, str) else None
    if found and (int(found[1]), int(found[2])) > _NEWEST_KNOWN:
        raise NotMergeable(
            f"{part.module}: peft up to 0.21 counts this pair twice, and what {found[0]} does is "
            "not known to this version",
            remedy="upgrade adapterhub",
        )
    return 2
