"""Adapters that strangers made, through the registry: added, verified, exported, read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub import formats
from adapterhub.errors import AdapterHubError, NotSupported
from adapterhub.registry import Registry

# Formats that this version names and does not read.
NAMED = {
    "bloom-560m-legacy-bin": "peft_merged_linear",
    "diffusers-sd-pokemon": "diffusers",
    "lycoris-lokr-falcon-r4": "lycoris",
    "mlx-gemma-2b-medqa": "mlx",
    "mlx-npz-mistral7b": "mlx",
}


def index(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "INDEX.json").read_text("utf-8"))
    return found


def values(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """By module and role: dtype, shape and bytes, without anything of the registry."""
    adapter = formats.read(path, allow_pickle=True).adapter
    assert adapter is not None
    return {
        f"{module}|{role}": (tensor.dtype, tensor.shape, b"".join(tensor.pieces()))
        for module, role, tensor in adapter.tensors()
    }


def sources(corpus: Path) -> list[Path]:
    """Every adapter that `add` takes; the two prompts are one each."""
    found: list[Path] = []
    for entry in index(corpus / "adapters"):
        if entry["slug"] not in NAMED:
            found += formats.members(corpus / "adapters" / entry["slug"])
    return found


def test_added_verified_exported_and_read_again_with_equal_tensors(
    corpus: Path, home: Path, tmp_path: Path
) -> None:
    taken = sources(corpus)
    assert len(taken) == 16
    with Registry() as registry:
        for number, source in enumerate(taken):
            name = f"a{number}"
            added = registry.add(source, name=name, allow_pickle=True)
            assert added.status == "added", source
            registry.export(name, tmp_path / name)
            assert values(tmp_path / name) == values(source), source
            assert registry.add(tmp_path / name, name=name).status == "unchanged", source
            seen, at_home = registry.inspect(source, allow_pickle=True), registry.inspect(name)
            assert (seen.method, seen.rank) == (at_home.method, at_home.rank), source
            assert not any(problem.fatal for problem in at_home.problems), source
        assert registry.verify()["problems"] == []
        assert len(registry.list(limit=100)) == len(taken)


def test_the_others_are_named_and_refused(corpus: Path, home: Path) -> None:
    with Registry() as registry:
        for slug, name in NAMED.items():
            path = corpus / "adapters" / slug
            assert registry.inspect(path).format == name
            with pytest.raises(NotSupported, match="are recognised and not read by this version"):
                registry.add(path, allow_pickle=True)
        assert registry.store.names() == ()


def test_odd_ones_meet_their_verdicts(corpus: Path, home: Path) -> None:
    entries = index(corpus / "odd")
    assert len(entries) >= 24
    with Registry() as registry:
        for number, entry in enumerate(entries):
            path, expected = corpus / "odd" / entry["slug"], entry["expected"]
            seen = registry.inspect(path, allow_pickle=True)
            if expected == "accept":
                added = registry.add(path, name=f"a{number}", allow_pickle=True)
                assert added.status == "added", entry["slug"]
                continue
            fatal = [problem for problem in seen.problems if problem.fatal]
            assert fatal and fatal[0].remedy, entry["slug"]
            with pytest.raises(AdapterHubError) as caught:
                registry.add(path, name=f"a{number}", allow_pickle=True)
            assert caught.value.remedy, entry["slug"]
            assert isinstance(caught.value, NotSupported) or expected == "refuse", entry["slug"]
        assert len(registry.store.names()) == sum(e["expected"] == "accept" for e in entries)


@pytest.mark.parametrize(
    ("slug", "code"),
    [
        # Its repository says MonteCLoRA; in its files that field is null.
        ("lora-plus-variant-monteclora", "peft-dev"),
        ("legacy-test-adalora-mlp", "no-base"),
        ("invalid-task-type", "task-type"),
        ("unknown-peft-type-unilora", None),
        ("base-is-own-directory", "local-base"),
        ("derived-r-mismatch", "rank-mismatch"),
        ("derived-nan-tensor", "not-finite"),
        ("lfs-pointer-bin", "invalid-tensor-file"),
        ("minimal-config-only", "no-weights"),
    ],
)
def test_what_is_odd_is_named(corpus: Path, home: Path, slug: str, code: str | None) -> None:
    with Registry() as registry:
        seen = registry.inspect(corpus / "odd" / slug, allow_pickle=True)
    assert code is None or code in [problem.code for problem in seen.problems]
    assert all(problem.message and problem.remedy for problem in seen.problems)


def test_every_config_is_inspected_with_its_method_and_format(corpus: Path, home: Path) -> None:
    entries = index(corpus / "configs")
    assert len(entries) >= 300
    formats_of = {"custom": "unknown"}
    with Registry() as registry:
        for entry in entries:
            seen = registry.inspect(corpus / "configs" / entry["file"])
            wanted = formats_of.get(entry["format"], entry["format"])
            if entry.get("interesting", {}).get("enable_lora"):
                wanted = "peft_merged_linear"
            assert seen.format == wanted, entry["file"]
            if entry["peft_type"]:
                assert seen.method == entry["peft_type"].lower(), entry["file"]
            if entry["format"] == "peft":
                assert seen.base["name"] == (entry["base_model_name_or_path"] or None)
            json.dumps(seen.to_dict())
