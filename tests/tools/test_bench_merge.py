"""The merge bench measures what it says: whole runs on a tiny model, and its parts by hand."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import bench_merge
import measured
import merge_figures as figures
import numpy as np
import page_cache
import pytest
import random_llama
from measured import Measured, Memory

from adapterhub.tensorfile import open_checkpoint

ROOT = Path(__file__).parents[2]
TINY = 0.0004  # 1e9 parameters
MB = 1_000_000


def bench(tmp_path: Path, *arguments: str) -> tuple[str, object]:
    """What a run printed, and its --json."""
    record = tmp_path / "figures.json"
    command = [
        sys.executable,
        "tools/bench_merge.py",
        "--json",
        str(record),
        "--no-fill",  # a test should not push everything else out of the machine's memory
        *arguments,
    ]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("bench-merge-*")) == []
    return done.stdout, json.loads(record.read_text())


# --- whole runs -------------------------------------------------------------------------------


@pytest.mark.slow
def test_compares_and_leaves_nothing_behind(tmp_path):
    printed, record = bench(tmp_path, "--parameters", str(TINY), "--peft-rounds", "0", "--rounds=1")
    assert "page cache warm" in printed
    (one,) = record["rounds"]
    expected = {"copy", "hash", "r16", "r16 cold", "r64", "r64 cold", "two"}
    assert expected <= set(one)
    assert ("verify" in one) != ("verify" in record["not_available"])
    assert {len(roots) for roots in record["weights_roots"].values()} == {1}
    assert len({root for roots in record["weights_roots"].values() for root in roots}) == 3
    for name in ("r16", "r64", "two"):
        assert one[name]["wall"] > 0.1
        assert one[name]["user"] > 0.1
        assert one[name]["memory"]["anonymous"] > 5 * MB
        assert one[name]["memory"]["file_backed"] > 5 * MB
    assert len(one["copy"]["walls"]) == 2
    by_name = {target["what"]: target for target in record["targets"]}
    ratio = by_name["(merge − 0.7 s) ÷ (cp + sync), r=16"]
    assert ratio["value"] == pytest.approx((one["r16"]["wall"] - 0.7) / one["copy"]["wall"])
    assert by_name["PEFT's wall time ÷ merge's, r=16"]["met"] is None


@pytest.mark.slow
def test_grows(tmp_path):
    printed, record = bench(tmp_path, "--grow", str(TINY), "--rounds", "2")
    (one,) = record
    assert one["parameters"] == pytest.approx(TINY * 1e9, rel=0.1)
    assert [sorted(each) for each in one["rounds"]] == [["copy", "r16"]] * 2
    assert "✓ anonymous memory: at most" in printed
    assert "GB/s" in printed


@pytest.mark.slow
def test_pefts_path_is_measured_too(tmp_path):
    _, record = bench(tmp_path, "--parameters", str(TINY), "--peft-rounds", "1", "--rounds=1")
    assert "peft" not in record["not_available"]
    assert record["rounds"][0]["peft"]["memory"]["anonymous"] > 100 * MB


def test_terminated_it_clears_away_too(tmp_path):
    command = [sys.executable, "tools/bench_merge.py", "--parameters", str(TINY), "--no-fill"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    started = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("bench-merge-*/adapter-64")):
        assert started.poll() is None
        time.sleep(0.01)
    started.terminate()
    assert started.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--json", "/no/such/place/x.json"], "/no/such/place is not a directory"),
    ],
)
def test_refuses_before_the_work(arguments, said, capsys):
    with pytest.raises(SystemExit):
        bench_merge.main(arguments)
    assert said in capsys.readouterr().err


def test_refuses_a_place_that_is_memory_missing_or_full(tmp_path, monkeypatch):
    def enter(parent: Path, needed: int = 0) -> None:
        with bench_merge.workplace(parent, needed, keep=False):
            pytest.fail("it was let in")

    monkeypatch.setattr(bench_merge, "filesystem", lambda place: "tmpfs")
    with pytest.raises(SystemExit, match="is no disk but memory"):
        enter(tmp_path)
    monkeypatch.setattr(bench_merge, "filesystem", lambda place: "ext4")
    with pytest.raises(SystemExit, match="GB are needed"):
        enter(tmp_path, 1 << 60)
    with pytest.raises(SystemExit, match="is not a directory"):
        enter(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_filler_reads_until_memory_is_full_and_goes_on_there(tmp_path, monkeypatch):
    free = {"MemTotal": 1 << 30, "MemFree": 1 << 29}
    read: list[int] = []

    def preadv(fd: int, pieces: list[bytearray], offset: int) -> int:
        assert offset + len(pieces[0]) <= os.fstat(fd).st_size
        read.append(offset)
        free["MemFree"] -= len(pieces[0])
        return len(pieces[0])

    monkeypatch.setattr(page_cache, "memory", free.__getitem__)
    monkeypatch.setattr(page_cache.os, "preadv", preadv)
    with closing(page_cache.Filler(tmp_path / "empty")) as filler:
        filler.fill()
        assert (tmp_path / "empty").stat().st_blocks == 0
        assert free["MemFree"] <= free["MemTotal"] // 12
        filler.fill()
        assert read == list(range(0, len(read) * (4 << 20), 4 << 20))
        free["MemFree"] = 1 << 40  # never full: one round
        before = len(read)
        filler.fill()
        assert (len(read) - before) * (4 << 20) == (tmp_path / "empty").stat().st_size
    assert list(tmp_path.iterdir()) == []


# --- measuring a child ------------------------------------------------------------------------


def child(program: str) -> Measured:
    return measured.run([(sys.executable, "-c", program)], os.environ)


@pytest.mark.slow
def test_memory_is_told_apart(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * (60 * MB))
    hold = "; import time; time.sleep(0.3)"
    anonymous = child("x = bytearray(b'x') * 90_000_000" + hold).memory
    mapped = child(
        f"import mmap; f = open({str(file)!r}, 'rb'); m = mmap.mmap(f.fileno(), 0, prot=1);"
        f" s = sum(m[::{mmap.PAGESIZE}])" + hold
    ).memory
    assert 90 * MB < anonymous.anonymous < 120 * MB
    assert anonymous.file_backed < 40 * MB
    assert 60 * MB < mapped.file_backed < 100 * MB
    assert mapped.anonymous < 40 * MB
    assert anonymous.high_water >= anonymous.anonymous


@pytest.mark.slow
def test_the_parents_memory_is_not_the_childs():
    ballast = np.ones(200 * MB, np.uint8)
    assert 5 * MB < child("import time; time.sleep(0.2)").memory.high_water < 60 * MB
    assert ballast.sum() == 200 * MB


def test_grandchildren_count():
    inner = "x = bytearray(b'x') * 90_000_000; import time; time.sleep(0.6)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    assert child(program).memory.anonymous > 90 * MB


def test_time_is_that_of_the_child():
    busy = child("import time\nwhile time.process_time() < 0.3: pass")
    idle = child("import time; time.sleep(0.3)")
    assert busy.cpu > 0.29
    assert idle.cpu < 0.2
    assert min(busy.wall, idle.wall) > 0.29


def test_steps_add_up_and_stop_at_the_first_that_fails():
    fine = (sys.executable, "-c", "print('fine')")
    wrong = (sys.executable, "-c", "import sys; print('wrong', file=sys.stderr); sys.exit(3)")
    done = measured.run([fine, fine], os.environ)
    assert (done.status, done.out, len(done.walls)) == (0, "fine\n", 2)
    assert done.wall == pytest.approx(sum(done.walls))
    done = measured.run([fine, wrong, fine], os.environ)
    assert (done.status, done.err, len(done.walls)) == (3, "wrong\n", 2)
    assert measured.run([("no-such-program",)], os.environ).status == 127


def test_an_interrupt_ends_the_child(monkeypatch):
    def interrupted(pid: int, options: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "wait4", interrupted)
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        child("import time; time.sleep(60)")
    assert time.perf_counter() - start < 10


# --- figures ----------------------------------------------------------------------------------


def took(wall: float, cpu: float = 1, anonymous: int = 0) -> Measured:
    return Measured(wall, cpu / 2, cpu / 2, Memory(anonymous, 0, 0, anonymous), (wall / 2,) * 2)


def values(rounds: list[figures.Round]) -> list[tuple[float | None, bool | None]]:
    return [(t.value and round(t.value, 6), t.met) for t in figures.targets(rounds)]


def test_targets_by_hand():
    one = {
        "copy": took(2),
        "r16": took(3.3, 4, 400 * MB),
        "r16 cold": took(4.3),
        "r64": took(3.9, 5, 501 * MB),
        "r64 cold": took(4.4),
        "two": took(4.0, 6),
        "verify": took(3.0),
        "peft": took(33, 30),
        "hash": took(0.8),
    }
    assert values([one]) == [
        (1.3, True),
        (1.6, False),
        (1.25, False),
        (0.625, True),
        (10, True),
        (7.5, False),
        (501, False),
        (round(100 * (4.0 / 3.3 - 1), 6), True),
        (round(3.0 / 3.3, 6), True),
    ]


def test_ratios_are_paired_before_the_median():
    """Medians of each alone would say 3 / 2."""
    rounds = [
        {"r16": took(1), "copy": took(1)},
        {"r16": took(3), "copy": took(4)},
        {"r16": took(8), "copy": took(2)},
    ]
    assert figures.wall_ratio(rounds, "r16", "copy") == 1
    assert figures.wall_ratio([*rounds, {"r16": took(9)}], "r16", "copy") == 1
    assert figures.wall_ratio(rounds, "r64", "copy") is None


def test_without_figures_no_verdict():
    assert set(values([{}])) == {(None, None)}


def test_two_roots_of_one_merge_miss():
    assert figures.same_roots({"r16": {"a"}, "r64": {"b"}})[0].met
    assert figures.same_roots({"r16": {"a", "c"}, "r64": {"b"}})[0].met is False


def test_growth_on_a_line_and_off_it():
    def size(gigabytes: int, wall: float) -> figures.Size:
        rounds = [{"r16": took(wall, anonymous=100 * MB), "copy": took(gigabytes)}]
        return figures.Size(gigabytes * 500 * MB, gigabytes * 1000 * MB, rounds)

    lines = figures.growth([size(1, 1.5), size(3, 3.0), size(5, 3.5)])
    assert lines[0] == "✓ anonymous memory: at most 100 MB, target ≤ 500 MB"
    assert "5.0 × the bytes: anonymous memory × 1.00, merge × 2.33, copy × 5.00" in lines[1]
    assert lines[2].endswith("1.00 s + 0.50 s per GB")
    assert lines[3].endswith("at 1.5 B it says 2.50 s; measured 3.00 s (+20%)")


# --- the model --------------------------------------------------------------------------------


@pytest.mark.parametrize("billions", [0.05, 0.4, 1.67, 3.4, 6.7])
def test_sizes_are_met(billions):
    model = random_llama.llama_of(billions * 1e9)
    assert model.parameters == pytest.approx(billions * 1e9, rel=0.01)


def test_weights_are_finite_of_both_signs_and_repeat(tmp_path):
    model = random_llama.llama_of(TINY * 1e9)
    for name in ("one", "other"):
        assert random_llama.write_base(tmp_path / name, model) == 4
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
    tensors = open_checkpoint(tmp_path / "one").tensors
    assert sum(tensor.nbytes for tensor in tensors.values()) == model.nbytes
    weight = tensors["model.layers.1.mlp.up_proj.weight"].read().astype(np.float32)
    assert 2**-7 <= np.abs(weight).min() < np.abs(weight).max() < 2**-3
    assert 0.4 < (weight < 0).mean() < 0.6
