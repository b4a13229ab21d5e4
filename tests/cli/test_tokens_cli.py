"""token create, list and revoke on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from clikit import Run

from adapterhub.hub.state.errors import Unauthorized
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store


def test_create_list_and_revoke(run: Run, home: Path) -> None:
    assert "adapterhub token create NAME --write" in run("token", "list").out
    made = run("token", "create", "ann", "--write", "--namespace", "lab", "--namespace", "team")
    secret = made.out.strip()
    assert secret.startswith("ahub_")
    assert "token" in made.err and "ann reads and writes lab, team" in made.err
    with Store(home) as store, Hub(store) as hub:
        caller = hub.tokens.caller(secret)
        assert caller.token is not None
        assert (caller.name, caller.token.namespaces) == ("ann", ("lab", "team"))
    listed = run("token", "list")
    assert secret not in listed.out
    assert listed.lines[1].split()[:3] == [secret[5:17], "ann", "write"]
    assert "ann is revoked" in run("token", "revoke", secret[5:17]).out
    assert run("token", "list").lines[1].endswith("revoked")
    with Store(home) as store, Hub(store) as hub, pytest.raises(Unauthorized):
        hub.tokens.caller(secret)


def test_ids_are_whole_and_times_short(run: Run) -> None:
    made = run("token", "create", "bob", "--expires", "1d", "--json").json["result"]
    listed = run("token", "list")
    assert " ".join(listed.lines[0].split()) == "id name role where created last used state"
    assert " all " in listed.lines[1] and " valid until " in f" {listed.lines[1]}"
    assert run("token", "list", "-q").out == f"{made['id']}\n"


def test_in_json(run: Run) -> None:
    made = run("token", "create", "bob", "--json").json["result"]
    assert (made["label"], made["role"], made["namespaces"]) == ("bob", "read", ["*"])
    assert made["secret"].startswith(f"ahub_{made['id']}")
    (listed,) = run("token", "list", "--json").json["result"]
    assert "secret" not in listed
    assert (listed["id"], listed["state"]) == (made["id"], "valid")
    assert run("token", "revoke", made["id"], "--json").json["result"]["revoked"] is not None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("30m", 1800), ("12h", 43200), ("90d", 90 * 86400), ("2w", 14 * 86400)],
)
def test_tokens_that_expire(run: Run, text: str, seconds: int) -> None:
    made = run("token", "create", "--expires", text, "--json").json["result"]
    assert abs(made["expires"] - made["created"] - seconds) <= 1


@pytest.mark.parametrize("text", ["", "5", "d", "-1d", "1y", "1.5h", "9999999d", "0s"])
def test_times_that_are_none(run: Run, text: str) -> None:
    assert run("token", "create", f"--expires={text}").code in (1, 2)
    assert run("token", "list", "--json").json["result"] == []


def test_without_a_name_it_is_the_user_s(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for user, expected in (("Jane Doe", "Jane-Doe"), ("a--b", "a-b"), ("ü", "user")):
        monkeypatch.setattr("getpass.getuser", lambda user=user: user)
        assert run("token", "create", "--json").json["result"]["label"] == expected


def test_what_is_refused(run: Run) -> None:
    said = run("token", "create", "a b")
    assert (said.code, "the name 'a b' has other characters" in said.err) == (1, True)
    said = run("token", "create", "ann", "--namespace", "a/b")
    assert (said.code, "the namespace 'a/b' has a `/`" in said.err) == (1, True)
    said = run("token", "revoke", "absent")
    assert said.code == 1
    assert "no token 'absent'" in said.err
