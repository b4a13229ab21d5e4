"""How a version was made, in a line for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.cli.opening import short_ref
from adapterhub.cli.output import cell, short

_TOLD_BY_THE_RECIPE = ("compose",)


def made_by(found: Mapping[str, Any]) -> str | None:
    """`resize of ner@sha256:0123456789ab; rank: 4`, of what `show` found; None without lineage.

    Inputs by the names that they had here; of a version from elsewhere by their digests.
    """
    lineage = found["manifest"]["lineage"]
    if not lineage:
        return None
    said = f"{lineage['operation']} of {', '.join(_inputs(lineage, found['origin'] or {}))}"
    if lineage["operation"] in _TOLD_BY_THE_RECIPE:
        return said
    return "; ".join([said, *_settings(lineage["parameters"])])


def brief(lineage: Mapping[str, Any] | None) -> str | None:
    """`resize of sha256:0123456789ab`, without what it was told."""
    return f"{lineage['operation']} of {', '.join(_inputs(lineage, {}))}" if lineage else None


def _inputs(lineage: Mapping[str, Any], origin: Mapping[str, Any]) -> Iterator[str]:
    names = origin.get("inputs")
    if origin.get("operation") != lineage["operation"] or not isinstance(names, list):
        names = [each.get("digest") or each.get("weights_root") for each in lineage["inputs"]]
    weights = [each.get("weight", 1) for each in lineage["inputs"]]
    for number, name in enumerate(names):
        weight = weights[number] if number < len(weights) else 1
        text = str(name or "unknown")
        text = short(text) if text.startswith("sha256:") else short_ref(text)
        yield text if weight == 1 else f"{text} × {weight:g}"


def _settings(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Those that were given; `reproducible` follows from them."""
    for name, value in parameters.items():
        if name != "reproducible" and value not in (None, False, [], "save"):
            yield f"{name.replace('_', ' ')}: {cell(value)}"
