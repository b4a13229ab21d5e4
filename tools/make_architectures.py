"""Writes registry/architectures/*.json from what transformers builds on the meta device.

    python tools/make_architectures.py            writes the files
    python tools/make_architectures.py --check    exits 1 if one differs from what would be written

The files are data that a person reviews: sorted, one module per line, numbers of layers as `*`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub._introspect import Overrides, describe

FOLDER = Path(__file__).resolve().parent.parent / "registry" / "architectures"
LINE = 100

_DEBERTA_V3: Overrides = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
_BIASED: Overrides = {"attention_bias": True}
# Few layers and experts, which are all alike: enough of them to have every kind.
_MOE: Overrides = {"num_hidden_layers": 4}
_DEEPSEEK: Overrides = {
    **_MOE,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
}

# Model type → the configurations whose tensors it must cover. What only some of them have is
# marked as optional. They stand for published models, e.g. T5 v1.1, DeBERTa v3, OPT-350m.
VARIANTS: Mapping[str, Sequence[Overrides]] = {
    "albert": [{}],
    "bart": [{}],
    "bert": [{}],
    "bloom": [{}],
    "clip": [{}],
    "clip_text_model": [{}],
    "clip_vision_model": [{}],
    "deberta-v2": [
        {},
        _DEBERTA_V3,
        {**_DEBERTA_V3, "share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu"},
        {"type_vocab_size": 2, "embedding_size": 128},
    ],
    "deepseek_v2": [_DEEPSEEK, {**_DEEPSEEK, **_BIASED, "q_lora_rank": None}],
    "deepseek_v3": [_DEEPSEEK, {**_DEEPSEEK, **_BIASED, "q_lora_rank": None}],
    "distilbert": [{}],
    "electra": [{}, {"embedding_size": 256}],
    "falcon": [
        {},
        {"new_decoder_architecture": True},
        {"bias": True, "alibi": True},
        {"parallel_attn": False, "multi_query": False},
    ],
    "gemma2": [{}, _BIASED],
    "gemma3_text": [{}, _BIASED],
    "gpt2": [{}],
    "gpt_neox": [{}, {"attention_bias": False}],
    "gptj": [{}],
    "llama": [{}, {**_BIASED, "mlp_bias": True}],
    "mamba": [{}, {"use_bias": True}],
    "mistral": [{}],
    "mixtral": [{**_MOE, "num_local_experts": 4}],
    "opt": [
        {},
        {"word_embed_proj_dim": 512, "do_layer_norm_before": False},
        {"enable_bias": False, "layer_norm_elementwise_affine": False},
    ],
    "phi3": [{}],
    "qwen2": [{}],
    "qwen2_moe": [{**_MOE, "num_experts": 4}, {**_MOE, "num_experts": 4, "mlp_only_layers": [1]}],
    "qwen3": [{}, _BIASED],
    "qwen3_moe": [
        {**_MOE, **more, "num_experts": 4} for more in ({}, _BIASED, {"mlp_only_layers": [1]})
    ],
    "roberta": [{}],
    "siglip_vision_model": [{}],
    "t5": [{}, {"feed_forward_proj": "gated-gelu"}],
    "vit": [{}, {"qkv_bias": False}],
    "whisper": [{}, {"use_weighted_layer_sum": True}],
}


def render(value: Any, indent: int = 0, used: int = 0) -> str:
    """JSON on one line where it fits after `used` columns, else one item per line."""
    flat = json.dumps(value)
    if not isinstance(value, (dict, list)) or not value or indent + used + len(flat) < LINE:
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, list):
        lines = [pad + render(item, indent + 1) for item in value]
    else:
        keys = {key: f"{json.dumps(key)}: " for key in value}
        lines = [pad + keys[k] + render(v, indent + 1, len(keys[k])) for k, v in value.items()]
    opening, closing = "[]" if isinstance(value, list) else "{}"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{' ' * indent}{closing}"


def contents(model_type: str) -> str:
    return render(describe(model_type, VARIANTS[model_type])) + "\n"


def _is_stale(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text("utf-8") != text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write registry/architectures/*.json.")
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE", help="default: all")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if different")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.model_types) - set(VARIANTS))
    if unknown:
        parser.error(f"not in VARIANTS: {', '.join(unknown)}")

    stale = []
    for model_type in options.model_types or sorted(VARIANTS):
        path, text = FOLDER / f"{model_type}.json", contents(model_type)
        if _is_stale(path, text):
            stale.append(model_type)
            if not options.check:
                path.write_text(text, "utf-8")
    word = "differs" if options.check else "written"
    print("\n".join(f"{word}: {model_type}" for model_type in stale) or "all up to date")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
