"""Info, folders, history and lists, as Hugging Face's client reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from serverkit import Served, ok

Client = Callable[..., HfApi]
CARD = b"""---
license: apache-2.0
library_name: peft
pipeline_tag: text-generation
base_model: owner/base
base_model_relation: adapter
language: [en, tr]
datasets: owner/data
tags: [one, "two words"]
widget: {when: 2026-01-02, bad: .nan}
self: 1
---
# Text
"""
WEIGHTS = bytes(range(256)) * 40


def oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# --- info -------------------------------------------------------------------------------------


def test_what_the_card_says(served: Served, client: Client) -> None:
    served.repo("info/card", {"README.md": CARD, "model.safetensors": WEIGHTS})
    info = client().model_info("info/card")
    assert (info.library_name, info.pipeline_tag) == ("peft", "text-generation")
    assert {
        *("peft", "text-generation", "one", "two words", "license:apache-2.0", "en", "tr"),
        *("dataset:owner/data", "base_model:owner/base", "base_model:adapter:owner/base"),
        "safetensors",
    } == set(info.tags or ())
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    assert info.card_data.to_dict()["widget"] == {"when": "2026-01-02", "bad": None}
    expanded = client().model_info("info/card", expand=["baseModels", "usedStorage", "gguf"])
    assert expanded.base_models == {"relation": "adapter", "models": [{"id": "owner/base"}]}
    assert expanded.used_storage is not None and expanded.used_storage > len(WEIGHTS)
    assert expanded.tags is None


def test_what_configs_say_where_there_is_no_card(served: Served, client: Client) -> None:
    peft = b'{"peft_type": "LORA", "base_model_name_or_path": "a/b", "task_type": "CAUSAL_LM"}'
    served.repo("info/peft", {"adapter_config.json": peft})
    info = client().model_info("info/peft")
    assert (info.library_name, info.pipeline_tag) == ("peft", "text-generation")
    assert {"base_model:a/b", "base_model:adapter:a/b"} <= set(info.tags or ())
    assert (info.config or {})["peft"]["peft_type"] == "LORA"
    served.repo("info/path", {"adapter_config.json": peft.replace(b"a/b", b"../x/y")})
    assert not [t for t in client().model_info("info/path").tags or () if "base_model" in t]
    model = b'{"architectures": ["BertModel"], "model_type": "bert", "vocab_size": 5}'
    served.repo("info/model", {"config.json": model})
    info = client().model_info("info/model")
    assert info.library_name == "transformers"
    assert info.config == {"architectures": ["BertModel"], "model_type": "bert"}


def test_a_revision_has_the_card_and_the_files_that_it_had(served: Served, client: Client) -> None:
    repository = served.repo("info/old", {"README.md": CARD, "a.txt": b"a"})
    first = served.hub.refs.resolve(repository, "main")
    served.commit(repository, {"README.md": None, "b.txt": b"b"})
    now, then = client().model_info("info/old"), client().model_info("info/old", revision=first)
    assert then.sha == first
    assert (now.library_name, then.library_name) == (None, "peft")
    assert {each.rfilename for each in now.siblings or ()} == {".gitattributes", "a.txt", "b.txt"}
    names = {each.rfilename for each in then.siblings or ()}
    assert names == {".gitattributes", "a.txt", "README.md"}
    assert client().model_info("info/old", revision=first[:8]).sha == first


def test_files_with_sizes(served: Served, client: Client) -> None:
    served.repo("info/files", {"a/small.txt": b"abc", "model.safetensors": WEIGHTS})
    info = client().model_info("info/files", files_metadata=True)
    found = {each.rfilename: each for each in info.siblings or ()}
    small, large = found["a/small.txt"], found["model.safetensors"]
    assert (small.size, small.blob_id, small.lfs) == (3, oid(b"abc"), None)
    pointer = (
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{hashlib.sha256(WEIGHTS).hexdigest()}\nsize {len(WEIGHTS)}\n"
    ).encode()
    assert large.lfs is not None
    assert (large.size, large.lfs.sha256) == (10240, hashlib.sha256(WEIGHTS).hexdigest())
    assert (large.blob_id, large.lfs.pointer_size) == (oid(pointer), len(pointer))


@pytest.mark.parametrize(
    "card",
    [
        b"---\nlicense: [\n---\n",
        b"---\ntags: 5\nlanguage: {a: b}\nbase_model: [1, 2]\nmodel-index: nonsense\n---\n",
        b"---\n" + b"- " * 5000 + b"\n---\n",
        b"---\n5\n---\n",
        b"\xff\xfe\x00",
        b"---\nignore_metadata_errors: true\nself: 2\neval_results: [[1]]\n---\n",
        b"x" * 1_100_000,
    ],
)
def test_cards_that_are_no_cards_break_no_client(
    served: Served, client: Client, card: bytes
) -> None:
    repository = served.repo(f"info/odd-{hashlib.sha1(card).hexdigest()[:8]}", {"README.md": card})
    assert client().model_info(str(repository.id)).id == str(repository.id)
    ids = [each.id for each in client().list_models(author="info", cardData=True)]
    assert str(repository.id) in ids


# --- folders ----------------------------------------------------------------------------------


def test_a_tree_page_by_page(served: Served, client: Client) -> None:
    files = {f"d{i % 3}/f{i:03}.txt": b"%d" % i for i in range(150)}
    repository = served.repo("tree/many", files)
    api = client()
    assert set(api.list_repo_files("tree/many")) == {*files, ".gitattributes"}
    top = list(api.list_repo_tree("tree/many"))
    assert [each.path for each in top] == [".gitattributes", "d0", "d1", "d2"]
    wire = served.wire()
    page = wire.ask("GET", "/api/models/tree/many/tree/main?recursive=true&limit=100")
    assert len(page.json) == 100
    served.commit(repository, {"d2/": None})  # a page asked for later is of the same commit
    link = page.headers["link"].split(";")[0].strip("<>")
    rest = wire.ask("GET", link)
    assert page.headers["x-repo-commit"] == rest.headers["x-repo-commit"]
    paths = [each["path"] for each in (*page.json, *rest.json) if each["type"] == "file"]
    assert sorted(paths) == sorted({*files, ".gitattributes"})
    assert "link" not in rest.headers


def test_a_folder_and_who_changed_its_files_last(served: Served, client: Client) -> None:
    repository = served.repo("tree/last", {"a/x.txt": b"1", "a/b/y.txt": b"2"})
    second = served.commit(repository, {"a/x.txt": b"3"}, title="Second")
    folder, file = client().list_repo_tree("tree/last", "a", expand=True)
    assert (folder.path, file.path) == ("a/b", "a/x.txt")
    assert file.blob_id == oid(b"3")
    assert (file.last_commit.oid, file.last_commit.title) == (second, "Second")
    assert folder.last_commit.title == "a commit"
    with pytest.raises(EntryNotFoundError):
        list(client().list_repo_tree("tree/last", "absent"))


def test_paths_info(served: Served, client: Client) -> None:
    served.repo("tree/paths", {"a/x y.txt": b"1", "m.safetensors": WEIGHTS})
    wanted = ["a/x y.txt", "a", "absent", "m.safetensors"]
    found = {each.path: each for each in client().get_paths_info("tree/paths", wanted)}
    assert set(found) == {"a/x y.txt", "a", "m.safetensors"}
    assert found["m.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    answer = served.wire().send("POST", "/api/models/tree/paths/paths-info/main", {"paths": ["a"]})
    assert [each["type"] for each in ok(answer)] == ["directory"]


@pytest.mark.parametrize("cursor", ["x", "0" * 40, f"{'0' * 40}:a", "%00:%2F"])
def test_a_damaged_cursor(served: Served, cursor: str) -> None:
    if not served.hub.repositories.list(search="tree/cursor"):
        served.repo("tree/cursor")
    for address in ("tree", "commits"):
        path = f"/api/models/tree/cursor/{address}/main?cursor={cursor}"
        assert served.wire().ask("GET", path).status in (200, 400, 404)
    assert served.wire().ask("GET", f"/api/models?cursor={cursor}").status == 400


# --- history ----------------------------------------------------------------------------------


def test_commits_and_their_pages(served: Served, client: Client) -> None:
    repository = served.repo("log/many")
    for number in range(60):
        served.commit(repository, {"n.txt": b"%d" % number}, title=f"Number {number} & <b>")
    log = client().list_repo_commits("log/many", formatted=True)
    titles = [each.title for each in log]
    assert titles == [f"Number {n} & <b>" for n in reversed(range(60))] + ["initial commit"]
    assert log[0].formatted_title == "Number 59 &amp; &lt;b&gt;"
    assert (log[0].authors, log[0].message) == (["ann"], "")
    page = served.wire().ask("GET", "/api/models/log/many/commits/main?p=1")
    assert [each["title"] for each in page.json] == titles[50:]
    assert page.headers["x-total-count"] == "61"


def test_branches_and_tags(served: Served, client: Client) -> None:
    repository = served.repo("refs/one", {"a.txt": b"a"})
    first = served.hub.refs.resolve(repository, "main")
    second = served.commit(repository, {"a.txt": b"b"})
    api = client()
    api.create_branch("refs/one", branch="dev/x", revision=first)
    with pytest.raises(HfHubHTTPError) as said:
        api.create_branch("refs/one", branch="dev/x")
    assert said.value.response.status_code == 409
    api.create_branch("refs/one", branch="dev/x", exist_ok=True)
    api.create_tag("refs/one", tag="v1.0", tag_message="The first")
    api.create_tag("refs/one", tag="v1.0", exist_ok=True)
    refs = api.list_repo_refs("refs/one", include_pull_requests=True)
    assert {each.ref: each.target_commit for each in refs.branches} == {
        "refs/heads/main": second,
        "refs/heads/dev/x": first,
    }
    assert [(each.name, each.target_commit) for each in refs.tags] == [("v1.0", second)]
    assert (refs.converts, refs.pull_requests) == ([], [])
    assert api.model_info("refs/one", revision="dev/x").sha == first
    api.delete_branch("refs/one", branch="dev/x")
    api.delete_tag("refs/one", tag="v1.0")
    refs = api.list_repo_refs("refs/one")
    assert ([each.name for each in refs.branches], refs.tags) == (["main"], [])
    with pytest.raises(HfHubHTTPError):
        api.delete_branch("refs/one", branch="main")


def test_super_squash(served: Served, client: Client) -> None:
    repository = served.repo("refs/squash", {"a.txt": b"a"})
    served.commit(repository, {"b.txt": b"b"})
    client().super_squash_history("refs/squash", commit_message="All of it")
    assert [each.title for each in client().list_repo_commits("refs/squash")] == ["All of it"]
    assert "b.txt" in client().list_repo_files("refs/squash")


def test_files_of_lfs(served: Served, client: Client) -> None:
    repository = served.repo("refs/lfs", {"m.safetensors": WEIGHTS, "a.txt": b"a"})
    served.commit(repository, {"m.safetensors": WEIGHTS + b"x"})
    (found,) = client().list_lfs_files("refs/lfs")
    assert (found.filename, found.size) == ("m.safetensors", len(WEIGHTS) + 1)
    with pytest.raises(HfHubHTTPError, match="super-squash"):
        client().permanently_delete_lfs_files("refs/lfs", [found])


# --- lists ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several(served: Served) -> Served:
    for number in range(25):
        card = b"---\ntags: [%s, all]\npipeline_tag: %s\n---\n" % (
            b"even" if number % 2 == 0 else b"odd",
            b"text-generation" if number < 5 else b"fill-mask",
        )
        served.repo(f"list/Item-{number:02}", {"README.md": card}, private=number == 24)
    return served


def ids(found: object) -> list[str]:
    return [each.id.removeprefix("list/") for each in found]  # type: ignore[attr-defined]


def test_lists_are_paged(several: Served, client: Client) -> None:
    api = client()
    found = ids(api.list_models(author="list"))
    assert sorted(found) == [f"Item-{n:02}" for n in range(25)]
    wire = several.wire()
    seen, address = [], "/api/models?author=list&limit=10"
    while address:
        page = wire.ask("GET", address)
        seen += [each["id"].removeprefix("list/") for each in page.json]
        link = page.headers.get("link", "")
        address = link.split(";")[0].strip("<>")
        assert not address or address.startswith(several.url)
    assert seen == found
    assert ids(api.list_models(author="list", limit=3)) == found[:3]


def test_filters_and_search(several: Served, client: Client) -> None:
    api = client()
    assert sorted(ids(api.list_models(author="list", filter=["odd", "text-generation"]))) == [
        "Item-01",
        "Item-03",
    ]
    assert ids(api.list_models(search="ITEM 07")) == ["Item-07"]
    assert ids(api.list_models(search="list/item-07")) == ["Item-07"]
    assert len(ids(api.list_models(author="list", pipeline_tag="text-generation"))) == 5
    assert ids(api.list_models(author="List")) == []
    assert ids(api.list_models(filter="absent")) == []
    assert ids(api.list_models(author="list", gated=True)) == []
    info = next(iter(api.list_models(search="item-00", cardData=True)))
    assert info.card_data is not None
    assert info.card_data.tags == ["even", "all"]
    expanded = next(iter(api.list_models(search="item-00", expand=["tags"])))
    assert set(expanded.tags or ()) == {"even", "all", "text-generation"}
    assert expanded.author is None


def test_orders(several: Served, client: Client) -> None:
    wire = several.wire()
    created = [f"list/Item-{n:02}" for n in range(25)]
    address = "/api/models?author=list&limit=7&sort=createdAt&direction="
    for direction, expected in (("1", created), ("-1", created[::-1])):
        page = wire.ask("GET", address + direction)
        seen = [each["id"] for each in page.json]
        while "link" in page.headers:
            page = wire.ask("GET", page.headers["link"].split(";")[0].strip("<>"))
            seen += [each["id"] for each in page.json]
        assert seen == expected
    for sort in ("likes", "downloads", "last_modified", "trending_score", "created_at"):
        assert len(ids(client().list_models(author="list", sort=sort))) == 25


def test_private_ones_are_listed_to_members_only(several: Served, client: Client) -> None:
    private = "Item-24"
    assert private in ids(client("read", "list").list_models(author="list"))
    for api in (client(None), client("read", "other")):
        found = ids(api.list_models(author="list"))
        assert len(found) == 24
        assert private not in found


@pytest.mark.parametrize(
    "query", ["sort=size", "direction=2", "limit=0", "limit=x", "inference=warm", "apps=vllm"]
)
def test_queries_that_are_refused(served: Served, query: str) -> None:
    assert served.wire().ask("GET", f"/api/models?{query}").status == 400


def test_one_s_own_repositories(several: Served, client: Client) -> None:
    client().create_repo("list/data", repo_type="dataset")
    found = {each.id: each for each in client("read", "list").list_user_repos()}
    assert set(found) == {"list/data", *(f"list/Item-{n:02}" for n in range(25))}
    assert (found["list/data"].type, found["list/data"].visibility) == ("dataset", "private")
    assert sum(each.storage_percent for each in found.values()) == pytest.approx(100)
    assert list(client("read", "other").list_user_repos(namespace="list")) == []
    ids = [each.id for each in client("read", "list", "other").list_user_repos(namespace="list")]
    assert len(ids) == 26
    with pytest.raises(HfHubHTTPError) as said:
        list(client(None).list_user_repos())
    assert said.value.response.status_code == 401
