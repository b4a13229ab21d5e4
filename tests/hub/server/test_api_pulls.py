"""Pull requests, as Hugging Face's client opens, reads and merges them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import CommitOperationAdd, DiscussionWithDetails, HfApi
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange
from huggingface_hub.errors import HfHubHTTPError
from serverkit import Served, ok

Client = Callable[..., HfApi]


def propose(served: Served, api: HfApi, repo: str, files: dict[str, bytes | None]) -> int:
    """A pull request of one commit; its number."""
    opened = api.create_pull_request(repo, title="Please", description="Because")
    repository = served.hub.repositories.list(search=repo, readable=None)[0]
    served.commit(repository, files, revision=f"refs/pr/{opened.num}", title="Proposed")
    return opened.num


def test_from_opening_to_merge(served: Served, client: Client) -> None:
    repository = served.repo("pulls/one", {"a.txt": b"one\ntwo\n", "b.bin": b"\0"})
    api = client()
    number = propose(
        served, api, "pulls/one", {"a.txt": b"one\nthree", "new.txt": b"x\n", "b.bin": b"\0\1"}
    )
    found = api.get_discussion_details("pulls/one", number)
    assert isinstance(found, DiscussionWithDetails)
    assert (found.title, found.status, found.author) == ("Please", "draft", "ann")
    assert (found.target_branch, found.conflicting_files) == ("refs/heads/main", [])
    opening, commit = found.events
    assert isinstance(opening, DiscussionComment)
    assert opening.content == "Because"
    assert isinstance(commit, DiscussionCommit)
    assert commit.summary == "Proposed"
    assert found.diff is not None
    assert "-two\n+three\n\\ No newline at end of file\n" in found.diff
    assert "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+x\n" in found.diff
    assert "Binary files a/b.bin and b/b.bin differ\n" in found.diff
    api.merge_pull_request("pulls/one", number, comment="thanks")
    merged = api.get_discussion_details("pulls/one", number)
    assert merged.status == "merged"
    assert isinstance(merged.events[-1], DiscussionStatusChange)
    assert merged.merge_commit_oid == served.hub.refs.resolve(repository, "main")
    assert "new.txt" in api.list_repo_files("pulls/one")


def test_conflicts(served: Served, client: Client) -> None:
    repository = served.repo("pulls/clash", {"a.txt": b"a"})
    number = propose(served, client(), "pulls/clash", {"a.txt": b"mine"})
    served.commit(repository, {"a.txt": b"theirs"})
    found = client().get_discussion_details("pulls/clash", number)
    assert found.conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as said:
        client().merge_pull_request("pulls/clash", number)
    assert said.value.response.status_code == 409


def test_list_rename_and_close(served: Served, client: Client) -> None:
    served.repo("pulls/some")
    api = client()
    numbers = [api.create_pull_request("pulls/some", title=f"Number {n}").num for n in range(53)]
    assert numbers == list(range(1, 54))
    found = list(api.get_repo_discussions("pulls/some"))
    assert [each.num for each in found] == numbers[::-1]
    assert found[0].repo_id == "pulls/some"
    change = api.rename_discussion("pulls/some", 5, "Another title")
    assert (change.old_title, change.new_title) == ("Number 4", "Another title")
    closed = api.change_discussion_status("pulls/some", 5, "closed")
    assert closed.new_status == "closed"
    only = list(api.get_repo_discussions("pulls/some", discussion_status="closed"))
    assert [(each.num, each.title) for each in only] == [(5, "Another title")]
    assert len(list(api.get_repo_discussions("pulls/some", discussion_status="open"))) == 52
    assert list(api.get_repo_discussions("pulls/some", discussion_type="discussion")) == []
    assert list(api.get_repo_discussions("pulls/some", author="bob")) == []
    api.change_discussion_status("pulls/some", 5, "open")
    assert api.get_discussion_details("pulls/some", 5).status == "open"


def test_what_there_is_not(served: Served, client: Client) -> None:
    served.repo("pulls/none")
    api = client()
    with pytest.raises(HfHubHTTPError, match="no discussions"):
        api.create_discussion("pulls/none", title="Talk")
    number = api.create_pull_request("pulls/none", title="One").num
    with pytest.raises(HfHubHTTPError, match="no comments"):
        api.comment_discussion("pulls/none", number, "hello")
    with pytest.raises(HfHubHTTPError) as said:
        api.get_discussion_details("pulls/none", 77)
    assert said.value.response.status_code == 404
    wire = served.wire()
    for text in ("x", "0", "9" * 30, "1e3", "%31%00"):
        answer = wire.ask("GET", f"/api/models/pulls/none/discussions/{text}")
        assert answer.status in (400, 404), text


def test_who_may(served: Served, client: Client) -> None:
    served.repo("pulls/open", {"a.txt": b"a"})
    number = propose(served, client(), "pulls/open", {"a.txt": b"b"})
    nobody, reader = client(None), client("read", "pulls")
    assert nobody.get_discussion_details("pulls/open", number).num == number
    for api, status in ((nobody, 401), (reader, 403)):
        for act in (
            lambda api: api.create_pull_request("pulls/open", title="Mine"),
            lambda api: api.merge_pull_request("pulls/open", number),
            lambda api: api.change_discussion_status("pulls/open", number, "closed"),
            lambda api: api.rename_discussion("pulls/open", number, "Title"),
        ):
            with pytest.raises(HfHubHTTPError) as said:
                act(api)
            assert said.value.response.status_code == status


def test_a_commit_with_a_pull_request_of_its_own(served: Served, client: Client) -> None:
    served.repo("pulls/change")
    made = client().create_commit(
        "pulls/change",
        [CommitOperationAdd("a.txt", b"a")],
        commit_message="A change",
        create_pr=True,
    )
    assert made.pr_num == 1
    assert client().get_discussion_details("pulls/change", 1).title == "A change"


def test_a_long_diff_says_that_it_is_cut(served: Served, client: Client) -> None:
    lines = "".join(f"{n:06}\n" for n in range(8000)).encode()
    served.repo("pulls/long")
    files: dict[str, bytes | None] = {f"f{n}.txt": lines for n in range(12)}
    number = propose(served, client(), "pulls/long", files)
    answer = ok(served.wire().ask("GET", f"/api/models/pulls/long/discussions/{number}?diff=1"))
    assert answer["diff"].endswith("# the diff is longer than what is shown here\n")
    assert 400_000 < len(answer["diff"]) < 700_000
