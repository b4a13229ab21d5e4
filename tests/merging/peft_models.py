"""Which models are trained how: data for test_against_peft.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SMALL: dict[str, Any] = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 2, "intermediate_size": 20}
BERT = {**SMALL, **ATTENTION, "max_position_embeddings": 16}
DECODER = {**SMALL, **ATTENTION, "num_key_value_heads": 1, "max_position_embeddings": 32}
T5 = {
    "vocab_size": 24,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
OPT = {**SMALL, "num_attention_heads": 2, "ffn_dim": 20, "max_position_embeddings": 16}
GPT2 = {"vocab_size": 24, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
DISTIL = {
    "vocab_size": 24,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 20,
    "max_position_embeddings": 16,
}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "image_size": 8,
    "patch_size": 4,
}


@dataclass(frozen=True)
class Model:
    """`saved` is the class whose files are the base, `trained` the class that has the adapter."""

    id: str
    config: str
    fields: dict[str, Any]
    saved: str
    trained: str
    lora: dict[str, Any]
    dtype: str = "float32"
    labels: int = 0
    shard: str | None = None
    says: str | None = None  # what config.json says instead of `saved`, as on the Hub
    fused_files: bool = False  # the files fuse experts, as the model in memory does
    known: bool = True  # whether the catalogue or transformers describes the class


def same(id: str, config: str, fields: dict[str, Any], name: str, **lora: Any) -> Model:
    """The adapter was trained on the class that the base was saved from."""
    return Model(id, config, fields, name, name, lora)


LLAMA = ("LlamaConfig", DECODER, "LlamaForCausalLM")
PROJECTIONS = ["q_proj", "v_proj", "down_proj"]
MODELS = [
    Model(
        "bert-bare-token",
        "BertConfig",
        BERT,
        "BertModel",
        "BertForTokenClassification",
        {"target_modules": ["query", "value"], "task_type": "TOKEN_CLS"},
        labels=4,
    ),
    Model(
        "bert-bare-sequence",
        "BertConfig",
        BERT,
        "BertModel",
        "BertForSequenceClassification",
        {"target_modules": ["query", "dense"], "task_type": "SEQ_CLS"},
        labels=3,
    ),
    Model(
        "bert-sequence-to-token",
        "BertConfig",
        BERT,
        "BertForSequenceClassification",
        "BertForTokenClassification",
        {"target_modules": ["key"], "task_type": "TOKEN_CLS"},
        labels=3,
    ),
    Model(
        "roberta-token",
        "RobertaConfig",
        BERT,
        "RobertaForMaskedLM",
        "RobertaForTokenClassification",
        {"target_modules": ["query"], "task_type": "TOKEN_CLS"},
        labels=2,
    ),
    Model(
        "roberta-sequence",
        "RobertaConfig",
        BERT,
        "RobertaModel",
        "RobertaForSequenceClassification",
        {"target_modules": ["query"], "task_type": "SEQ_CLS"},
        labels=5,
    ),
    Model(
        "distilbert",
        "DistilBertConfig",
        DISTIL,
        "DistilBertModel",
        "DistilBertForSequenceClassification",
        {
            "target_modules": ["q_lin", "lin1"],
            "task_type": "SEQ_CLS",
            "modules_to_save": ["pre_classifier", "classifier"],
        },
        labels=3,
    ),
    Model(
        "llama-sequence",
        "LlamaConfig",
        {**DECODER, "pad_token_id": 0},
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        {"target_modules": PROJECTIONS, "task_type": "SEQ_CLS"},
        labels=3,
    ),
    Model(
        "gpt2-bare-files",
        "GPT2Config",
        {**GPT2, "tie_word_embeddings": True},
        "GPT2Model",
        "GPT2LMHeadModel",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        says="GPT2LMHeadModel",
    ),
    Model(
        "vit-conv",
        "ViTConfig",
        VIT,
        "ViTModel",
        "ViTForImageClassification",
        {"target_modules": ["q_proj", "projection", "fc1"], "modules_to_save": ["classifier"]},
        labels=3,
    ),
    same("llama", *LLAMA, target_modules=PROJECTIONS, task_type="CAUSAL_LM"),
    same("llama-rslora", *LLAMA, target_modules=PROJECTIONS, use_rslora=True, lora_alpha=5),
    same(
        "llama-patterns",
        *LLAMA,
        target_modules=PROJECTIONS,
        rank_pattern={"q_proj": 7, r"layers\.1\..*v_proj": 2},
        alpha_pattern={"q_proj": 3, "down_proj": 11},
    ),
    same("llama-embeddings", *LLAMA, target_modules=["embed_tokens", "q_proj", "lm_head"]),
    same("llama-high-rank", *LLAMA, target_modules=["o_proj"], r=33),
    same("gpt2", "GPT2Config", GPT2, "GPT2LMHeadModel", target_modules=["c_attn", "c_proj"]),
    same("qwen2", "Qwen2Config", DECODER, "Qwen2ForCausalLM", target_modules="all-linear"),
    same(
        "qwen2-lora-bias",
        "Qwen2Config",
        DECODER,
        "Qwen2ForCausalLM",
        target_modules=["q_proj", "k_proj"],
        lora_bias=True,
    ),
    same("mistral", "MistralConfig", DECODER, "MistralForCausalLM", target_modules=PROJECTIONS),
    same("t5", "T5Config", T5, "T5ForConditionalGeneration", target_modules=["q", "v", "wo"]),
    same("opt-bias-all", "OPTConfig", OPT, "OPTForCausalLM", target_modules=["q_proj"], bias="all"),
    same(
        "opt-bias-lora",
        "OPTConfig",
        OPT,
        "OPTForCausalLM",
        target_modules=["q_proj"],
        bias="lora_only",
    ),
    same(
        "bloom",
        "BloomConfig",
        {"vocab_size": 24, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        "BloomForCausalLM",
        target_modules=["query_key_value"],
    ),
    same(
        "neox",
        "GPTNeoXConfig",
        {**BERT, "rotary_pct": 0.5},
        "GPTNeoXForCausalLM",
        target_modules=["query_key_value", "dense"],
        modules_to_save=["lm_head"],
    ),
    Model("llama-bf16", *LLAMA, LLAMA[2], {"target_modules": PROJECTIONS}, dtype="bfloat16"),
    Model("llama-fp16", *LLAMA, LLAMA[2], {"target_modules": PROJECTIONS}, dtype="float16"),
    Model("llama-sharded", *LLAMA, LLAMA[2], {"target_modules": PROJECTIONS}, shard="5KB"),
]

EOS = 1  # the last token of every sentence; BART and T5 classify what they make of it
PADDED = {**DECODER, "pad_token_id": 0}
GEMMA = {**PADDED, "head_dim": 8, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}
ELECTRA = {**BERT, "embedding_size": 12}
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
BLOOM = {"vocab_size": 24, "hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
BART = {
    "vocab_size": 24,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}


def headed(
    id: str, config: str, fields: dict[str, Any], saved: str, trained: str, *rest: Any
) -> Model:
    """A head of three labels on a base that lacks it: modules, task, and what is saved whole."""
    modules, task, *saves = rest
    more = {"modules_to_save": saves} if saves else {}
    lora = {"target_modules": modules, "task_type": task, **more}
    return Model(id, config, fields, saved, trained, lora, labels=3)


WIDER = [
    headed(
        "electra-sequence",
        "ElectraConfig",
        ELECTRA,
        "ElectraModel",
        "ElectraForSequenceClassification",
        ["query"],
        "SEQ_CLS",
    ),
    headed(
        "electra-token",
        "ElectraConfig",
        ELECTRA,
        "ElectraForMaskedLM",
        "ElectraForTokenClassification",
        ["query"],
        "TOKEN_CLS",
    ),
    headed(
        "deberta-sequence",
        "DebertaV2Config",
        {**DEBERTA, "conv_kernel_size": 3},
        "DebertaV2Model",
        "DebertaV2ForSequenceClassification",
        ["query_proj"],
        "SEQ_CLS",
        "classifier",
        "pooler",
    ),
    headed(
        "deberta-token",
        "DebertaV2Config",
        DEBERTA,
        "DebertaV2Model",
        "DebertaV2ForTokenClassification",
        ["query_proj"],
        "TOKEN_CLS",
    ),
    headed(
        "bart-sequence",
        "BartConfig",
        BART,
        "BartForConditionalGeneration",
        "BartForSequenceClassification",
        ["q_proj", "fc1"],
        "SEQ_CLS",
        "classification_head",
    ),
    headed(
        "t5-sequence",
        "T5Config",
        {**T5, "eos_token_id": EOS},
        "T5Model",
        "T5ForSequenceClassification",
        ["q"],
        "SEQ_CLS",
        "classification_head",
    ),
    headed(
        "t5-token",
        "T5Config",
        T5,
        "T5ForConditionalGeneration",
        "T5ForTokenClassification",
        ["q"],
        "TOKEN_CLS",
    ),
    headed(
        "gpt2-token",
        "GPT2Config",
        {**GPT2, "tie_word_embeddings": True},
        "GPT2LMHeadModel",
        "GPT2ForTokenClassification",
        ["c_attn"],
        "TOKEN_CLS",
    ),
    headed(
        "gemma2-sequence",
        "Gemma2Config",
        GEMMA,
        "Gemma2ForCausalLM",
        "Gemma2ForSequenceClassification",
        ["q_proj"],
        "SEQ_CLS",
    ),
    headed(
        "distilbert-token",
        "DistilBertConfig",
        DISTIL,
        "DistilBertForMaskedLM",
        "DistilBertForTokenClassification",
        ["q_lin"],
        "TOKEN_CLS",
    ),
    headed(
        "opt-sequence",
        "OPTConfig",
        {**OPT, "word_embed_proj_dim": 12, "pad_token_id": 0},
        "OPTForCausalLM",
        "OPTForSequenceClassification",
        ["q_proj"],
        "SEQ_CLS",
    ),
    replace(
        headed(
            "bloom-bare-files-sequence",
            "BloomConfig",
            BLOOM,
            "BloomModel",
            "BloomForSequenceClassification",
            ["query_key_value"],
            "SEQ_CLS",
        ),
        says="BloomForCausalLM",
    ),
    same("gemma2", "Gemma2Config", GEMMA, "Gemma2ForCausalLM", target_modules="all-linear"),
    same("phi3", "Phi3Config", PADDED, "Phi3ForCausalLM", target_modules=["qkv_proj"]),
    same(
        "qwen3",
        "Qwen3Config",
        {**DECODER, "head_dim": 8},
        "Qwen3ForCausalLM",
        target_modules="all-linear",
    ),
    same(
        "llama-tied",
        "LlamaConfig",
        {**DECODER, "tie_word_embeddings": True},
        "LlamaForCausalLM",
        target_modules=PROJECTIONS,
    ),
    same("bart", "BartConfig", BART, "BartForConditionalGeneration", target_modules=["fc1"]),
    same("bert-masked", "BertConfig", BERT, "BertForMaskedLM", target_modules=["query"]),
]
