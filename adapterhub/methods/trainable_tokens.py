"""Trainable tokens: rows of an embedding (peft, tuners/trainable_tokens).

Row i of what was trained takes the place of row `token_indices[i]`: absolute values. What is tied
to the embedding follows it. Role: token_rows (peft's trainable_tokens_delta), (tokens, dim).
"""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.adapter import Adapter
from adapterhub.errors import InvalidAdapter
from adapterhub.methods.generic import idle, problems, ranks, signature
from adapterhub.methods.meaning import Meaning, TokenRows
from adapterhub.methods.mergeable import Settings, adapted, complete, replacements
from adapterhub.tensorfile import shown

__all__ = ["idle", "meaning", "parts", "problems", "ranks", "signature"]
ROLE = "token_rows"


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    return complete(adapter, _own(adapter))


def parts(adapter: Adapter) -> Meaning:
    return (*_own(adapter), *replacements(adapter))


def _own(adapter: Adapter) -> Iterator[TokenRows]:
    indices = tuple(int(index) for index in Settings(adapter).get("token_indices") or ())
    for module, roles in adapted(adapter):
        rows = roles[ROLE].shape[0]
        if len(set(indices)) < len(indices) or len(indices) != rows:
            raise InvalidAdapter(
                f"{shown(module)} has {rows} rows of tokens, and token_indices names "
                f"{len(set(indices))} tokens, {len(indices)} in all",
                remedy="re-export the adapter with the config that it was trained with",
            )
        yield TokenRows(module, indices, roles[ROLE], ROLE)
