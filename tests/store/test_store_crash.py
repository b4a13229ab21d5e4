"""Kills, full disks and lost pages: afterwards there is the old state or the new one."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import killing
import pytest
import storekit

from adapterhub.errors import NotFound, OutputError
from adapterhub.store import Store, files
from adapterhub.store import home as homes

HERE = Path(__file__).parent
FOLDERS = homes.FOLDERS  # which conftest takes away for the time of the tests


def seen(store: Store) -> dict[str, dict[str, str]]:
    return {name: dict(store.state(name).tags) for name in store.names()}


def template(folder: Path) -> Path:
    home = folder / "template"
    with Store(home) as store:
        storekit.add(store, "a", 1, tags=["prod"], card={"description": "first"})
        storekit.add(store, "other", 7)
    return home


def outcome_of(home: Path, change: Callable[[Store], object]) -> dict[str, dict[str, str]]:
    with Store(home) as store:
        change(store)
        return seen(store)


CHANGES: dict[str, Callable[[Store], object]] = {
    "add": lambda s: storekit.add(s, "a", 2, tags=["prod"], card={"description": "second"}),
    "new": lambda s: storekit.add(s, "team/fresh", 2),
    "mv": lambda s: s.rename("a", "team/b"),
    "rm": lambda s: s.remove_name("a"),
}


@pytest.mark.parametrize(
    ("change", "mode"),
    [
        *((change, "kill") for change in CHANGES),
        ("add", "torn"),
        *(pytest.param(change, "torn", marks=pytest.mark.slow) for change in ("new", "mv", "rm")),
    ],
)
def test_a_kill_before_any_call_leaves_the_old_or_the_new_state(
    tmp_path: Path, change: str, mode: str
) -> None:
    home = template(tmp_path)
    with Store(home) as store:
        old = seen(store)
    shutil.copytree(home, tmp_path / "whole")
    new = outcome_of(tmp_path / "whole", CHANGES[change])
    kills = killing.drive(HERE / "crash_driver.py", home, tmp_path, change, mode)
    found = [check_after_kill(tmp_path / str(n), old, new) for n in range(1, kills + 1)]
    assert kills >= 2
    assert "old" in found
    assert "new" in found
    assert found == sorted(found, reverse=True)  # once new, never old again


def check_after_kill(home: Path, old: object, new: object) -> str:
    with Store(home) as store:
        state = seen(store)
        assert state in (old, new)
        storekit.check_home(store)
        assert seen(store) == state
        later = storekit.add(store, "later", 3)
        assert store.resolve("later") == ("later", later)
    with Store(home) as store:
        assert seen(store) == state | {"later": {"latest": later}}
    return "new" if state == new else "old"


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_disk_at_any_write_keeps_the_old_state(tmp_path: Path, change: str) -> None:
    home = template(tmp_path)
    count = 0
    for number in range(1, 100):
        copy = tmp_path / str(number)
        shutil.copytree(home, copy)
        if not fails_with_a_full_disk(copy, CHANGES[change], number):
            count = number - 1
            break
    assert count >= 2


def fails_with_a_full_disk(home: Path, change: Callable[[Store], object], number: int) -> bool:
    """Whether there was a write of this number; False once the change gets through."""
    calls = 0

    def hook(kind: str, path: Path) -> None:
        nonlocal calls
        calls += kind in ("write", "fsync")
        if calls == number and kind in ("write", "fsync"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    notes: list[str] = []
    with Store(home, on_note=notes.append) as store:
        state = seen(store)
        files.HOOK = hook
        try:
            change(store)
        except OutputError as error:
            assert "disk full" in error.message
            assert "$ADAPTERHUB_HOME" in error.remedy
        else:  # only the last flush of a new log may fail without an error: the intent has it
            if not any("not flushed yet" in note for note in notes):
                return False
            before, state = state, seen(store)
            assert state != before
        finally:
            files.HOOK = None
        assert seen(store) == state
        storekit.check_home(store)
        assert seen(store) == state
    with Store(home) as store:
        assert seen(store) == state
    return True


def test_ref_logs_that_a_power_failure_took_are_written_again(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Store(home) as store:
        first = storekit.add(store, "a", 1)
    shutil.copytree(home / "refs", tmp_path / "refs")
    with Store(home) as store:
        storekit.add(store, "a", 2)
        store.tag("a", first, "prod")
        store.rename("a", "b")  # flushes the log of b
        storekit.add(store, "a", 3)
        storekit.add(store, "team/c", 4)
        store.remove_name("team/c")
        expected = seen(store)
    kept = (home / "refs" / "b.jsonl").read_bytes()
    for lost in ("no page of b", "b was flushed"):
        shutil.rmtree(home / "refs")
        shutil.copytree(tmp_path / "refs", home / "refs")
        (home / "index.db").unlink()
        if lost == "b was flushed":
            (home / "refs" / "b.jsonl").write_bytes(kept)
        with Store(home) as store:
            assert seen(store) == expected
            with pytest.raises(NotFound, match="team/c was removed"):
                store.resolve("team/c")
            storekit.check_home(store)


def test_zero_pages_at_the_end_of_a_log_are_written_again(tmp_path: Path) -> None:
    with Store(tmp_path / "home") as store:
        storekit.add(store, "a", 1)
        second = storekit.add(store, "a", 2, tags=["prod"])
    log = tmp_path / "home" / "refs" / "a.jsonl"
    data = log.read_bytes()
    log.write_bytes(data[: len(data) // 2] + bytes(len(data) // 4) + data[-len(data) // 4 :])
    with Store(tmp_path / "home") as store:
        assert store.resolve("a:prod") == ("a", second)
    assert log.read_bytes() == data


def test_the_intents_are_emptied_and_nothing_is_lost(tmp_path: Path) -> None:
    with Store(tmp_path / "home") as store:
        for number in range(130):
            store.add_version(f"n{number % 7}", storekit.put(store, number))
        assert (tmp_path / "home" / "intents.jsonl").stat().st_size < 5000
        expected = seen(store)
    with Store(tmp_path / "home") as store:
        assert seen(store) == expected
        assert sum(len(store.state(name).versions) for name in store.names()) == 130


def test_an_add_costs_at_most_six_fsyncs_beyond_its_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "FOLDERS", FOLDERS)
    store = Store(tmp_path / "whole")
    storekit.add(store, "a", 0)
    calls: list[int] = []

    def hook(kind: str, path: Path) -> None:
        calls[-1] += kind == "fsync" and "blobs" not in path.parts

    files.HOOK = hook
    for number in range(1, 200):
        calls.append(0)
        name = ("a", f"a{number}", f"team{number}/a")[number % 3]
        storekit.add(store, name, number)
    calls = [count - 1 for count in calls]  # the blob's temporary file
    assert max(calls[2::3]) <= max(calls[::3]) <= 5  # SQLite has one, where intents are emptied
    assert max(calls[1::3]) <= 6  # of a new namespace; there the intents are left as they are
    assert store.home.joinpath("intents.jsonl").stat().st_size < 66 * 1000
    store.close()


def test_an_add_reads_no_directory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    storekit.add(store, "a", 0)

    def refuse(*arguments: object) -> None:
        raise RuntimeError("a scan")

    monkeypatch.setattr("os.scandir", refuse)
    monkeypatch.setattr("os.listdir", refuse)
    storekit.add(store, "b", 1, tags=["prod"])
    with Store(store.home) as again:
        assert again.names() == ("a", "b")


def test_a_home_that_is_not_writable_is_named(tmp_path: Path) -> None:
    def hook(kind: str, path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    files.HOOK = hook
    with pytest.raises(OutputError, match=r"home is not writable: .*/home .*Permission denied"):
        Store(tmp_path / "home")
