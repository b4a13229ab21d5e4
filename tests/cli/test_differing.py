"""The rows of a diff: what differs, and no more."""

from __future__ import annotations

from typing import Any

from adapterhub.cli import differing
from adapterhub.registry.diffs import Difference

DIGEST = f"sha256:{'ab' * 32}"


def found(only_left: tuple[str, ...] = (), **fields: Any) -> list[differing.Row]:
    return differing.rows(Difference("a", "b", fields, only_left, (), (), 0))


def test_of_a_lineage_only_what_differs() -> None:
    one = {
        "operation": "compose",
        "inputs": [{"digest": DIGEST, "weight": 1}, {"digest": DIGEST, "weight": 0.5}],
        "parameters": {"method": "sum"},
    }
    other = {
        "operation": "compose",
        "inputs": [{"digest": DIGEST, "weight": 1}, {"digest": DIGEST, "weight": 2}, {"weight": 3}],
        "parameters": {"method": "ties", "seed": 0},
    }
    assert found(lineage=(one, other)) == [
        ("lineage.inputs.2.weight", "0.5", "2"),
        ("lineage.inputs.3", "–", "weight: 3"),
        ("lineage.parameters.method", "sum", "ties"),
        ("lineage.parameters.seed", "–", "0"),
    ]


def test_none_and_lists_of_words_are_one_cell() -> None:
    assert found(task=(None, "CAUSAL_LM"), saved=(["a"], ["a", "b"])) == [
        ("task", "–", "CAUSAL_LM"),
        ("saved", "a", "a, b"),
    ]
    assert found(lineage=(None, {"operation": "compose"})) == [
        ("lineage", "–", "operation: compose")
    ]


def test_a_field_may_be_said_briefly_where_that_tells_the_difference() -> None:
    both = ({"min": 8, "max": 8}, {"min": 4, "max": 8})
    difference = Difference("a", "b", {"rank": both}, (), (), (), 0)
    low = differing.rows(difference, {"rank": lambda rank: str(rank["min"])})
    assert low == [("rank", "8", "4")]
    high = differing.rows(difference, {"rank": lambda rank: str(rank["max"])})
    assert high == [("rank.min", "8", "4")]


def test_digests_are_short_and_layers_one_row() -> None:
    assert found(**{"base.weights_root": (DIGEST, None)})[0][1] == "sha256:abababababab"
    names = tuple(f"layers.{n}.q.lora_{side}.weight" for n in range(12) for side in "AB")
    assert found(names) == [
        ("tensor layers.*.q.lora_A.weight", "there", "–"),
        ("tensor layers.*.q.lora_B.weight", "there", "–"),
    ]
