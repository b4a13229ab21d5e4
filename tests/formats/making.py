"""Small files of every format, made by what is publicly known of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.tensorfile import ArrayTensor, write_file

Shapes = Mapping[str, tuple[int, ...]]


def numbers(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    return {name: numbers(shape, i) for i, (name, shape) in enumerate(shapes.items())}


def safetensors(path: Path, shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: ArrayTensor(array) for name, array in arrays(shapes).items()}
    write_file(path, tensors, metadata or {})
    return path


def pickled(path: Path, content: Any, **options: Any) -> Path:
    """`torch.save` of tensors, where `content` maps names to shapes, at any depth."""
    import torch

    def tensors(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tensors(inner) for name, inner in value.items()}
        return torch.from_numpy(numbers(value)) if isinstance(value, tuple) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(content), path, **options)
    return path


def config(path: Path, **fields: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_text, value))
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


def gguf(
    path: Path, pairs: Mapping[str, Any], shapes: Shapes, *, version: int = 3, **claims: int
) -> Path:
    """`shapes` as numpy has them; `claims`: counts that lie."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors, count = claims.get("tensors", len(shapes)), claims.get("pairs", len(pairs))
    data = b"GGUF" + struct.pack("<IQQ", version, tensors, count)
    for key, value in pairs.items():
        data += gguf_text(key) + gguf_value(value)
    for name, shape in shapes.items():
        data += gguf_text(name) + struct.pack("<I", len(shape))
        data += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", 0, 0)
    path.write_bytes(data)
    return path


# --- one adapter of each format ---------------------------------------------------------------

LORA_GGUF = {
    "general.type": "adapter",
    "general.architecture": "llama",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}
INNER = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 2,
    "non_linearity": "relu",
}
ADAPTERHUB: dict[str, Any] = {
    "config": INNER,
    "hidden_size": 8,
    "model_class": "BertAdapterModel",
    "model_name": "owner/bert",
    "model_type": "bert",
    "name": "md",
    "version": "adapters.1.2.0",
}
DOWN_UP: Shapes = {
    "bert.encoder.layer.0.output.adapters.md.adapter_down.0.weight": (4, 8),
    "bert.encoder.layer.0.output.adapters.md.adapter_down.0.bias": (4,),
    "bert.encoder.layer.0.output.adapters.md.adapter_up.weight": (8, 4),
    "bert.encoder.layer.0.output.adapters.md.adapter_up.bias": (8,),
}
T5 = "encoder.block.0.layer.0.SelfAttention.k"
VECTORS: Shapes = {
    f"{T5}.multi_lora_b": (6, 1),
    "encoder.block.0.layer.1.DenseReluDense.wi_1.multi_lora_b": (12, 1),
}


def peft(path: Path) -> Path:
    safetensors(
        path / "adapter_model.safetensors",
        {
            "base_model.model.layers.0.q.lora_A.weight": (2, 6),
            "base_model.model.layers.0.q.lora_B.weight": (4, 2),
        },
    )
    config(path / "adapter_config.json", peft_type="LORA", r=2, target_modules=["q"])
    return path


def merged_linear(path: Path) -> Path:
    """Two of three parts of a fused layer, each of rank 2."""
    shapes = {
        "base_model.model.h.0.attn.lora_A.weight": (4, 6),
        "base_model.model.h.0.attn.lora_B.weight": (8, 2, 1),
    }
    safetensors(path / "adapter_model.safetensors", shapes)
    fields = {"peft_type": "LORA", "r": 2, "enable_lora": [True, False, True]}
    config(path / "adapter_config.json", **fields)
    return path


def adapterhub(path: Path) -> Path:
    safetensors(path / "adapter.safetensors", DOWN_UP)
    config(path / "adapter_config.json", **ADAPTERHUB)
    return path


def mlx(path: Path) -> Path:
    safetensors(
        path / "adapters.safetensors",
        {
            "model.layers.3.self_attn.q_proj.lora_a": (6, 2),
            "model.layers.3.self_attn.q_proj.lora_b": (2, 4),
            "model.layers.3.mlp.experts.up_proj.lora_a": (5, 2, 6),
            "model.layers.3.mlp.experts.up_proj.lora_b": (5, 4, 2),
        },
    )
    parameters = {"rank": 2, "scale": 10.0, "dropout": 0.0}
    config(
        path / "adapter_config.json",
        fine_tune_type="lora",
        num_layers=4,
        lora_parameters=parameters,
        model="owner/base",
    )
    return path


def mlx_npz(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    shapes = {"model.layers.3.q_proj.lora_a": (6, 2), "model.layers.3.q_proj.lora_b": (2, 4)}
    np.savez(path / "adapters.npz", **arrays(shapes))
    return path


def gguf_lora(path: Path) -> Path:
    shapes = {
        "blk.0.attn_q.weight.lora_a": (2, 6),
        "blk.0.attn_q.weight.lora_b": (4, 2),
        "token_embd.weight.lora_a": (9, 2),
        "token_embd.weight.lora_b": (6, 2),
    }
    return gguf(path / "x.gguf", LORA_GGUF, shapes).parent


def kohya(path: Path) -> Path:
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    shapes = {f"{module}.lora_down.weight": (2, 6), f"{module}.lora_up.weight": (4, 2)}
    safetensors(path / "x.safetensors", {**shapes, f"{module}.alpha": ()})
    return path


def lycoris(path: Path) -> Path:
    module = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    names = {"hada_w1_a": (4, 2), "hada_w1_b": (2, 6), "hada_w2_a": (4, 2), "hada_w2_b": (2, 6)}
    shapes = {f"{module}.{name}": shape for name, shape in names.items()}
    safetensors(path / "x.safetensors", {**shapes, f"{module}.alpha": ()})
    return path


def _diffusers(name: str, *suffixes: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        shapes = {f"{name}{s}": shape for s, shape in zip(suffixes, ((2, 6), (4, 2)), strict=True)}
        safetensors(path / "lora.safetensors", shapes)
        return path

    return make


DIFFUSERS = {
    "lora_A": _diffusers("unet.mid_block.attn1.to_q", ".lora_A.weight", ".lora_B.weight"),
    "lora.down": _diffusers("unet.mid_block.to_q", ".lora.down.weight", ".lora.up.weight"),
    "to_q_lora": _diffusers("mid_block.attn1.processor.to_q_lora", ".down.weight", ".up.weight"),
    "lora_linear_layer": _diffusers(
        "text_encoder.text_model.layers.0.q_proj",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
}


def loralib(path: Path) -> Path:
    name = "transformer.h.0.attn.c_attn"
    shapes = {f"{name}.lora_A": (4, 6), f"{name}.lora_B": (12, 2)}
    return pickled(path / "model.26289.pt", {"model_state_dict": shapes}).parent


def torchtune(path: Path) -> Path:
    name = "layers.0.attn.q_proj"
    shapes = {f"{name}.lora_a.weight": (2, 6), f"{name}.lora_b.weight": (4, 2)}
    pickled(path / "adapter_0.pt", shapes)
    config(path / "adapter_config.json", peft_type="LORA", r=2, lora_alpha=4)
    return path


def litgpt(path: Path) -> Path:
    name = "transformer.h.0.attn.qkv"
    shapes = {f"{name}.lora_A": (4, 6), f"{name}.lora_B": (12, 2)}
    pickled(path / "lit_model.pth.lora", {"model": shapes})
    (path / "hyperparameters.yaml").write_text("lora_r: 2\n")
    return path


def tfew(path: Path) -> Path:
    return pickled(path / "finish.pt", VECTORS).parent


def t5x_prompt(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    np.save(path / "mrpc.npy", numbers((5, 8)))
    return path


def native(path: Path) -> Path:
    config(path / "adapter_config.json", adapterhub=1, method="krona", scaling=0.5)
    name = "model.layers.0.self_attn.q_proj"
    shapes = {f"{name}:krona_A": (2, 4), f"{name}:krona_B": (4, 2)}
    safetensors(path / "adapter_model.safetensors", shapes)
    return path


def biases(path: Path) -> Path:
    name = "bert.encoder.layer.0.attention.self"
    shapes = {f"{name}.query.bias": (8,), f"{name}.key.bias": (8,), "classifier.weight": (3, 8)}
    return pickled(path / "biases.pt", shapes).parent


SOUP = "bert.encoder.layer.0.output.ExpertSoup"
EXPERTS: Shapes = {
    f"{SOUP}.{side}.deepspeed_experts.{k}.{what}": shape if what == "weight" else shape[:1]
    for side, shape in (("MoA_A", (2, 8)), ("MoA_B", (8, 2)))
    for k in range(2)
    for what in ("weight", "bias")
}


def adamix(path: Path) -> Path:
    scores: Shapes = {f"{SOUP}.MoA_A.expert_score_weight": (2,), "classifier.weight": (3, 8)}
    pickled(path / "pytorch_model_mnli_expert_soup.bin", {**EXPERTS, **scores})
    return path


def fish_mask(path: Path) -> Path:
    shapes: Shapes = {f"{T5}.weight": (6, 6), "shared.weight": (10, 6)}
    pickled(path / "finish.pt", shapes)
    pickled(path / "mask.bin", shapes)
    return path


def said(path: Path) -> Path:
    shapes: Shapes = {"intrinsic_parameter": (5,), "intrinsic_parameter_said": (9,)}
    return pickled(path / "said.bin", shapes).parent


def ladder_state(path: Path) -> Path:
    shapes: Shapes = {
        "encoder.block.0.side_ladder_module.layer.0.SelfAttention.q.weight": (2, 2),
        "encoder.side_gate_params.0": (1,),
    }
    return pickled(path / "side.bin", shapes).parent


def pyreft(path: Path) -> Path:
    config(path / "config.json", intervention_types=["LoreftIntervention"])
    shapes = {"weight": (2, 8), "bias": (2,), "rotate_layer": (8, 2)}
    pickled(path / "intkey_comp_block_output_unit_pos_nunit_1#0.bin", shapes)
    return path


# Name of the format → what makes one. `None` as rank: it has none, or none that shows.
MAKERS: Mapping[str, tuple[Callable[[Path], Path], str | None, set[int]]] = {
    "adamix": (adamix, "adamix", set()),
    "adapterhub": (adapterhub, "bottleneck", set()),
    "biases": (biases, "bitfit", set()),
    "fish_mask": (fish_mask, "fishmask", set()),
    "gguf": (gguf_lora, "lora", {2}),
    "kohya": (kohya, "lora", {2}),
    "ladder_state": (ladder_state, "ladder_side", set()),
    "litgpt": (litgpt, "lora", {4}),
    "loralib": (loralib, "lora", {4}),
    "lycoris": (lycoris, "loha", {2}),
    "mlx": (mlx, "lora", {2}),
    "native": (native, "krona", set()),
    "peft": (peft, "lora", set()),
    "peft_merged_linear": (merged_linear, "lora", {2}),
    "pyreft": (pyreft, "reft", {2}),
    "said": (said, "intrinsic_said", set()),
    "t5x_prompt": (t5x_prompt, "prompt_tuning", set()),
    "tfew": (tfew, "ia3", set()),
    "torchtune": (torchtune, "lora", {2}),
    "diffusers": (DIFFUSERS["lora.down"], "lora", {2}),
}

# What is not read for another reason than that nobody wrote a reader.
REMEDIES = {
    "said": "keep what it did to the weights, where you have the trained checkpoint: "
    "adapterhub.registry.sparse.difference(base, trained); a native one stores its seed",
    "ladder_state": "write it as native, with its layers and its `output` named: see "
    "schemas/methods/ladder_side.json and README, Native adapters",
}
