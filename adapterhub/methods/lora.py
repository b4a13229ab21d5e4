"""LoRA: W + s·B·A (Hu et al., https://arxiv.org/abs/2106.09685).

    A: (rank, in)   B: (out, rank)   s = alpha/rank, or alpha/√rank for rsLoRA
    (Kalajdzievski, https://arxiv.org/abs/2312.03732)

Rank and alpha are per module where `rank_pattern` and `alpha_pattern` say so.

Roles: lora_A, lora_B, lora_B.bias (lora_bias), lora_embedding_A, lora_embedding_B,
lora_magnitude_vector (DoRA), lora_diag (KaSA), token_rows (trainable tokens), and `replace:…`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from adapterhub import schema
from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.errors import InvalidAdapter, NotMergeable, SchemaError
from adapterhub.methods import Ranks
from adapterhub.methods.meaning import BiasDelta, LowRank, Meaning, Part, Replacement
from adapterhub.methods.patterns import Patterns
from adapterhub.tensorfile import Tensor, shown

PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
DEFAULT_ALPHA = 8  # peft.LoraConfig.lora_alpha

# Variants by the field that asks for them. The second value says why a merge is refused; None
# means that the variant trains differently and merges like plain LoRA.
_VARIANTS: Mapping[str, tuple[str, str | None]] = {
    "use_rslora": ("rslora", None),
    "lora_bias": ("lora_bias", None),
    "use_dora": ("dora", "DoRA merging comes with a later version"),
    "use_qalora": ("qalora", "QALoRA works on pooled inputs and has no weight to add to"),
    "alora_invocation_tokens": ("alora", "aLoRA acts only after its invocation tokens"),
    "arrow_config": ("arrow", "Arrow routes between adapters at run time"),
    "kasa_config": ("kasa", "KaSA changes the base by its own SVD"),
    "use_bdlora": ("bdlora", "BD-LoRA packs block-diagonal factors"),
    "target_parameters": ("target_parameters", "experts' parameters come with a later version"),
    "layer_replication": ("layer_replication", "replicated layers share one weight"),
    "trainable_token_indices": ("trainable_tokens", "token rows come with a later version"),
    "enable_lora": ("enable_lora", "it packs the factors of a fused layer, as peft before 0.3 did"),
    "velora_config": ("velora", None),
    "monteclora_config": ("monteclora", None),
}
_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_INITS_THAT_LEAVE_IT = ("gaussian", "eva", "orthogonal", "mica")


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
    return frozenset(schema.load("methods/lora")["properties"])


def variants(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = {name for field, (name, _) in _VARIANTS.items() if config.get(field)}
    init = _init_that_changes_the_base(config)
    return tuple(sorted(named | ({init} if init else set())))


def _init_that_changes_the_base(config: Mapping[str, Any]) -> str:
    init = config.get("init_lora_weights")
    if not isinstance(init, str):
        return ""
    init = init.lower()
    return next((name for name in _INITS_THAT_CHANGE_THE_BASE if init.startswith(name)), "")


# --- checks -----------------------------------------------------------------------------------


def problems(adapter: Adapter) -> list[Problem]:
    try:
        config = parse(adapter.config)
    except (SchemaError, InvalidAdapter) as error:
        sentences = error.details or (error.message,)
        return [_fatal("config", f"adapter_config.json: {s}", error.remedy) for s in sentences]
    found: list[Problem] = []
    for module, roles in adapter.modules.items():
        found += _half_pairs(module, roles) + _dtype_problems(module, roles)
        found += [] if _packed(adapter.config) else _shape_problems(module, roles)
    if not adapter.modules:
        found.append(_fatal("no-tensors", "the weights hold no tensor", ""))
    elif all(role.startswith(REPLACE) for _, role, _ in adapter.tensors()):
        text = "the weights hold whole tensors only, and no LoRA pair"
        found.append(Problem("no-pairs", text, "check that the right modules were targeted"))
    found += _saved_problems(adapter)
    try:
        return found + _pattern_problems(adapter, config) + _rank_problems(adapter, config)
    except InvalidAdapter as error:
        return [*found, _fatal("pattern", error.message, error.remedy)]


def _packed(config: Mapping[str, Any]) -> bool:
    """Whether factors hold several matrices: experts (rows r·E), or a fused layer's parts."""
    return bool(config.get("target_parameters") or config.get("enable_lora"))


def _fatal(code: str, message: str, remedy: str) -> Problem:
    return Problem(code, message, remedy or "re-export the adapter", fatal=True)


def _half_pairs(module: str, roles: Mapping[str, Tensor]) -> list[Problem]:
    needs = [pair for a, b in PAIRS for pair in ((a, b), (b, a))]
    # These mean nothing without the pair.
    needs += [(r, "lora_B") for r in ("lora_B.bias", "lora_diag")]
    return [
        _fatal("half-pair", f"{module} has {role} but no {need}", "")
        for role, need in needs
        if role in roles and need not in roles
    ]


def _dtype_problems(module: str, roles: Mapping[str, Tensor]) -> list[Problem]:
    return [
        _fatal("dtype", f"{module}.{role} is {tensor.dtype}, expected a float type", "")
        for role, tensor in roles.items()
        if not role.startswith(REPLACE) and not tensor.dtype.startswith(("F", "BF"))
    ]


def _shape_problems(module: str, roles: Mapping[str, Tensor]) -> list[Problem]:
    return [
        _fatal(
            "shape",
            f"{module}: {a} is {list(roles[a].shape)} and {b} is {list(roles[b].shape)}, "
            "expected (rank, in) and (out, rank)",
            "",
        )
        for a, b in PAIRS
        if a in roles and b in roles and not _fit(roles[a].shape, roles[b].shape)
    ]


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) >= 2 and len(b) >= 2 and a[0] == b[1] and a[0] > 0


def _rank_problems(adapter: Adapter, config: LoraConfig) -> list[Problem]:
    found: list[Problem] = []
    wrong: Counter[tuple[int, int]] = Counter()
    for module, (role_a, _), (a, _) in () if _packed(adapter.config) else _pairs(adapter):
        expected = config.rank(module)
        if a.shape[0] != expected:
            wrong[expected, a.shape[0]] += 1
            if wrong[expected, a.shape[0]] == 1:
                text = f"{module}.{role_a} has rank {a.shape[0]}, config says r={expected}"
                found.append(_fatal("rank-mismatch", text, "correct `r` or re-export"))
    more = sum(wrong.values()) - len(wrong)
    if more:
        found.append(_fatal("rank-mismatch", f"{more} more modules differ in the same way", ""))
    return found


def _pattern_problems(adapter: Adapter, config: LoraConfig) -> list[Problem]:
    """Values of alpha that hang on the order of the keys, which peft sorts when it saves.

    A rank that hangs on it shows in the tensors. Raises InvalidAdapter for any pattern that
    cannot be used.
    """
    for module in adapter.modules:
        config.rank_pattern.is_ambiguous(module)
    unsure = [m for m in adapter.modules if config.alpha_pattern.is_ambiguous(m)]
    if not unsure:
        return []
    text = f"several keys of alpha_pattern match {unsure[0]} and say different values"
    return [Problem("alpha-order", text, "the first counts; peft sorts keys when it saves")]


def _saved_problems(adapter: Adapter) -> list[Problem]:
    """peft adds names of heads that not every model has, so one of them is enough."""
    names = adapter.config.get("modules_to_save") or []
    whole = [f".{m}." for m, role, _ in adapter.tensors() if role.startswith(REPLACE)]
    if not names or any(f".{name}." in module for name in names for module in whole):
        return []
    text = f"modules_to_save names {', '.join(map(shown, names[:5]))}; the weights hold none"
    return [Problem("no-saved", text, "a head that was trained is lost: save the adapter again")]


def ranks(adapter: Adapter) -> Ranks | None:
    if _packed(adapter.config):
        try:
            config = parse(adapter.config)
            by_module = {m: config.rank(m) for m, r in adapter.modules.items() if "lora_A" in r}
        except (SchemaError, InvalidAdapter):
            return None  # `problems` says why
    else:
        by_module = {module: a.shape[0] for module, _, (a, _) in _pairs(adapter)}
    return Ranks(by_module) if by_module else None


# --- meaning ----------------------------------------------------------------------------------


def meaning(adapter: Adapter) -> Meaning:
    refuse_variants(adapter.config)
    found = parts(adapter)
    _refuse_unused(adapter, found)
    return found


def parts(adapter: Adapter) -> Meaning:
    """The parts that plain LoRA's formula covers, whatever else the adapter holds."""
    config = parse(adapter.config)
    found: list[Part] = []
    pairs = () if _packed(adapter.config) else _pairs(adapter)
    for module, roles, (a, b) in pairs:
        scale = config.scaling(module, a.shape[0])
        layout: Literal["linear", "embedding"] = "embedding" if roles == PAIRS[1] else "linear"
        found.append(LowRank(module, a, b, scale, layout, roles))
        bias = adapter.modules[module].get("lora_B.bias")
        if bias is not None and adapter.config.get("lora_bias"):
            found.append(BiasDelta(module, bias, scale, "lora_B.bias"))
    return (*found, *_replacements(adapter))


def refuse_variants(config: Mapping[str, Any]) -> None:
    """Raises NotMergeable for the first variant that plain LoRA's formula does not cover."""
    for field, (name, reason) in _VARIANTS.items():
        if config.get(field) and reason:
            raise NotMergeable(
                f"this adapter is a {name} variant of LoRA ({field} is set) and cannot be merged: "
                f"{reason}",
                remedy="load it with peft, or retrain without this option",
            )
    _refuse_init(config)
    unknown = sorted(field for field in set(config) - fields() if config[field])
    if unknown:
        raise NotMergeable(
            "adapter_config.json sets fields that this version does not know, and one of them may "
            "change what the tensors mean",
            details=[shown(field) for field in unknown[:20]],
            remedy="upgrade adapterhub; or remove the fields, if none of them is peft's",
        )


def _refuse_init(config: Mapping[str, Any]) -> None:
    if init := _init_that_changes_the_base(config):
        raise NotMergeable(
            f"init_lora_weights is {init!r}: this adapter belongs to a base that the "
            "initialisation had changed, and is wrong on the original one",
            remedy="in peft: save_pretrained(…, path_initial_model_for_weight_conversion=…) "
            "writes a plain LoRA",
        )
    named = config.get("init_lora_weights")
    if isinstance(named, str) and named.lower() not in _INITS_THAT_LEAVE_IT:
        raise NotMergeable(
            f"init_lora_weights is {shown(named)}, which this version does not know: it may have "
            "changed the base",
            remedy=f"known to leave the base alone: {', '.join(_INITS_THAT_LEAVE_IT)}",
        )


def _pairs(adapter: Adapter) -> Iterator[tuple[str, tuple[str, str], tuple[Tensor, Tensor]]]:
    for module, roles in adapter.modules.items():
        for a, b in PAIRS:
            if a in roles and b in roles and _fit(roles[a].shape, roles[b].shape):
                yield module, (a, b), (roles[a], roles[b])


def _replacements(adapter: Adapter) -> list[Replacement]:
    return [
        Replacement(module, role.removeprefix(REPLACE), tensor, role)
        for module, role, tensor in adapter.tensors()
        if role.startswith(REPLACE)
    ]


def _refuse_unused(adapter: Adapter, found: Meaning) -> None:
    used = {
        (part.module, role)
        for part in found
        for role in (part.roles if isinstance(part, LowRank) else (part.role,))
    }
    rest = [
        f"{m}.{role}" + (" (lora_bias is not set)" if role == "lora_B.bias" else "")
        for m, role, _ in adapter.tensors()
        if (m, role) not in used
    ]
    if rest:
        raise NotMergeable(
            f"{len(rest)} tensors of this adapter are outside plain LoRA's formula",
            details=rest[:20],
            remedy="load it with peft, or re-export without them",
        )
