"""The tensors of the methods that have a spelling of our own: see `layout`, `formats.native`."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.methods.layout import Layout, Size
from adapterhub.methods.layouts import LAYOUTS

_WEIGHT = "weight.indices: n; weight.values: n"
_BIAS = "bias.indices: m; bias.values: m"
_SPARSE = Layout((_WEIGHT, _BIAS, f"{_WEIGHT}; {_BIAS}"))
_EXPERTS = (
    "MoA_A.deepspeed_experts.{n}.weight: r width; MoA_A.deepspeed_experts.{n}.bias: r; "
    "MoA_A.expert_score_weight?: _; "
    "MoA_B.deepspeed_experts.{n}.weight: width r; MoA_B.deepspeed_experts.{n}.bias: width; "
    "MoA_B.expert_score_weight?: _"
)

NATIVE: Mapping[str, Layout] = {
    "adamix": Layout((_EXPERTS,), out=("width",), into=("width",), rank="r"),
    "diff_pruning": _SPARSE,
    "fishmask": _SPARSE,
    "intrinsic_said": Layout(
        ("weight.scale: 1", "bias.scale: 1", "weight.scale: 1; bias.scale: 1"),
        shared="intrinsic_vector: @d",
        sizes={"@d": Size("intrinsic_dimension")},
    ),
    "krona": Layout(
        ("krona_A: out_a in_a; krona_B: out_b in_b",),
        out=("out_a", "out_b"),
        into=("in_a", "in_b"),
    ),
}


def layout_of(method: str) -> Layout | None:
    return LAYOUTS.get(method) or NATIVE.get(method)
