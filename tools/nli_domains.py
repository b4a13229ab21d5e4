"""Two domains of the demo's task, an adapter for each, over one head that both share.

    active     SRC VERB TGT              Arsenal will win the Premier League
    passive    TGT PASSIVE PART by SRC   The Premier League was won by Arsenal

The head is trained first, on both domains, and then frozen; each LoRA sees one domain only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nli_task
from nli_sentences import Sentence, sentences

DOMAINS: Mapping[str, tuple[str, ...]] = {
    "active": (
        "SRC VERB TGT",
        "SRC VERB TGT TRAIL .",
        "LEAD , SRC VERB TGT .",
        "REPORT SRC VERB TGT",
    ),
    "passive": (
        "TGT PASSIVE PART by SRC",
        "TGT PASSIVE PART by SRC TRAIL .",
        "LEAD , TGT PASSIVE PART by SRC .",
        "REPORT TGT PASSIVE PART by SRC",
    ),
}
HEAD_STEPS, STEPS = 60, 60
TEST_SENTENCES = 150


def train(directory: Path, *, rank: int = 8, seed: int = 0) -> dict[str, Path]:
    """Write an adapter for each domain below `directory`; both hold the same head."""
    import torch

    both = tuple(pattern for patterns in DOMAINS.values() for pattern in patterns)
    with nli_task._threads(nli_task.THREADS), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, tokenizer = _with_lora(rank), nli_task.load_tokenizer()
        fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
        _only(model, head=True)
        _fit(model, tokenizer, sentences("train", HEAD_STEPS * nli_task.BATCH, seed, both))
        head = {name: p.detach().clone() for name, p in model.named_parameters() if _is_head(name)}
        found = {}
        for domain, patterns in DOMAINS.items():
            model.load_state_dict({**fresh, **head}, strict=False)
            _only(model, head=False)
            _fit(model, tokenizer, sentences("train", STEPS * nli_task.BATCH, seed, patterns))
            found[domain] = directory / domain
            with nli_task._quiet():
                model.save_pretrained(found[domain], safe_serialization=True)
    return found


def _with_lora(rank: int) -> Any:
    return nli_task._with_lora(rank, nli_task.GRAPH)


def _is_head(name: str) -> bool:
    return ".classifier.modules_to_save." in name


def _only(model: Any, *, head: bool) -> None:
    """Train the head, or the factors."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_head(name) if head else ".lora_" in name)


def _fit(model: Any, tokenizer: Any, data: Sequence[Sentence]) -> None:
    nli_task._fit(model, tokenizer, nli_task.GRAPH, data, lambda step, loss: None)


def accuracies(model: Any, tokenizer: Any, seed: int = 0) -> dict[str, float]:
    """The share of words labelled right, on held-out sentences of each domain."""
    model.eval()
    found = {}
    for domain, patterns in DOMAINS.items():
        data = sentences("test", TEST_SENTENCES, seed, patterns)
        found[domain], _ = nli_task._evaluate(model, tokenizer, nli_task.GRAPH, data)
    return found
