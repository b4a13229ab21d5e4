from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import regkit

from adapterhub import api, schema
from adapterhub.errors import (
    AlreadyExists,
    BaseMismatch,
    InvalidAdapter,
    InvalidOption,
    NotFound,
    PickleRefused,
)
from adapterhub.registry import Registry
from adapterhub.store import files


def manifest_of(registry: Registry, ref: str) -> dict[str, object]:
    found: dict[str, object] = registry.show(ref)["manifest"]
    return found


# --- what is recorded -------------------------------------------------------------------------


def test_the_manifest_says_what_the_files_say(
    registry: Registry, tmp_path: Path, base: Path
) -> None:
    path = regkit.save_tagger(tmp_path / "a", revision=...)
    added = registry.add(path, name="ner", base=base, labels=("O", "SRC", "REL", "TGT"))
    manifest = manifest_of(registry, "ner")
    weights = path / "adapter_model.safetensors"
    assert schema.problems(manifest, "manifest") == []
    assert manifest["method"] == "lora"
    assert manifest["rank"] == {"min": 2, "max": 2, "pattern": {}}
    assert manifest["alpha"] == 4
    assert manifest["targets"] == [regkit.QUERY.replace("0", "*")]
    assert manifest["saved"] == ["classifier"]
    assert manifest["dtype"] == "F32"
    assert manifest["parameters"] == 2 * 2 * 8 + 4 * 8 + 4 == added.parameters
    assert manifest["task"] == "TOKEN_CLS"
    assert manifest["labels"] == ["O", "SRC", "REL", "TGT"]
    assert manifest["lineage"] is None
    assert {
        "path": weights.name,
        "size": weights.stat().st_size,
        "sha256": "sha256:" + hashlib.sha256(weights.read_bytes()).hexdigest(),
    } in manifest["files"]  # type: ignore[operator]


def test_a_version_is_named_by_the_sha256_of_its_manifest(
    registry: Registry, adapter: Path
) -> None:
    added = registry.add(adapter, name="a")
    digits = added.digest.removeprefix("sha256:")
    stored = (registry.home / "manifests" / "sha256" / digits[:2] / digits).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == digits
    assert json.loads(stored) == registry.show("a")["manifest"]


def test_rank_patterns_are_recorded_by_module(registry: Registry, tmp_path: Path) -> None:
    arrays = {}
    for number, rank in enumerate((4, 4, 8)):
        arrays |= regkit.lora(number, rank=rank, module=f"layers.{number}.q_proj")
    path = regkit.save_adapter(
        tmp_path / "a", arrays, r=4, rank_pattern={"layers.2.q_proj": 8}, target_modules=["q_proj"]
    )
    registry.add(path, name="a")
    assert manifest_of(registry, "a")["rank"] == {
        "min": 4,
        "max": 8,
        "pattern": {"layers.2.q_proj": 8},
    }


def test_unknown_config_fields_come_back_with_the_files(registry: Registry, tmp_path: Path) -> None:
    path = regkit.save_adapter(tmp_path / "a", made_by={"tool": "other", "n": [1, 2]})
    added = registry.add(path, name="a")
    assert any("made_by" in note for note in added.notes)
    registry.export("a", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["made_by"] == {"tool": "other", "n": [1, 2]}


# --- the same again ---------------------------------------------------------------------------


def test_the_same_bytes_again_change_nothing(registry: Registry, adapter: Path) -> None:
    first = registry.add(adapter, name="a", tag="prod")
    before = regkit.tree(registry.home)
    again = registry.add(adapter, name="a", tag="prod")
    assert (first.status, again.status) == ("added", "unchanged")
    assert again.digest == first.digest
    assert regkit.tree(registry.home) == before


def test_a_new_tag_on_the_same_bytes_is_an_update(registry: Registry, adapter: Path) -> None:
    registry.add(adapter, name="a")
    assert registry.add(adapter, name="a", tag="prod").status == "updated"
    assert len(registry.show("a")["versions"]) == 1


def test_the_same_adapter_and_base_give_one_digest_in_any_home_and_from_any_path(
    tmp_path: Path,
) -> None:
    digests = set()
    for number, claimed in enumerate(("models/minibert", "elsewhere/some-other-name")):
        place = tmp_path / str(number)
        base = regkit.save_base(place / claimed)
        path = regkit.save_adapter(
            place / f"run-{number}", base_model_name_or_path="/content/drive/minibert"
        )
        with api.open(place / "home") as registry:
            registry.base.add(base, name=f"mine-{number}")
            digests.add(registry.add(path, name=f"name-{number}", base=base).digest)
    assert len(digests) == 1


def test_another_base_gives_another_digest(registry: Registry, adapter: Path, base: Path) -> None:
    other = regkit.save_base(base.parent / "other", seed=50)
    first = registry.add(adapter, name="a", base=base)
    assert registry.add(adapter, name="a", base=other).digest != first.digest
    assert registry.add(adapter, name="a").digest != first.digest


def test_new_refuses_a_name_that_is_there(registry: Registry, adapter: Path) -> None:
    registry.add(adapter, name="a", new=True)
    before = {k: v for k, v in regkit.tree(registry.home).items() if k.startswith("refs")}
    regkit.save_adapter(adapter, regkit.lora(5))
    with pytest.raises(AlreadyExists, match="the name a is taken"):
        registry.add(adapter, name="a", new=True)
    after = {k: v for k, v in regkit.tree(registry.home).items() if k.startswith("refs")}
    assert after == before


def test_another_adapter_makes_a_new_version_and_moves_latest(
    registry: Registry, adapter: Path
) -> None:
    first = registry.add(adapter, name="a", tag="prod")
    regkit.save_adapter(adapter, regkit.lora(5))
    second = registry.add(adapter, name="a")
    shown = registry.show("a")
    assert shown["tags"] == {"latest": second.digest, "prod": first.digest}
    assert [v["digest"] for v in shown["versions"]] == [first.digest, second.digest]


def test_the_name_comes_from_the_directory(registry: Registry, tmp_path: Path) -> None:
    path = regkit.save_adapter(tmp_path / "My NER (v2)")
    assert registry.add(path).name == "my-ner-v2"
    assert registry.add(path / "adapter_model.safetensors").name == "my-ner-v2"


# --- export and back --------------------------------------------------------------------------


def test_an_export_added_again_is_the_same_version(
    registry: Registry, tmp_path: Path, base: Path
) -> None:
    path = regkit.save_tagger(tmp_path / "a", base_model_name_or_path="/somebody/minibert")
    added = registry.add(path, name="ner", base=base, labels=("O", "S", "R", "T"))
    registry.export("ner", tmp_path / "out")
    with api.open(tmp_path / "other-home") as other:
        again = other.add(tmp_path / "out", name="elsewhere")
    assert again.digest == added.digest


def test_a_manifest_beside_other_files_is_not_believed(
    registry: Registry, tmp_path: Path, base: Path
) -> None:
    registry.add(
        regkit.save_tagger(tmp_path / "a"), name="a", base=base, labels=("a", "b", "c", "d")
    )
    registry.export("a", tmp_path / "out")
    regkit.write_tensors(
        tmp_path / "out" / "adapter_model.safetensors",
        {regkit.PREFIX + n: a for n, a in (regkit.lora(9) | regkit.head()).items()},
    )
    registry.add(tmp_path / "out", name="b")
    manifest = manifest_of(registry, "b")
    assert manifest["labels"] == []
    assert manifest["base"]["weights_root"] is None  # type: ignore[index]


def test_a_damaged_manifest_beside_an_adapter_is_left_aside(
    registry: Registry, adapter: Path
) -> None:
    (adapter / "adapterhub.json").write_text("{")
    assert registry.add(adapter, name="a").status == "added"


# --- labels -----------------------------------------------------------------------------------


def test_labels_come_from_the_user_then_from_config_json(
    registry: Registry, tmp_path: Path
) -> None:
    path = regkit.save_tagger(tmp_path / "a", labels=2)
    (path / "config.json").write_text(json.dumps({"id2label": {"0": "no", "1": "yes"}}))
    registry.add(path, name="a")
    assert manifest_of(registry, "a")["labels"] == ["no", "yes"]
    registry.add(path, name="a", labels=("nein", "ja"))
    assert manifest_of(registry, "a")["labels"] == ["nein", "ja"]


@pytest.mark.parametrize("labels", [("a", "a"), ("a", "")])
def test_labels_must_differ(registry: Registry, adapter: Path, labels: tuple[str, ...]) -> None:
    with pytest.raises(InvalidOption, match="labels must be different and not empty"):
        registry.add(adapter, name="a", labels=labels)


def test_as_many_labels_as_the_head_has_rows(registry: Registry, tmp_path: Path) -> None:
    path = regkit.save_tagger(tmp_path / "a", labels=4)
    with pytest.raises(InvalidOption, match="3 labels were given, and the adapter's head has 4"):
        registry.add(path, name="a", labels=("a", "b", "c"))


# --- bases ------------------------------------------------------------------------------------


def test_the_base_that_is_given_is_recorded_and_registered(
    registry: Registry, adapter: Path, base: Path
) -> None:
    added = registry.add(adapter, name="a", base=base)
    (record,) = registry.base.list()
    shown = registry.show("a")
    assert shown["manifest"]["base"] == {
        "name": "owner/tiny-bert",
        "revision": "abc123",
        "structure_root": record["structure_root"],
        "weights_root": record["weights_root"],
        "quantization": None,
    }
    assert shown["base_at"] == record
    assert not any("pinned" in note for note in added.notes)


def test_a_base_that_does_not_fit_is_refused_before_anything_is_stored(
    registry: Registry, tmp_path: Path, base: Path
) -> None:
    arrays = regkit.lora(hidden=16) | regkit.lora(
        3, module="bert.encoder.layer.9.attention.self.key"
    )
    path = regkit.save_adapter(tmp_path / "a", arrays)
    before = regkit.tree(registry.home)
    with pytest.raises(BaseMismatch, match="2 mismatches") as caught:
        registry.add(path, name="a", base=base)
    assert regkit.QUERY in caught.value.details[0]
    assert "layer.9" in caught.value.details[1]
    assert regkit.tree(registry.home) == before
    assert registry.base.list() == []


def test_two_bases_of_one_directory_name_are_both_registered(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    for number in range(2):
        base = regkit.save_base(tmp_path / str(number) / "minibert", seed=number * 100)
        registry.add(adapter, name=f"a{number}", base=base)
    names = [record["name"] for record in registry.base.list()]
    assert len(names) == 2
    assert names[0] == "minibert"
    assert names[1].startswith("minibert-")


def test_a_base_that_moved_is_found_at_its_new_place(
    registry: Registry, adapter: Path, base: Path
) -> None:
    registry.add(adapter, name="a", base=base)
    moved = base.parent / "renamed"
    base.rename(moved)
    registry.add(adapter, name="a", base=moved)
    (record,) = registry.base.list()
    assert (record["name"], record["path"]) == ("minibert", str(moved))


# --- cards ------------------------------------------------------------------------------------


def write_card(path: Path, licence: str) -> None:
    (path / "README.md").write_text(f"---\nlicense: {licence}\ntags:\n- ner\n---\n# A model\n")


def test_the_card_comes_from_the_readme(registry: Registry, adapter: Path) -> None:
    write_card(adapter, "mit")
    registry.add(adapter, name="a")
    card = registry.show("a")["card"]
    assert (card["licence"], card["topics"]) == ("mit", ["ner"])


def test_what_people_edited_survives_the_same_bytes_and_new_versions(
    registry: Registry, adapter: Path
) -> None:
    write_card(adapter, "mit")
    registry.add(adapter, name="a")
    registry.edit("a", {"licence": "apache-2.0"})
    assert registry.add(adapter, name="a").status == "unchanged"
    assert registry.show("a")["card"]["licence"] == "apache-2.0"
    regkit.save_adapter(adapter, regkit.lora(5))
    added = registry.add(adapter, name="a")
    assert registry.show("a")["card"]["licence"] == "apache-2.0"
    assert any("keeps its own licence" in note for note in added.notes)


def test_a_card_that_follows_goes_with_its_readme_and_not_over_what_people_edited(
    registry: Registry, adapter: Path
) -> None:
    write_card(adapter, "mit")
    registry.add(adapter, name="a", follow_card=True)
    write_card(adapter, "apache-2.0")
    assert registry.add(adapter, name="a").status == "unchanged"
    assert registry.add(adapter, name="a", follow_card=True).status == "updated"
    card = registry.show("a")["card"]
    assert (card["licence"], card["topics"]) == ("apache-2.0", ["ner"])
    assert "apache-2.0" in card["readme"]
    assert registry.add(adapter, name="a", follow_card=True).status == "unchanged"
    registry.edit("a", {"licence": "bsd-2-clause"})
    write_card(adapter, "mit")
    added = registry.add(adapter, name="a", follow_card=True)
    assert registry.show("a")["card"]["licence"] == "bsd-2-clause"
    assert any("keeps its own licence" in note for note in added.notes)


def test_a_card_that_says_more_later(registry: Registry, adapter: Path) -> None:
    registry.add(adapter, name="a", follow_card=True)
    write_card(adapter, "mit")
    registry.add(adapter, name="a", follow_card=True)
    assert registry.show("a")["card"]["licence"] == "mit"


def test_a_base_that_a_manifest_pins_is_not_called_unpinned(
    registry: Registry, adapter: Path, tmp_path: Path
) -> None:
    base = regkit.save_base(tmp_path / "base")
    registry.add(adapter, name="a", base=base)
    registry.export("a", tmp_path / "out")
    added = registry.add(tmp_path / "out", name="b")
    assert added.digest == registry.show("a")["digest"]
    assert not any("not pinned" in note for note in added.notes)
    assert any("adapterhub edit b --licence" in note for note in added.notes)


# --- pickles ----------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    torch = pytest.importorskip("torch")
    path = regkit.save_adapter(tmp_path / "pickled")
    (path / "adapter_model.safetensors").unlink()
    state = {regkit.PREFIX + n: torch.from_numpy(a) for n, a in regkit.lora().items()}
    torch.save(state, path / "adapter_model.bin")
    return path


def test_a_pickle_is_refused_without_consent(registry: Registry, pickled: Path) -> None:
    with pytest.raises(PickleRefused, match="can run code"):
        registry.add(pickled, name="a")
    assert registry.list() == ()


def test_a_pickle_is_stored_as_safetensors(
    registry: Registry, pickled: Path, tmp_path: Path
) -> None:
    added = registry.add(pickled, name="a", allow_pickle=True)
    original = (pickled / "adapter_model.bin").read_bytes()
    weights = registry.show("a")["manifest"]["files"][1]
    assert weights["path"] == "adapter_model.safetensors"
    assert weights["converted_from"] == {
        "path": "adapter_model.bin",
        "size": len(original),
        "sha256": "sha256:" + hashlib.sha256(original).hexdigest(),
    }
    registry.export("a", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "adapterhub.json"]
    found = regkit.arrays_of(tmp_path / "out" / "adapter_model.safetensors")
    for name, array in regkit.lora().items():
        assert np.array_equal(found[regkit.PREFIX + name], array)
    assert registry.add(tmp_path / "out", name="b").digest == added.digest


# --- while somebody writes --------------------------------------------------------------------


def test_a_file_that_changes_while_it_is_added_is_refused(
    registry: Registry, adapter: Path
) -> None:
    config = adapter / "adapter_config.json"

    def hook(kind: str, path: Path) -> None:
        if kind == "write" and path.parent.name == "tmp":
            os.utime(config, ns=(1, 1))

    files.HOOK = hook
    with pytest.raises(InvalidAdapter, match=r"adapter_config\.json changed while it was added"):
        registry.add(adapter, name="a")
    files.HOOK = None
    assert registry.list() == ()


def test_a_path_that_is_not_there(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        registry.add(tmp_path / "nowhere")


def test_the_originals_are_not_touched(registry: Registry, adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "copy")
    registry.add(adapter, name="a")
    for path in adapter.iterdir():
        assert path.read_bytes() == (tmp_path / "copy" / path.name).read_bytes()
        assert not path.is_symlink()
