from __future__ import annotations

from pathlib import Path

import pytest
import regkit

from adapterhub.errors import NotFound
from adapterhub.registry import Registry, Taken


def by_name(taken: list[Taken]) -> dict[str, str]:
    return {one.name: one.status for one in taken}


def test_trainer_checkpoints_below_a_directory_of_runs(registry: Registry, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number, place in enumerate(
        ("ner/checkpoint-10", "ner/checkpoint-20", "ner", "intent/checkpoint-5", "plain")
    ):
        regkit.save_adapter(runs / place, regkit.lora(number))
    (runs / "notes").mkdir()
    (runs / "ner" / "optimizer.pt").write_bytes(b"state")
    taken = list(registry.add_runs(runs))
    assert by_name(taken) == dict.fromkeys(
        ("intent-checkpoint-5", "ner", "ner-checkpoint-10", "ner-checkpoint-20", "plain"), "added"
    )
    assert set(registry.store.names()) == by_name(taken).keys()
    again = list(registry.add_runs(runs))
    assert set(by_name(again).values()) == {"unchanged"}


@pytest.mark.parametrize("with_root", [True, False])
def test_one_run_keeps_its_own_name(registry: Registry, tmp_path: Path, with_root: bool) -> None:
    run = tmp_path / "ner"
    regkit.save_adapter(run / "checkpoint-10", regkit.lora(1))
    if with_root:
        regkit.save_adapter(run, regkit.lora(2))
    names = set(by_name(list(registry.add_runs(run))))
    assert names == {"ner-checkpoint-10"} | ({"ner"} if with_root else set())


def test_a_name_is_what_all_begin_with(registry: Registry, tmp_path: Path) -> None:
    regkit.save_adapter(tmp_path / "runs" / "a")
    regkit.save_adapter(tmp_path / "runs" / "b", regkit.lora(5))
    taken = list(registry.add_runs(tmp_path / "runs", name="team/try", tag="candidate"))
    assert by_name(taken) == {"team/try-a": "added", "team/try-b": "added"}
    assert "candidate" in registry.show("team/try-b")["tags"]


def test_adapters_of_peft_in_named_subfolders(registry: Registry, tmp_path: Path) -> None:
    """`save_pretrained` of a model with two adapters, by PEFT itself."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = torch.nn.Linear(4, 4)

        def forward(self, x: object) -> object:
            return self.query(x)

    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["query"]))
    model.add_adapter("second", peft.LoraConfig(r=1, target_modules=["query"]))
    model.save_pretrained(str(tmp_path / "two"))
    taken = list(registry.add_runs(tmp_path / "two"))
    assert by_name(taken) == {"two": "added", "two-second": "added"}
    ranks = {row.name: row.rank_max for row in registry.list()}
    assert ranks == {"two": 2, "two-second": 1}


def test_a_refused_one_among_good_ones(registry: Registry, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    regkit.save_adapter(runs / "good")
    regkit.save_adapter(runs / "other", peft_type="DIAG")
    regkit.save_adapter(runs / "wrong", r=99)
    (runs / "empty").mkdir()
    (runs / "empty" / "adapter_config.json").write_text("{}")
    taken = {one.name: one for one in registry.add_runs(runs)}
    assert by_name(list(taken.values())) == {
        "good": "added",
        "other": "refused",
        "wrong": "refused",
        "empty": "refused",
    }
    assert "DIAG" in (taken["other"].error or "")
    assert taken["other"].remedy
    assert taken["other"].version is None
    assert registry.store.names() == ("good",)


def test_two_runs_that_would_share_a_name_are_not_mixed(registry: Registry, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    regkit.save_adapter(runs / "run-a" / "checkpoint-10", regkit.lora(1))
    regkit.save_adapter(runs / "run a" / "checkpoint-10", regkit.lora(2))
    first, second = registry.add_runs(runs)
    assert (first.name, first.status) == ("run-a-checkpoint-10", "added")
    assert (second.name, second.status) == ("run-a-checkpoint-10", "refused")
    assert second.error == f"its name run-a-checkpoint-10 is that of {first.path}"
    assert len(registry.show("run-a-checkpoint-10")["versions"]) == 1


def test_hidden_directories_and_links_are_left_aside(registry: Registry, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    regkit.save_adapter(runs / "good")
    regkit.save_adapter(runs / ".git" / "old", regkit.lora(3))
    (runs / "latest").symlink_to(runs / "good", target_is_directory=True)
    (runs / "loop").symlink_to(runs, target_is_directory=True)
    assert by_name(list(registry.add_runs(runs))) == {"good": "added"}


def test_nothing_to_add(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no adapter below"):
        list(registry.add_runs(tmp_path))
    with pytest.raises(NotFound, match="is not a directory"):
        list(registry.add_runs(tmp_path / "nowhere"))
