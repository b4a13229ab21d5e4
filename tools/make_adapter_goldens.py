"""Makes tests/golden/adapters with AdapterHub's own library, in an environment of its own.

    python -m venv GOLDEN && GOLDEN/bin/pip install 'adapters==1.3.*' torch
    GOLDEN/bin/python tools/make_adapter_goldens.py tests/golden/adapters

For each architecture a tiny random model, for each case an adapter with random values as
`save_adapter` writes it, and what the model gave out with it. The pins of `adapters` clash with
ours, so this is no part of the tests; they read what lies there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from safetensors.torch import save_file

SEED = 20
SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SMALL, "intermediate_size": 12, "max_position_embeddings": 16, "type_vocab_size": 2}
LLAMA = {**SMALL, "intermediate_size": 12, "max_position_embeddings": 16, "num_key_value_heads": 1}
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", BERT),
    "bert_lm": ("BertForMaskedLM", BERT),
    "roberta": ("RobertaModel", {**BERT, "pad_token_id": 1}),
    "distilbert": (
        "DistilBertModel",
        {
            "vocab_size": 20,
            "dim": 8,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 12,
            "max_position_embeddings": 16,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "vocab_size": 20,
            "d_model": 8,
            "d_kv": 4,
            "d_ff": 12,
            "num_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "gpt2": (
        "GPT2Model",
        {"vocab_size": 20, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16},
    ),
    "llama": ("LlamaModel", LLAMA),
    "mistral": ("MistralModel", LLAMA),
    "qwen2": ("Qwen2Model", LLAMA),
    "qwen2_lm": ("Qwen2ForCausalLM", LLAMA),
    "qwen3": ("Qwen3Model", {**LLAMA, "head_dim": 4}),
    "vit": (
        "ViTModel",
        {
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 12,
            "image_size": 8,
            "patch_size": 4,
        },
    ),
}

PFEIFFER = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 2,
    "non_linearity": "relu",
}
HOULSBY = {
    **PFEIFFER,
    "mh_adapter": True,
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
    "non_linearity": "swish",
}
PARALLEL = {
    **PFEIFFER,
    "mh_adapter": True,
    "is_parallel": True,
    "scaling": 4.0,
    "original_ln_before": False,
    "original_ln_after": True,
    "residual_before_ln": True,
}
PHM = {"phm_layer": True, "phm_dim": 2, "reduction_factor": 2, "non_linearity": "gelu"}
THREE = ("pfeiffer", "houlsby", "parallel")

CASES: Mapping[str, Mapping[str, Any]] = {
    "pfeiffer": {
        **PFEIFFER,
        "original_ln_before": True,
        "original_ln_after": True,
        "residual_before_ln": True,
    },
    "houlsby": HOULSBY,
    "parallel": PARALLEL,
    "cross": {**HOULSBY, "cross_adapter": True},
    "norms": {
        **HOULSBY,
        "ln_before": True,
        "ln_after": True,
        "scaling": "learned",
        "leave_out": [0],
    },
    "inner": {
        **HOULSBY,
        "ln_after": True,
        "adapter_residual_before_ln": True,
        "non_linearity": "leakyrelu",
        "reduction_factor": {"0": 4, "default": 2},
    },
    "added": {**HOULSBY, "original_ln_before": True, "residual_before_ln": "post_add"},
    "late": {
        **HOULSBY,
        "original_ln_before": True,
        "residual_before_ln": False,
        "original_ln_after": False,
    },
    "gated": {**HOULSBY, "use_gating": True, "scaling": "channel"},
    "beside": {
        **PARALLEL,
        "use_gating": True,
        "ln_before": True,
        "ln_after": True,
        "original_ln_after": False,
    },
    "compacter": {**HOULSBY, **PHM, "shared_phm_rule": True, "factorized_phm_W": True},
    "compacter_own": {
        **HOULSBY,
        **PHM,
        "shared_phm_rule": False,
        "factorized_phm_rule": True,
        "factorized_phm_W": False,
    },
    "compacter_all": {
        **HOULSBY,
        **PHM,
        "shared_phm_rule": True,
        "shared_W_phm": True,
        "factorized_phm_rule": True,
        "phm_bias": False,
    },
    "nice": {
        **PFEIFFER,
        "original_ln_before": True,
        "original_ln_after": True,
        "residual_before_ln": True,
        "inv_adapter": "nice",
        "inv_adapter_reduction_factor": 2,
    },
}
OTHERS: Mapping[str, Callable[[], Any]] = {
    "prefix": lambda: adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=4),
    "prefix_flat": lambda: adapters.PrefixTuningConfig(flat=True, prefix_length=3),
    "prefix_gated": lambda: adapters.PrefixTuningConfig(
        prefix_length=3, use_gating=True, bottleneck_size=4
    ),
    "mam": lambda: adapters.MAMConfig(
        adapters.PrefixTuningConfig(prefix_length=3, bottleneck_size=4),
        adapters.ParBnConfig(reduction_factor=2),
    ),
    "unipelt": lambda: adapters.UniPELTConfig(
        adapters.PrefixTuningConfig(prefix_length=3, use_gating=True, bottleneck_size=4),
        adapters.SeqBnConfig(reduction_factor=2, use_gating=True),
        adapters.LoRAConfig(r=2, alpha=4, use_gating=True),
    ),
}
SHARING = ("compacter", "compacter_all")
BLOCKS = (*THREE, "compacter_own")
# Every kind of bottleneck and of prefix; the library has no prefixes for Qwen.
EACH = (*BLOCKS, *OTHERS)
WANTED: Mapping[str, tuple[str, ...]] = {
    # Shared parameters are not saved of a bare base model, which has no prefix to its names.
    "bert": (*(name for name in CASES if name not in ("cross", *SHARING)), *OTHERS),
    "bert_lm": ("nice", *SHARING),
    "roberta": EACH,
    "distilbert": EACH,
    "t5": (*EACH, "cross", "late"),
    "gpt2": (*EACH, "late", "nice"),
    "llama": EACH,
    "mistral": EACH,
    "qwen2": BLOCKS,
    "qwen2_lm": ("nice",),
    "qwen3": BLOCKS,
    "vit": (*EACH, "norms"),
}


def config_of(case: str) -> Any:
    return OTHERS[case]() if case in OTHERS else adapters.BnConfig(**CASES[case])


def model_of(architecture: str) -> Any:
    torch.manual_seed(SEED)
    name, fields = MODELS[architecture]
    kind = getattr(transformers, name)
    # With torch's own attention, adapters 1.3.0 masks the prefixes of GPT-2 and Llama away.
    model = kind(kind.config_class(**fields, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inputs_of(architecture: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(SEED + 1)
    if architecture == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8)}
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    found = {"input_ids": torch.randint(2, 20, (2, 6)), "attention_mask": mask}
    if architecture == "t5":
        found["decoder_input_ids"] = torch.randint(2, 20, (2, 4))
    return found


def output_of(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs, return_dict=True)[0]
        return found


def randomise(model: Any, name: str) -> None:
    """Values that are far from an initial adapter's, which often does nothing."""
    torch.manual_seed(SEED + 2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}." in f".{key}.":
                small = 1.0 if "phm_rule" in key or ".W_" in key else 0.4
                parameter.copy_(torch.randn_like(parameter) * small)


def save(model: Any, name: str, directory: Path) -> None:
    """As `save_adapter`, the pickle as safetensors: it cannot hold tensors that are shared."""
    model.save_adapter(str(directory), name, with_head=False)
    pickle = directory / "pytorch_adapter.bin"
    tensors = torch.load(pickle, weights_only=True)
    pickle.unlink()
    save_file(
        {key: value.clone().contiguous() for key, value in sorted(tensors.items())},
        directory / "adapter.safetensors",
    )
    for other in directory.iterdir():
        if other.name not in ("adapter_config.json", "adapter.safetensors"):
            other.unlink()


def main(root: Path) -> None:
    versions = {"adapters": adapters.__version__, "transformers": transformers.__version__}
    versions["torch"] = torch.__version__
    for architecture, cases in WANTED.items():
        place = root / architecture
        model_of(architecture).save_pretrained(place / "base")
        inputs = inputs_of(architecture)
        expected = {"base": output_of(model_of(architecture), inputs)}
        for case in cases:
            model = model_of(architecture)
            adapters.init(model)
            model.add_adapter("golden", config=config_of(case))
            model.set_active_adapters("golden")
            randomise(model, "golden")
            save(model.eval(), "golden", place / case)
            expected[case] = output_of(model, inputs)
            changed = (expected[case] - expected["base"]).abs().max().item()
            if not changed > 1e-2:
                raise SystemExit(f"{architecture}/{case} does nothing")
            print(f"{architecture}/{case}: changes the output by {changed:.3f}")
        save_file(
            {f"in.{k}": v for k, v in inputs.items()}
            | {f"out.{k}": v.contiguous() for k, v in expected.items()},
            place / "expected.safetensors",
        )
    (root / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
