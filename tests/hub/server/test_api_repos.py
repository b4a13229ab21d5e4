"""Repositories as Hugging Face's client makes, finds, moves and deletes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from serverkit import Served, ok

Client = Callable[..., HfApi]


def test_who_is_signed_in(client: Client) -> None:
    found = client("write", "lab").whoami()
    assert (found["type"], found["name"], found["orgs"]) == ("user", "lab", [])
    assert found["auth"]["accessToken"]["role"] == "write"
    several = client("read", "lab", "team").whoami()
    assert several["name"] == "ann"
    assert [org["name"] for org in several["orgs"]] == ["lab", "team"]
    assert client("write").whoami()["orgs"] == []


def test_create_and_find_again(served: Served, client: Client) -> None:
    api = client()
    url = api.create_repo("made/First-1")
    assert url.repo_id == "made/First-1"
    assert url == f"{served.url}/made/First-1"
    assert api.create_repo("made/First-1", exist_ok=True).repo_id == "made/First-1"
    with pytest.raises(HfHubHTTPError, match="exists already") as said:
        api.create_repo("made/First-1")
    assert said.value.response.status_code == 409
    assert api.repo_exists("made/First-1")
    assert not api.repo_exists("made/other")
    info = api.model_info("made/First-1", files_metadata=True)
    assert info.private  # unless the client says otherwise
    assert (info.author, info.gated, info.likes) == ("made", False, 0)
    assert [each.rfilename for each in info.siblings or []] == [".gitattributes"]
    assert info.sha == served.hub.refs.resolve(
        served.hub.repositories.list(readable=None)[0], "main"
    )


@pytest.mark.parametrize("visibility", ["public", "private"])
def test_visibility(client: Client, visibility: str) -> None:
    api, nobody = client(), client(None)
    repo = f"made/is-{visibility}"
    api.create_repo(repo, visibility=visibility)
    assert nobody.repo_exists(repo) == (visibility == "public")
    api.update_repo_settings(repo, private=visibility == "public")
    assert nobody.repo_exists(repo) == (visibility == "private")


def test_gated(client: Client) -> None:
    api, nobody = client(), client(None)
    api.create_repo("made/gated", private=False)
    api.update_repo_settings("made/gated", gated="manual")
    assert nobody.model_info("made/gated").gated == "manual"
    with pytest.raises(HfHubHTTPError, match="restricted"):
        nobody.auth_check("made/gated")
    api.auth_check("made/gated")
    api.update_repo_settings("made/gated", gated=False)
    nobody.auth_check("made/gated")


def test_data_sets_and_spaces_are_kept_apart(client: Client) -> None:
    api = client()
    url = api.create_repo("kinds/one", repo_type="dataset")
    assert (url.repo_type, url.repo_id) == ("dataset", "kinds/one")
    api.create_repo("kinds/one", repo_type="space", space_sdk="static")
    assert not api.repo_exists("kinds/one")
    assert api.dataset_info("kinds/one").id == "kinds/one"
    assert api.space_info("kinds/one").id == "kinds/one"
    assert [each.id for each in api.list_datasets(author="kinds")] == ["kinds/one"]
    assert [each.id for each in api.list_spaces(author="kinds")] == ["kinds/one"]
    with pytest.raises(HfHubHTTPError, match="runs nothing"):
        api.create_repo(
            "kinds/two", repo_type="space", space_sdk="static", space_secrets=[{"key": "a"}]
        )
    api.delete_repo("kinds/one", repo_type="dataset")
    assert not api.repo_exists("kinds/one", repo_type="dataset")
    assert api.repo_exists("kinds/one", repo_type="space")


def test_a_name_without_namespace_is_the_token_s_own(client: Client) -> None:
    assert client("write", "mine").create_repo("plain").repo_id == "mine/plain"
    client("write", "mine").delete_repo("plain")
    assert client("write", "*").create_repo("plain").repo_id == "ann/plain"
    with pytest.raises(HfHubHTTPError, match="not for ann"):
        client("write", "lab", "team").create_repo("other")


def test_move(client: Client) -> None:
    api = client()
    api.create_repo("moved/from")
    sha = api.model_info("moved/from").sha
    api.create_repo("moved/taken")
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.move_repo("moved/from", "moved/taken")
    with pytest.raises(RepositoryNotFoundError):
        api.move_repo("moved/absent", "moved/there")
    api.move_repo("moved/from", "elsewhere/To")
    assert not api.repo_exists("moved/from")
    assert api.model_info("elsewhere/To").sha == sha


def test_delete(client: Client) -> None:
    api = client()
    api.create_repo("gone/soon")
    api.delete_repo("gone/soon")
    assert not api.repo_exists("gone/soon")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("gone/soon")
    api.delete_repo("gone/soon", missing_ok=True)


@pytest.mark.parametrize("name", ["refs", "Settings", "lfs-files", "commit", "discussions"])
def test_names_that_mean_something_in_addresses(client: Client, name: str) -> None:
    with pytest.raises(HfHubHTTPError, match="meaning in addresses"):
        client().create_repo(f"words/{name}")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "name must be a text"),
        ({"name": 5}, "name must be a text"),
        ({"name": "a", "organization": ["b"]}, "name must be a text"),
        ({"name": "a--b", "organization": "x"}, "has `--`"),
        ({"name": "..", "organization": "x"}, "other characters"),
        ({"name": "a/b/c"}, "3 parts"),
        ({"name": "a", "organization": "x", "type": "kernel"}, "no such type"),
        ({"name": "a", "organization": "x", "visibility": "protected"}, "visibility"),
        ({"name": "models", "organization": "api"}, "reserved"),
        (["a"], "no JSON object"),
    ],
)
def test_bodies_that_are_refused(served: Served, body: object, said: str) -> None:
    answer = served.wire().send("POST", "/api/repos/create", body)
    assert answer.status == 400
    assert said in answer.json["error"]


def test_who_may_not(served: Served, client: Client) -> None:
    client().create_repo("guarded/one", private=False)
    client().create_repo("guarded/two")
    reader, foreign, nobody = client("read", "guarded"), client("write", "other"), client(None)
    for api, status in ((reader, 403), (foreign, 403), (nobody, 401)):
        with pytest.raises(HfHubHTTPError) as said:
            api.delete_repo("guarded/one")
        assert said.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as said:
            api.create_repo("guarded/three")
        assert said.value.response.status_code == status
    assert reader.repo_exists("guarded/two")
    for api in (foreign, nobody):
        assert not api.repo_exists("guarded/two")
        with pytest.raises(RepositoryNotFoundError):
            api.update_repo_settings("guarded/two", private=False)
    assert client().model_info("guarded/two").private
    assert foreign.create_repo("guarded/one", exist_ok=True).repo_id == "guarded/one"


def test_a_revision_that_is_not_there(client: Client) -> None:
    client().create_repo("revs/one")
    for revision in ("absent", "refs/pr/7", "0" * 40, "a/b"):
        with pytest.raises(RevisionNotFoundError):
            client().model_info("revs/one", revision=revision)


def test_ids_that_are_none_are_not_found(served: Served) -> None:
    for id in ("a--b/c", "..%2Fa", "%00/x", "a/b%2Fc"):
        answer = served.wire().ask("GET", f"/api/models/{id}")
        assert (answer.status, answer.code) == (404, "RepoNotFound")


def test_a_card_is_checked_before_it_is_uploaded(served: Served) -> None:
    def asked(content: str) -> tuple[int, list[str], list[str]]:
        body = {"content": content, "repoType": "model"}
        answer = served.anonymous().send("POST", "/api/validate-yaml", body)
        found = answer.json
        texts = ([each["message"] for each in found[key]] for key in ("errors", "warnings"))
        return (answer.status, *texts)

    assert asked("---\nlicense: mit\ntags: [a]\nbase_model: x/y\n---\nText") == (200, [], [])
    status, errors, warnings = asked("no front matter")
    assert (status, errors) == (200, [])
    assert "empty or missing yaml" in warnings[0]
    status, errors, _ = asked("---\nlicense: [mit\n---\n")
    assert status == 400
    assert "not valid YAML" in errors[0]
    assert asked("---\na: &a [1]\nb: *a\n---\n")[1] == [
        "the front matter of README.md uses YAML aliases"
    ]
    assert asked("---\ntags: {a: 1}\nlicense: 5\n---\n")[1] == [
        "license must be a text",
        "tags must be a text or a list of texts",
    ]
    status, _, warnings = asked("---\nbase_model: ./local/path\n---\n")
    assert (status, len(warnings)) == (200, 1)
    assert "'./local/path'" in warnings[0]


def test_the_client_prints_what_is_wrong_with_a_card(client: Client) -> None:
    from huggingface_hub import ModelCard

    with pytest.raises(ValueError, match="license must be a text"):
        client()._validate_yaml("---\nlicense: 5\n---\n")
    client()._validate_yaml(str(ModelCard("---\nlicense: mit\n---\nText")))


def test_addresses_that_mean_nothing(served: Served) -> None:
    anonymous = served.anonymous()
    for path in ("/", "/api", "/api/agent-harnesses", "/api/models/a/b/c", "/a/b/c/d"):
        answer = anonymous.ask("GET", path)
        assert (answer.status, answer.code) == (404, ""), path
        assert answer.headers["x-request-id"]
    answer = anonymous.ask("PATCH", "/api/models/a/b")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    assert ok(anonymous.ask("GET", "/health")) == {"status": "ok"}
    assert anonymous.ask("HEAD", "/health").body == b""
