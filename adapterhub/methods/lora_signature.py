"""What the factors of a LoRA tell about the base: A has the modules' in, B their out."""

from __future__ import annotations

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.methods.lora_pairs import Pair, pairs
from adapterhub.methods.signature import Signature


def signature(adapter: Adapter) -> Signature:
    """A parameter of experts stands under its own path, `…experts.gate_up_proj`."""
    whole = {
        f"{module}.{role.removeprefix(REPLACE)}": tensor.shape
        for module, role, tensor in adapter.tensors()
        if role.startswith(REPLACE) and not _is_copy(role)
    }
    return Signature(dict(_module(pair) for pair in pairs(adapter)), whole)


def _is_copy(role: str) -> bool:
    return role.startswith((f"{REPLACE}modules_to_save.", f"{REPLACE}original_module."))


def _module(pair: Pair) -> tuple[str, tuple[int, int]]:
    """(out, in); of an embedding, whose factors are (rank, vocabulary) and (dim, rank), turned."""
    size = pair.b.shape[0], pair.a.shape[1]
    if pair.layout == "embedding":
        return pair.module, (size[1], size[0])
    return (f"{pair.module}.{pair.parameter}" if pair.parameter else pair.module), size
