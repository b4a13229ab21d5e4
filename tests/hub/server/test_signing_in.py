"""Who is let in: headers of every kind, tokens of every state, with and without public reading."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from serverkit import Served, ok, running
from wire import Wire

from adapterhub.hub.server import signin
from adapterhub.hub.state.errors import Unauthorized

Client = Callable[..., HfApi]


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        (basic("user:abc"), "abc"),
        (basic("abc:"), "abc"),
        (basic("abc"), "abc"),
        (basic("user:a:b"), "a:b"),
    ],
)
def test_the_token_in_a_header(header: str | None, expected: str | None) -> None:
    assert signin.secret(header) == expected


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic", "Basic ???", basic(""), basic(":"), "Digest a", "abc",
     "Basic " + base64.b64encode(b"\xff:\xff").decode()],
)  # fmt: skip
def test_headers_that_are_refused(header: str) -> None:
    with pytest.raises(Unauthorized, match="Invalid credentials in Authorization header"):
        signin.secret(header)


def test_a_token_works_as_password(served: Served) -> None:
    header = {"Authorization": basic(f"git:{served.secret()}")}
    assert ok(served.anonymous().ask("GET", "/api/whoami-v2", headers=header))["name"] == "ann"


@pytest.mark.parametrize("state", ["wrong", "expired", "revoked", "cut"])
def test_tokens_that_are_not_valid(served: Served, client: Client, state: str) -> None:
    """A client must not take a bad token for a missing repository."""
    secret = served.secret(days=1e-9) if state == "expired" else served.secret()
    if state == "revoked":
        served.hub.tokens.revoke(secret[5:17])
    secret = {"wrong": "hf_unknown", "cut": secret[:-1]}.get(state, secret)
    served.hub.repositories.list(search="signin/public") or served.repo("signin/public")
    for path in ("/api/whoami-v2", "/api/models/signin/public", "/api/models"):
        answer = Wire(served.url, secret).ask("GET", path)
        assert (answer.status, answer.code) == (401, "")
        assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert secret not in answer.body.decode()
    client()
    api = HfApi(endpoint=served.url, token=secret)
    with pytest.raises(HfHubHTTPError) as said:
        api.model_info("signin/public")
    assert not isinstance(said.value, RepositoryNotFoundError)
    assert said.value.response.status_code == 401


def test_private_and_missing_look_the_same(served: Served, client: Client) -> None:
    served.repo("signin/private", private=True)
    for role, namespaces, status in ((None, (), 401), ("write", ("other",), 404)):
        api = client(role, *namespaces)
        for repo in ("signin/private", "signin/absent"):
            with pytest.raises(RepositoryNotFoundError) as said:
                api.model_info(repo)
            assert said.value.response.status_code == status
            assert not api.file_exists(repo, "config.json")
        wire = served.wire(role, *namespaces) if role else served.anonymous()
        there, absent = (
            wire.ask("GET", f"/api/models/signin/{name}") for name in ("private", "absent")
        )
        assert there.body.replace(b"private", b"absent") == absent.body
    assert client("read", "signin").model_info("signin/private").private


def test_without_public_reading_everybody_signs_in(tmp_path: Path) -> None:
    """As on an address that other machines reach."""
    with running(tmp_path / "home", public_read=False) as served:
        served.repo("open/one", {"a.txt": b"a"})
        anonymous, reader = served.anonymous(), served.wire("read", "elsewhere")
        for path in (
            "/api/models/open/one",
            "/api/models/open/one/tree/main",
            "/open/one/resolve/main/a.txt",
        ):
            assert (anonymous.ask("GET", path).status, anonymous.ask("GET", path).code) == (
                401,
                "RepoNotFound",
            )
            assert reader.ask("GET", path).status == 200
        for path in ("/api/models", "/metrics"):
            assert anonymous.ask("GET", path).status == 401
            assert reader.ask("GET", path).status == 200
        assert anonymous.ask("GET", "/health").status == 200
