"""Adapters and configs that strangers made: all are read, and what is wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapterhub import formats
from adapterhub.adapter import Reading
from adapterhub.errors import AdapterHubError
from adapterhub.methods import TABLE as METHODS
from adapterhub.registry import inspection


def _index(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "INDEX.json").read_text("utf-8"))
    return found


def _is_peft_lora(entry: dict[str, Any]) -> bool:
    return entry["method"] == "LORA" and entry["format"].startswith("peft")


def test_lora_adapters_have_the_rank_that_the_index_says(corpus: Path) -> None:
    entries = [e for e in _index(corpus / "adapters") if _is_peft_lora(e)]
    assert len(entries) >= 11
    ranks = {}
    for entry in entries:
        reading = formats.read(corpus / "adapters" / entry["slug"], allow_pickle=True)
        adapter = inspection.require(reading)
        seen = inspection.inspect(reading, source="x")
        assert seen.base["name"] == entry["base"]
        assert adapter.parameters > 0 and seen.targets
        ranks[entry["slug"]] = seen.rank and (seen.rank["min"], seen.rank["max"])
    assert ranks == {e["slug"]: (e["rank"], e["rank"]) for e in entries}


def test_other_methods_and_formats_are_refused_by_name(corpus: Path) -> None:
    entries = [e for e in _index(corpus / "adapters") if not _is_peft_lora(e)]
    assert entries
    for entry in entries:
        with pytest.raises(AdapterHubError) as caught:
            path = corpus / "adapters" / entry["slug"]
            inspection.require(formats.read(path, allow_pickle=True))
        assert caught.value.remedy, entry["slug"]
        if entry["format"].startswith("peft"):
            assert f'peft_type "{entry["method"]}" is not supported' in caught.value.message


def test_odd_ones_raise_nothing_but_named_errors(corpus: Path) -> None:
    odd = corpus / "odd"
    refused = {}
    for entry in _index(odd):
        try:
            reading = formats.read(odd / entry["slug"], allow_pickle=True)
            inspection.inspect(reading, source="x")
            inspection.require(reading)
        except AdapterHubError as error:
            assert error.message and error.remedy, entry["slug"]
            refused[entry["slug"]] = error.message
    for entry in _index(odd):
        slug = entry["slug"]
        if entry["expected"] == "refuse":
            assert slug in refused
        elif entry["expected"] == "accept" and entry["method"].startswith("LORA"):
            assert slug not in refused
    for slug, said in {
        "lfs-pointer-safetensors": "Git-LFS pointer",
        "lfs-pointer-bin": "Git-LFS pointer",
        "truncated-zip-bin": "truncated",
        "derived-truncated-safetensors": "is cut",
        "derived-nan-tensor": "NaN or infinity, first at [0, 0]",
        "derived-r-mismatch": "has rank 4, config says r=16",
        "derived-empty-config": "is not valid JSON",
        "unknown-peft-type-finegates": 'peft_type "FINEGATES" is not supported',
        "weights-without-config": "has no adapter_config.json",
        "minimal-config-only": "has no adapter_model.safetensors",
        "not-an-adapter-lerobot": "names no peft_type",
    }.items():
        assert said in refused[slug]


def _read_config(config: Path, directory: Path) -> Reading:
    shutil.copy(config, directory / "adapter_config.json")
    return formats.read(directory)


def test_every_config_gives_a_reading(corpus: Path, tmp_path: Path) -> None:
    entries = _index(corpus / "configs")
    assert len(entries) >= 300
    known = {row.peft_type for row in METHODS.values()}
    for entry in entries:
        reading = _read_config(corpus / "configs" / entry["file"], tmp_path)
        codes = [problem.code for problem in reading.problems]
        assert "no-weights" in codes, entry["file"]
        assert "config" not in codes, entry["file"]
        expected = entry["peft_type"]
        assert ("no-method" in codes) == (expected is None), entry["file"]
        assert ("method" in codes) == (expected is not None and expected not in known)
        if expected in known:
            assert reading.config["r"] == entry["r"]
            assert ("local-base" in codes) >= bool(entry["base_local_path"]), entry["file"]


def test_a_peculiar_file_is_never_a_traceback(corpus: Path) -> None:
    for path in sorted((corpus / "odd").rglob("*")):
        try:
            formats.read(path)
        except AdapterHubError as error:
            assert error.message
