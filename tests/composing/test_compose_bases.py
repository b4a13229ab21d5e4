"""Adapters of one base, as far as anybody knows: by digest, by name, by structure, by force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing_building import SIZES, composed, given, lora
from safetensors.numpy import load_file, save_file

import adapterhub as ah
from adapterhub.composing import Input
from adapterhub.errors import AdapterHubError, BaseMismatch

ONE, OTHER = (f"sha256:{digit * 64}" for digit in "12")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERHUB_HOME", str(tmp_path / "home"))


def named(path: Path, seed: int, base: str | None = "owner/base", **record: Any) -> Input:
    """An adapter whose manifest has this record of its base."""
    found = given(lora(path, seed, base_model_name_or_path=base))
    return Input(found.name, found.adapter, root=found.root, base={"name": base, **record})


def refused(inputs: list[Input], said: str) -> None:
    with pytest.raises(BaseMismatch, match="not known to be of one base") as error:
        composed(inputs)
    assert error.value.details == (said,)
    assert "--force-base" in error.value.remedy
    _, report = composed(inputs, force_base=True)
    assert report.notes == [f"forced: {said}"]


def test_digests_decide_where_both_have_one(tmp_path: Path) -> None:
    a = named(tmp_path / "a", 1, weights_root=ONE, structure_root=ONE)
    same = named(tmp_path / "b", 2, "somewhere/else", weights_root=ONE, structure_root=ONE)
    _, report = composed([a, same])
    assert report.notes == []
    other = named(tmp_path / "c", 3, weights_root=OTHER, structure_root=ONE)
    refused([a, other], "a and c were added with different bases")


def test_names_decide_where_one_has_none(tmp_path: Path) -> None:
    a = named(tmp_path / "a", 1, weights_root=ONE)
    _, report = composed([a, named(tmp_path / "b", 2)])
    assert report.notes == ["of one base by its name only: owner/base"]
    refused([a, named(tmp_path / "c", 3, "owner/other")], "a is for owner/base, c for owner/other")


def test_structures_must_not_differ(tmp_path: Path) -> None:
    a = named(tmp_path / "a", 1, structure_root=ONE)
    refused(
        [a, named(tmp_path / "b", 2, structure_root=OTHER)],
        "a and b were added with bases of different structure",
    )
    _, report = composed([a, named(tmp_path / "c", 3, structure_root=ONE)])
    assert report.notes == ["of one base by its name only: owner/base"]


def test_revisions_must_not_differ(tmp_path: Path) -> None:
    revisions: list[Any] = ["a" * 40, "b" * 40, None]
    paths = [lora(tmp_path / str(n), n, revision=each) for n, each in enumerate(revisions)]
    refused([given(paths[0]), given(paths[1])], "0 and 1 are for different revisions of owner/base")
    composed([given(paths[0]), given(paths[2])])


def test_the_result_has_what_all_say_of_the_base(tmp_path: Path) -> None:
    one = "a" * 40
    a, b = (lora(tmp_path / name, ord(name), revision=one) for name in "ab")
    c = lora(tmp_path / "c", 3)
    for paths, revision in (([a, b], one), ([a, c], None)):
        out = tmp_path / f"out{len(str(revision))}"
        ah.compose(paths, out=out)
        config = json.loads((out / "adapter_config.json").read_text())
        manifest = json.loads((out / "adapterhub.json").read_text())
        assert config["base_model_name_or_path"] == manifest["base"]["name"] == "owner/base"
        assert config.get("revision") == manifest["base"]["revision"] == revision


def test_no_name_is_no_base(tmp_path: Path) -> None:
    inputs = [given(lora(tmp_path / n, 1, base_model_name_or_path=None)) for n in "ab"]
    refused(inputs, "a does not say which base it is for")


def test_every_pair_that_differs_is_told(tmp_path: Path) -> None:
    inputs = [named(tmp_path / n, 1, f"owner/{n}") for n in "abc"]
    with pytest.raises(BaseMismatch) as error:
        composed(inputs)
    assert len(error.value.details) == 3


# --- the manifest beside files ----------------------------------------------------------------


def base(path: Path, seed: int) -> Path:
    path.mkdir()
    dice = np.random.default_rng(seed)
    weights = {
        f"{name}.weight": dice.standard_normal(shape).astype(np.float32)
        for name, shape in SIZES.items()
    }
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    return path


def exported(tmp_path: Path, name: str, of: Path) -> Path:
    with ah.open() as reg:
        reg.add(lora(tmp_path / f"{name}-files", ord(name)), name=name, base=of)
        reg.export(name, tmp_path / name)
    return tmp_path / name


def test_what_was_exported_or_made_knows_its_base(tmp_path: Path) -> None:
    bases = [base(tmp_path / f"base{seed}", seed) for seed in (1, 2)]
    a, b = (exported(tmp_path, name, bases[0]) for name in "ab")
    report = ah.compose([a, b], out=tmp_path / "out").report
    assert report.notes == []
    manifest = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    assert manifest["base"]["weights_root"].startswith("sha256:")
    assert ah.compose([tmp_path / "out", a], out=tmp_path / "again").report.notes == []
    c = exported(tmp_path, "c", bases[1])
    with pytest.raises(BaseMismatch, match="not known to be of one base"):
        ah.compose([tmp_path / "out", c], out=tmp_path / "no")


def test_a_manifest_of_other_tensors_says_nothing(tmp_path: Path) -> None:
    a, b = (exported(tmp_path, name, base(tmp_path / f"base{name}", 1)) for name in "ab")
    file = a / "adapter_model.safetensors"
    save_file({name: array + 1 for name, array in load_file(file).items()}, file, {"format": "pt"})
    notes = ["of one base by its name only: owner/base"]
    assert ah.compose([a, b], out=tmp_path / "out").report.notes == notes
    for text in ("{", "[]", json.dumps({"kind": "merge"})):
        (a / "adapterhub.json").write_text(text)
        assert ah.compose([a, b], out=tmp_path / f"o{len(text)}").report.notes == notes


# --- other methods than LoRA ------------------------------------------------------------------


def vectors(path: Path, name: str | None) -> Path:
    path.mkdir()
    module = "model.layers.0.self_attn.k_proj"
    config = {"peft_type": "IA3", "target_modules": ["k_proj"], "feedforward_modules": []}
    (path / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": name})
    )
    values = np.random.default_rng(len(path.name)).standard_normal((8, 1)).astype(np.float32)
    save_file({f"base_model.model.{module}.ia3_l": values}, path / "adapter_model.safetensors")
    return path


def test_vectors_of_other_bases(tmp_path: Path) -> None:
    a, b = vectors(tmp_path / "a", "owner/base"), vectors(tmp_path / "bb", "owner/other")
    with pytest.raises(AdapterHubError, match="not known to be of one base"):
        ah.compose([a, b], method="average", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ah.compose([a, b], method="average", force_base=True, out=tmp_path / "out")
