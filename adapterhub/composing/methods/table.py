"""The methods that adapters are composed by: a row each, with its paper and its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from adapterhub.composing.methods.parameters import Parameter
from adapterhub.composing.methods.row import Method
from adapterhub.errors import InvalidOption

_ARXIV = "https://arxiv.org/abs/"


def _density(default: float) -> Parameter:
    return Parameter("density", default, "share of the elements kept", 0.0, 1.0, above=True)


_MAJORITY = Parameter(
    "majority_sign_method",
    "total",
    "elected by the sum, or frequency of signs",
    choices=("total", "frequency"),
)


_LAMBDA = Parameter("lambda", 1.0, "factor of the result")


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", default, "divide by the weights that count")


def _rescale(default: bool) -> Parameter:
    return Parameter("rescale", default, "make up for what is dropped")


def _elementwise(
    name: str,
    title: str,
    paper: str | None,
    *parameters: Parameter,
    file: str = "elementwise",
    **more: Any,
) -> Method:
    paper = paper and _ARXIV + paper
    return Method(name, title, paper, "dense", file, name, parameters, **more)


def _as_peft(
    name: str, title: str, paper: str, *, elects: bool, seeded: bool
) -> tuple[Method, ...]:
    """An element-wise combination of PEFT's: on the factors, and on the deltas."""
    parameters = (_density(0.5), *([_MAJORITY] if elects else ()))
    return (
        Method(
            f"peft_{name}",
            f"{title} of each factor, as PEFT",
            _ARXIV + paper,
            "factors",
            "as_peft",
            name,
            parameters,
            exact=True,
            seeded=seeded,
            equal_ranks=True,
            biases=not elects,
            note="A and B each by itself: far from the same on the deltas",
        ),
        Method(
            f"peft_{name}_svd",
            f"{title} of the deltas, as PEFT",
            _ARXIV + paper,
            "dense",
            "as_peft",
            f"{name}_svd",
            parameters,
            seeded=seeded,
            largest_rank=True,
            biases=not elects,
        ),
    )


_SHARED = (
    Method(
        "knots_ties",
        "TIES in KnOTS' shared basis",
        _ARXIV + "2410.19735",
        "factors",
        "subspaces",
        "knots_ties",
        (_density(0.2),),
        biases=False,
    ),
    Method(
        "knots_dare",
        "DARE-TIES in KnOTS' shared basis",
        _ARXIV + "2410.19735",
        "factors",
        "subspaces",
        "knots_dare",
        (_density(0.5),),
        seeded=True,
        biases=False,
    ),
    Method(
        "tsv",
        "Task singular vectors (TSV-merge)",
        _ARXIV + "2412.00081",
        "factors",
        "subspaces",
        "tsv",
        (
            Parameter(
                "share",
                None,
                "share of singular values kept; else 1 / adapters",
                0.0,
                1.0,
                above=True,
            ),
        ),
    ),
    Method(
        "iso_c",
        "Equal singular values (Iso-C)",
        _ARXIV + "2502.04959",
        "factors",
        "subspaces",
        "iso_c",
        note="truncating it is arbitrary: no direction is larger",
    ),
)
_PEFT = (
    Method(
        "peft_linear",
        "Sums of A and of B, as PEFT",
        None,
        "factors",
        "as_peft",
        "linear",
        exact=True,
        equal_ranks=True,
        note="has cross terms: far from the sum of the deltas",
    ),
    Method("peft_cat", "Concatenation, as PEFT", None, "factors", "exact", "total", exact=True),
    Method(
        "peft_svd",
        "Sum at the largest rank, as PEFT",
        None,
        "factors",
        "exact",
        "total",
        largest_rank=True,
    ),
    *_as_peft("ties", "TIES", "2306.01708", elects=True, seeded=False),
    *_as_peft("dare_linear", "DARE", "2311.03099", elects=False, seeded=True),
    *_as_peft("dare_ties", "DARE-TIES", "2311.03099", elects=True, seeded=True),
    *_as_peft("magnitude_prune", "Pruning", "2306.01708", elects=False, seeded=False),
)

_ELEMENTWISE = (
    _elementwise(
        *("ties", "TIES-Merging", "2306.01708"),
        *(_density(1.0), _LAMBDA, _normalize(True), _rescale(False), _MAJORITY),
    ),
    _elementwise(
        *("dare_linear", "DARE", "2311.03099"),
        *(_density(1.0), _LAMBDA, _normalize(False), _rescale(True)),
        seeded=True,
        check="check_normalized",
    ),
    _elementwise(
        *("dare_ties", "DARE with TIES' signs", "2311.03099"),
        *(_density(1.0), _LAMBDA, _normalize(False), _rescale(True), _MAJORITY),
        seeded=True,
    ),
    _elementwise(
        *("della", "DELLA-Merging", "2406.11617"),
        _density(1.0),
        Parameter("epsilon", 0.15, "how far probabilities go from the density", 0, 0.5),
        *(_LAMBDA, _normalize(True), _rescale(True), _MAJORITY),
        seeded=True,
        check="check_della",
    ),
    _elementwise(
        *("breadcrumbs", "Model Breadcrumbs", "2312.06795"),
        _density(1.0),
        Parameter("gamma", 0.01, "share of the largest elements that go", 0, 1),
        *(_LAMBDA, _normalize(False), _rescale(False)),
        check="check_normalized",
    ),
    _elementwise("magnitude_prune", "Sum of the largest elements", None, _density(1.0), _LAMBDA),
    _elementwise(
        *("sce", "Select, calculate, erase", "2408.07990"),
        Parameter("select_topk", 1.0, "share of the elements that differ most", 0, 1, above=True),
        inputs=(2, None),
        biases=False,
    ),
    _elementwise(
        *("slerp", "Spherical interpolation", None),
        Parameter("t", 0.5, "0: the first adapter, 1: the second", 0, 1),
        file="spherical",
        inputs=(2, 2),
        biases=False,
    ),
    _elementwise(
        *("nuslerp", "Spherical interpolation by weights", None),
        Parameter("nuslerp_flatten", True, "a whole matrix is one vector"),
        Parameter("nuslerp_row_wise", False, "else vectors run across the rows"),
        file="spherical",
        inputs=(2, 2),
        biases=False,
        check="check_sum",
        note="the weights give t, and do not scale",
    ),
)

_ROWS = (
    Method("sum", "Weighted sum", None, "factors", "exact", "total", exact=True),
    Method(
        "average",
        "Weighted average",
        None,
        "factors",
        "exact",
        "total",
        exact=True,
        averages=True,
    ),
    Method(
        "task_arithmetic",
        "Task arithmetic",
        _ARXIV + "2212.04089",
        "factors",
        "exact",
        "total",
        exact=True,
        note="negative weights make a model forget",
    ),
    *_ELEMENTWISE,
    Method(
        "concat",
        "Tokens of prompts in a row",
        None,
        "tensors",
        exact=True,
    ),
    *_SHARED,
    *_PEFT,
)

TABLE: Mapping[str, Method] = {row.name: row for row in _ROWS}
# What others call by a name that would be taken for another method here.
_ELSEWHERE = {
    "linear": "average is mergekit's linear, peft_linear PEFT's",
    "cat": "sum is exact, and as peft_cat PEFT's cat",
    "svd": "sum with a rank, or peft_svd as PEFT",
}


def method(name: str) -> Method:
    """The row of a method. Raises InvalidOption, with the nearest names."""
    if not isinstance(name, str):
        raise InvalidOption(
            f"there is no method {name!r:.60} to compose with", remedy="give the name of one"
        )
    if name in _ELSEWHERE:
        known = f"{_ELSEWHERE[name]}; adapterhub compose --methods lists all"
        raise InvalidOption(f"there is no method {name!r} to compose with", remedy=known)
    if name not in TABLE:
        near = _nearest(name[:100].lower())
        known = f"did you mean {' or '.join(near)}? " if near else ""
        raise InvalidOption(
            f"there is no method {name!r:.100} to compose with",
            remedy=f"{known}adapterhub compose --methods lists them",
        )
    return TABLE[name]


def _nearest(name: str) -> list[str]:
    """Those with all words of `name` (svd: peft_svd), then those that are spelled alike."""
    words = set(re.split(r"[^a-z]+", name)) - {""}
    having = [known for known in TABLE if words and words <= set(known.split("_"))]
    return list(dict.fromkeys([*having, *get_close_matches(name, TABLE, n=3)]))[:3]
