"""Pushes to a small hub in this process: what arrives there, and what does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from minihub import CUT, TOKEN, MiniHub
from pushkit import LICENSED, front, pushable, save_adapter

from adapterhub import schema
from adapterhub.errors import (
    IntegrityError,
    InvalidAdapter,
    InvalidName,
    InvalidOption,
    NotFound,
    RemoteConflict,
    RemoteError,
)
from adapterhub.hub.client import PushPlan, plan_push, push, push_all
from adapterhub.registry import Registry

OURS = ["README.md", "adapter_config.json", "adapter_model.safetensors", "adapterhub.json"]


@pytest.fixture
def ner(registry: Registry, tmp_path: Path) -> Path:
    """The directory of an adapter that the registry has as `team/ner`."""
    path = pushable(tmp_path / "ner")
    registry.add(path, name="team/ner")
    return path


# --- what arrives -----------------------------------------------------------------------------


def test_a_first_push_makes_a_private_repository_with_every_byte(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    result = push("team/ner", "me/ner", registry=registry)
    repository = hub.repositories["me/ner"]
    assert repository.private
    assert (result.status, result.created, result.private) == ("pushed", "repository", True)
    assert (result.url, result.commit) == (f"{hub.url}/me/ner", repository.branches["main"])
    tree = repository.tree()
    assert sorted(tree) == [".gitattributes", *OURS]
    for name in OURS[1:3]:
        assert tree[name] == (ner / name).read_bytes()
    assert result.sent == tuple(OURS)
    assert result.bytes == sum(len(tree[name]) for name in OURS)
    manifest = json.loads(tree["adapterhub.json"])
    schema.check(manifest, "manifest", what="it")
    assert {e["path"]: e["sha256"] for e in manifest["files"]} == {
        name: f"sha256:{hashlib.sha256(tree[name]).hexdigest()}" for name in OURS[1:3]
    }
    assert (
        repository.titles[repository.branches["main"]]
        == f"Push lora adapter {result.version[9:28]}"
    )


def test_the_card_has_what_the_hubs_users_look_for(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    said = {"topics": ["biology"], "language": ["en", "de"], "metrics": {"f1": 0.93}}
    registry.edit("team/ner", said)
    push("team/ner", "me/ner", registry=registry)
    tree = hub.repositories["me/ner"].tree()
    assert front(tree) == {
        "license": "mit",
        "base_model": "owner/tiny-bert",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "feature-extraction",
        "language": ["en", "de"],
        "tags": ["biology", "lora", "base_model:adapter:owner/tiny-bert"],
        "metrics": ["f1"],
    }
    text = tree["README.md"].decode()
    assert text.startswith("---\nlicense: mit\n")
    assert text.endswith("\n---\n\n# About it\n\nA text that somebody wrote.\n")


def test_only_the_files_of_the_manifest_leave(
    hub: MiniHub, registry: Registry, tmp_path: Path
) -> None:
    path = pushable(tmp_path / "a")
    (path / "train.py").write_text("print(1)")
    (path / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (path / "passwords.txt").symlink_to("/etc/passwd")
    registry.add(path, name="a")
    push("a", "me/a", registry=registry)
    assert sorted(hub.repositories["me/a"].tree()) == [".gitattributes", *OURS]


def test_public_branch_and_message_are_as_asked(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    result = push("team/ner", "me/ner", public=True, message="First", registry=registry)
    repository = hub.repositories["me/ner"]
    assert not repository.private
    assert repository.titles[repository.branches["main"]] == "First"
    assert result.private is False
    before = repository.branches["main"]
    registry.add(pushable(ner.with_name("v2"), seed=5), name="team/ner")
    result = push("team/ner", "me/ner", revision="dev/x", registry=registry)
    assert (result.created, result.revision) == ("branch", "dev/x")
    assert repository.branches["main"] == before
    weights = (ner.with_name("v2") / OURS[2]).read_bytes()
    assert repository.tree("dev/x")[OURS[2]] == weights
    assert result.sent == ("adapter_model.safetensors", "adapterhub.json")


def test_a_pull_request_leaves_the_branch_alone(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    with pytest.raises(NotFound, match=r"there is no me/ner, to which a pull request"):
        push("team/ner", "me/ner", create_pr=True, registry=registry)
    assert hub.wrote() == []
    repository = hub.add("me/ner", private=False)
    before = repository.branches["main"]
    result = push("team/ner", "me/ner", create_pr=True, registry=registry)
    assert result.pull_request == f"{hub.url}/me/ner/discussions/1"
    assert repository.branches["main"] == before
    assert sorted(repository.tree("refs/pr/1")) == [".gitattributes", *OURS]
    assert "me/ner is public already: everybody will see what is pushed" in result.notes


# --- twice ------------------------------------------------------------------------------------


def test_the_same_version_twice_makes_one_commit(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    first = push("team/ner", "me/ner", registry=registry)
    hub.requests.clear()
    second = push("team/ner", "me/ner", registry=registry)
    assert (second.status, second.commit) == ("unchanged", first.commit)
    assert (list(second.sent), second.bytes, list(second.unchanged)) == ([], 0, OURS)
    assert hub.wrote() == []


@pytest.mark.parametrize("large", [(), (".json", ".md", ".safetensors")])
def test_and_however_the_hub_keeps_its_files(
    hub: MiniHub, registry: Registry, ner: Path, large: tuple[str, ...]
) -> None:
    hub.large = large
    push("team/ner", "me/ner", registry=registry)
    assert push("team/ner", "me/ner", registry=registry).status == "unchanged"


def test_a_new_version_sends_what_is_new_and_removes_what_is_gone(
    hub: MiniHub, registry: Registry, tmp_path: Path
) -> None:
    first = pushable(tmp_path / "v1")
    (first / "tokenizer_config.json").write_text('{"a": 1}')
    (first / "special_tokens_map.json").write_text('{"b": 1}')
    registry.add(first, name="a")
    assert "tokenizer_config.json" in push("a", "me/a", registry=registry).sent
    repository = hub.repositories["me/a"]
    tree = repository.tree() | {"notes.txt": b"mine", "special_tokens_map.json": b'{"b": 2}'}
    repository.commit("main", tree)  # somebody adds a file on the hub, and changes one of ours
    registry.add(pushable(tmp_path / "v2", seed=9), name="a")
    result = push("a", "me/a", registry=registry)
    assert result.sent == ("adapter_model.safetensors", "adapterhub.json")
    assert result.removed == ("tokenizer_config.json",)
    expected = {".gitattributes", "notes.txt", "special_tokens_map.json", *OURS}
    assert set(repository.tree()) == expected
    assert push("a", "me/a", registry=registry).status == "unchanged"


# --- what was there ---------------------------------------------------------------------------


def test_text_on_the_hub_is_never_overwritten(hub: MiniHub, registry: Registry, ner: Path) -> None:
    theirs = "---\nlicense: apache-2.0 # chosen\ntags:\n- mine\n---\n# Ours\n\nWritten there.\n"
    hub.add("me/ner", tree={"README.md": theirs.encode(), "x.txt": b"x"})
    result = push("team/ner", "me/ner", registry=registry)
    tree = hub.repositories["me/ner"].tree()
    text = tree["README.md"].decode()
    assert text.startswith("---\nlicense: apache-2.0 # chosen\ntags:\n- mine\n- lora\n")
    assert text.endswith("---\n# Ours\n\nWritten there.\n")
    assert front(tree)["base_model"] == "owner/tiny-bert"
    assert tree["x.txt"] == b"x"
    (finding,) = result.findings
    assert finding.code == "card-differs"
    assert "README.md says license: apache-2.0, and the adapter mit" in finding.message


def test_a_text_from_here_is_renewed_and_one_that_somebody_changed_is_kept(
    hub: MiniHub, registry: Registry, tmp_path: Path
) -> None:
    registry.add(pushable(tmp_path / "v1"), name="a")
    push("a", "me/a", registry=registry)
    second = LICENSED.replace("somebody wrote", "is newer")
    registry.add(pushable(tmp_path / "v2", second, seed=2), name="a")
    push("a", "me/a", registry=registry)
    repository = hub.repositories["me/a"]
    text = repository.tree()["README.md"].decode()
    assert text.endswith("A text that is newer.\n")
    changed = text + "And a line from the web.\n"
    repository.commit("main", repository.tree() | {"README.md": changed.encode()})
    third = LICENSED.replace("somebody wrote", "is newest")
    registry.add(pushable(tmp_path / "v3", third, seed=3), name="a")
    push("a", "me/a", registry=registry)
    assert repository.tree()["README.md"].decode() == changed


def test_a_text_that_was_made_here_is_made_again_until_somebody_edits_it(
    hub: MiniHub, registry: Registry, tmp_path: Path
) -> None:
    registry.add(pushable(tmp_path / "v1", None), name="a")
    registry.edit("a", {"licence": "mit", "description": "Finds | names", "metrics": {"f1": 0.5}})
    push("a", "me/a", registry=registry)
    repository = hub.repositories["me/a"]
    text = repository.tree()["README.md"].decode()
    assert "\n# a\n\nFinds \\| names\n" in text
    assert "| f1 | 0.5 |" in text
    assert 'PeftModel.from_pretrained(base_model, "me/a")' in text
    registry.edit("a", {"metrics": {"f1": 0.75}})
    assert push("a", "me/a", registry=registry).sent == ("README.md",)
    text = repository.tree()["README.md"].decode()
    assert "| f1 | 0.75 |" in text
    changed = text.replace("Finds", "Sometimes finds")
    repository.commit("main", repository.tree() | {"README.md": changed.encode()})
    registry.edit("a", {"metrics": {"f1": 0.875}})
    assert push("a", "me/a", registry=registry).status == "unchanged"


# --- what is refused --------------------------------------------------------------------------


def test_what_speaks_against_it_stops_it_before_anything_is_sent(
    hub: MiniHub, registry: Registry, tmp_path: Path
) -> None:
    path = pushable(tmp_path / "a", None, base_model_name_or_path="/home/jo/models/minilm")
    registry.add(path, name="a")
    with pytest.raises(InvalidAdapter, match="is not pushed to me/a, and nothing was sent") as info:
        push("a", "me/a", public=True, registry=registry)
    base, licence = info.value.details
    assert "the base is a path on somebody's machine (/home/jo/models/minilm)" in base
    assert "adapterhub export a DIR; set base_model_name_or_path in DIR/adapter_config" in base
    assert "no licence is stated, and everybody will see it (adapterhub edit a --licence" in licence
    assert hub.wrote() == []


def test_what_is_damaged_is_not_pushed(hub: MiniHub, registry: Registry, ner: Path) -> None:
    digest = registry.show("team/ner")["manifest"]["files"][1]["sha256"]
    blob = registry.store.blob_path(digest)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match="is damaged"):
        push("team/ner", "me/ner", registry=registry)
    assert hub.wrote() == []


@pytest.mark.parametrize(
    "repo", ["ner", "a/b/c", "me/a--b", "me/..", "me/x.git", "", "../x", "m e/x"]
)
def test_a_repository_is_spelled_owner_and_name(registry: Registry, repo: str) -> None:
    with pytest.raises(InvalidName):
        push("team/ner", repo, registry=registry)


def test_options_that_make_no_sense(registry: Registry) -> None:
    with pytest.raises(InvalidOption, match="is no branch"):
        push("a", "me/a", revision="0" * 40, registry=registry)
    with pytest.raises(InvalidOption, match="the message is empty"):
        push("a", "me/a", message=" ", registry=registry)


def test_a_pull_request_that_is_not_there_is_not_made(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    hub.add("me/ner")
    with pytest.raises(NotFound, match="me/ner has no refs/pr/7, and it cannot be made by a push"):
        push("team/ner", "me/ner", revision="refs/pr/7", registry=registry)
    assert hub.wrote() == []


@pytest.mark.parametrize(
    ("readme", "said"),
    [
        (b"caf\xe9", "README.md of me/ner is not UTF-8 from byte 3 on"),
        (b"x" * 1048577, "README.md of me/ner has 1048577 bytes, and at most 1048576 are read"),
    ],
)
def test_a_text_on_the_hub_that_cannot_be_extended_stops_it(
    hub: MiniHub, registry: Registry, ner: Path, readme: bytes, said: str
) -> None:
    repository = hub.add("me/ner", tree={"README.md": readme})
    with pytest.raises(RemoteError, match=said):
        push("team/ner", "me/ner", registry=registry)
    assert repository.tree() == {"README.md": readme}


# --- races ------------------------------------------------------------------------------------


def test_a_push_between_looking_and_sending_is_not_overwritten(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    repository = hub.add("me/ner")

    def meanwhile() -> None:
        hub.before_commit = lambda: None
        repository.commit("main", repository.tree() | {"theirs.txt": b"x"}, "theirs")

    hub.before_commit = meanwhile
    with pytest.raises(RemoteConflict, match=r"pushing to me/ner failed: .* answered 412") as info:
        push("team/ner", "me/ner", registry=registry)
    assert "the branch has moved since it was read; to push again is safe" in info.value.remedy
    assert sorted(repository.tree()) == [".gitattributes", "theirs.txt"]
    push("team/ner", "me/ner", registry=registry)
    assert sorted(repository.tree()) == [".gitattributes", *OURS, "theirs.txt"]


def test_a_commit_whose_answer_was_lost_is_found_again(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    hub.add("me/ner")
    hub.lose_answer = True
    result = push("team/ner", "me/ner", registry=registry)
    assert result.status == "pushed"
    assert result.commit == hub.repositories["me/ner"].branches["main"]
    assert hub.commits == 1


def test_a_repository_that_appears_meanwhile_is_looked_at_again(
    hub: MiniHub, registry: Registry, tmp_path: Path
) -> None:
    registry.add(pushable(tmp_path / "a", None), name="a")  # without a licence

    def faster(plan: PushPlan) -> None:
        assert plan.creates == "repository"
        hub.add("me/a", private=False, tree={"README.md": b"# Theirs\n"})

    with pytest.raises(InvalidAdapter, match="nothing was sent") as info:
        push("a", "me/a", on_plan=faster, registry=registry)
    assert "everybody will see it" in info.value.details[0]
    assert hub.repositories["me/a"].tree() == {"README.md": b"# Theirs\n"}


# --- faults -----------------------------------------------------------------------------------


STAGES = ["/create", "/preupload/", "/objects/batch", "/upload/", "/commit/"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_push_that_fails_says_why_in_one_line_and_can_be_repeated(
    hub: MiniHub, registry: Registry, ner: Path, stage: str
) -> None:
    for status in (CUT, 500, 401, 403, 429):
        hub.fault = lambda method, path, status=status: status if stage in path else None
        with pytest.raises(RemoteError) as info:
            push("team/ner", "me/ner", registry=registry)
        error = info.value
        doing = "creating" if stage == "/create" else "pushing to"
        assert error.message.startswith(f"{doing} me/ner failed: ")
        assert "\n" not in error.message + error.remedy
        safe = "nothing was sent" if stage == "/create" else "to push again is safe"
        assert safe in error.remedy
        told = f"answered {status} (fault {status})" if status != CUT else "was cut"
        assert told in error.message
        assert error.status == (None if status == CUT else status)
        for secret in (TOKEN, "verysecret"):
            assert secret not in str(error)
    hub.fault = lambda method, path: None
    assert push("team/ner", "me/ner", registry=registry).status == "pushed"
    assert sorted(hub.repositories["me/ner"].tree()) == [".gitattributes", *OURS]


def test_tries_are_counted_and_not_printed(
    hub: MiniHub, registry: Registry, ner: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.add("me/ner")
    hub.fault = lambda method, path: 503 if "/preupload/" in path else None
    with pytest.raises(RemoteError, match=r"answered 503 \(fault 503\), after 6 tries") as info:
        push("team/ner", "me/ner", registry=registry)
    assert info.value.tries == 6
    assert sum("/preupload/" in request for request in hub.requests) == 6
    assert capfd.readouterr() == ("", "")


# --- plans ------------------------------------------------------------------------------------


def test_a_plan_tells_what_is_there_and_sends_nothing(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    plan = plan_push("team/ner", "me/ner", registry=registry)
    assert (plan.creates, plan.private, plan.errors) == ("repository", True, ())
    assert {file.path: file.status for file in plan.files} == dict.fromkeys(OURS, "new")
    assert hub.repositories == {}
    push("team/ner", "me/ner", registry=registry)
    registry.add(pushable(ner.with_name("v2"), seed=5), name="team/ner")
    hub.requests.clear()
    plan = plan_push("team/ner", "me/ner", public=True, registry=registry)
    assert {file.path: file.status for file in plan.files} == {
        "README.md": "unchanged",
        "adapter_config.json": "unchanged",
        "adapter_model.safetensors": "changed",
        "adapterhub.json": "changed",
    }
    assert plan.bytes == sum(file.size for file in plan.sent) > 0
    assert plan.notes == ("me/ner stays private: --public is for new repositories",)
    assert plan.commit == hub.repositories["me/ner"].branches["main"]
    assert hub.wrote() == []


def test_a_plan_works_offline_as_far_as_it_can(
    hub: MiniHub, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    registry.add(save_adapter(tmp_path / "a"), name="a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    plan = plan_push("a", "me/a", public=True, registry=registry)
    assert {file.path: file.status for file in plan.files} == dict.fromkeys(OURS, "unknown")
    assert [finding.code for finding in plan.findings] == ["no-licence", "unpinned-base"]
    assert "the hub was not asked: asking the hub is not possible offline" in plan.notes[0]
    with pytest.raises(RemoteError, match=r"push is not possible offline.*nothing was tried"):
        push("a", "me/a", registry=registry)
    assert hub.requests == []


def test_a_plan_says_when_the_hub_cannot_be_reached(
    hub: MiniHub, registry: Registry, ner: Path
) -> None:
    hub.fault = lambda method, path: CUT
    plan = plan_push("team/ner", "me/ner", registry=registry)
    assert plan.files[0].status == "unknown"
    assert "the hub was not asked: reading me/ner failed" in plan.notes[0]


# --- all --------------------------------------------------------------------------------------


def test_all_names_of_a_namespace_and_one_that_fails_stops_no_other(
    hub: MiniHub, registry: Registry, tmp_path: Path
) -> None:
    registry.add(pushable(tmp_path / "a"), name="team/a")
    registry.add(pushable(tmp_path / "b", base_model_name_or_path="./local"), name="team/b")
    registry.add(pushable(tmp_path / "c", seed=2), name="team/c--c")
    registry.add(pushable(tmp_path / "d", seed=3), name="team/d")
    registry.add(pushable(tmp_path / "e", seed=4), name="other/e")
    planned = list(push_all("team", "me", dry_run=True, registry=registry))
    assert [one.status for one in planned] == ["planned", "refused", "refused", "planned"]
    assert hub.wrote() == []
    pushed = list(push_all("team/*", "me", registry=registry))
    assert [(one.name, one.repo, one.status) for one in pushed] == [
        ("team/a", "me/a", "pushed"),
        ("team/b", "me/b", "refused"),
        ("team/c--c", "me/c--c", "refused"),
        ("team/d", "me/d", "pushed"),
    ]
    assert sorted(hub.repositories) == ["me/a", "me/d"]
    again = list(push_all("team", "me", registry=registry))
    assert [one.status for one in again] == ["unchanged", "refused", "refused", "unchanged"]
    assert json.loads(json.dumps([one.to_dict() for one in again]))[1]["error"]["details"]


def test_all_needs_names_and_a_namespace(hub: MiniHub, registry: Registry, ner: Path) -> None:
    with pytest.raises(NotFound, match="no name begins with none/"):
        list(push_all("none", "me", registry=registry))
    with pytest.raises(InvalidOption, match="--all pushes to a namespace"):
        list(push_all("team", "me/ner", registry=registry))
