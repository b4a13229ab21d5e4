"""Tiny models with every layout that LoRA's factors come in, and adapters for them from PEFT.

Two models, since PEFT refuses experts beside a Conv1D.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers.pytorch_utils import Conv1D

from adapterhub.adapter import Adapter
from adapterhub.methods import LowRank, method

EXPERTS = 3
MODULES, FUSED = "modules", "fused"
TARGETS = {
    MODULES: ["linear", "conv1d", "image", "sound", "words", "second"],
    FUSED: ["linear", "second"],
}


class Experts(torch.nn.Module):
    """A parameter for all experts, (experts, out, in), as PEFT's ParamWrapper expects it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(EXPERTS, 6, 8))

    def forward(self, x: Any) -> Any:
        return torch.einsum("eoi,bi->beo", self.weight, x)


class Layouts(torch.nn.Module):
    """`second` takes what `linear` does, and an adapter may leave it out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = {"model_type": "custom", "tie_word_embeddings": False}
        self.linear, self.second = torch.nn.Linear(8, 6), torch.nn.Linear(8, 6)
        if kind == FUSED:
            self.experts = Experts()
            return
        self.conv1d = Conv1D(6, 8)
        self.image = torch.nn.Conv2d(4, 6, (3, 2), padding=1)
        self.sound = torch.nn.Conv1d(4, 6, 3)
        self.words = torch.nn.Embedding(9, 8)

    def forward(self, given: dict[str, Any]) -> dict[str, Any]:
        layers = dict(self.named_children())
        return {name: layer(given.get(name, given["x"])) for name, layer in layers.items()}


def model(kind: str) -> Any:
    torch.manual_seed(1)
    return Layouts(kind).eval()


def given() -> dict[str, Any]:
    torch.manual_seed(2)
    return {
        "x": torch.randn(5, 8),
        "image": torch.randn(2, 4, 5, 7),
        "sound": torch.randn(2, 4, 9),
        "words": torch.arange(9),
    }


def adapter(path: Path, kind: str, seed: int, **fields: Any) -> Path:
    """Trained on nothing: every factor random."""
    settings: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 5,
        "target_modules": TARGETS[kind],
        "target_parameters": ["experts.weight"] if kind == FUSED else None,
        "init_lora_weights": False,
        **fields,
    }
    live = peft.get_peft_model(model(kind), peft.LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.5)
    live.peft_config["default"].base_model_name_or_path = "owner/layouts"
    live.save_pretrained(path, save_embedding_layers=False)
    return path


def loaded(kind: str, path: Path) -> Any:
    """By PEFT; a key that is missing or left over is a warning, and so an error."""
    return peft.PeftModel.from_pretrained(model(kind), path).eval()


def dense(kind: str, found: Adapter) -> dict[str, Any]:
    """What an adapter of ours adds to each weight of `Layouts`, fp64, in the weight's own shape."""
    weights = dict(model(kind).named_parameters())
    made = {}
    for part in method("lora").implementation.meaning(found):
        if not isinstance(part, LowRank):
            continue
        a, b = (np.asarray(t.read(), np.float64) for t in (part.a, part.b))
        name = f"{part.module}.weight"
        shape = tuple(weights[name].shape)
        if part.layout == "experts":
            a, b = a.reshape(EXPERTS, -1, a.shape[1]), b.reshape(b.shape[0], -1, EXPERTS)
            delta = np.einsum("ore,eri->eoi", b, a)
        else:
            delta = b.reshape(b.shape[0], -1) @ a.reshape(a.shape[0], -1)
            if part.module in ("conv1d", "words"):
                delta = delta.T
        made[name] = (part.scale * delta).reshape(shape)
    return made


def expected(kind: str, deltas: dict[str, Any]) -> dict[str, Any]:
    """The model's own forward pass with dense deltas added to its weights, in fp64."""
    live = model(kind).double()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if name in deltas:
                parameter.add_(torch.from_numpy(deltas[name]))
        doubled = {n: t.double() if t.is_floating_point() else t for n, t in given().items()}
        found: dict[str, Any] = live(doubled)
        return found
