"""What a LoRA tells about its base."""

from __future__ import annotations

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import AdapterHubError
from adapterhub.methods.lora_config import parse
from adapterhub.methods.lora_pairs import pairs
from adapterhub.methods.signature import Signature

Sides = tuple[int | None, int | None]


def signature(adapter: Adapter) -> Signature:
    """Experts stand under `<module>.<parameter>`. Never raises: a config in disorder tells less."""
    whole = {
        f"{module}.{role.removeprefix(REPLACE)}": tensor.shape
        for module, role, tensor in adapter.tensors()
        if role.startswith(REPLACE)
    }
    modules: dict[str, Sides] = {}
    for module, role, tensor in adapter.tensors():
        if role == "token_rows" and len(tensor.shape) == 2:
            modules[module] = (None, tensor.shape[1])
    try:
        parse(adapter.config)
    except AdapterHubError:
        return Signature(modules, whole)
    if adapter.config.get("enable_lora"):  # out is packed
        return Signature(modules | _inputs(adapter), whole)
    for pair in pairs(adapter):
        rows, columns = pair.b.shape[0], pair.a.shape[1]
        modules[pair.key] = (columns, rows) if pair.layout == "embedding" else (rows, columns)
    return Signature(modules, whole)


def _inputs(adapter: Adapter) -> dict[str, Sides]:
    return {
        module: (None, roles["lora_A"].shape[1])
        for module, roles in adapter.modules.items()
        if "lora_A" in roles and len(roles["lora_A"].shape) == 2
    }
