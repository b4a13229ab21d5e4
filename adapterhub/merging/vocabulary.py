"""How many tokens the result knows: embeddings, heads and their biases have to agree."""

from __future__ import annotations

from collections.abc import Mapping

from adapterhub.base import Base
from adapterhub.errors import BaseMismatch
from adapterhub.merging.work import Work
from adapterhub.registry.naming import Naming
from adapterhub.registry.tied import vocabulary

# Buffers of BART and its kin with a column for each token.
_BY_COLUMN = ("final_logits_bias", "model.final_logits_bias")


def size(base: Base, naming: Naming, works: Mapping[str, Work]) -> int | None:
    """Rows of the result's embedding where an adapter changes their number; else None.

    Raises BaseMismatch if some tensors that have a row for each token keep the base's number.
    """
    view = base.in_memory(naming.result)
    before = vocabulary(view, naming.result)
    rows = {
        work.name: work.shape[0]
        for name in before
        if (written := naming.written(name)) and (work := works.get(written))
    }
    old = next(iter(before.values()), None)
    sizes = set(rows.values()) - {old}
    if old is None or not sizes:
        return None
    new = max(sizes)
    rows |= {name: works[name].shape[-1] for name in _BY_COLUMN if name in works}
    lacking = [f"{name} has {count}" for name, count in sorted(rows.items()) if count != new]
    if lacking:
        raise BaseMismatch(
            f"the adapter is for {new} tokens and the base for {old}, but it does not bring all "
            "that has a row for each",
            details=lacking,
            remedy="save the adapter with save_embedding_layers=True, or train with "
            "modules_to_save naming embedding and head",
        )
    return new


def rows(base: Base, naming: Naming, works: Mapping[str, Work]) -> int | None:
    """Rows of the result's embedding; None where the embedding is not known."""
    for name in vocabulary(base.in_memory(naming.result), naming.result):
        work = works.get(naming.written(name) or "")
        if work is not None and len(work.shape) == 2:
            return work.shape[0]
    return None
