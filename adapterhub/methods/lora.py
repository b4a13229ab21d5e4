"""LoRA: W + s·B·A (Hu et al., https://arxiv.org/abs/2106.09685).

    A: (rank, in)   B: (out, rank)   s = alpha/rank, or alpha/√rank for rsLoRA
    (Kalajdzievski, https://arxiv.org/abs/2312.03732)

Rank and alpha are per module where `rank_pattern` and `alpha_pattern` say so. DoRA (Liu et al.,
https://arxiv.org/abs/2402.09353) scales each row of the sum to a length that was trained; trainable
tokens replace rows of an embedding.

With `ensure_weight_tying` PEFT trains one pair, or one copy, for the input embedding and what is
tied to it, and writes it under each name, for a head transposed; so each is a part like any other.
Rows of tokens it writes once, for the embedding: what is tied follows them, and with equal indices
does so without that field (peft 0.21.2, `set_additional_trainable_modules`).

Roles: lora_A, lora_B, lora_B.bias (lora_bias), lora_embedding_A, lora_embedding_B,
lora_magnitude_vector (DoRA), lora_diag (KaSA), token_rows (trainable tokens), and `replace:…`;
`base_layer.lora_A` is of a wrapper inside another one (see lora_pairs). lora_velora_embed and
lora_monteclora.… are the state of a training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterhub.adapter import REPLACE, Adapter
from adapterhub.errors import NotMergeable
from adapterhub.methods.interface import Ranks
from adapterhub.methods.lora_checks import problems, ranks
from adapterhub.methods.lora_config import (
    fields,
    parse,
    refuse_variants,
    variant_names,
    variants,
)
from adapterhub.methods.lora_pairs import MAGNITUDE, Pair, pairs, refuse_uncertain
from adapterhub.methods.lora_signature import signature
from adapterhub.methods.meaning import (
    BiasDelta,
    LowRank,
    Meaning,
    Part,
    Replacement,
    TokenRows,
    roles_of,
)
from adapterhub.tensorfile import Tensor, shown

__all__ = [
    "Ranks",
    "fields",
    "idle",
    "meaning",
    "parse",
    "parts",
    "problems",
    "ranks",
    "signature",
    "variant_names",
    "variants",
]

TOKEN_ROWS = "token_rows"
_TRAINING = {"lora_velora_embed": "velora_config", "lora_monteclora.": "monteclora_config"}
_COPIES = {
    f"{REPLACE}modules_to_save.": "PEFT loads the tensor of that name without modules_to_save",
    f"{REPLACE}original_module.": "it is of the module before it was trained",
}


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    refuse_variants(adapter.config, base_is_initialised=base_is_initialised)
    parse(adapter.config)  # raises for fields of a wrong type, before anything looks into them
    refuse_uncertain(adapter)
    _refuse_half_dora(adapter)
    _refuse_wrong_rows(adapter)
    found = parts(adapter)
    _refuse_unused(adapter, found)
    return found


def parts(adapter: Adapter) -> Meaning:
    """What is understood of the adapter, whatever else it holds."""
    config = parse(adapter.config)
    found: list[Part] = []
    for pair in () if adapter.config.get("enable_lora") else pairs(adapter):
        rank = config.rank(pair.key) if pair.parameter else pair.a.shape[0]
        scale = config.scaling(pair.key, rank)
        found.append(_low_rank(adapter, pair, scale))
        bias = adapter.modules[pair.module].get("lora_B.bias")
        if bias is not None and pair.roles[1] == "lora_B" and adapter.config.get("lora_bias"):
            found.append(BiasDelta(pair.module, bias, scale, "lora_B.bias"))
    return (*found, *_token_rows(adapter), *_replacements(adapter))


def _low_rank(adapter: Adapter, pair: Pair, scale: float) -> LowRank:
    magnitude = adapter.modules[pair.module].get(MAGNITUDE)
    if magnitude is None or not adapter.config.get("use_dora"):
        return LowRank(pair.module, pair.a, pair.b, scale, pair.layout, pair.roles, pair.parameter)
    roles = (*pair.roles, MAGNITUDE)
    return LowRank(
        pair.module, pair.a, pair.b, scale, pair.layout, roles, pair.parameter, magnitude
    )


def _refuse_half_dora(adapter: Adapter) -> None:
    """peft trains a magnitude for every module that it adapts, or for none."""
    wanted = bool(adapter.config.get("use_dora"))
    for pair in pairs(adapter):
        if (MAGNITUDE in adapter.modules[pair.module]) != wanted:
            has, says = ("no", "is") if wanted else ("a", "is not")
            raise NotMergeable(
                f"{shown(pair.module)} has {has} {MAGNITUDE}, and use_dora {says} set",
                remedy="re-export the adapter with the config that it was trained with",
            )


# --- rows of tokens ---------------------------------------------------------------------------


def _token_rows(adapter: Adapter) -> Iterator[TokenRows]:
    for module, roles in adapter.modules.items():
        if (value := roles.get(TOKEN_ROWS)) and not _wrong_rows(adapter.config, module, value):
            yield TokenRows(module, tuple(_indices(adapter.config, module)), value, TOKEN_ROWS)


def _refuse_wrong_rows(adapter: Adapter) -> None:
    _refuse_unlike_rows(adapter)
    for module, roles in adapter.modules.items():
        value = roles.get(TOKEN_ROWS)
        if value and (wrong := _wrong_rows(adapter.config, module, value)):
            raise NotMergeable(
                f"{shown(module)}.{TOKEN_ROWS} is {list(value.shape)}, and {wrong}",
                remedy="re-export the adapter with the config that it was trained with",
            )


def _refuse_unlike_rows(adapter: Adapter) -> None:
    """A list is for the input embedding; a tied head that is saved too has the same rows."""
    found = {m: roles[TOKEN_ROWS] for m, roles in adapter.modules.items() if TOKEN_ROWS in roles}
    first = next(iter(found.values()), None)
    listed = isinstance(adapter.config.get("trainable_token_indices"), list)
    if first and listed and not all(_same(first, value) for value in found.values()):
        raise NotMergeable(
            f"{' and '.join(map(shown, found))} have different rows of tokens, and "
            "trainable_token_indices does not tell whose its tokens are",
            remedy="write them as an object, {module: tokens}",
        )


def _same(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and all(a == b for a, b in zip(one.pieces(), other.pieces(), strict=True))


def _indices(config: Mapping[str, Any], module: str) -> Sequence[int]:
    """A list is for the input embeddings, whatever they are called; else by the module's name."""
    asked = config.get("trainable_token_indices")
    if isinstance(asked, Mapping):
        own = [value for key, value in asked.items() if module.endswith(str(key))]
        asked = own[0] if len(own) == 1 else None
    # 8.0 is an integer to JSON Schema.
    return [int(index) for index in asked] if isinstance(asked, list) else []


def _wrong_rows(config: Mapping[str, Any], module: str, value: Tensor) -> str:
    """Why rows and indices do not go together; "" if they do."""
    indices = _indices(config, module)
    if len(set(indices)) < len(indices):
        return "trainable_token_indices names a token twice"
    if len(value.shape) != 2 or value.shape[0] != len(indices):
        return f"trainable_token_indices names {len(indices)} tokens of it"
    return ""


# --- whole tensors, and what is left ----------------------------------------------------------


def _replacements(adapter: Adapter) -> list[Replacement]:
    return [
        Replacement(module, role.removeprefix(REPLACE), tensor, role)
        for module, role, tensor in adapter.tensors()
        if role.startswith(REPLACE) and not role.startswith(tuple(_COPIES))
    ]


def idle(adapter: Adapter) -> tuple[tuple[str, str, str], ...]:
    """State of a training, and copies of a head's biases that PEFT writes and does not read."""
    return tuple(
        (module, role, why)
        for module, role, _ in adapter.tensors()
        if (why := _why_idle(adapter, module, role))
    )


def _why_idle(adapter: Adapter, module: str, role: str) -> str:
    for start, field in _TRAINING.items():
        if role.startswith(start) and adapter.config.get(field):
            return f"{field} is for training only"
    for start, why in _COPIES.items():
        if role.startswith(start):
            path, _, parameter = f"{module}.{role.removeprefix(start)}".rpartition(".")
            return why if REPLACE + parameter in adapter.modules.get(path, ()) else ""
    return ""


def _refuse_unused(adapter: Adapter, found: Meaning) -> None:
    used = {(part.module, role) for part in found for role in roles_of(part)}
    used |= {(module, role) for module, role, _ in idle(adapter)}
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
