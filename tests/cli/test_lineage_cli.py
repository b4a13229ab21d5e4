"""How a version was made, as `show` and `diff` tell it."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.cli import differing, lineage
from adapterhub.registry.diffs import Difference

A, B = (f"sha256:{digit * 64}" for digit in "ab")


def found(told: Any, origin: Any = None) -> dict[str, Any]:
    return {"manifest": {"lineage": told}, "origin": origin}


def told(operation: str, inputs: list[dict[str, Any]], **parameters: Any) -> dict[str, Any]:
    return {"operation": operation, "inputs": inputs, "parameters": parameters}


RESIZED = told("resize", [{"digest": A, "role": "adapter"}], rank=3, energy=None, reproducible=True)
COMPOSED = told(
    "compose",
    [{"digest": A, "role": "adapter"}, {"weights_root": B, "role": "adapter", "weight": -0.5}],
    method="sum",
)


@pytest.mark.parametrize(
    ("told", "origin", "said"),
    [
        (None, {"path": "runs/ner"}, None),
        (
            RESIZED,
            {"operation": "resize", "inputs": [f"ner@{A}"]},
            "ner@sha256:aaaaaaaaaaaa; rank: 3",
        ),
        (RESIZED, {"hub": "ada/ner"}, "resize of sha256:aaaaaaaaaaaa; rank: 3"),
        # the same files added by hand say nothing of the inputs' names
        (RESIZED, {"path": "runs/x"}, "resize of sha256:aaaaaaaaaaaa; rank: 3"),
        (COMPOSED, None, "compose of sha256:aaaaaaaaaaaa, sha256:bbbbbbbbbbbb × -0.5"),
        (COMPOSED, {"operation": "compose", "inputs": "no list"}, "compose of sha256:aaaa"),
        (told("merge", [{"role": "adapter"}]), None, "merge of unknown"),
    ],
)
def test_made_by(told: Any, origin: Any, said: str | None) -> None:
    line = lineage.made_by(found(told, origin))
    assert line is None if said is None else said in str(line)


def test_a_lineage_that_one_side_alone_has_is_a_line() -> None:
    fields = {"lineage": (COMPOSED, None)}
    rows = differing.rows(
        Difference("a", "b", fields, (), (), (), 0), alone={"lineage": lineage.brief}
    )
    assert rows == [("lineage", "compose of sha256:aaaaaaaaaaaa, sha256:bbbbbbbbbbbb × -0.5", "–")]
    both = {"lineage": (COMPOSED, {**COMPOSED, "operation": "resize"})}
    rows = differing.rows(
        Difference("a", "b", both, (), (), (), 0), alone={"lineage": lineage.brief}
    )
    assert rows == [("lineage.operation", "compose", "resize")]
