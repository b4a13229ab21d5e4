"""inspect, add, list, search, show, path, export, diff."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import regkit
from clikit import Run


def test_the_first_five_minutes(run: Run, tagger: Path, base: Path, tmp_path: Path) -> None:
    seen = run("inspect", tagger)
    assert seen.code == 0
    assert "lora" in seen.out
    assert "classifier" in seen.out
    added = run(
        "add", tagger, "--name", "ner", "--base", base, "--labels", "O,SRC,REL,TGT", "--tag", "prod"
    )
    assert added.lines[0].startswith("added: ner@sha256:")
    assert run("list").lines[1].split()[:4] == ["ner", "prod", "lora", "2"]
    shown = run("show", "ner").out
    for text in ("O, SRC, REL, TGT", "latest, prod", str(base), "adapter_model.safetensors"):
        assert text in shown
    assert run("export", "ner", tmp_path / "out").code == 0
    place = Path(run("path", "ner").lines[0])
    assert (place / "adapter_config.json").read_bytes() == (
        tmp_path / "out" / "adapter_config.json"
    ).read_bytes()


def test_adding_the_same_again_says_that_nothing_changed(run: Run, adapter: Path) -> None:
    run("add", adapter, "--name", "a")
    again = run("add", adapter, "--name", "a")
    assert again.code == 0
    assert again.lines[0].startswith("already there, nothing changed: a@sha256:")
    assert (
        run("add", adapter, "--name", "a", "--tag", "t")
        .lines[0]
        .startswith("already there, its tags or card changed")
    )


def test_quiet_prints_versions_only(run: Run, adapter: Path) -> None:
    version = run("add", adapter, "--name", "a", "-q")
    assert version.out == run("list", "-q").out == run("search", "a", "-q").out
    assert version.out == run("show", "a", "-q").out
    assert version.out.startswith("a@sha256:")
    assert len(version.out) == len("a@sha256:") + 64 + 1


def test_new_refuses(run: Run, adapter: Path) -> None:
    assert run("add", adapter, "--name", "a", "--new").code == 0
    said = run("add", adapter, "--name", "a", "--new", "--json")
    assert said.code == 1
    assert said.json["error"]["code"] == "already-exists"
    assert "--new" in said.json["error"]["remedy"]


def test_recursive_reports_what_it_took_and_refused(run: Run, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    regkit.save_adapter(runs / "good")
    regkit.save_adapter(runs / "bad", peft_type="DIAG")
    said = run("add", runs, "--recursive")
    assert said.code == 0
    assert [line.split()[1] for line in said.lines[1:]] == ["refused", "added"]
    assert "DIAG" in said.out
    assert "1 of 2 adapters taken, 1 refused" in said.err
    rows = run("add", runs, "--recursive", "--json").json["result"]
    assert [row["status"] for row in rows] == ["refused", "unchanged"]
    assert run("add", runs, "--recursive", "-q").lines == run("list", "-q").lines


def test_recursive_with_nothing_taken_fails(run: Run, tmp_path: Path) -> None:
    regkit.save_adapter(tmp_path / "runs" / "bad", peft_type="DIAG")
    assert run("add", tmp_path / "runs", "--recursive").code == 1


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), ["ner", "plain"]),
        (("--method", "lora"), ["ner", "plain"]),
        (("--method", "dora"), []),
        (("--base", "tiny"), ["ner", "plain"]),
        (("--rank-min", "3"), []),
        (("--rank-min", "1", "--rank-max", "2"), ["ner", "plain"]),
        (("--task", "TOKEN_CLS"), ["ner"]),
        (("--tag", "prod"), ["plain"]),
        (("--topic", "graphs"), ["ner"]),
        (("--licence", "mit"), ["ner"]),
        (("--text", "relation"), ["ner"]),
        (("--limit", "1"), ["ner"]),
        (("--offset", "1"), ["plain"]),
    ],
)
def test_filters(
    run: Run, adapter: Path, tagger: Path, options: tuple[str, ...], names: list[str]
) -> None:
    run("add", adapter, "--name", "plain", "--tag", "prod")
    run("add", tagger, "--name", "ner")
    run("edit", "ner", "--licence", "mit", "--topic", "graphs", "--description", "marks relations")
    said = run("list", "--order", "name", *options, "--json")
    assert [row["name"] for row in said.json["result"]] == names


def test_empty_lists_say_so_on_stderr(run: Run, adapter: Path) -> None:
    said = run("list")
    assert (said.code, said.out) == (0, "")
    assert "the registry is empty" in said.err
    run("add", adapter, "--name", "a")
    said = run("list", "--method", "ia3")
    assert (said.out, said.err) == ("", "note: nothing matches\n")
    assert "nothing matches 'zebra'" in run("search", "zebra").err
    assert run("list", "--method", "ia3", "--json").json["result"] == []


def test_pages_name_the_next_one(run: Run, adapter: Path) -> None:
    for name in ("a", "b", "c"):
        run("add", adapter, "--name", name)
    assert "2 of 3; the next page: --offset 2" in run("list", "--limit", "2").err
    assert run("list", "--limit", "2", "--offset", "2").err == ""


def test_show_has_the_manifest_and_where_the_base_lies(run: Run, adapter: Path, base: Path) -> None:
    run("add", adapter, "--name", "a", "--base", base)
    found = run("show", "a", "--json").json["result"]
    assert found["manifest"]["kind"] == "adapter"
    assert found["base_at"]["path"] == str(base)
    assert found["origin"] == {"path": str(adapter)}


def test_show_lists_the_versions_of_the_name(run: Run, adapter: Path) -> None:
    run("add", adapter, "--name", "a", "--tag", "prod")
    assert "added  " not in run("show", "a").out
    regkit.save_adapter(adapter, regkit.lora(5))
    second = run("add", adapter, "--name", "a", "-q").out.partition("@")[2]
    newest, oldest = run("show", "a:prod").lines[-2:]
    assert newest.split()[0] == second[:19]
    assert newest.endswith("latest")
    assert oldest.endswith("prod")


def test_lists_leave_the_readme_out_and_show_has_it(run: Run, adapter: Path) -> None:
    (adapter / "README.md").write_text("---\nlicense: mit\n---\nA long story.\n")
    run("add", adapter, "--name", "a")
    (row,) = run("list", "--json").json["result"]
    assert row["card"] == {"licence": "mit"}
    assert "A long story" in run("show", "a", "--json").json["result"]["card"]["readme"]


def test_diff_exits_1_on_a_difference(run: Run, adapter: Path) -> None:
    run("add", adapter, "--name", "a")
    same = run("diff", "a", "a")
    assert (same.code, same.out) == (0, "tensors: 2 equal, 0 with other values\n")
    regkit.save_adapter(adapter, regkit.lora(9), lora_alpha=32)
    run("add", adapter, "--name", "b")
    other = run("diff", "a", "b")
    assert other.code == 1
    assert "alpha" in other.out
    assert "tensors: 0 equal, 2 with other values" in other.out
    assert run("diff", "a", "b", "--json").json["result"]["equal"] is False


def test_export_says_where(run: Run, adapter: Path, tmp_path: Path) -> None:
    version = run("add", adapter, "--name", "a", "-q").out.strip()
    said = run("export", "a", tmp_path / "out", "--json")
    assert said.json["result"] == {"version": version, "directory": str(tmp_path / "out")}
    manifest = json.loads((tmp_path / "out" / "adapterhub.json").read_text())
    assert manifest["kind"] == "adapter"
    assert run("path", "a", "--json").json["result"]["path"] == run("path", "a").lines[0]


# --- inspect ----------------------------------------------------------------------------------


def test_inspect_shows_alpha_scaling_and_what_a_config_alone_says(
    run: Run, tagger: Path, tmp_path: Path
) -> None:
    facts = dict(line.split(maxsplit=1) for line in run("inspect", tagger).lines[1:6])
    config = json.loads((tagger / "adapter_config.json").read_text())
    assert facts["rank"].strip() == "2"
    assert facts["scaling"].strip() == f"{config['lora_alpha'] / 2:g}"
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps({**config, "target_modules": ["q"]}))
    said = [line.split(maxsplit=1) for line in run("inspect", alone).lines[1:]]
    assert ["rank", "2 (as the config says)"] in said
    assert ["targets", "q"] in said


def test_many_targets_are_cut_for_people(run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "alone.json"
    names = [f"m{chr(97 + i)}" for i in range(20)]
    alone.write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": names}))
    assert "ml, and 8 more (all: --json)" in run("inspect", alone).out
    assert run("inspect", alone, "--json").json["result"]["targets"] == names


def test_a_list_names_problems_by_their_codes(run: Run, tagger: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("good", "bad"):
        shutil.copytree(tagger, runs / name)
    (runs / "bad" / "adapter_model.safetensors").write_bytes(b"")
    rows = {line.split()[0]: line for line in run("inspect", runs).lines[1:]}
    assert "✗ invalid-tensor-file, " in rows["bad"]
    assert "✗" not in rows["good"]
    assert str(runs) not in rows["bad"]
