"""What a LoRA adapter means, by hand on 2×3 tensors; and what is refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import transformers

from adapterhub.adapter import Adapter, Problem
from adapterhub.errors import NotMergeable, SchemaError
from adapterhub.methods import (
    BiasDelta,
    LowRank,
    Replacement,
    TokenRows,
    lora,
    lora_pairs,
)
from adapterhub.tensorfile import ArrayTensor

A = np.array([[1, 2, 3], [4, 5, 6]], np.float32)  # (rank 2, in 3)
B = np.array([[1, 0], [2, -1]], np.float32)  # (out 2, rank 2)
PAIR = {"lora_A": A, "lora_B": B}


def adapter(modules: Mapping[str, Mapping[str, np.ndarray]], **config: Any) -> Adapter:
    tensors = {
        module: {role: ArrayTensor(value) for role, value in roles.items()}
        for module, roles in modules.items()
    }
    return Adapter("lora", "peft", {"r": 2, "lora_alpha": 3, **config}, tensors)


def delta(part: LowRank) -> np.ndarray:
    return part.scale * (part.b.read().astype(float) @ part.a.read().astype(float))


def test_scale_times_b_times_a() -> None:
    (part,) = lora.meaning(adapter({"q": PAIR}))
    assert isinstance(part, LowRank)
    assert (part.module, part.scale, part.layout) == ("q", 1.5, "linear")
    # B·A = [[1, 2, 3], [2-4, 4-5, 6-6]], times alpha/r = 3/2
    assert delta(part).tolist() == [[1.5, 3.0, 4.5], [-3.0, -1.5, 0.0]]


def test_rslora_divides_by_the_root_of_the_rank() -> None:
    (part,) = lora.meaning(adapter({"q": PAIR}, use_rslora=True))
    assert isinstance(part, LowRank)
    assert part.scale == 3 / math.sqrt(2)


def test_alpha_and_rank_by_module() -> None:
    wide = {"lora_A": np.ones((4, 3), np.float32), "lora_B": np.ones((2, 4), np.float32)}
    config = {"rank_pattern": {"mlp.up": 4}, "alpha_pattern": {"up": 12, "mlp.*": 1}}
    seen = adapter({"mlp.up": wide, "mlp.down": PAIR, "q": PAIR}, **config)
    assert [p.code for p in lora.problems(seen)] == ["alpha-order"]
    scales = {part.module: part.scale for part in lora.meaning(seen) if isinstance(part, LowRank)}
    assert scales == {"mlp.up": 3.0, "mlp.down": 0.5, "q": 1.5}


def test_embedding_factors_are_named_so() -> None:
    roles = {"lora_embedding_A": A, "lora_embedding_B": B}
    (part,) = lora.meaning(adapter({"embed": roles}))
    assert isinstance(part, LowRank)
    assert (part.layout, part.roles) == ("embedding", ("lora_embedding_A", "lora_embedding_B"))
    assert lora.ranks(adapter({"embed": roles})) == lora.Ranks({"embed": 2})


def test_bias_and_replacements() -> None:
    bias, head = np.array([1, 2], np.float32), np.ones((4, 3), np.float32)
    seen = adapter(
        {
            "q": {**PAIR, "lora_B.bias": bias, "replace:bias": bias},
            "head": {"replace:weight": head},
        },
        lora_bias=True,
        bias="lora_only",
        modules_to_save=["head"],
    )
    pair, trained, replaced, saved = lora.meaning(seen)
    assert isinstance(pair, LowRank) and isinstance(trained, BiasDelta)
    assert (trained.module, trained.scale, trained.role) == ("q", 1.5, "lora_B.bias")
    assert isinstance(replaced, Replacement) and isinstance(saved, Replacement)
    assert (replaced.module, replaced.parameter) == ("q", "bias")
    assert (saved.module, saved.parameter, saved.role) == ("head", "weight", "replace:weight")
    assert lora.problems(seen) == []


def test_convolutions_keep_their_kernel() -> None:
    conv = {
        "lora_A": np.ones((2, 3, 4, 4), np.float32),
        "lora_B": np.ones((5, 2, 1, 1), np.float32),
    }
    seen = adapter({"conv": conv})
    assert lora.problems(seen) == []
    (part,) = lora.meaning(seen)
    assert isinstance(part, LowRank)
    assert (part.a.shape, part.b.shape) == ((2, 3, 4, 4), (5, 2, 1, 1))


@pytest.mark.parametrize(
    ("config", "name", "why"),
    [
        ({"use_qalora": True}, "qalora", "pooled inputs"),
        ({"alora_invocation_tokens": [1]}, "alora", "after its invocation tokens"),
        ({"arrow_config": {"top_k": 2}}, "arrow", "at run time"),
        ({"kasa_config": {"beta": 1}}, "kasa", "its own SVD"),
        ({"use_bdlora": {"nblocks": 2}}, "bdlora", "block-diagonal"),
        ({"megatron_config": {"x": 1}}, "megatron", "in its own way"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication", "share one weight"),
        ({"enable_lora": [True, False]}, "enable_lora", "fused layer"),
    ],
)
def test_a_variant_is_refused_by_name(config: dict[str, Any], name: str, why: str) -> None:
    with pytest.raises(NotMergeable) as caught:
        lora.meaning(adapter({"q": PAIR}, **config))
    assert f"this adapter is of the {name} variant of LoRA" in caught.value.message
    assert why in caught.value.message
    assert lora.variants(config) == (name,)


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("pissa", "pissa"),
        ("pissa_niter_16", "pissa"),
        ("PiSSA", "pissa"),
        ("olora", "olora"),
        ("corda", "corda"),
        ("loftq", "loftq"),
        ("lora_ga", "lora_ga"),
    ],
)
def test_an_initialisation_that_changes_the_base_is_refused(init: str, name: str) -> None:
    with pytest.raises(NotMergeable, match=f"init_lora_weights is '{name}'") as caught:
        lora.meaning(adapter({"q": PAIR}, init_lora_weights=init))
    assert "--base-is-initialised" in caught.value.remedy
    assert ("path_initial_model_for_weight_conversion" in caught.value.remedy) == (name != "loftq")
    assert len(lora.meaning(adapter({"q": PAIR}, init_lora_weights=init), base_is_initialised=True))
    assert lora.variants({"init_lora_weights": init}) == (name,)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_an_initialisation_that_leaves_the_base_is_not(init: bool | str | None) -> None:
    assert len(lora.meaning(adapter({"q": PAIR}, init_lora_weights=init))) == 1


def test_an_unknown_initialisation_is_refused() -> None:
    with pytest.raises(NotMergeable, match='init_lora_weights is "milora", which this version'):
        lora.meaning(adapter({"q": PAIR}, init_lora_weights="milora"))


def test_a_field_that_may_be_a_new_variant_is_refused() -> None:
    with pytest.raises(NotMergeable, match="fields that this version does not know") as caught:
        lora.meaning(adapter({"q": PAIR}, use_newlora=True, use_otherlora=False))
    assert caught.value.details == ('"use_newlora"',)


def test_what_only_trains_differently_merges() -> None:
    config = {"velora_config": {"x": 1}, "monteclora_config": {"x": 1}}
    assert len(lora.meaning(adapter({"q": PAIR}, **config))) == 1
    assert lora.variants(config) == ("monteclora", "velora")


@pytest.mark.parametrize("role", ["lora_diag", "lora_other"])
def test_a_tensor_outside_the_formula_is_refused(role: str) -> None:
    with pytest.raises(NotMergeable, match="1 tensors of this adapter are outside") as caught:
        lora.meaning(adapter({"q": {**PAIR, role: np.ones(2, np.float32)}}))
    assert caught.value.details == (f"q.{role}",)


def test_a_bias_that_the_config_does_not_ask_for_is_refused() -> None:
    """peft leaves it aside when loading, other tools mean it."""
    seen = adapter({"q": {**PAIR, "lora_B.bias": np.ones(2, np.float32)}})
    with pytest.raises(NotMergeable) as caught:
        lora.meaning(seen)
    assert caught.value.details == ("q.lora_B.bias (lora_bias is not set)",)


@pytest.mark.parametrize(
    ("config", "roles", "reason"),
    [
        ({"velora_config": {"x": 1}}, {"lora_velora_embed": B[0]}, "velora_config is for training"),
        ({"monteclora_config": {"x": 1}}, {"lora_monteclora.x": B[0]}, "monteclora_config is for"),
        (
            {"bias": "all"},
            {"replace:bias": B[0], "replace:modules_to_save.bias": B[0]},
            "PEFT loads the tensor of that name without modules_to_save",
        ),
        (
            {"bias": "all"},
            {"replace:bias": B[0], "replace:original_module.bias": B[1]},
            "it is of the module before it was trained",
        ),
    ],
)
def test_what_nothing_reads_is_left_aside_and_told(
    config: dict[str, Any], roles: dict[str, np.ndarray], reason: str
) -> None:
    seen = adapter({"q": PAIR | roles}, **config)
    ((module, role, why),) = lora.idle(seen)
    assert (module, role) == ("q", list(roles)[-1])
    assert why.startswith(reason)
    assert role not in {r for part in lora.meaning(seen) for r in getattr(part, "roles", ())}
    assert len(lora.meaning(seen)) == len(roles)
    lone = adapter({"q": PAIR | {role: roles[role]}})
    assert lora.idle(lone) == ()
    with pytest.raises(NotMergeable, match="1 tensors of this adapter are outside"):
        lora.meaning(lone)


def test_heads_that_the_config_does_not_declare_are_replacements() -> None:
    head = {"score": {"replace:weight": B}, "norm.inner": {"replace:scale": B[0]}}
    for config in ({}, {"modules_to_save": None}, {"modules_to_save": ["other.score"]}):
        _, *found = lora.meaning(adapter({"q": PAIR, **head}, **config))
        assert [(p.module, p.parameter) for p in found if isinstance(p, Replacement)] == [
            ("score", "weight"),
            ("norm.inner", "scale"),
        ]


@pytest.mark.parametrize("field", ["target_parameters", "trainable_token_indices", "rank_pattern"])
@pytest.mark.parametrize("value", [5, [{}], {"a": "b"}, "experts.w", [["x"]]])
def test_fields_of_a_wrong_type_are_named(field: str, value: Any) -> None:
    with pytest.raises(SchemaError, match=field):
        lora.meaning(adapter({"q": PAIR, "embed": {"token_rows": ROWS}}, **{field: value}))


# --- problems ---------------------------------------------------------------------------------


def _only(problems: list[Problem]) -> Problem:
    (problem,) = problems
    return problem


@pytest.mark.parametrize(
    ("role", "missing"),
    [
        ("lora_A", "lora_B"),
        ("lora_B", "lora_A"),
        ("lora_embedding_A", "lora_embedding_B"),
        ("lora_embedding_B", "lora_embedding_A"),
        ("lora_B.bias", "lora_B"),
        ("lora_diag", "lora_B"),
    ],
)
def test_half_a_pair(role: str, missing: str) -> None:
    problem = _only(lora.problems(adapter({"q": PAIR, "k": {role: B}})))
    assert (problem.code, problem.fatal) == ("half-pair", True)
    assert problem.message == f"k has {role} but no {missing}"


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3), (2, 3)), ((2,), (2, 2)), ((2, 3), (2,)), ((0, 3), (2, 0)), ((), ())],
)
def test_factors_whose_ranks_differ(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    roles = {"lora_A": np.ones(a, np.float32), "lora_B": np.ones(b, np.float32)}
    problem = _only(lora.problems(adapter({"q": roles})))
    assert (problem.code, problem.fatal) == ("shape", True)
    assert problem.message == (
        f"q: lora_A is {list(a)} and lora_B is {list(b)}, expected (rank, in) and (out, rank)"
    )


def test_rank_of_tensors_and_config_differ() -> None:
    problem = _only(lora.problems(adapter({"q": PAIR}, r=8)))
    assert problem.sentence() == ("q.lora_A has rank 2, config says r=8 (correct `r` or re-export)")
    assert problem.fatal and problem.code == "rank-mismatch"


def test_rank_mismatches_are_told_once_per_kind() -> None:
    modules = {f"layers.{number}.{name}": PAIR for number in range(9) for name in ("q", "k")}
    config = {"r": 2, "rank_pattern": {"k": 4, "layers.0.q": 16}}
    found = [p.message for p in lora.problems(adapter(modules, **config))]
    assert found == [
        "layers.0.q.lora_A has rank 2, config says r=16",
        "layers.0.k.lora_A has rank 2, config says r=4",
        "8 more modules differ in the same way",
    ]


def test_factors_of_whole_numbers() -> None:
    roles = {"lora_A": A.astype(np.int8), "lora_B": B}
    problem = _only(lora.problems(adapter({"q": roles})))
    assert problem.message == "q.lora_A is I8, expected a float type"
    small = {"lora_A": A.astype(ml_dtypes.bfloat16), "lora_B": B.astype(ml_dtypes.float8_e4m3fn)}
    assert lora.problems(adapter({"q": small})) == []


def test_a_head_that_was_to_be_saved_and_is_not_there() -> None:
    head = {"model.classifier.dense": {"replace:weight": A}}
    config = {"modules_to_save": ["classifier", "score"]}
    assert lora.problems(adapter({"q": PAIR, **head}, **config)) == []
    problem = _only(lora.problems(adapter({"q": PAIR, "subclassifier": PAIR}, **config)))
    assert (problem.code, problem.fatal) == ("no-saved", False)
    assert problem.message == ('modules_to_save names "classifier", "score"; the weights hold none')


def test_nothing_at_all_and_nothing_but_heads() -> None:
    assert _only(lora.problems(adapter({}))).message == "the weights hold no tensor"
    heads = _only(lora.problems(adapter({"head": {"replace:weight": A}}, modules_to_save=["head"])))
    assert (heads.code, heads.fatal) == ("no-pairs", False)


def test_a_config_that_is_refused_is_one_problem_per_sentence() -> None:
    found = lora.problems(adapter({"q": PAIR}, r="2", lora_alpha=None))
    assert [p.code for p in found] == ["config", "config"]
    assert found[0].message == 'adapter_config.json: r: got "2", expected an integer'


def test_a_pattern_that_cannot_be_used_is_a_problem() -> None:
    for field, more in product(("rank_pattern", "alpha_pattern"), ({}, {"enable_lora": [True]})):
        # Also behind a key that matches, which `find` would not try.
        seen = adapter({"q": PAIR}, **{field: {"q": 2, "(": 2}}, **more)
        problem = _only(lora.problems(seen))
        assert (problem.code, problem.fatal) == ("pattern", True)
        assert "pattern '(' of adapter_config.json cannot be used" in problem.message


def test_ranks_of_packed_factors_without_a_usable_config() -> None:
    for config in ({"r": "2"}, {"rank_pattern": {"(": 1}}):
        seen = adapter({"experts": PAIR}, target_parameters=["experts.w"], **config)
        assert lora.ranks(seen) is None


def test_keys_of_alpha_whose_order_matters_are_told() -> None:
    patterns = {"q": 1, "layers.1.*": 2, "k": 2}
    modules = {"layers.0.q": PAIR, "layers.1.k": PAIR}
    assert lora.problems(adapter(modules, alpha_pattern=patterns)) == []
    problem = _only(lora.problems(adapter({**modules, "layers.1.q": PAIR}, alpha_pattern=patterns)))
    assert (problem.code, problem.fatal) == ("alpha-order", False)
    assert problem.message.startswith("several keys of alpha_pattern match layers.1.q and say")


def test_experts_are_packed_and_have_the_rank_of_the_config() -> None:
    roles = {"lora_A": np.ones((8, 3), np.float32), "lora_B": np.ones((2, 8), np.float32)}
    seen = adapter({"experts": roles}, target_parameters=["experts.w"])
    assert lora.problems(seen) == []
    assert lora.ranks(seen) == lora.Ranks({"experts.w": 2})
    (part,) = lora.meaning(seen)
    assert isinstance(part, LowRank)
    assert (part.layout, part.parameter, part.scale) == ("experts", "w", 1.5)
    odd = {"lora_A": np.ones((7, 3), np.float32), "lora_B": np.ones((2, 7), np.float32)}
    (problem,) = lora.problems(adapter({"experts": odd}, target_parameters=["experts.w"]))
    assert problem.message == (
        "experts.lora_A has rank 7, config says r=2 for each of some experts"
    )


def test_the_inner_wrapper_is_of_the_parameter_that_the_module_registered_first() -> None:
    inner = {"base_layer.lora_A": A * 2, "base_layer.lora_B": B * 2}
    patterns = {"rank_pattern": {"experts.down_proj": 1}, "alpha_pattern": {".*gate_up_proj": 8}}
    targets = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    seen = adapter({"0.mlp.experts": PAIR | inner}, target_parameters=targets, **patterns)
    up, down = lora.meaning(seen)
    assert isinstance(up, LowRank) and isinstance(down, LowRank)
    assert (up.parameter, up.roles[0], up.scale) == ("gate_up_proj", "base_layer.lora_A", 4.0)
    assert (down.parameter, down.roles[0], down.scale) == ("down_proj", "lora_A", 3.0)
    assert (up.a.read() == A * 2).all()
    assert lora.problems(seen) == []


@pytest.mark.parametrize(
    ("targets", "nested"),
    [
        (["experts.gate_up_proj"], True),  # two pairs, one name
        (["experts.gate_up_proj", "experts.down_proj"], False),  # one pair, two names
        (["experts.x1", "experts.x2"], True),  # nobody knows which is registered first
        (["experts.a", "experts.b", "experts.c"], True),
        ([], True),
    ],
)
def test_pairs_whose_parameter_is_not_certain_are_refused(targets: list[str], nested: bool) -> None:
    inner = {"base_layer.lora_A": A, "base_layer.lora_B": B} if nested else {}
    seen = adapter({"experts": PAIR | inner}, target_parameters=targets)
    with pytest.raises(NotMergeable, match=r"is not certain"):
        lora.meaning(seen)


@pytest.mark.parametrize("name", ["weight", "in_proj_weight"])
def test_a_parameter_that_every_layer_may_have_needs_its_module(name: str) -> None:
    both = {"target_parameters": [name], "target_modules": ["q"]}
    with pytest.raises(NotMergeable, match=f"names {name} without a module, beside target_modules"):
        lora.meaning(adapter({"q": PAIR}, **both))
    (part,) = lora.meaning(adapter({"q": PAIR}, target_parameters=[name], target_modules=[]))
    assert isinstance(part, LowRank) and (part.parameter, part.layout) == (name, "experts")
    assert lora.meaning(adapter({"q": PAIR}, **both | {"target_parameters": [f"v.{name}"]}))


def test_experts_register_their_parameters_in_the_order_that_is_known() -> None:
    """What transformers' classes do decides which wrapper is the inner one."""
    models = Path(transformers.__file__).parent / "models"
    seen = set()
    for file in models.glob("*/modeling_*.py"):
        for body in re.split(r"^class ", file.read_text("utf-8"), flags=re.MULTILINE):
            names = re.findall(r"self\.(\w+)(?:: [\w.]+)? = nn\.Parameter\(", body)
            known = [name for name in names if name in lora_pairs._REGISTERED]
            if len(known) > 1:
                assert known == sorted(known, key=lora_pairs._REGISTERED.index), file
                seen |= set(known)
    assert {"gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias"} <= seen


def test_keys_of_alpha_are_matched_with_the_path_of_the_parameter() -> None:
    roles = {"mlp.experts": {"lora_A": np.ones((4, 3)), "lora_B": np.ones((2, 4))}}
    patterns = {"down_proj": 1, "experts.*": 2}
    config = {"target_parameters": ["experts.down_proj"], "alpha_pattern": patterns}
    (problem,) = lora.problems(adapter(roles, **config))
    assert "match mlp.experts.down_proj and say" in problem.message
    (part,) = lora.meaning(adapter(roles, **config))
    assert isinstance(part, LowRank) and part.scale == 0.5


def test_ordinary_modules_beside_targeted_parameters_are_what_they_were() -> None:
    seen = adapter({"q_proj": PAIR, "mlp.experts": PAIR}, target_parameters=["experts.down_proj"])
    assert [p.layout for p in lora.meaning(seen) if isinstance(p, LowRank)] == ["linear", "experts"]


# --- DoRA -------------------------------------------------------------------------------------

MAGNITUDE = np.array([3, 4], np.float32)


def test_dora_hands_over_its_magnitude() -> None:
    roles = {**PAIR, "lora_magnitude_vector": MAGNITUDE}
    (part,) = lora.meaning(adapter({"q": roles}, use_dora=True))
    assert isinstance(part, LowRank) and part.magnitude is not None
    assert part.roles == ("lora_A", "lora_B", "lora_magnitude_vector")
    assert part.magnitude.read().tolist() == [3, 4]
    assert lora.problems(adapter({"q": roles}, use_dora=True)) == []


def test_half_a_dora_is_refused() -> None:
    roles = {**PAIR, "lora_magnitude_vector": MAGNITUDE}
    with pytest.raises(NotMergeable, match='"k" has no lora_magnitude_vector, and use_dora is set'):
        lora.meaning(adapter({"q": roles, "k": PAIR}, use_dora=True))
    with pytest.raises(NotMergeable, match='"q" has a lora_magnitude_vector, and use_dora is not'):
        lora.meaning(adapter({"q": roles, "k": PAIR}))
    with pytest.raises(NotMergeable, match="use_dora and lora_bias"):
        lora.meaning(adapter({"q": roles}, use_dora=True, lora_bias=True))


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1,), ()])
def test_a_magnitude_of_another_size_is_fatal(shape: tuple[int, ...]) -> None:
    roles = {**PAIR, "lora_magnitude_vector": np.ones(shape, np.float32)}
    problem = _only(lora.problems(adapter({"q": roles}, use_dora=True)))
    assert (problem.code, problem.fatal) == ("shape", True)
    assert "expected one value for each of the 2 outputs" in problem.message


def test_a_convolutions_magnitude_has_more_dimensions() -> None:
    a, b = np.ones((2, 3, 1, 1), np.float32), np.ones((4, 2, 1, 1), np.float32)
    roles = {"lora_A": a, "lora_B": b, "lora_magnitude_vector": np.ones((1, 4, 1, 1), np.float32)}
    assert lora.problems(adapter({"conv": roles}, use_dora=True)) == []


# --- rows of tokens ---------------------------------------------------------------------------

ROWS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize("indices", [[7, 0], {"embed": [7, 0]}, {"model.embed": [7, 0], "x": [1]}])
def test_rows_replace_tokens(indices: Any) -> None:
    seen = adapter({"model.embed": {"token_rows": ROWS}}, trainable_token_indices=indices)
    (part,) = lora.meaning(seen)
    assert isinstance(part, TokenRows)
    assert (part.module, part.indices, part.role) == ("model.embed", (7, 0), "token_rows")


@pytest.mark.parametrize(
    ("indices", "why"),
    [
        ([1], "names 1 tokens of it"),
        (None, "names 0 tokens of it"),
        ({"other": [1, 2]}, "names 0 tokens of it"),
        ({"embed": [1, 2], "model.embed": [3, 4]}, "names 0 tokens of it"),
        ([3, 3], "names a token twice"),
    ],
)
def test_rows_that_do_not_go_with_their_indices_are_refused(indices: Any, why: str) -> None:
    seen = adapter({"model.embed": {"token_rows": ROWS}}, trainable_token_indices=indices)
    with pytest.raises(NotMergeable, match=why):
        lora.meaning(seen)
    assert lora.parts(seen) == ()


def test_rows_of_two_embeddings_need_tokens_by_module() -> None:
    rows = {"a": {"token_rows": ROWS}, "b": {"token_rows": ROWS * 2}}
    for other in (ROWS * 2, ROWS.astype(np.float16), ROWS[:1]):
        unlike = adapter({**rows, "b": {"token_rows": other}}, trainable_token_indices=[1, 2])
        with pytest.raises(NotMergeable, match='"a" and "b" have different rows of tokens, and'):
            lora.meaning(unlike)
    same = adapter({**rows, "b": {"token_rows": ROWS.copy()}}, trainable_token_indices=[1, 2])
    assert len(lora.meaning(same)) == 2  # a head that is tied to the embedding
    found = lora.meaning(adapter(rows, trainable_token_indices={"a": [1, 2], "b": [2, 5]}))
    assert [p.indices for p in found if isinstance(p, TokenRows)] == [(1, 2), (2, 5)]


# --- the table --------------------------------------------------------------------------------
