"""Xorbs kept apart: repositories, epochs, what `collect` drops and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xetbuilding import names, send, some

from adapterhub.errors import InvalidOption, NotFound
from adapterhub.hub.xet.stored import Damaged
from adapterhub.hub.xet.xorbs import Collected, Xorbs

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time

    def later(self, days: float) -> None:
        self.time += days * DAY


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def xorbs(tmp_path: Path, clock: Clock) -> Xorbs:
    return Xorbs(tmp_path / "xet", clock)


def test_an_epoch_lasts_a_week(xorbs: Xorbs, clock: Clock) -> None:
    first = xorbs.space("7").epoch
    clock.later(6.9)
    assert xorbs.space("7").epoch == first
    clock.later(0.2)
    second = xorbs.space("7").epoch
    assert second != first
    assert xorbs.space("7").epoch == second


def test_it_outlives_the_process(xorbs: Xorbs, clock: Clock, tmp_path: Path) -> None:
    space = xorbs.space("7")
    send(space, some(1, 10))
    again = Xorbs(tmp_path / "xet", clock).space("7")
    assert again.epoch == space.epoch
    assert again.has(some(1, 10).hash)


def test_repositories_do_not_see_each_other(xorbs: Xorbs) -> None:
    each = some(1, 10)
    send(xorbs.space("7"), each)
    other = xorbs.space("8")
    assert not other.has(each.hash)
    assert other.open(each.digest) is None
    assert send(other, each) is True


def test_epochs_do_not_see_each_other(xorbs: Xorbs, clock: Clock) -> None:
    each = some(1, 10)
    old = xorbs.space("7")
    send(old, each)
    clock.later(7.5)
    assert not xorbs.space("7").has(each.hash)
    assert xorbs.space("7", old.epoch).has(each.hash)


def test_an_old_epoch_takes_uploads_for_one_day_more(xorbs: Xorbs, clock: Clock) -> None:
    old = xorbs.space("7")
    send(old, some(1, 10))
    clock.later(7.9)
    assert xorbs.collect() == Collected(0, 0)
    assert send(xorbs.space("7", old.epoch), some(2, 10))
    clock.later(0.2)
    done = xorbs.collect()
    assert done.epochs == 1
    assert done.size > 20
    with pytest.raises(NotFound, match=f"epoch '{old.epoch}' of this repository's uploads is over"):
        xorbs.space("7", old.epoch)


def test_the_new_epoch_is_untouched_by_the_end_of_the_old(xorbs: Xorbs, clock: Clock) -> None:
    old = xorbs.space("7")
    clock.later(7.5)
    new = xorbs.space("7")
    send(new, some(1, 10))
    clock.later(0.6)
    assert xorbs.collect().epochs == 1
    assert not old.folder.exists()
    assert new.has(some(1, 10).hash)
    assert xorbs.space("7").epoch == new.epoch


def test_repositories_without_uploads_leave_no_folder(
    xorbs: Xorbs, clock: Clock, tmp_path: Path
) -> None:
    xorbs.space("7")
    clock.later(8.1)
    xorbs.collect()
    assert names(tmp_path / "xet") == []
    assert xorbs.space("7").folder.is_dir()


def test_collecting_what_is_not_there(xorbs: Xorbs) -> None:
    assert xorbs.collect() == Collected(0, 0)
    xorbs.forget("7")


def test_collect_takes_a_time(xorbs: Xorbs, clock: Clock) -> None:
    xorbs.space("7")
    assert xorbs.collect(clock() + 8.1 * DAY).epochs == 1


def test_one_made_while_the_clock_was_wrong_ends_too(xorbs: Xorbs, clock: Clock) -> None:
    clock.later(1000)
    wrong = xorbs.space("7")
    clock.later(-1000)
    assert xorbs.space("7").epoch != wrong.epoch
    xorbs.collect()
    assert not wrong.folder.exists()


def test_what_killed_uploads_left_is_swept(xorbs: Xorbs, clock: Clock) -> None:
    space = xorbs.space("7")
    each = some(1, 10)
    send(space, each)
    young, old = space.folder / f"123-{'ab' * 8}", space.folder / f"123-{'cd' * 8}"
    for path, age in ((young, 60), (old, 3700), (space.folder / each.hash, 5 * DAY)):
        path.touch()
        os.utime(path, (clock() - age, clock() - age))
    xorbs.collect()
    assert names(space.folder) == sorted([young.name, each.hash])


def test_an_upload_that_ends_while_it_is_swept_is_no_fault(xorbs: Xorbs) -> None:
    gone = xorbs.space("7").folder / f"123-{'ab' * 8}"
    gone.symlink_to("nowhere")  # listed, and not there
    assert xorbs.collect() == Collected(0, 0)


def test_what_a_killed_collect_left_is_deleted_by_the_next(xorbs: Xorbs, tmp_path: Path) -> None:
    left = tmp_path / "xet" / ".dropped-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "x").write_bytes(bytes(100))
    assert xorbs.collect() == Collected(1, 100)
    assert not left.exists()


def test_forget_drops_all_of_one_repository(xorbs: Xorbs, clock: Clock) -> None:
    spaces = [xorbs.space("7"), xorbs.space("8")]
    for space in spaces:
        send(space, some(1, 10))
    xorbs.forget("7")
    assert not spaces[0].folder.exists()
    assert spaces[1].has(some(1, 10).hash)
    with pytest.raises(NotFound, match="is over"):
        xorbs.space("7", spaces[0].epoch)


def test_retiring_ends_an_epoch_at_once(xorbs: Xorbs, clock: Clock) -> None:
    old = xorbs.space("7")
    send(old, some(1, 10))
    old.retire()
    assert xorbs.space("7").epoch != old.epoch
    clock.later(0.9)
    old.retire()  # again changes nothing
    xorbs.collect()
    assert xorbs.space("7", old.epoch).has(some(1, 10).hash)
    clock.later(0.2)
    assert xorbs.collect().epochs == 1


def test_an_upload_into_an_epoch_that_goes_is_told_so(xorbs: Xorbs) -> None:
    space, each = xorbs.space("7"), some(1, 10)
    with pytest.raises(NotFound, match="is over"), space.receiving(each.hash) as receiving:
        receiving.feed(each.body)
        xorbs.forget("7")
        receiving.finish()
    with pytest.raises(NotFound, match="is over"), space.receiving(each.hash):
        pass
    with pytest.raises(NotFound, match="is over"):
        space.retire()
    assert space.open(each.digest) is None


@pytest.mark.parametrize("epoch", ["", "..", "../8", "x", "1-00000000", "1" * 13 + "-00000000"])
def test_no_other_epoch_is_there(xorbs: Xorbs, epoch: str) -> None:
    xorbs.space("7")
    with pytest.raises(NotFound, match="of this repository's uploads is over") as caught:
        xorbs.space("7", epoch)
    assert "ask for a new address" in caught.value.remedy


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", ".dropped-x", "a" * 101, "a\n", "é"])
def test_keys_that_could_lead_elsewhere_are_refused(xorbs: Xorbs, key: str) -> None:
    for call in (xorbs.space, xorbs.forget):
        with pytest.raises(InvalidOption, match="is no key of a repository"):
            call(key)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (lambda data: b"", "it is too short"),
        (lambda data: data[:-1], "its end is not that of a stored xorb"),
        (lambda data: data[:10] + data[11:], "its table of chunks does not match"),
        (lambda data: data[1:], "it has 9 bytes, and its chunks 10"),
        (lambda data: data[-44:], "its end is not that"),
    ],
)
def test_damage_on_disk_is_named(xorbs: Xorbs, cut, said: str) -> None:  # type: ignore[no-untyped-def]
    space, each = xorbs.space("7"), some(1, 10)
    send(space, each)
    path = space.folder / each.hash
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(cut(data))
    with pytest.raises(Damaged, match=f"xorb {each.hash} is damaged on this hub's disk: {said}"):
        space.open(each.digest)
