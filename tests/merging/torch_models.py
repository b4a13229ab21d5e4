"""Models of a single layer, and PEFT's adapters for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Layers:
    """`kind` names a class of torch.nn; `given` is its input's shape."""

    kind: str
    sizes: tuple[Any, ...]
    given: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    model_type: str = "nobody-knows-it"


def model(layers: Layers) -> Any:
    """A model whose forward pass takes no input: always the same random one."""
    import torch

    known = getattr(torch.nn, layers.kind)
    generator = torch.Generator().manual_seed(7)
    if layers.kind == "Embedding":
        given = torch.randint(0, layers.sizes[0], layers.given, generator=generator)
    else:
        given = torch.randn(layers.given, generator=generator)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = known(*layers.sizes, **layers.options)

        def forward(self) -> Any:
            if layers.kind == "MultiheadAttention":
                return self.layer(given, given, given)[0]
            return self.layer(given)

    return Model()


def saved(layers: Layers, path: Path) -> Any:
    """The model with the weights of a directory, every one of which it must know."""
    from safetensors.torch import load_file

    found = model(layers)
    found.load_state_dict(load_file(path / "model.safetensors"), strict=True)
    return found.eval()


def adapted(layers: Layers, path: Path, **lora: Any) -> Any:
    """Save a random base and a random adapter below `path`; the live model that has it."""
    import peft
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(3)
    base = model(layers).eval()
    randomise(base)
    (path / "base").mkdir()
    config = {"model_type": layers.model_type, "tie_word_embeddings": False}
    (path / "base" / "config.json").write_text(json.dumps(config))
    save_file(base.state_dict(), path / "base" / "model.safetensors")
    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **lora}
    live = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    randomise(live, only_trained=True)
    live.save_pretrained(path / "adapter")
    return live


def randomise(found: Any, *, only_trained: bool = False) -> None:
    """Biases and magnitudes too."""
    import torch

    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad or not only_trained:
                parameter.add_(torch.randn_like(parameter) * 0.1)
