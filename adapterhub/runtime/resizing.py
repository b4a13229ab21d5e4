"""A model for another number of tokens, where the adapter brings all that has a row for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapterhub.errors import BaseMismatch
from adapterhub.methods import Meaning, Replacement
from adapterhub.registry.tied import fits_resized, vocabulary
from adapterhub.runtime.live import Live

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def tokens_of(live: Live, meaning: Meaning) -> int | None:
    """How many the adapter was trained with, where that is another number than the model's."""
    rows = vocabulary(live.base, live.base.model_class)
    for name, part in _whole(live, meaning).items():
        if name in rows and fits_resized(live.tensors[name].shape, part.value.shape):
            return part.value.shape[0]
    return None


def resize(model: PreTrainedModel, meaning: Meaning) -> None:
    """Give the model the adapter's number of tokens.

    Raises BaseMismatch where a tensor with new rows is not the adapter's: they would be random.
    """
    before = Live(model)
    tokens = tokens_of(before, meaning)
    if tokens is None:
        return
    model.resize_token_embeddings(tokens, mean_resizing=False)
    now = Live(model)
    brought = _whole(now, meaning)
    lacking = [
        name
        for name, tensor in now.tensors.items()
        if name in before.tensors
        and tensor.shape != before.tensors[name].shape
        and not brought.keys() & {*now.shared.get(name, (name,))}
    ]
    if lacking:
        raise BaseMismatch(
            f"the adapter is for {tokens} tokens, another number than the base's, and does not "
            "bring all that has a row for each",
            details=lacking,
            remedy="save the adapter with save_embedding_layers=True, or train with "
            "modules_to_save naming embedding and head",
        )


def _whole(live: Live, meaning: Meaning) -> Mapping[str, Replacement]:
    """By the model's names."""
    return {
        f"{live.naming.stored(part.module)}.{part.parameter}": part
        for part in meaning
        if isinstance(part, Replacement)
    }
