"""Adapters and configs that strangers made: all are read, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub import formats
from adapterhub.errors import AdapterHubError, NotSupported
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
    return entry["method"] == "LORA" and _format_of(entry) == "peft"


def test_lora_adapters_have_the_rank_that_the_index_says(corpus: Path) -> None:
    entries = [e for e in _index(corpus / "adapters") if _is_peft_lora(e)]
    assert len(entries) >= 10
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
        "not-an-adapter-lerobot": "is not an adapter of a known format",
    }.items():
        assert said in refused[slug]


def _format_of(entry: dict[str, Any]) -> str:
    """Our name for what the index calls the format."""
    said = entry["format"]
    if entry["slug"] == "bloom-560m-legacy-bin":
        return "peft_merged_linear"
    if said.startswith("peft"):
        return "peft"
    names = {"adapterhub": "adapterhub", "mlx": "mlx", "kohya/lycoris": "lycoris"}
    names |= {"t-few": "tfew", "npy": "t5x_prompt", "diffusers": "diffusers"}
    return next(name for start, name in names.items() if said.startswith(start))


def test_formats_are_told_apart(corpus: Path) -> None:
    wrong = {}
    for entry in _index(corpus / "adapters"):
        path = corpus / "adapters" / entry["slug"]
        row, reading = formats.detect(path), formats.read(path)
        if row is None or not row.name == reading.format == _format_of(entry):
            wrong[entry["slug"]] = reading.format
        if reading.format not in ("peft", "tfew") and "method" in entry:
            assert reading.outline is not None
            ranks = set(reading.outline.ranks.values())
            assert not ranks or ranks == {entry["rank"]}, entry["slug"]
    assert wrong == {}


def test_a_format_that_is_not_read_is_refused_by_name(corpus: Path) -> None:
    for entry in _index(corpus / "adapters"):
        if formats.TABLE[_format_of(entry)].reads:
            continue
        with pytest.raises(NotSupported, match="recognised and not read by this version"):
            inspection.require(formats.read(corpus / "adapters" / entry["slug"]))


def test_metadata_is_not_believed_against_the_names(corpus: Path) -> None:
    """It says Stable Diffusion 1.5, and its tensors are those of Flux in diffusers' names."""
    reading = formats.read(corpus / "odd" / "flux-no-config")
    assert (reading.format, reading.method) == ("diffusers", "lora")
    assert reading.outline is not None
    assert set(reading.outline.ranks.values()) == {16}
    assert reading.outline.base.name is None
    assert "(lora_A)" in reading.problems[0].message


def test_every_config_is_read_by_itself(corpus: Path) -> None:
    """A bare config of any name: its format, its method, and that it has no weights."""
    entries = _index(corpus / "configs")
    assert len(entries) >= 300
    known = {row.peft_type: row.name for row in METHODS.values() if row.peft_type}
    unsound = []
    for entry in entries:
        reading = formats.read(corpus / "configs" / entry["file"])
        codes = [problem.code for problem in reading.problems]
        unsound += [entry["file"]] if "config" in codes else []
        said = entry["format"].replace("custom", formats.UNKNOWN)
        if entry.get("interesting", {}).get("enable_lora"):
            said = "peft_merged_linear"
        assert reading.format == said, entry["file"]
        assert reading.adapter is None and reading.fatal, entry["file"]
        assert ("no-weights" in codes) == (said in ("peft", "adapterhub")), entry["file"]
        assert ("unknown-format" in codes) == (said == formats.UNKNOWN), entry["file"]
        assert "pattern" not in codes, entry["file"]
        if said != "peft":
            continue
        expected = entry["peft_type"]
        assert reading.method == known.get(expected, expected.lower()), entry["file"]
        assert ("method" in codes) == (expected not in known), entry["file"]
        if expected in known:
            assert reading.config.get("r") == entry["r"], entry["file"]
            assert ("local-base" in codes) >= bool(entry["base_local_path"]), entry["file"]
    assert unsound == UNSOUND


def test_a_peculiar_file_is_never_a_traceback(corpus: Path) -> None:
    for path in sorted((corpus / "odd").rglob("*")):
        try:
            formats.read(path)
        except AdapterHubError as error:
            assert error.message
