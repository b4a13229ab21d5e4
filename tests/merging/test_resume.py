"""Merges that end early: killed, interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from building import LLAMA, contents, llama, nothing_left, opened, plan_of, random, run, save_base

from adapterhub import merging as merge
from adapterhub.errors import OutputError
from adapterhub.merging import MergeReport, engine, output

SHARDS = 7


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base", llama(), LLAMA, shards=SHARDS)


def leave_after(
    count: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Makes the merge die when `count` shards are recorded; returns how to undo that."""
    original, done = output.Partial.record, [0]

    def record(self: output.Partial, entry: output.Entry) -> None:
        if done[0] == count:
            raise error
        original(self, entry)
        done[0] += 1

    monkeypatch.setattr(output.Partial, "record", record)
    return lambda: monkeypatch.setattr(output.Partial, "record", original)


def interrupted(base: Path, adapter: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves a remainder with three whole shards."""
    undo = leave_after(3, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        merge.run(plan_of(base, adapter), out)
    undo()


def resume(base: Path, adapter: Path, out: Path) -> MergeReport:
    return merge.run(plan_of(base, adapter), out, resume=True)


def whole_files(out: Path) -> list[str]:
    lines = (out.with_name(f"{out.name}.partial") / output.MARKER).read_text().splitlines()
    return [e["file"] for line in lines if "file" in (e := json.loads(line)["entry"])]


# --- going on ---------------------------------------------------------------------------------


def test_an_interrupted_merge_goes_on_after_its_whole_shards(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = run(base, tmp_path / "want", adapter)
    out = tmp_path / "out"
    interrupted(base, adapter, out, monkeypatch)
    assert not out.exists() and len(whole_files(out)) == 3
    kept = {n: (tmp_path / "out.partial" / n).stat().st_ino for n in whole_files(out)}
    report = resume(base, adapter, out)
    assert report.weights_root == want.weights_root
    assert contents(out) == contents(tmp_path / "want")
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    assert f"3 of {SHARDS} files were whole already" in report.notes
    assert nothing_left(tmp_path / "out.partial")


def test_progress_counts_what_was_whole(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(base, adapter, tmp_path / "out", monkeypatch)
    told: list[int] = []
    merge.run(plan_of(base, adapter), tmp_path / "out", resume=True, writing=told.append)
    assert sum(told) == sum(array.nbytes for array in llama().values())


def test_nothing_to_resume_is_a_merge_like_any_other(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    want = run(base, tmp_path / "want", adapter)
    assert resume(base, adapter, tmp_path / "out").weights_root == want.weights_root


def test_without_resume_the_merge_starts_anew_and_says_so(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(base, adapter, tmp_path / "out", monkeypatch)
    inodes = {p.stat().st_ino for p in (tmp_path / "out.partial").glob("*.safetensors")}
    report = run(base, tmp_path / "out", adapter)
    assert (
        "--resume would have kept them" in report.notes[-1] and "3 whole files" in report.notes[-1]
    )
    assert merge.differences(tmp_path / "out") == [] and inodes


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "header"])
def test_a_shard_that_is_not_what_the_journal_says_is_made_anew(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    want = run(base, tmp_path / "want", adapter)
    out = tmp_path / "out"
    interrupted(base, adapter, out, monkeypatch)
    path = tmp_path / "out.partial" / whole_files(out)[1]
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        data[-1 if damage == "flip" else 10] ^= 1
        path.write_bytes(data[:-3] if damage == "cut" else data)
    report = resume(base, adapter, out)
    assert report.weights_root == want.weights_root
    assert f"2 of {SHARDS} files were whole already" in report.notes
    assert contents(out) == contents(tmp_path / "want")


def test_what_is_in_the_way_is_no_shard(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that somebody put there must not be written through."""
    out = tmp_path / "out"
    interrupted(base, adapter, out, monkeypatch)
    path = tmp_path / "out.partial" / whole_files(out)[0]
    target = tmp_path / "precious"
    target.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(target)
    before = target.read_bytes()
    resume(base, adapter, out)
    assert target.read_bytes() == before and not (out / path.name).is_symlink()


@pytest.mark.parametrize("other", ["weight", "base", "config", "dtype"])
def test_the_remainder_of_another_merge_is_refused_and_kept(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    from building import source

    out = tmp_path / "out"
    interrupted(base, adapter, out, monkeypatch)
    before = contents(tmp_path / "out.partial")
    plan = plan_of(base, source(adapter, weight=0.5 if other == "weight" else 1.0))
    if other == "base":
        arrays = llama() | {"model.norm.weight": random(77, 8)}
        changed = save_base(tmp_path / "changed", arrays, LLAMA, shards=SHARDS)
        plan = plan_of(changed, adapter)
    if other == "config":
        (adapter / "adapter_config.json").write_text(
            (adapter / "adapter_config.json")
            .read_text()
            .replace('"lora_alpha": 4', '"lora_alpha": 8')
        )
        plan = plan_of(base, adapter)
    if other == "dtype":
        plan = plan_of(base, adapter, dtype="float16")
    with pytest.raises(OutputError, match=r"out\.partial is the remainder of another merge"):
        merge.run(plan, out, resume=True)
    assert contents(tmp_path / "out.partial") == before


def test_too_little_space_to_go_on_keeps_what_is_whole(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    out = tmp_path / "out"
    interrupted(base, adapter, out, monkeypatch)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OutputError, match="bytes free"):
            resume(base, adapter, out)
    assert len(whole_files(out)) == 3
    assert f"3 of {SHARDS} files were whole already" in resume(base, adapter, out).notes


@pytest.mark.parametrize(
    ("torn", "whole"),
    [("cut", 2), ("no newline", 2), ("zeros", 2), ("noise", 0), ("empty", 0), ("twice", 3)],
)
def test_a_torn_journal_counts_as_far_as_it_is_whole(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torn: str,
    whole: int,
) -> None:
    out = tmp_path / "out"
    interrupted(base, adapter, out, monkeypatch)
    journal = tmp_path / "out.partial" / output.MARKER
    data = journal.read_bytes()
    lines = data.splitlines(keepends=True)
    journal.write_bytes(
        {
            "cut": data[:-30],
            "no newline": data[:-1],
            "zeros": b"".join(lines[:3]) + b"\0" * 40 + b"\n",
            "noise": b"\xff\n" + data,
            "empty": b"",
            "twice": data + lines[-1],
        }[torn]
    )
    notes = resume(base, adapter, out).notes
    assert [n for n in notes if "whole already" in n] == (
        [f"{whole} of {SHARDS} files were whole already"] if whole else []
    )
    assert merge.differences(out) == []


# --- failing ----------------------------------------------------------------------------------


def test_an_error_leaves_nothing_even_with_whole_shards(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_after(3, OSError, monkeypatch)
    with pytest.raises(OutputError):
        run(base, tmp_path / "out", adapter)
    assert nothing_left(tmp_path / "out")


def test_a_read_error_names_the_file_and_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from adapterhub.errors import AdapterHubError

    plan = plan_of(base, adapter)
    plan.base.digests()

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    monkeypatch.setattr(engine, "_check_inputs", lambda _: None)
    with pytest.raises(AdapterHubError, match="Input/output error"):
        merge.run(plan, tmp_path / "out")
    assert nothing_left(tmp_path / "out")


# --- kill -9 ----------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from building import plan_of
from adapterhub import merging as merge
from adapterhub.merging import output
original = output.Partial.record
def slowly(self, entry):
    original(self, entry)
    time.sleep(0.15)
output.Partial.record = slowly
merge.run(plan_of(Path(sys.argv[2]), Path(sys.argv[3])), Path(sys.argv[4]), resume=True)
"""


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_root(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    want = run(base, tmp_path / "want", adapter)
    out = tmp_path / "out"
    partial = tmp_path / "out.partial"
    script = [sys.executable, "-W", "ignore", "-c", SLOW, str(Path(__file__).parent)]
    whole = 0
    for _ in range(20):
        child = subprocess.Popen([*script, base, adapter, out])
        deadline = time.monotonic() + 30
        while child.poll() is None and time.monotonic() < deadline:
            if partial.exists() and _recorded(partial) > whole:
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if out.exists():
            break
        assert not (partial / "config.json").exists() or whole == SHARDS
        whole = _recorded(partial)
    assert whole >= 2 or out.exists()
    if not out.exists():
        resume(base, adapter, out)
    assert contents(out).keys() - {output.MARKER} == contents(tmp_path / "want").keys()
    assert opened(out).weights_root() == want.weights_root
    assert merge.differences(out) == []


def _recorded(partial: Path) -> int:
    try:
        return (partial / output.MARKER).read_bytes().count(b'"file"')
    except OSError:
        return 0
