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

# peft has no variant of RoAd called "1"; and trainable tokens that are not named train nothing.
UNSOUND = [
    "huggingface__peft__MetaMathQA-road-llama-3.2-3B-variant2.json",
    "huggingface__peft__RLMath-trainable_tokens-grpo-qwen35-4b-gsm8k.json",
]


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


def test_the_adapters_of_other_methods_are_read(corpus: Path) -> None:
    ranks = {}
    for slug in ("mt0-large-ia3-bin", "gpt2-prompt-tuning-bin"):
        reading = formats.read(corpus / "adapters" / slug, allow_pickle=True)
        adapter = inspection.require(reading)
        signature = METHODS[adapter.method].implementation.signature(adapter)
        ranks[adapter.method] = (len(adapter.modules), signature.width)
    assert ranks == {"ia3": (192, None), "prompt_tuning": (1, 768)}


def test_other_formats_are_refused_by_name(corpus: Path) -> None:
    entries = [e for e in _index(corpus / "adapters") if not e["format"].startswith("peft")]
    assert entries
    for entry in entries:
        with pytest.raises(AdapterHubError) as caught:
            path = corpus / "adapters" / entry["slug"]
            inspection.require(formats.read(path, allow_pickle=True))
        assert caught.value.remedy, entry["slug"]


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
        elif entry["expected"] == "accept":
            assert slug not in refused, refused[slug]
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
    known = {row.peft_type: row.name for row in METHODS.values() if row.peft_type}
    unsound = []
    for entry in entries:
        reading = _read_config(corpus / "configs" / entry["file"], tmp_path)
        codes = [problem.code for problem in reading.problems]
        assert "no-weights" in codes, entry["file"]
        unsound += [entry["file"]] if "config" in codes else []
        expected = entry["peft_type"]
        assert ("no-method" in codes) == (expected is None), entry["file"]
        assert ("method" in codes) == (expected is not None and expected not in known)
        assert "pattern" not in codes, entry["file"]
        if expected in known:
            assert reading.method == known[expected]
            assert reading.config.get("r") == entry["r"]
            assert ("local-base" in codes) >= bool(entry["base_local_path"]), entry["file"]
    assert unsound == UNSOUND


def test_a_peculiar_file_is_never_a_traceback(corpus: Path) -> None:
    for path in sorted((corpus / "odd").rglob("*")):
        try:
            formats.read(path)
        except AdapterHubError as error:
            assert error.message
