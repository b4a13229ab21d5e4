"""The verbs on names and versions, as a user of the library calls them."""

from __future__ import annotations

from pathlib import Path

import pytest
import regkit

from adapterhub import api
from adapterhub.errors import (
    AlreadyExists,
    IntegrityError,
    InvalidName,
    InvalidOption,
    NotFound,
)
from adapterhub.registry import Registry
from adapterhub.store import Filters


def version(registry: Registry, path: Path, seed: int, name: str = "a", **options: object) -> str:
    """A new version of `name`; its digest."""
    regkit.save_adapter(path, regkit.lora(seed))
    return registry.add(path, name=name, **options).digest  # type: ignore[arg-type]


@pytest.fixture
def two(registry: Registry, adapter: Path) -> tuple[str, str]:
    """Two versions of the name `a`, the first of them in production."""
    first = version(registry, adapter, 1, tag="production")
    return first, version(registry, adapter, 2)


# --- tags -------------------------------------------------------------------------------------


def test_a_tag_moves_and_its_history_says_all(
    registry: Registry, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERHUB_USER", "ada")
    outcome = registry.tag("a", "production")
    assert (outcome.digest, outcome.previous) == (two[1], two[0])
    event = registry.history("a")[-1]
    assert event.who == "ada"
    assert event.when.startswith("20")
    moved = {key: event.fields[key] for key in ("tag", "from", "to", "op")}
    assert moved == {"tag": "production", "from": two[0], "to": two[1], "op": "tag"}


def test_rollback_goes_to_the_previous_other_digest(
    registry: Registry, adapter: Path, two: tuple[str, str]
) -> None:
    registry.tag("a", "production")
    registry.tag("a", "production")
    assert registry.rollback("a", "production").digest == two[0]
    third = version(registry, adapter, 3, tag="production")
    assert registry.rollback("a", "production", two[1][:15]).digest == two[1]
    assert registry.rollback("a", "latest").digest == two[1]
    assert registry.show("a@" + third[:15])["digest"] == third


def test_untag_leaves_the_version(registry: Registry, two: tuple[str, str]) -> None:
    assert registry.untag("a", "production").previous == two[0]
    assert registry.show(f"a@{two[0]}")["digest"] == two[0]
    with pytest.raises(NotFound, match="a has no tag production"):
        registry.show("a:production")
    with pytest.raises(InvalidOption, match="latest cannot be taken away"):
        registry.untag("a", "latest")


# --- rm and undo ------------------------------------------------------------------------------


def test_a_removed_name_comes_back_with_its_tags(registry: Registry, two: tuple[str, str]) -> None:
    tags = registry.show("a")["tags"]
    registry.rm("a")
    with pytest.raises(NotFound, match="the name a was removed") as caught:
        registry.show("a")
    assert "rollback a latest" in caught.value.remedy
    registry.gc(grace_seconds=0)
    registry.rollback("a", "latest")
    assert registry.show("a")["tags"] == tags
    assert registry.verify()["problems"] == []


def test_a_removed_version_comes_back_by_its_digest(
    registry: Registry, two: tuple[str, str]
) -> None:
    outcome = registry.rm(f"a@{two[1][:15]}")
    assert (outcome.digest, outcome.previous) == (two[0], two[1])
    assert registry.show("a")["digest"] == two[0]
    with pytest.raises(NotFound, match="was removed"):
        registry.show(f"a@{two[1]}")
    registry.tag(f"a@{two[1][:15]}", "latest")
    assert registry.show("a")["digest"] == two[1]


def test_a_digest_that_never_was_cannot_be_tagged(registry: Registry, two: tuple[str, str]) -> None:
    with pytest.raises(NotFound, match="no version that begins with 0000"):
        registry.tag("a@0000", "latest")


def test_a_tag_is_not_removed_by_rm(registry: Registry, two: tuple[str, str]) -> None:
    with pytest.raises(InvalidOption, match="a:production is a tag") as caught:
        registry.rm("a:production")
    assert "adapterhub untag a production" in caught.value.remedy


# --- mv and edit ------------------------------------------------------------------------------


def test_mv_takes_versions_tags_and_history_along(
    registry: Registry, adapter: Path, two: tuple[str, str]
) -> None:
    before = registry.show("a")
    registry.mv("a", "team/b")
    after = registry.show("team/b")
    for key in ("digest", "tags", "versions", "card", "origin", "manifest"):
        assert after[key] == before[key]
    assert registry.history("team/b")[-1].kind == "rename"
    version(registry, adapter, 9, name="c")
    with pytest.raises(AlreadyExists, match="the name c is taken"):
        registry.mv("team/b", "c")


def test_edit_changes_the_card_and_not_the_digest(registry: Registry, two: tuple[str, str]) -> None:
    registry.edit("a", {"licence": "mit", "topics": ["x", "y"], "metrics": {"f1": 0.9}})
    registry.edit("a", {"description": "what it is"}, ["topics"])
    shown = registry.show("a")
    assert shown["card"] == {"licence": "mit", "metrics": {"f1": 0.9}, "description": "what it is"}
    assert shown["digest"] == two[1]
    with pytest.raises(InvalidOption, match="the card has no field 'colour'"):
        registry.edit("a", {"colour": "red"})


# --- finding ----------------------------------------------------------------------------------


def test_an_unknown_ref_names_the_nearest(registry: Registry, adapter: Path) -> None:
    version(registry, adapter, 1, name="sentiment-de")
    with pytest.raises(NotFound, match="no adapter is called sentimnt-de") as caught:
        registry.show("sentimnt-de")
    assert "sentiment-de" in caught.value.remedy
    with pytest.raises(NotFound, match="no version that begins with ffff"):
        registry.show("sentiment-de@ffff")


def test_what_is_a_name_and_a_path_is_refused(
    registry: Registry, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(adapter, name="first")
    monkeypatch.chdir(adapter.parent)
    for verb in (registry.inspect, registry.load):
        with pytest.raises(InvalidName, match="'first' is both a name in the registry and a path"):
            verb("first")
    assert registry.inspect("./first").source == "first"
    assert registry.inspect(Path("first")).source == "first"
    assert registry.inspect("first:latest").source.startswith("first@sha256:")


@pytest.fixture
def library(registry: Registry, tmp_path: Path, base: Path) -> Registry:
    ner = regkit.save_tagger(tmp_path / "ner", base_model_name_or_path="google/bert-tiny")
    registry.add(ner, name="team/ner", base=base, labels=("O", "SRC", "REL", "TGT"), tag="prod")
    registry.edit("team/ner", {"licence": "mit", "topics": ["graphs"], "description": "Tripel"})
    wide = regkit.save_adapter(
        tmp_path / "wide",
        regkit.lora(3, rank=16),
        r=16,
        task_type="CAUSAL_LM",
        base_model_name_or_path="meta-llama/Llama-3",
    )
    registry.add(wide, name="chat")
    registry.edit("chat", {"licence": "llama3", "topics": ["talk", "graphs"]})
    return registry


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (Filters(), {"team/ner", "chat"}),
        (Filters(method="lora"), {"team/ner", "chat"}),
        (Filters(method="ia3"), set()),
        (Filters(base="llama"), {"chat"}),
        (Filters(base="tiny"), {"team/ner"}),
        (Filters(rank_min=4), {"chat"}),
        (Filters(rank_max=4), {"team/ner"}),
        (Filters(rank_min=1, rank_max=100), {"team/ner", "chat"}),
        (Filters(task="TOKEN_CLS"), {"team/ner"}),
        (Filters(tag="prod"), {"team/ner"}),
        (Filters(topic="graphs"), {"team/ner", "chat"}),
        (Filters(topic="talk"), {"chat"}),
        (Filters(licence="mit"), {"team/ner"}),
        (Filters(text="tripel"), {"team/ner"}),
        (Filters(text="src"), {"team/ner"}),
        (Filters(topic="graphs", licence="mit", rank_max=2), {"team/ner"}),
    ],
)
def test_filters(library: Registry, filters: Filters, names: set[str]) -> None:
    assert {row.name for row in library.list(filters)} == names
    assert library.count(filters) == len(names)
    if filters.text is None:
        assert {row.name for row in library.search("graphs", filters)} == names


def test_a_base_is_found_by_its_root(library: Registry) -> None:
    (record,) = library.base.list()
    for root in (record["weights_root"], record["structure_root"][:20]):
        assert [row.name for row in library.list(Filters(base=root))] == ["team/ner"]


def test_search_finds_words_of_names_cards_bases_and_labels(library: Registry) -> None:
    for words, found in [("ner", "team/ner"), ("llama", "chat"), ("TRIPEL", "team/ner")]:
        assert [row.name for row in library.search(words)] == [found]
    assert library.search("nothing-like-it") == ()


def test_pages(library: Registry) -> None:
    first = library.list(order="name", limit=1)
    second = library.list(order="name", limit=1, after=first[0].cursor)
    assert [row.name for row in (*first, *second)] == ["chat", "team/ner"]
    assert library.list(order="name", limit=1, offset=1) == second


def test_reindex_brings_back_a_deleted_index(library: Registry) -> None:
    before = library.list()
    library.close()
    for path in library.home.glob("index.db*"):
        path.unlink()
    with api.open(library.home) as reopened:
        assert reopened.list() == before
        assert reopened.reindex() == 2
        assert reopened.list() == before
        assert [row.name for row in reopened.search("tripel")] == ["team/ner"]


# --- diff -------------------------------------------------------------------------------------


def test_diff_of_a_version_with_itself(registry: Registry, two: tuple[str, str]) -> None:
    found = registry.diff("a", "a:latest")
    assert found.equal
    assert (found.same, found.fields, found.changed) == (2, {}, ())


def test_diff_names_fields_and_tensors(registry: Registry, tmp_path: Path) -> None:
    one = regkit.lora(1)
    other = one | regkit.head() | {f"{regkit.QUERY}.lora_B.weight": regkit.numbers(99, 8, 2)}
    registry.add(regkit.save_adapter(tmp_path / "one", one), name="one")
    path = regkit.save_adapter(
        tmp_path / "other", other, lora_alpha=8, modules_to_save=["classifier"]
    )
    registry.add(path, name="other")
    found = registry.diff("one", "other")
    assert not found.equal
    assert found.fields["alpha"] == (4, 8)
    assert found.changed == (f"{regkit.PREFIX}{regkit.QUERY}.lora_B.weight",)
    assert found.only_left == ()
    assert found.only_right == tuple(f"{regkit.PREFIX}classifier.{n}" for n in ("bias", "weight"))
    assert found.same == 1
    assert registry.diff("other", "one").only_left == found.only_right


# --- verify and gc ----------------------------------------------------------------------------


def test_verify_names_a_flipped_byte(registry: Registry, two: tuple[str, str]) -> None:
    assert registry.verify() == {"versions": 2, "files": 3, "problems": []}
    blob = regkit.blob_of(registry, "a", "adapter_model.safetensors")
    regkit.flip(blob)
    (problem,) = registry.verify()["problems"]
    assert problem.startswith(f"a@{two[1][:19]}: adapter_model.safetensors: blob")
    assert blob.name in problem
    assert registry.verify(f"a@{two[0]}")["problems"] == []
    with pytest.raises(IntegrityError, match="is damaged"):
        registry.load("a")


def test_verify_names_a_missing_blob_and_a_damaged_manifest(
    registry: Registry, two: tuple[str, str]
) -> None:
    regkit.blob_of(registry, "a", "adapter_model.safetensors").unlink()
    digits = two[0].removeprefix("sha256:")
    regkit.flip(registry.home / "manifests" / "sha256" / digits[:2] / digits)
    problems = registry.verify()["problems"]
    assert len(problems) == 2
    assert any(f"manifest {two[0]} is damaged" in problem for problem in problems)
    assert any("is missing from the store" in problem for problem in problems)


def test_verify_goes_on_after_a_damaged_log(
    registry: Registry, adapter: Path, two: tuple[str, str]
) -> None:
    version(registry, adapter, 5, name="other")
    log = registry.home / "refs" / "a.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"{damaged\n" + b"".join(lines[1:]))
    result = registry.verify()
    assert result["versions"] == 1
    (problem,) = result["problems"]
    assert problem.startswith("a: line 1 of")


def test_inspect_of_a_damaged_version_says_what_it_sees(
    registry: Registry, two: tuple[str, str]
) -> None:
    regkit.blob_of(registry, "a", "adapter_model.safetensors").unlink()
    found = registry.inspect("a")
    assert found.method == "lora"
    assert [problem.code for problem in found.problems if problem.fatal] == ["no-weights"]


def test_gc_keeps_every_version_and_frees_what_was_never_named(
    registry: Registry, two: tuple[str, str]
) -> None:
    stray = registry.store.put_blob_bytes(b"x" * 1000)[0]
    dry = registry.gc(grace_seconds=0, dry_run=True)
    assert (dry.blobs, dry.bytes_freed) == (1, 1000)
    assert registry.store.has_blob(stray)
    registry.gc(grace_seconds=0)
    assert not registry.store.has_blob(stray)
    assert registry.verify() == {"versions": 2, "files": 3, "problems": []}
