"""Whole tensors in the file, and what the config says of them: `modules_to_save`, `bias`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.tensorfile import shown

# Heads that peft adds for a task, and that its older versions do not write into the config.
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
# peft saves embeddings whole when they are targeted or were resized, and says so nowhere.
_EMBEDDINGS = (
    *("embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out", "shared"),
    *("tok_embeddings", "embeddings", "embed_positions", "output_projection"),
)
_SHOWN = 5


def problems(adapter: Adapter) -> list[Problem]:
    """Both ways: heads that are named and not there, and that are there and not named.

    Only PEFT's config names them; other formats have a file of their own for a head.
    """
    return [*_missing(adapter), *_undeclared(adapter)] if adapter.format == "peft" else []


def _names(adapter: Adapter) -> Sequence[str]:
    found = adapter.config.get("modules_to_save") or ()
    return [found] if isinstance(found, str) else list(found)


def _missing(adapter: Adapter) -> Iterator[Problem]:
    """peft adds names of heads that not every model has, so one of them is enough."""
    names = _names(adapter)
    whole = [f".{m}." for m, role, _ in adapter.tensors() if role.startswith(REPLACE)]
    if names and not any(f".{name}." in module for name in names for module in whole):
        listed = ", ".join(map(shown, names[:_SHOWN]))
        text = f"modules_to_save names {listed}; the weights hold none"
        yield Problem("no-saved", text, "a head that was trained is lost: save the adapter again")


def _undeclared(adapter: Adapter) -> Iterator[Problem]:
    """peft saves what ends with a name of modules_to_save, and what lies in it."""
    declared = (*_names(adapter), *_HEADS.get(adapter.task or "", ()))
    biases = (adapter.config.get("bias") or "none") != "none"
    found = dict.fromkeys(
        module
        for module, role, _ in adapter.tensors()
        if role.startswith(REPLACE)
        and not (biases and role.endswith("bias"))
        and not _known(adapter, module, declared)
    )
    if found:
        listed = ", ".join(map(shown, list(found)[:_SHOWN]))
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        text = f"the weights hold {listed}{more} whole, and modules_to_save does not name it"
        yield Problem("undeclared-head", text, "add it to modules_to_save, or take it out")


def _known(adapter: Adapter, module: str, declared: Sequence[str]) -> bool:
    if module.rpartition(".")[2] in _EMBEDDINGS:
        return True
    if any(not role.startswith(REPLACE) for role in adapter.modules[module]):
        return True  # the module's own weight, beside what adapts it
    parts = module.split(".")
    paths = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(path.endswith(name) for path in paths for name in declared)
