"""The tour: two adapters for two domains, composed, know both."""

from __future__ import annotations

from pathlib import Path

import compose_tour
import nli_domains
import pytest
from nli_sentences import LABELS, sentences


def test_domains_are_told_apart_by_their_patterns() -> None:
    for domain, patterns in nli_domains.DOMAINS.items():
        for sentence in sentences("train", 50, 0, patterns):
            assert ("by" in sentence.words) == (domain == "passive")
            first = next(label for label in sentence.labels if label in ("SRC", "TGT"))
            assert first == ("TGT" if domain == "passive" else "SRC")
            assert set(sentence.labels) <= set(LABELS)


def test_the_verdict() -> None:
    alone = {"active": {"active": 0.98, "passive": 0.8}, "passive": {"active": 0.7, "passive": 1.0}}
    assert compose_tour.report({**alone, "both": {"active": 0.95, "passive": 0.9}}) == 0
    assert compose_tour.report({**alone, "both": {"active": 0.95, "passive": 0.75}}) == 1


@pytest.mark.slow
def test_the_tour(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for name in ("ADAPTERHUB_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, "unset")  # so that the tour's are undone
    monkeypatch.setattr(compose_tour, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert compose_tour.main() == 0
