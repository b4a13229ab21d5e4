"""`inspect` of what is not one directory: files, the Hub's cache, directories of many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapterhub.errors import NotFound
from adapterhub.registry import Registry

Maker = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, adapter: Path, commit: str = COMMIT) -> Path:
    """The adapter as the cache keeps it: a snapshot of links to blobs."""
    place = hub / "models--owner--tuned"
    snapshot = place / "snapshots" / commit
    for path in adapter.iterdir():
        blob = place / "blobs" / f"{commit[:4]}-{path.name}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    return place


def test_the_hubs_cache(hub: Path, home: Path, peft_dir: Maker) -> None:
    place = cached(hub, peft_dir(r=2))
    with Registry() as registry:
        for what in ("hub:owner/tuned", str(place), str(place / "snapshots" / COMMIT)):
            assert (registry.inspect(what).rank or {})["max"] == 2
        assert registry.load("hub:owner/tuned").adapter.method == "lora"
        added = registry.add("hub:owner/tuned")
        assert added.name == "owner/tuned"
        assert registry.add(place).status == "unchanged"
        with pytest.raises(NotFound, match="owner/other is not in the Hugging Face cache"):
            registry.inspect("hub:owner/other")
        with pytest.raises(NotFound, match="is not in the Hugging Face cache"):
            registry.inspect("hub:../../etc")


@pytest.mark.parametrize("main", ["f" * 40, "../../..", "", "é"])
def test_a_cache_whose_main_leads_nowhere(hub: Path, peft_dir: Maker, main: str) -> None:
    place = cached(hub, peft_dir())
    (place / "refs" / "main").write_bytes(main.encode("latin-1"))
    with Registry(hub.parent / "home") as registry:
        assert registry.inspect("hub:owner/tuned").method == "lora"


def test_a_directory_of_many(home: Path, tmp_path: Path, peft_dir: Maker) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for number in range(3):
        peft_dir(name=f"a{number}", r=2).rename(runs / f"a{number}")
    (runs / "a1" / "adapter_model.safetensors").write_bytes(b"x")
    with Registry() as registry:
        assert registry.holds_many(runs) == runs
        assert registry.holds_many(runs / "a0") is None
        assert registry.holds_many(runs / "a0" / "adapter_config.json") is None
        found = list(registry.inspect_runs(runs))
        assert [Path(one.source).name for one in found] == ["a0", "a1", "a2"]
        assert [any(p.fatal for p in one.problems) for one in found] == [False, True, False]
        with pytest.raises(NotFound, match="there is no adapter below"):
            list(registry.inspect_runs(tmp_path / "home"))


def test_files_that_are_adapters_by_themselves(home: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for number, name in enumerate(("mrpc", "sst2"), 1):
        np.save(prompts / f"{name}.npy", np.full((number, 8), 0.5, np.float32))
    with Registry() as registry:
        assert registry.holds_many(prompts) == prompts
        found = [(Path(one.source).name, one.method) for one in registry.inspect_runs(prompts)]
        assert found == [("mrpc.npy", "prompt_tuning"), ("sst2.npy", "prompt_tuning")]
        taken = list(registry.add_runs(prompts))
        assert [(one.name, one.status) for one in taken] == [("mrpc", "added"), ("sst2", "added")]
        assert registry.add(prompts / "mrpc.npy").name == "mrpc"
        (prompts / "sst2.npy").unlink()
        assert registry.holds_many(prompts) is None
        assert registry.inspect(prompts).method == "prompt_tuning"


def test_what_the_registry_knows_better(registry: Registry, base: Path, adapter: Path) -> None:
    registry.add(adapter, name="a")
    before = {problem.code for problem in registry.inspect("a").problems}
    assert {"no-licence", "unpinned-base"} & before
    registry.edit("a", {"licence": "mit"})
    registry.add(adapter, name="a", base=base)
    seen = registry.inspect("a")
    assert seen.licence == "mit"
    codes = {problem.code for problem in seen.problems}
    assert not codes & {"no-licence", "unpinned-base", "local-base", "no-base"}
