"""transformers and peft with a hub: a base and an adapter pushed, and loaded through the endpoint.

A program of its own, as `scenario.py`: `attaching.py NAMESPACE`, $HF_ENDPOINT and $HF_TOKEN set.
"""

from __future__ import annotations

import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM


def main() -> None:
    namespace = sys.argv[1]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).push_to_hub(f"{namespace}/Base", private=True)
    base = AutoModelForCausalLM.from_pretrained(f"{namespace}/Base")
    print("base", flush=True)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, lora)
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        expected = model(tokens).logits
    model.push_to_hub(f"{namespace}/Adapter", private=True)
    model.push_to_hub(f"{namespace}/Adapter", private=True, revision="trial")
    print("adapter", flush=True)
    for revision in (None, "trial"):
        again = AutoModelForCausalLM.from_pretrained(f"{namespace}/Base")
        loaded = PeftModel.from_pretrained(again, f"{namespace}/Adapter", revision=revision)
        with torch.no_grad():
            found = loaded(tokens).logits
        if not torch.equal(found, expected):
            raise AssertionError(f"logits differ by {(found - expected).abs().max()}")
    print("loaded", flush=True)


if __name__ == "__main__":
    main()
