from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pytest
import regkit
from clikit import Run

from adapterhub.cli.merging import split_weight

STORED = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("text", "name", "weight"),
    [
        ("a", "a", 1.0),
        ("a=0.7", "a", 0.7),
        ("a=-1", "a", -1.0),
        ("a=.5", "a", 0.5),
        ("a=1e-2", "a", 0.01),
        ("a:prod=2", "a:prod", 2.0),
        ("./x=y", "./x=y", 1.0),
        ("./x=y=0.5", "./x=y", 0.5),
        ("./r=8/run", "./r=8/run", 1.0),
        ("=0.7", "=0.7", 1.0),
        ("./x=y/z=nan", "./x=y/z=nan", 1.0),
        ("a=0e5", "a", 0.0),
    ],
)
def test_the_weight_follows_the_last_equals_sign(text: str, name: str, weight: float) -> None:
    assert split_weight(text) == (name, weight)


@pytest.mark.parametrize("text", ["a=nan", "a=", "a=half", "a=0,5", "a=1e-400", "a=\u0661"])
def test_a_weight_that_is_no_number_is_refused_as_such(text: str) -> None:
    with pytest.raises(click.UsageError, match="the weight of a is"):
        split_weight(text)


def test_a_path_that_is_there_has_a_weight_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(click.UsageError, match=r"the weight of \./a is 'nan'"):
        split_weight("./a=nan")
    (tmp_path / "a=nan").mkdir()
    assert split_weight("./a=nan") == ("./a=nan", 1.0)
    assert split_weight("./a=x/b") == ("./a=x/b", 1.0)
    assert split_weight("/" + "a" * 5000 + "=nan")[1] == 1.0


def query(directory: Path) -> np.ndarray:
    return regkit.arrays_of(directory / "model.safetensors")[STORED]


def test_merge_by_ref_with_a_weight(run: Run, adapter: Path, base: Path, tmp_path: Path) -> None:
    run("add", adapter, "--name", "a", "--base", base)
    said = run("merge", "minibert", "a=0.5", "--out", tmp_path / "m")
    assert said.code == 0, said.err
    assert "verified" in said.out
    a = regkit.lora()[f"{regkit.QUERY}.lora_A.weight"].astype(np.float64)
    b = regkit.lora()[f"{regkit.QUERY}.lora_B.weight"].astype(np.float64)
    expected = query(base) + 0.5 * (4 / 2) * (b @ a)
    assert np.allclose(query(tmp_path / "m"), expected, atol=1e-6)
    assert run("verify", tmp_path / "m").code == 0


def test_two_adapters_and_json(run: Run, adapter: Path, base: Path, tmp_path: Path) -> None:
    other = regkit.save_adapter(tmp_path / "other", regkit.lora(9))
    said = run("merge", base, adapter, f"{other}=0.25", "--out", tmp_path / "m", "--json")
    report = said.json["result"]
    assert report["verified"] is False
    assert report["weights_root"].startswith("sha256:")
    again = run("merge", base, adapter, f"{other}=0.25", "--out", tmp_path / "n", "-q")
    assert again.out.strip() == report["weights_root"]


def test_a_dry_run_writes_nothing(
    run: Run, tagger: Path, base: Path, tmp_path: Path, home: Path
) -> None:
    run("list")
    before, beside = regkit.tree(home), sorted(tmp_path.rglob("*"))
    said = run("merge", base, tagger, "--out", tmp_path / "m", "--dry-run")
    assert said.code == 0
    assert "nothing is written" in said.out
    assert "adds classifier.weight" in said.out
    plan = run("merge", base, tagger, "--dry-run", "--json").json["result"]
    assert {fate["fate"] for fate in plan["fates"]} >= {"adds classifier.bias"}
    assert regkit.tree(home) == before
    assert [p for p in sorted(tmp_path.rglob("*")) if "index.db" not in p.name] == [
        p for p in beside if "index.db" not in p.name
    ]


def test_mistakes_on_the_command_line(run: Run, adapter: Path, base: Path) -> None:
    assert run("merge", base).code == 2
    said = run("merge", base, adapter)
    assert said.code == 2
    assert "--out" in said.err
    said = run("merge", base, adapter, "--out", "x", "--max-shard-size", "big", "--json")
    assert said.code == 1
    assert said.json["error"]["message"] == "'big' is not a size"
    said = run("merge", base, f"{adapter}=1e99", "--out", "x", "--json")
    assert said.json["error"]["code"] == "not-mergeable"


def test_an_adapter_that_is_a_name_and_a_path(
    run: Run, adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("add", adapter, "--name", "first")
    monkeypatch.chdir(adapter.parent)
    said = run("merge", base, "first=0.5", "--out", "m", "--json")
    assert said.json["error"]["code"] == "invalid-name"
    assert run("merge", base, "first:latest=0.5", "--out", "m").code == 0


def test_the_lora_of_a_union(run: Run, tmp_path: Path) -> None:
    golden = Path(__file__).resolve().parent.parent / "golden" / "adapters" / "gpt2"
    union, base = tmp_path / "u", golden / "base"
    union.mkdir()
    arrays = regkit.arrays_of(golden / "unipelt" / "adapter.safetensors")
    still = {n: a * (not (".loras." in n and n.endswith("gate.weight"))) for n, a in arrays.items()}
    regkit.write_tensors(union / "adapter.safetensors", still)
    config = (golden / "unipelt" / "adapter_config.json").read_bytes()
    (union / "adapter_config.json").write_bytes(config)
    refused = run("merge", base, union, "--out", tmp_path / "m")
    assert refused.code == 1
    assert "--part lora" in refused.err
    planned = run("merge", base, union, "--part", "lora", "--dry-run")
    assert "(lora only)" in planned.out
    assert "left out: --part lora" in planned.out
    said = run("merge", base, union, "--part", "lora", "--out", tmp_path / "m")
    assert said.code == 0, said.err
    assert "only the LoRA is merged" in " ".join(said.out.split())
    assert run("verify", tmp_path / "m", "--repeat", "--base", base, "--adapter", union).code == 0
    moving = run("merge", base, golden / "unipelt", "--part", "lora", "--out", tmp_path / "n")
    assert moving.code == 1
    assert "hangs on the input" in moving.err
    assert run("merge", base, union, "--part", "prefix", "--out", tmp_path / "n").code == 2
