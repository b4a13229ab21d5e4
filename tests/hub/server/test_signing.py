from __future__ import annotations

import base64
import stat
import threading
from pathlib import Path

import pytest

from adapterhub.errors import StoreError
from adapterhub.hub.server.signing import Signer, load_key
from adapterhub.hub.state.errors import Forbidden

CLAIMS = {"key": 7, "oid": "ab" * 32, "size": 3}


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> Signer:
    return Signer(b"k" * 32, clock)


def test_what_was_signed_is_read(signer: Signer) -> None:
    ticket = signer.sign("upload", CLAIMS, 60)
    assert signer.read("upload", ticket) == CLAIMS | {"exp": 1060}
    assert all(c.isalnum() or c in "-_." for c in ticket)


def test_a_ticket_expires(signer: Signer, clock: Clock) -> None:
    ticket = signer.sign("upload", CLAIMS, 60)
    clock.time += 59
    signer.read("upload", ticket)
    clock.time += 1
    with pytest.raises(Forbidden, match="has expired"):
        signer.read("upload", ticket)


def test_a_ticket_is_for_one_purpose_and_one_key(signer: Signer, clock: Clock) -> None:
    ticket = signer.sign("upload", CLAIMS, 60)
    for other, purpose in ((signer, "part"), (Signer(b"j" * 32, clock), "upload")):
        with pytest.raises(Forbidden, match="signature"):
            other.read(purpose, ticket)


def test_no_character_can_be_changed(signer: Signer) -> None:
    ticket = signer.sign("upload", CLAIMS, 60)
    for at, char in enumerate(ticket):
        changed = ticket[:at] + ("A" if char != "A" else "B") + ticket[at + 1 :]
        with pytest.raises(Forbidden):
            signer.read("upload", changed)


def test_claims_cannot_be_replaced(signer: Signer) -> None:
    _, _, mac = signer.sign("upload", CLAIMS, 60).partition(".")
    forged = base64.urlsafe_b64encode(b'{"exp":9999999999}').decode().rstrip("=")
    with pytest.raises(Forbidden, match="signature"):
        signer.read("upload", f"{forged}.{mac}")


@pytest.mark.parametrize("text", ["", ".", "a", "a.b", "é.é", "a" * 5000, "\0.\0", "a.b.c"])
def test_what_is_no_ticket(signer: Signer, text: str) -> None:
    with pytest.raises(Forbidden):
        signer.read("upload", text)


def test_the_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "hub" / "signing.key"
    key = load_key(path)
    assert len(set(key)) > 8
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path) == key
    assert [each.name for each in path.parent.iterdir()] == ["signing.key"]


def test_several_that_start_at_once_have_one_key(tmp_path: Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_key(tmp_path / "key"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(StoreError, match="has 5 bytes; 32 expected"):
        load_key(tmp_path / "key")
