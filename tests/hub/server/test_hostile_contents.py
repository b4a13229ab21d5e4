"""What people push to harm those who look at it: cards, configs, adapters, differences."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regkit
from serverkit import Served, files_of, ok

from adapterhub.hub.server import diffs, facts, infos, takeover

Adapter = Callable[..., dict[str, bytes]]


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    def make(prefix: str = "", seed: int = 1, **fields: Any) -> dict[str, bytes]:
        directory = tmp_path / f"{prefix.replace('/', '_')}{seed}"
        regkit.save_adapter(directory, regkit.lora(seed), **fields)
        return files_of(directory, prefix)

    return make


@pytest.mark.parametrize(
    "front",
    [
        f"x: 0x{'f' * 8000}",
        f"? 0x{'f' * 8000}\n: 1",
        f"x: {':'.join(['1'] * 9000)}",
        '"\\uD800": 1',
        'a: {"\\uD800": [2]}',
        'tags: ["\\uD800"]\nlicense: "\\uDC00"',
        "null: 1\ntrue: 2\n2020-01-01: 3",
    ],
)
def test_a_card_does_not_take_the_listing_down(served: Served, front: str) -> None:
    name = f"cards/c{abs(hash(front)) % 10**12}"
    served.repo(name, {"README.md": f"---\n{front}\nlicense: mit\n---\n".encode()})
    shown = ok(served.anonymous().ask("GET", f"/api/models/{name}"))
    assert "cardData" in shown
    listed = ok(served.anonymous().ask("GET", "/api/models?author=cards&full=true"))
    assert name in [each["id"] for each in listed]


@pytest.mark.slow
def test_what_a_listing_says_of_one_repository_is_bounded(served: Served, adapter: Adapter) -> None:
    words = [f"word-{number:04}" for number in range(3000)]
    config = {"architectures": ["x" * 100_000, "Short"], "model_type": ["bert"] * 100_000}
    peft = {"peft_type": "LORA", "base_model_name_or_path": [f"a/b{n}" for n in range(50_000)]}
    files = {
        "README.md": f"---\nlicense: mit\ntags: {json.dumps(words)}\n---\n".encode(),
        "config.json": json.dumps(config).encode(),
        "adapter_config.json": json.dumps(peft).encode(),
    }
    served.repo("bounded/all", files)
    found = served.hub.repositories.list(namespace="bounded")[0]
    assert len(json.dumps(dict(found.info))) < 40_000
    assert found.info["config"]["architectures"] == ["Short"]
    assert found.info["card"] == {"license": "mit"}
    assert len(served.hub.repositories.labels(found)) <= facts.MOST_TAGS
    shown = ok(served.anonymous().ask("GET", "/api/models/bounded/all"))
    assert shown["cardData"]["tags"] == words


def test_only_so_many_adapters_of_one_repository_are_taken(
    served: Served, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "MOST_ADAPTERS", 2)
    monkeypatch.setattr(takeover, "MOST_PROBLEMS", 1)
    good = adapter("a/") | adapter("b/", 2) | adapter("c/", 3)
    served.repo("many/adapters", good)
    told = ok(served.anonymous().ask("GET", "/api/models/many/adapters"))[infos.OWN]
    assert [each["subfolder"] for each in told["adapters"]] == ["a", "b"]
    assert told["problems"] == ["only the first 2 of 3 adapters are taken"]


@pytest.mark.parametrize("name", ["search", "filter"])
def test_a_query_of_too_many_words_is_refused(served: Served, name: str) -> None:
    """SQLite would fail on it, and 503 make clients ask again and again."""
    many = "+".join(["a"] * 3000) if name == "search" else ",".join(["a"] * 3000)
    answer = served.anonymous().ask("GET", f"/api/models?{name}={many}")
    assert (answer.status, answer.json["code"]) == (400, "invalid-request")
    assert "at most 50" in answer.json["error"]


def test_differences_are_looked_for_within_a_time(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = served.repo("diffs/slow", {f"f{n}": b"a\n" * 20 for n in range(30)})
    title = "Changes"
    pull = served.hub.open_pull(repository, title, "", "ann")
    served.commit(repository, {f"f{n}": b"b\n" * 20 for n in range(30)}, pull.ref)
    monkeypatch.setattr(diffs, "_DIFF_SECONDS", 1.0)
    whole = difflib.unified_diff

    def slow(*args: Any) -> Any:
        time.sleep(0.2)
        return whole(*args)

    monkeypatch.setattr(difflib, "unified_diff", slow)
    path = f"/api/models/diffs/slow/discussions/{pull.number}?diff=1"
    diff = ok(served.anonymous().ask("GET", path))["diff"]
    assert 0 < diff.count("diff --git") < 10
    assert diff.endswith("# the diff is longer than what is shown here\n")
