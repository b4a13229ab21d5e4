"""The tensors of each PEFT type but LoRA: names and shapes (peft 0.21.2, tuners/*/layer.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapterhub.methods.layout import Layout, Misfit, Size, Sizes

_WIDEST = 1 << 24  # of a weight whose divisors are looked for
R = {"r": Size("r", clamped=True)}
R_PATTERN = {"r": Size("r", pattern="rank_pattern")}
TOKENS = {"@tokens": Size("num_virtual_tokens")}


def _triangle(entries: int) -> int:
    """b where `entries` are those above the diagonal of (b, b). Raises Misfit."""
    side = (1 + math.isqrt(1 + 8 * entries)) // 2
    if side * (side - 1) // 2 != entries:
        raise Misfit(f"{entries} entries are no triangle of a square matrix")
    return side


def _oft(sizes: Sizes, config: Mapping[str, Any]) -> Sizes:
    side = _triangle(sizes["n"])
    asked = int(config.get("oft_block_size", 32) or 0)
    if config.get("block_share"):  # one block stands for all, however many there are
        return {}
    into = side * sizes["blocks"]
    adjusted = asked and not config.get("r") and side == _nearest_divisor(into, asked)
    return {"in": into} if adjusted else {"b": side, "in": into}


def _nearest_divisor(size: int, asked: int) -> int:
    """What peft takes for a block of `asked` that does not divide `size`."""
    if asked >= size or size > _WIDEST:
        return size
    higher = next(n for n in range(asked, size + 1) if size % n == 0)
    lower = next(n for n in range(asked, 0, -1) if size % n == 0)
    return lower if asked - lower <= higher - asked else higher


def _psoft(sizes: Sizes, config: Mapping[str, Any]) -> Sizes:
    full = _triangle(sizes["n"]) if config.get("psoft_orth", True) else sizes["n"]
    if sizes.get("r", full) != full:
        raise Misfit(f"psoft_R.weight is of rank {full}, the vectors have {sizes['r']} entries")
    return {"r": full}


def _road(sizes: Sizes, config: Mapping[str, Any]) -> Sizes:
    """Values for each pair of outputs; two or four times as many in the other variants."""
    values = {"road_2": 1, "road_4": 2}.get(str(config.get("variant")))
    return {"out": sizes["n"] // values if values else 2 * sizes["n"]}


def _pvera(sizes: Sizes, config: Mapping[str, Any]) -> Sizes:
    rank = sizes["@d"] // 2
    if sizes["@d"] % 2 or sizes.get("@r", rank) != rank:
        raise Misfit(f"pvera_lambda_d has {sizes['@d']} entries, expected two for each rank")
    return {"r": rank}


def _miss(sizes: Sizes, config: Mapping[str, Any]) -> Sizes:
    """`init_weights` picks the formula, and with it the shape."""
    form = config.get("init_weights")
    if (form == "bat") != ("blocks" in sizes):
        raise Misfit(f"init_weights is {form!r}, and the tensor is of the other form")
    if form == "bat":
        return {"out": sizes["blocks"] * sizes["r"]}
    return {} if form == "mini" else {"out": sizes["columns"]}


def _lokr() -> tuple[str, ...]:
    first = ("lokr_w1: o1 i1", "lokr_w1_a: o1 r; lokr_w1_b: r i1")
    second = (
        "lokr_w2: o2 i2 *",
        "lokr_w2_a: o2 r; lokr_w2_b: r i2",
        "lokr_t2: r r *; lokr_w2_a: r o2; lokr_w2_b: r i2",
    )
    return tuple(f"{one}; {other}" for one in first for other in second)


def _glora() -> str:
    """Five changes, each of two factors, one tensor, or none (which is a buffer of zeros)."""
    pairs = ("A: out in", "B: out in", "C: in 1")
    factors = [
        f"glora_{one}.Xd?: {rows} r; glora_{one}.Xu?: r {columns}"
        for one, (rows, columns) in ((p[0], p[3:].split()) for p in pairs)
    ]
    return "; ".join(factors + [f"glora_{one}.X?: *; glora_{one}.zeros?: *" for one in "ABCDE"])


def _miss_forms(role: str) -> tuple[str, ...]:
    return (f"{role}: r columns", f"{role}: blocks r r")


LAYOUTS: Mapping[str, Layout] = {
    "adalora": Layout(
        ("lora_A: r in *; lora_B: out r *; lora_E: r 1",),
        rank="r",
        sizes={"r": Size("init_r", unless="rank_pattern")},
    ),
    "adamss": Layout(("adamss_A.{n}: _ _; adamss_B.{n}: _ _; adamss_newB?: _ _",)),
    "adaption_prompt": Layout(
        ("adaption_prompt: 1 tokens width; adaption_gate: 1",),
        sizes={"tokens": Size("adapter_len")},
    ),
    "beft": Layout(("beft_bias: 1 out",)),
    "boft": Layout(
        ("boft_R: n d b b; boft_s: out 1", "boft_R: n d b b; boft_s: 1 out"), into=("d", "b")
    ),
    "bone": Layout(_miss_forms("bone_block"), rank="r", sizes=R, derive=_miss),
    "c3a": Layout(
        ("c3a_kernel: o i b",),
        out=("o", "b"),
        into=("i", "b"),
        sizes={"b": Size("block_size", pattern="block_size_pattern")},
    ),
    "cartridge": Layout(shared="prompt_embeddings: @tokens @width", sizes=TOKENS),
    "cpt": Layout(shared="prompt_embeddings: @tokens @width"),
    "deft": Layout(("deft_P: out r *; deft_R?: r in *",), rank="r", sizes=R),
    "delora": Layout(
        ("delora_A: r in; delora_B: out r; delora_lambda: 1; delora_w_norm?: in",),
        rank="r",
        sizes=R_PATTERN,
    ),
    "fourierft": Layout(
        ("fourierft_spectrum: n",),
        sizes={"n": Size("n_frequency", pattern="n_frequency_pattern")},
    ),
    "frod": Layout(
        ("frod_lambda_l: in; frod_lambda_s_values: _",),
        shared="frod_V.{n}+: _ _; frod_s_indices.{n}+: 2 _; frod_s_size.{n}+: 2",
    ),
    "glora": Layout(
        (_glora(),),
        rank="r",
        sizes=R,
    ),
    "gralora": Layout(
        (
            "gralora_A: k i r; gralora_B: k r o; "
            "gralora_A_general.weight?: h in; gralora_B_general.weight?: out h",
        ),
        out=("k", "o"),
        into=("k", "i"),
        rank="r",
        sizes={"r": Size("r"), "h": Size("hybrid_r"), "k": Size("gralora_k")},
    ),
    "hira": Layout(
        ("hira_A: r in *; hira_B: out r *", "hira_embedding_A: r out; hira_embedding_B: in r"),
        rank="r",
        # peft 0.21.2 looks the pattern up and then takes r
        sizes={"r": Size("r", pattern="rank_pattern", either=True)},
    ),
    "hra": Layout(("hra_u: in r",), rank="r", sizes={"r": Size("r")}),
    "ia3": Layout(("ia3_l: out 1", "ia3_l: 1 in", "ia3_l: 1 _ 1 *")),
    "lily": Layout(
        ("lily_A.weight: r in; lily_B.weight: _ out; lily_router.weight: experts r",),
        rank="r",
        sizes={"r": Size("r"), "experts": Size("num_B")},
    ),
    "ln_tuning": Layout(("ln_tuning_layers.weight?: out; ln_tuning_layers.bias?: out",)),
    "loha": Layout(
        (
            "hada_w1_a: out r; hada_w1_b: r in; hada_w2_a: out r; hada_w2_b: r in",
            "hada_t1: r r *; hada_w1_a: r out; hada_w1_b: r in; "
            "hada_t2: r r *; hada_w2_a: r out; hada_w2_b: r in",
        ),
        rank="r",
        sizes=R_PATTERN,
    ),
    "lokr": Layout(_lokr(), out=("o1", "o2"), into=("i1", "i2"), rank="r", sizes=R_PATTERN),
    "miss": Layout(_miss_forms("miss_block"), rank="r", sizes=R, derive=_miss),
    "multitask_prompt_tuning": Layout(
        shared="prompt_embeddings: @tokens @width; prefix_task_cols: @tasks @tokens @rank; "
        "prefix_task_rows: @tasks @rank @width",
        sizes={**TOKENS, "@tasks": Size("num_tasks"), "@rank": Size("num_ranks")},
    ),
    "oft": Layout(
        ("oft_R.weight: blocks n", "oft_embedding_R.weight: blocks n"),
        sizes={"b": Size("oft_block_size")},
        derive=_oft,
    ),
    "osf": Layout(
        (
            "osf_svd_params.U_low: out k; osf_svd_params.S_low: k; osf_svd_params.V_low: k in; "
            "_osf_U_high?: out h; _osf_S_high?: h; _osf_V_high?: h in",
        ),
    ),
    "p_tuning": Layout(shared="prompt_embeddings: @tokens @width", sizes=TOKENS),
    "peanut": Layout(
        (
            "peanut_A.weight: r out; peanut_B.weight: out r; "
            "peanut_encoders.{n}.weight?: r r; peanut_decoders.{n}.weight?: r r",
        ),
        rank="r",
        sizes={"r": Size("r")},
    ),
    "poly": Layout(
        (
            "poly_lora_A: splits skills i r; poly_lora_B: splits skills r o; "
            "poly_router.module_logits: tasks _",
        ),
        out=("splits", "o"),
        into=("splits", "i"),
        rank="r",
        sizes={
            "r": Size("r"),
            "skills": Size("n_skills"),
            "splits": Size("n_splits"),
            "tasks": Size("n_tasks"),
        },
    ),
    "prefix_tuning": Layout(shared="prompt_embeddings: @tokens @width", sizes=TOKENS),
    "prompt_tuning": Layout(shared="prompt_embeddings: @tokens @width", sizes=TOKENS),
    "psoft": Layout(
        ("psoft_R.weight: n *; psoft_R.vector_a?: r; psoft_R.vector_b?: r",),
        rank="r",
        sizes=R,
        derive=_psoft,
    ),
    "pvera": Layout(
        ("pvera_lambda_b: out; pvera_lambda_d: @d",),
        shared="pvera_A+: @d _; pvera_B+: _ @r",
        rank="r",
        sizes={"r": Size("r")},
        derive=_pvera,
    ),
    "randlora": Layout(
        ("randlora_lambda: r n; randlora_gamma: n _; randlora_A?: r 1 _; randlora_B?: _ _ r",),
        shared="randlora_A+: _ 1 _; randlora_B+: _ _ _",
        rank="r",
        sizes=R,
    ),
    "road": Layout(("road_theta: n; road_alpha: n",), derive=_road),
    "shadow": Layout(
        whole=(
            *("shadow_down", "shadow_up", "shadow_update_transform", "shadow_update_gate"),
            *("shadow_backbone", "shadow_projection", "shadow_head"),
        ),
    ),
    "shira": Layout(("shira_weight: n; shira_indices: 2 n",)),
    "supertuning": Layout(
        (
            "supertuning_values: n; supertuning_indices?: n; "
            "supertuning_lora_A.weight?: r in; supertuning_lora_B.weight?: out r",
        ),
        rank="r",
        sizes=R,
    ),
    "tinylora": Layout(
        ("tinylora_A+: r in; tinylora_B+: out r; tinylora_P+: @u r r",),
        shared="tinylora_v.{n}: @u",
        rank="r",
        sizes={"r": Size("r", clamped=True), "@u": Size("u")},
    ),
    "trainable_tokens": Layout(("token_rows: tokens in",)),
    "unilora": Layout(
        (
            "unilora_indices_A?: r in; unilora_scales_A?: r in; "
            "unilora_indices_B?: out r; unilora_scales_B?: out r",
        ),
        shared="unilora_theta_d: @theta",
        rank="r",
        sizes={"r": Size("r"), "@theta": Size("theta_d_length")},
    ),
    "vblora": Layout(
        (
            "vblora_logits_A: r i @vectors; vblora_logits_B: o r @vectors",
            "vblora_logits_A_topk_indices: r i topk; vblora_logits_A_topk_weights: r i _; "
            "vblora_logits_B_topk_indices: o r topk; vblora_logits_B_topk_weights: o r _",
        ),
        shared="vblora_vector_bank: @vectors @length",
        out=("o", "@length"),
        into=("i", "@length"),
        rank="r",
        sizes={
            "r": Size("r"),
            "topk": Size("topk"),
            "@vectors": Size("num_vectors"),
            "@length": Size("vector_length"),
        },
    ),
    "vera": Layout(
        ("vera_lambda_b: out; vera_lambda_d: @r",),
        shared="vera_A+: @r _; vera_B+: _ @r",
        rank="@r",
        sizes={"@r": Size("r")},
    ),
    "waveft": Layout(
        ("waveft_spectrum: n",),
        sizes={
            "n": Size("n_frequency", pattern="n_frequency_pattern", open="proportional_parameters")
        },
    ),
    "xlora": Layout(whole=("internal_xlora_classifier",)),
}
