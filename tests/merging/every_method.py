"""Every case of the merges against PEFT in one list, by the method that it is of."""

from __future__ import annotations

from functools import cache
from typing import Any

import peft
import test_delegated_against_peft as delegated
import test_factor_methods_against_peft as factors
import test_methods_against_peft as plain
import test_rotations_against_peft as rotations
from test_delegation import ADAMSS
from test_methods_against_peft import PROJECTIONS, Case

from adapterhub.methods import method_of

RANK = {"r": 4, "lora_alpha": 6}
LINEAR = {"target_modules": PROJECTIONS}
ATTENTION = {"target_modules": ["q_proj", "v_proj"]}  # which have biases
CONV1D = {"target_modules": ["c_attn"]}
TINY = {**LINEAR, "r": 3, "u": 5}


def lora(name: str, model: str = "llama", **fields: Any) -> Case:
    return Case(f"lora-{name}", "LoraConfig", {**RANK, **LINEAR, **fields}, model)


LORA = [
    lora("plain"),
    lora("rslora", use_rslora=True),
    lora("dora", use_dora=True),
    lora("dora-rslora", use_dora=True, use_rslora=True),
    lora("dora-conv1d", "gpt2", use_dora=True, fan_in_fan_out=True, **CONV1D),
    lora("lora-bias", lora_bias=True, **ATTENTION),
    lora("bias-lora-only", bias="lora_only", **ATTENTION),
    lora("bias-all", bias="all"),
    lora("velora", velora_config=peft.VeloraConfig()),
    lora("monteclora", monteclora_config=peft.MontecloraConfig()),
    lora("mica", init_lora_weights="mica"),
    lora("patterns", rank_pattern={"q_proj": 2}, alpha_pattern={"layers.1.*v_proj": 3}),
    lora("embedding", target_modules=["embed_tokens", "lm_head"]),
    lora("tokens", trainable_token_indices=[3, 9]),
    lora("head", modules_to_save=["lm_head"]),
    lora("conv1d", "gpt2", fan_in_fan_out=True, **CONV1D),
]
# What follows from the layers around, or from their order in the model.
AROUND = [
    ADAMSS,
    Case("tinylora-mixed", "TinyLoraConfig", TINY),
    Case("tinylora-mixed-half", "TinyLoraConfig", {**TINY, "weight_tying": 0.5}),
    Case("tinylora-mixed-seed", "TinyLoraConfig", {**TINY, "save_projection": False}),
    Case("unilora-theta", "UniLoraConfig", {**LINEAR, "theta_d_length": 40}),
]
CASES = [
    *LORA,
    *plain.CASES,
    *rotations.CASES,
    *factors.CASES,
    *delegated.CASES,
    *AROUND,
]

# The first of each method on each kind of model, and all that are of this file.
_FIRST = {(case.config, case.model): case for case in reversed(CASES)}
QUICK = [case for case in CASES if case in (*LORA, *AROUND, *_FIRST.values())]
SLOW = [case for case in CASES if case not in QUICK]


@cache
def method_of_config(config: str) -> str:
    """Our name of what a config class of peft is for."""
    made = getattr(peft, config)(**_NEEDED.get(config, {}))
    found = method_of(made.peft_type.value)
    assert found is not None, config
    return found.name


_NEEDED = {"AdaLoraConfig": {"total_step": 9}}
