"""What fails on the wire: which error, in one line, after how many tries, without secrets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator

import pytest
from minihub import CUT, TOKEN, MiniHub

from adapterhub.errors import AdapterHubError, InvalidName, NotFound, OutputError, RemoteError
from adapterhub.hub.client import network
from adapterhub.hub.client.network import named_errors


def ask(repo: str = "me/x", revision: str | None = None) -> None:
    with named_errors(f"reading {repo}", repo=repo, safe="nothing was sent"):
        network.client("reading").model_info(repo, revision=revision)


def failure(error: type[AdapterHubError], repo: str = "me/x", revision: str | None = None) -> str:
    with pytest.raises(error) as info:
        ask(repo, revision)
    text = f"{info.value.message} → {info.value.remedy}"
    assert "\n" not in text
    assert TOKEN not in text
    return text.replace(network.host(), "HUB")


def test_what_is_not_there_is_named(hub: MiniHub) -> None:
    text = failure(NotFound)
    assert text == (
        "reading me/x failed: HUB has no repository me/x, or does not show it to you → "
        "check the spelling (hf auth whoami tells whose token is used)"
    )
    hub.add("me/x")
    assert "me/x has no such revision" in failure(NotFound, revision="dev")
    assert "spell it as OWNER/NAME" in failure(InvalidName, "a/b/c")


def test_without_a_token_one_is_told_to_sign_in(
    hub: MiniHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "; to sign in: hf auth login, or HF_TOKEN=…" in failure(NotFound)
    hub.fault = lambda method, path: 401
    assert "→ no token is set; to sign in: hf auth login" in failure(RemoteError)


@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (401, "the token is wrong or has expired"),
        (403, "the token lacks the right"),
        (409, "somebody else is at work there"),
        (413, "it is more than this hub takes"),
        (429, "wait some minutes"),
        (500, "the hub has trouble"),
        (418, "(fault 418) to GET /api/models/me/x → nothing was sent"),
    ],
)
def test_an_answer_that_is_no_success_has_its_cure(hub: MiniHub, status: int, cure: str) -> None:
    hub.fault = lambda method, path: status
    text = failure(RemoteError)
    assert f"reading me/x failed: HUB answered {status} (fault {status})" in text
    assert cure in text
    assert text.endswith("nothing was sent")


def test_a_gated_repository_is_no_missing_one(hub: MiniHub) -> None:
    hub.add("me/x").gated = True
    text = failure(RemoteError)
    assert "HUB answered 403 (ask for access)" in text
    assert "or the repository is gated" in text


def test_a_hub_that_cannot_be_reached(hub: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.fault = lambda method, path: CUT
    assert "the connection to HUB was cut → nothing was sent" in failure(RemoteError)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            constants, "ENDPOINT", f"http://jo:geheim@127.0.0.1:{unused.getsockname()[1]}"
        )
        text = failure(RemoteError)
    assert "HUB cannot be reached (" in text
    assert "check the network and HF_ENDPOINT; nothing was sent" in text
    assert network.host().startswith("http://***127.0.0.1:")


def test_offline_is_refused_before_anything(hub: MiniHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    text = failure(RemoteError)
    assert text.startswith("reading is not possible offline: HF_HUB_OFFLINE is set; nothing was")
    assert hub.requests == []


def test_what_is_no_matter_of_the_wire_comes_through(hub: MiniHub) -> None:
    with pytest.raises(ZeroDivisionError), named_errors("dividing"):
        _ = 1 // 0
    given = NotFound("x")
    with pytest.raises(NotFound) as info, named_errors("looking"):
        raise given
    assert info.value is given
    with pytest.raises(OutputError, match="No space left"), named_errors("writing"):
        raise OSError(28, "No space left on device")
    with pytest.raises(RemoteError, match=r"the answer of .* lacks 'url'"), named_errors("asking"):
        raise KeyError("url")
    with pytest.raises(RemoteError, match="did not answer in time"), named_errors("asking"):
        raise TimeoutError("x")


def test_what_lies_below_is_what_is_told(hub: MiniHub) -> None:
    with pytest.raises(RemoteError, match=r"the connection to .* was cut"), named_errors("pushing"):
        try:
            raise ConnectionResetError("reset by peer")
        except OSError as error:
            raise RuntimeError("Error while uploading 'x' to the Hub.") from error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"the token {TOKEN} is wrong", "the token *** is wrong"),
        ("hf_anotherToken12345 and Bearer abc.def", "*** and ***"),
        ("PUT https://s3/x?X-Signature=abc&y=1 failed", "PUT https://s3/x*** failed"),
        ("https://jo:pw@hub/x", "https://***hub/x"),
        ("a\nb\tc", "a b c"),
        ("why? because", "why? because"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_secrets_are_taken_out_of_texts(hub: MiniHub, text: str, expected: str) -> None:
    assert network.redacted(text) == expected


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What huggingface_hub logs to its user."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, logger = Keep(), logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no\nno (ask somebody)", "no (ask somebody)"),
        ("no\nnever", "no; never"),
        ("no\nno", "no"),
        ("", ""),
    ],
)
def test_what_a_hub_says_twice_is_said_once(message: str, expected: str) -> None:
    assert network._said(message) == expected


def test_tries_of_two_at_once_are_counted_apart(hub: MiniHub, log: list[str]) -> None:
    inner = logging.getLogger("huggingface_hub.utils._http")
    with network._LISTENER.counting() as first:
        for url in ("http://h/a?x=1", "http://h/a?x=2", "http://h/b"):
            inner.warning("HTTP Error 503 thrown while requesting POST %s", url)
        with network._LISTENER.counting() as second:
            inner.warning("'x' thrown while requesting GET http://h/b")
            inner.warning("Retrying in 1s [Retry 1/5].")
        inner.warning("something else")
    assert first.of(Exception()) == 2
    assert second.of(Exception()) == 1
    assert log == ["something else"]
    inner.warning("'x' thrown while requesting GET http://h/b")
    assert len(log) == 2
