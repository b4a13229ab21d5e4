"""More models that are trained in more ways: data for test_against_peft.py, as in peft_models.py.

What this file holds for each architecture of the catalogue: its causal LM, sequence and token
classifiers where transformers has them, on a base without that head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peft_models import (
    BERT,
    BLOOM,
    GEMMA,
    GPT2,
    LLAMA,
    PADDED,
    PROJECTIONS,
    SMALL,
    VIT,
    Model,
    headed,
    same,
)

DISJOINT = {"num_attention_heads": 2, "pad_token_id": 0}
NEOX = {**BERT, "rotary_pct": 0.5, "pad_token_id": 0}
GPTJ = {**GPT2, "rotary_dim": 4, "pad_token_id": 0}
FALCON = {**SMALL, **DISJOINT}
ALBERT = {**BERT, "embedding_size": 12, "num_hidden_layers": 3}
HEADS = {**PADDED, "head_dim": 8}
GEMMA3 = {**HEADS, "query_pre_attn_scalar": 8}
MAMBA = {**SMALL, "state_size": 4, "pad_token_id": 0}
WHISPER = {
    "vocab_size": 24,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "num_mel_bins": 8,
    "max_source_positions": 8,
    "max_target_positions": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
}
VISION = {**VIT, "projection_dim": 8}
CLIP = {
    "text_config": {**BERT, "projection_dim": 8},
    "vision_config": VISION,
    "projection_dim": 8,
}
VIDEO = {**VIT, "num_frames": 4, "tubelet_size": 2}

# Two thirds of the experts' matrices are square with these sizes: only names tell them apart.
MIXTRAL = {**PADDED, "num_local_experts": 3}
WIDE_MIXTRAL = {**MIXTRAL, "intermediate_size": 24}  # torch multiplies bf16 in steps of 16 bytes
MOE = {
    **PADDED,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "decoder_sparse_step": 1,
}
GPT_OSS = {**PADDED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MOE = {**MOE, "shared_expert_intermediate_size": 10}
DEEPSEEK = {
    **PADDED,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 6,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 2,
    "topk_group": 1,
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def classifiers(
    id: str, config: str, fields: dict[str, Any], start: str, saved: str, modules: list[str]
) -> list[Model]:
    """A sequence and a token classifier, on a base of another class."""
    return [
        headed(
            f"{id}-{task}",
            config,
            fields,
            f"{start}{saved}",
            f"{start}For{named}Classification",
            modules,
            peft_task,
        )
        for task, named, peft_task in (
            ("sequence", "Sequence", "SEQ_CLS"),
            ("token", "Token", "TOKEN_CLS"),
        )
    ]


def experts(id: str, config: str, fields: dict[str, Any], name: str, **lora: Any) -> list[Model]:
    """The same training on files with a tensor for each expert, and on fused ones."""
    lora = {"target_modules": ["q_proj"], "target_parameters": EXPERTS, **lora}
    apart = same(id, config, fields, name, **lora)
    return [apart, replace(apart, id=f"{id}-fused-files", fused_files=True)]


DORA = [
    same("llama-dora", *LLAMA, target_modules=PROJECTIONS, use_dora=True),
    same("llama-dora-embeddings", *LLAMA, target_modules=["embed_tokens"], use_dora=True),
    same(
        "gpt2-dora",
        "GPT2Config",
        GPT2,
        "GPT2LMHeadModel",
        target_modules=["c_attn", "c_proj"],
        use_dora=True,
        use_rslora=True,
    ),
    Model(
        "vit-dora-conv",
        "ViTConfig",
        VIT,
        "ViTModel",
        "ViTForImageClassification",
        {"target_modules": ["q_proj", "projection"], "use_dora": True}
        | {"modules_to_save": ["classifier"]},
        labels=3,
    ),
    replace(
        same("llama-dora-bf16", *LLAMA, target_modules=["v_proj"], use_dora=True), dtype="bfloat16"
    ),
]

QUICK = [
    *DORA[:3],
    same("gptj", "GPTJConfig", GPTJ, "GPTJForCausalLM", target_modules=["q_proj", "fc_in"]),
    same("falcon", "FalconConfig", FALCON, "FalconForCausalLM", target_modules="all-linear"),
    same(
        "albert",
        "AlbertConfig",
        ALBERT,
        "AlbertForMaskedLM",
        target_modules=["query", "ffn", "embedding_hidden_mapping_in"],
    ),
    same("gemma3", "Gemma3TextConfig", GEMMA3, "Gemma3ForCausalLM", target_modules="all-linear"),
    same("mamba", "MambaConfig", MAMBA, "MambaForCausalLM", target_modules=["in_proj", "x_proj"]),
    same(
        "clip",
        "CLIPConfig",
        CLIP,
        "CLIPModel",
        target_modules=["q_proj", "fc1", "patch_embedding", "visual_projection"],
    ),
    same(
        "whisper",
        "WhisperConfig",
        WHISPER,
        "WhisperForConditionalGeneration",
        target_modules=["q_proj", "fc1"],
    ),
    *experts("mixtral", "MixtralConfig", MIXTRAL, "MixtralForCausalLM"),
    *experts("qwen2-moe", "Qwen2MoeConfig", QWEN_MOE, "Qwen2MoeForCausalLM"),
]

RARE = [
    *DORA[3:],
    *experts("qwen3-moe", "Qwen3MoeConfig", {**MOE, "head_dim": 8}, "Qwen3MoeForCausalLM"),
    *experts(
        "deepseek-v2",
        "DeepseekV2Config",
        DEEPSEEK,
        "DeepseekV2ForCausalLM",
        target_modules=["q_a_proj"],
    ),
    *experts(
        "deepseek-v3",
        "DeepseekV3Config",
        DEEPSEEK,
        "DeepseekV3ForCausalLM",
        target_modules=["q_a_proj", "o_proj"],
    ),
    same(
        "qwen2-moe-shared",
        "Qwen2MoeConfig",
        QWEN_MOE,
        "Qwen2MoeForCausalLM",
        target_modules=["gate_proj", "shared_expert_gate"],
    ),
    same(
        "mixtral-w1-w3",
        "MixtralConfig",
        MIXTRAL,
        "MixtralForCausalLM",
        target_modules=["w1", "w2", "w3"],
    ),
    same(
        "mixtral-down-only",
        "MixtralConfig",
        MIXTRAL,
        "MixtralForCausalLM",
        target_parameters=["experts.down_proj"],
    ),
    replace(
        experts("mixtral-bf16", "MixtralConfig", WIDE_MIXTRAL, "MixtralForCausalLM")[0],
        dtype="bfloat16",
    ),
    *classifiers("bert", "BertConfig", BERT, "Bert", "ForMaskedLM", ["query"])[1:],
    *classifiers("albert", "AlbertConfig", ALBERT, "Albert", "Model", ["query"]),
    *classifiers(
        "distilbert",
        "DistilBertConfig",
        {"vocab_size": 24, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 20},
        "DistilBert",
        "Model",
        ["q_lin"],
    )[1:],
    *classifiers("llama", "LlamaConfig", PADDED, "Llama", "ForCausalLM", PROJECTIONS)[1:],
    *classifiers("qwen2", "Qwen2Config", PADDED, "Qwen2", "ForCausalLM", ["q_proj"]),
    *classifiers("qwen3", "Qwen3Config", HEADS, "Qwen3", "ForCausalLM", ["q_proj"]),
    *classifiers("mistral", "MistralConfig", PADDED, "Mistral", "ForCausalLM", ["q_proj"]),
    *classifiers("gemma2", "Gemma2Config", GEMMA, "Gemma2", "ForCausalLM", ["q_proj"])[1:],
    headed(
        "gemma3-sequence",
        "Gemma3TextConfig",
        GEMMA3,
        "Gemma3ForCausalLM",
        "Gemma3TextForSequenceClassification",
        ["q_proj"],
        "SEQ_CLS",
    ),
    *classifiers("phi3", "Phi3Config", PADDED, "Phi3", "ForCausalLM", ["qkv_proj"]),
    *classifiers(
        "gpt2", "GPT2Config", {**GPT2, "pad_token_id": 0}, "GPT2", "LMHeadModel", ["c_attn"]
    )[:1],
    *classifiers("neox", "GPTNeoXConfig", NEOX, "GPTNeoX", "ForCausalLM", ["query_key_value"]),
    *classifiers("gptj", "GPTJConfig", GPTJ, "GPTJ", "ForCausalLM", ["q_proj"])[:1],
    *classifiers("falcon", "FalconConfig", FALCON, "Falcon", "ForCausalLM", ["query_key_value"]),
    *classifiers("bloom", "BloomConfig", BLOOM, "Bloom", "ForCausalLM", ["query_key_value"]),
    *classifiers("mixtral", "MixtralConfig", MIXTRAL, "Mixtral", "ForCausalLM", ["q_proj"]),
    *classifiers("qwen2-moe", "Qwen2MoeConfig", QWEN_MOE, "Qwen2Moe", "ForCausalLM", ["q_proj"]),
    *classifiers(
        "qwen3-moe", "Qwen3MoeConfig", {**MOE, "head_dim": 8}, "Qwen3Moe", "ForCausalLM", ["q_proj"]
    ),
    *classifiers(
        "deepseek-v2", "DeepseekV2Config", DEEPSEEK, "DeepseekV2", "ForCausalLM", ["q_a_proj"]
    )[:1],
    *classifiers(
        "deepseek-v3", "DeepseekV3Config", DEEPSEEK, "DeepseekV3", "ForCausalLM", ["q_a_proj"]
    ),
    same(
        "gpt-oss-transposed",
        "GptOssConfig",
        GPT_OSS,
        "GptOssForCausalLM",
        target_modules=["q_proj"],
        target_parameters=EXPERTS,
    ),
    replace(
        same(
            "siglip-attention",
            "SiglipVisionConfig",
            VISION,
            "SiglipVisionModel",
            target_modules=["attention", "q_proj", "patch_embedding"],
        ),
    ),
    same(
        "videomae-conv3d",
        "VideoMAEConfig",
        VIDEO,
        "VideoMAEForVideoClassification",
        target_modules=["projection", "query"],
    ),
]
