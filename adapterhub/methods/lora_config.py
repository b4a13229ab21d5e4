"""LoRA's config: the figures that the formula needs, and the variants, refused or not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub import schema
from adapterhub.errors import InvalidAdapter, NotMergeable
from adapterhub.methods.patterns import Patterns
from adapterhub.methods.table import method
from adapterhub.tensorfile import shown

DEFAULT_ALPHA = 8  # peft.LoraConfig.lora_alpha

# Variants by the field that asks for them. The second value says why a merge is refused; None
# means that it is merged: the formula covers it, or the variant only trains differently.
VARIANTS: Mapping[str, tuple[str, str | None]] = {
    "use_rslora": ("rslora", None),
    "lora_bias": ("lora_bias", None),
    "use_dora": ("dora", None),
    "target_parameters": ("target_parameters", None),
    "trainable_token_indices": ("trainable_tokens", None),
    "velora_config": ("velora", None),
    "monteclora_config": ("monteclora", None),
    "use_qalora": ("qalora", "QALoRA works on pooled inputs and has no weight to add to"),
    "alora_invocation_tokens": ("alora", "aLoRA acts only after its invocation tokens"),
    "arrow_config": ("arrow", "Arrow routes between adapters at run time"),
    "kasa_config": ("kasa", "KaSA changes the base by its own SVD"),
    "use_bdlora": ("bdlora", "BD-LoRA packs block-diagonal factors"),
    "layer_replication": ("layer_replication", "replicated layers share one weight"),
    "enable_lora": ("enable_lora", "it packs the factors of a fused layer, as peft before 0.3 did"),
    "megatron_config": ("megatron", "Megatron splits its layers in its own way"),
}
# Every other field of the schema: those that the formula or the reading of names uses …
USED = frozenset(
    ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights", "modules_to_save")
)
# … and those that leave the meaning of the tensors alone: they say what to train, which the names
# in the file tell better, or how. `fan_in_fan_out` is PEFT's guess at what the architecture knows;
# with `ensure_weight_tying` the file holds what is tied under each of its names.
IDLE = frozenset(
    (
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias"),
        *("fan_in_fan_out", "ensure_weight_tying", "lora_dropout", "qalora_group_size"),
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "merge_weights"),
        *("megatron_core", "runtime_config", "inference_mode", "auto_mapping", "task_type"),
        *("peft_type", "peft_version", "base_model_name_or_path", "revision"),
    )
)
DECIDED = USED | IDLE | frozenset(VARIANTS)
_INITS_THAT_LEAVE_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
# What changes the base before training → how to get a plain LoRA of it.
_CONVERT = (
    "in peft: save_pretrained(…, path_initial_model_for_weight_conversion=…) writes a plain LoRA; "
    "or merge it into the changed base, with --base-is-initialised"
)
_INITS_THAT_CHANGE_IT: Mapping[str, str] = {
    "pissa": _CONVERT,
    "olora": _CONVERT,
    "corda": _CONVERT,
    "lora_ga": _CONVERT,
    "loftq": "peft cannot convert it: give the base that LoftQ wrote, dequantised, with "
    "--base-is-initialised",
}


@dataclass(frozen=True)
class LoraConfig:
    """The fields that the mathematics needs."""

    r: int
    alpha: float
    rslora: bool
    rank_pattern: Patterns
    alpha_pattern: Patterns

    def __post_init__(self) -> None:
        for name, value in (("lora_alpha", self.alpha), *self.alpha_pattern.values.items()):
            if not math.isfinite(value):
                raise InvalidAdapter(
                    f"alpha is not a finite number: {name} = {value}",
                    remedy="correct adapter_config.json",
                )

    def rank(self, module: str) -> int:
        found = self.rank_pattern.find(module)
        return self.r if found is None else int(found)

    def scaling(self, module: str, rank: int) -> float:
        """alpha/rank or alpha/√rank in fp64; `rank` is that of the module's tensors."""
        found = self.alpha_pattern.find(module)
        alpha = self.alpha if found is None else float(found)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def parse(config: Mapping[str, Any]) -> LoraConfig:
    """The checked config. Raises SchemaError or InvalidAdapter."""
    schema.check(dict(config), "methods/lora", what="LoRA config")
    alpha = config.get("lora_alpha")
    return LoraConfig(
        r=int(config["r"]),  # 8.0 is an integer to JSON Schema
        alpha=float(DEFAULT_ALPHA if alpha is None else alpha),
        rslora=bool(config.get("use_rslora")),
        rank_pattern=Patterns(dict(config.get("rank_pattern") or {})),
        alpha_pattern=Patterns(dict(config.get("alpha_pattern") or {})),
    )


def fields() -> frozenset[str]:
    """Names of the config fields that this version knows."""
    return method("lora").fields()


def variant_names() -> tuple[str, ...]:
    return tuple(sorted([name for name, _ in VARIANTS.values()] + list(_INITS_THAT_CHANGE_IT)))


def variants(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = {name for field, (name, _) in VARIANTS.items() if config.get(field)}
    init = init_that_changes_the_base(config)
    return tuple(sorted(named | ({init} if init else set())))


def init_that_changes_the_base(config: Mapping[str, Any]) -> str:
    init = config.get("init_lora_weights")
    if not isinstance(init, str):
        return ""
    init = init.lower()
    return next((name for name in _INITS_THAT_CHANGE_IT if init.startswith(name)), "")


def refuse_variants(config: Mapping[str, Any], *, base_is_initialised: bool) -> None:
    """Raises NotMergeable for the first variant that cannot be merged."""
    for field, (name, reason) in VARIANTS.items():
        if config.get(field) and reason:
            raise NotMergeable(
                f"this adapter is of the {name} variant of LoRA ({field} is set) and cannot be "
                f"merged: {reason}",
                remedy="load it with peft, or retrain without this option",
            )
    _refuse_pairings(config)
    _refuse_init(config, base_is_initialised)
    unknown = sorted(field for field in set(config) - DECIDED if config[field])
    if unknown:
        raise NotMergeable(
            "adapter_config.json sets fields that this version does not know, and one of them may "
            "change what the tensors mean",
            details=[shown(field) for field in unknown[:20]],
            remedy="upgrade adapterhub; or remove the fields, if none of them is peft's",
        )


def _refuse_pairings(config: Mapping[str, Any]) -> None:
    if config.get("use_dora") and config.get("lora_bias"):
        raise NotMergeable(
            "this adapter sets use_dora and lora_bias, and peft does not say how they go together",
            remedy="load it with peft, or retrain without one of them",
        )


def _refuse_init(config: Mapping[str, Any], base_is_initialised: bool) -> None:
    init = init_that_changes_the_base(config)
    if init and not base_is_initialised:
        raise NotMergeable(
            f"init_lora_weights is {init!r}: this adapter belongs to a base that the "
            "initialisation had changed, and is wrong on the original one",
            remedy=_INITS_THAT_CHANGE_IT[init],
        )
    if init:
        return
    named = config.get("init_lora_weights")
    if isinstance(named, str) and named.lower() not in _INITS_THAT_LEAVE_THE_BASE:
        raise NotMergeable(
            f"init_lora_weights is {shown(named)}, which this version does not know: it may have "
            "changed the base",
            remedy=f"known to leave the base alone: {', '.join(_INITS_THAT_LEAVE_THE_BASE)}",
        )
