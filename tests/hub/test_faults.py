"""What goes wrong between a client and the hub, made to happen, against a server process.

Each time: the answer is the right one, the old revision stands, nothing is left behind, and the
same push done properly afterwards succeeds.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hubkit
import pytest
import wire
import xetkit
from wire import Wire

BIG = random.Random(7).randbytes(3_000_000)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hubkit.Hub]:
    with hubkit.serving(tmp_path_factory.mktemp("faults") / "home", "--public-read") as hub:
        yield hub
        assert "Traceback" not in "".join(hub.log)


@pytest.fixture(scope="module")
def writer(hub: hubkit.Hub) -> Wire:
    return Wire(hub.url, hub.token())


@pytest.fixture
def repo(writer: Wire, request: pytest.FixtureRequest) -> str:
    name = f"faults/r{abs(hash(request.node.name)) % 10**12}"
    assert writer.create(name).status == 200
    assert writer.commit(name, wire.header(), wire.regular("first.txt", b"first")).status == 200
    return name


def left_behind(hub: hubkit.Hub) -> list[str]:
    """Files in the home that no finished request leaves; the last ones end within a moment."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        found = sorted(p.name for p in (hub.home / "tmp").iterdir())
        if not found:
            return []
        time.sleep(0.05)
    return found


def push(writer: Wire, repo: str, data: bytes, path: str = "model.safetensors") -> None:
    """As a client without Xet does it."""
    item = writer.batch(repo, data).json["objects"][0]
    if "actions" in item:
        href = item["actions"]["upload"]["href"]
        assert Wire(writer.url).ask("PUT", href, data).status == 200
        if verify := item["actions"].get("verify"):
            document = {"oid": wire.oid(data), "size": len(data)}
            assert writer.send("POST", verify["href"], document).status == 200
    assert writer.commit(repo, wire.header(), wire.lfs(path, data)).status == 200
    assert writer.file(repo, path).body == data


# --- connections that end ---------------------------------------------------------------------


def _cut_create(writer: Wire, repo: str) -> None:
    body = b'{"name": "cut", "organization": "faults"}'
    writer.cut("POST", "/api/repos/create", body, 20)
    assert writer.ask("GET", "/api/models/faults/cut").code == "RepoNotFound"


def _cut_preupload(writer: Wire, repo: str) -> None:
    writer.cut("POST", f"/api/models/{repo}/preupload/main", b'{"files": []}', 5)


def _cut_batch(writer: Wire, repo: str) -> None:
    writer.cut("POST", f"/{repo}.git/info/lfs/objects/batch", b'{"operation": "upload"}', 5)


def _cut_upload(writer: Wire, repo: str) -> None:
    href = writer.upload_href(repo, BIG)
    for keep in (0, 1, 2_000_000, len(BIG) - 1):
        Wire(writer.url).cut("PUT", href, BIG, keep)


def _cut_commit(writer: Wire, repo: str) -> None:
    body = wire.ndjson(wire.header(), wire.regular("half.txt", b"x" * 1000))
    for keep in (0, 30, len(body) - 1):
        writer.cut("POST", f"/api/models/{repo}/commit/main", body, keep)


@pytest.mark.parametrize(
    "stage", [_cut_create, _cut_preupload, _cut_batch, _cut_upload, _cut_commit]
)
def test_a_connection_cut_within_a_push(
    hub: hubkit.Hub, writer: Wire, repo: str, stage: Callable[[Wire, str], None]
) -> None:
    before = writer.head(repo)
    stage(writer, repo)
    assert left_behind(hub) == []
    assert writer.head(repo) == before
    assert writer.file(repo, "half.txt").code == "EntryNotFound"
    push(writer, repo, BIG)


def test_a_commit_whose_answer_was_lost_is_made_once(writer: Wire, repo: str) -> None:
    lines = (wire.header("once", parentCommit=writer.head(repo)), wire.regular("a", b"a"))
    body = wire.ndjson(*lines)
    with writer.unanswered("POST", f"/api/models/{repo}/commit/main", body):
        end = time.monotonic() + 10
        while writer.file(repo, "a").status != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
    again = writer.commit(repo, *lines)
    assert again.status == 200 and again.json["commitOid"] == writer.head(repo)
    log = writer.ask("GET", f"/api/models/{repo}/commits/main").json
    assert [each["title"] for each in log].count("once") == 1


# --- lies -------------------------------------------------------------------------------------


def test_content_of_another_length_or_digest(hub: hubkit.Hub, writer: Wire, repo: str) -> None:
    href = writer.upload_href(repo, BIG)
    public = Wire(writer.url)
    other = bytes(len(BIG))
    for body, headers in ((BIG[:-1], {}), (BIG + b"x", {}), (other, {}), (b"", {})):
        answer = public.ask("PUT", href, body, headers)
        assert answer.status == 400 or answer.status == 422, answer
        assert answer.json["error"]
    refused = writer.commit(repo, wire.header(), wire.lfs("model.safetensors", BIG))
    assert refused.status == 400 and "upload" in refused.json["error"]
    assert left_behind(hub) == []
    push(writer, repo, BIG)


def test_a_content_length_that_lies(hub: hubkit.Hub, writer: Wire, repo: str) -> None:
    """More bytes than said are the next request's; fewer never end, and the client goes away."""
    href = writer.upload_href(repo, BIG)
    public = Wire(writer.url)
    assert public.ask("PUT", href, BIG, {"Content-Length": str(len(BIG) - 9)}).status in (400, 422)
    public.cut("PUT", href, BIG + b"more", len(BIG))
    assert public.ask("PUT", href, b"", {"Content-Length": "-1"}).status == 400
    assert left_behind(hub) == []
    push(writer, repo, BIG)


def test_an_upload_link_is_for_one_content_of_one_repository(writer: Wire, repo: str) -> None:
    other = BIG[::-1]
    href = writer.upload_href(repo, BIG)
    public = Wire(writer.url)
    assert public.ask("PUT", href.replace(wire.oid(BIG), wire.oid(other)), other).status in (
        400,
        403,
    )
    assert public.ask("PUT", href[:-1] + ("0" if href[-1] != "0" else "1"), BIG).status == 403
    assert writer.commit(repo, wire.header(), wire.lfs("m", other)).status == 400


def test_what_one_repository_has_is_not_anothers(writer: Wire, repo: str) -> None:
    """To know a digest is not to have the content."""
    push(writer, repo, BIG)
    thief = Wire(writer.url, writer.token)
    assert thief.create(f"{repo}-thief").status == 200
    taken = thief.commit(f"{repo}-thief", wire.header(), wire.lfs("m.safetensors", BIG))
    assert taken.status == 400
    (item,) = thief.batch(f"{repo}-thief", BIG).json["objects"]
    assert "upload" in item["actions"]


# --- Xet --------------------------------------------------------------------------------------


def xet_push(writer: Wire, repo: str, data: bytes) -> None:
    """As a client with Xet does it."""
    made, cas = xetkit.packed(data), writer.xet(repo)
    assert cas.ask("POST", f"/v1/xorbs/default/{made.name}", made.xorb).status == 200
    assert cas.ask("POST", "/v1/shards", made.shard()).json == {"result": 1}
    assert writer.commit(repo, wire.header(), wire.lfs("xet.bin", data)).status == 200
    assert writer.file(repo, "xet.bin").body == data


def test_a_xorb_that_is_cut_corrupt_or_misnamed(hub: hubkit.Hub, writer: Wire, repo: str) -> None:
    made, cas = xetkit.packed(BIG), writer.xet(repo)
    address = f"/v1/xorbs/default/{made.name}"
    for keep in (0, 5, 100_000, len(made.xorb) - 1):
        cas.cut("POST", address, made.xorb, keep)
    flipped = bytearray(made.xorb)
    flipped[1_000_000] ^= 1
    other = xetkit.packed(BIG[::-1]).xorb
    for body in (bytes(flipped), made.xorb[:-1], made.xorb[:-65544], other, b"", b"junk" * 99):
        answer = cas.ask("POST", address, body)
        assert answer.status in (400, 422) and answer.json["error"], len(body)
    assert cas.ask("POST", "/v1/shards", made.shard()).status in (400, 422)
    assert left_behind(hub) == []
    xet_push(writer, repo, BIG)


def test_a_shard_that_is_cut_or_lies(hub: hubkit.Hub, writer: Wire, repo: str) -> None:
    made, cas = xetkit.packed(BIG), writer.xet(repo)
    assert cas.ask("POST", f"/v1/xorbs/default/{made.name}", made.xorb).status == 200
    shard = made.shard()
    cas.cut("POST", "/v1/shards", shard, len(shard) // 2)
    for body in (shard[:-48], shard[:100], b"", shard[:48] + bytes(48) + shard[96:]):
        assert cas.ask("POST", "/v1/shards", body).status in (400, 422)
    assert cas.ask("POST", "/v1/shards", made.shard(bytes(32))).status in (400, 422)
    assert writer.commit(repo, wire.header(), wire.lfs("xet.bin", BIG)).status == 400
    assert left_behind(hub) == []
    xet_push(writer, repo, BIG)


def test_a_shard_that_names_another_repositorys_xorb(
    hub: hubkit.Hub, writer: Wire, repo: str
) -> None:
    secret = BIG[::-1]
    xet_push(writer, repo, secret)
    thief = f"{repo}-xet-thief"
    assert writer.create(thief).status == 200
    made = xetkit.packed(secret)
    answer = writer.xet(thief).ask("POST", "/v1/shards", made.shard())
    assert answer.status in (400, 422) and made.name in answer.json["error"]
    assert writer.commit(thief, wire.header(), wire.lfs("xet.bin", secret)).status == 400
    own = writer.xet(thief)
    foreign = Wire(writer.xet(repo).url, own.token)
    assert foreign.ask("POST", "/v1/shards", made.shard()).status in (401, 403)


def test_who_may_not_write_gets_no_place_for_xorbs(
    hub: hubkit.Hub, writer: Wire, repo: str
) -> None:
    address = f"/api/models/{repo}/xet-write-token/main"
    assert Wire(hub.url).ask("GET", address).status in (401, 404)
    assert Wire(hub.url, hub.token("--read")).ask("GET", address).status == 403
    made, cas = xetkit.packed(BIG), writer.xet(repo)
    for token in ("", cas.token[:-2], writer.token):
        answer = Wire(cas.url, token).ask("POST", f"/v1/xorbs/default/{made.name}", made.xorb)
        assert answer.status == 401


# --- several at once --------------------------------------------------------------------------


def test_a_parent_that_is_stale(writer: Wire, repo: str) -> None:
    old = writer.head(repo)
    assert writer.commit(repo, wire.header(), wire.regular("a", b"1")).status == 200
    late = writer.commit(repo, wire.header(parentCommit=old), wire.regular("b", b"2"))
    assert late.status == 412 and late.json["error"]
    assert writer.file(repo, "b").code == "EntryNotFound"


@pytest.mark.slow
@pytest.mark.parametrize("with_parent", [True, False])
def test_a_hundred_commits_at_once(writer: Wire, repo: str, with_parent: bool) -> None:
    def one(number: int) -> tuple[int, str, str]:
        parent = {"parentCommit": writer.head(repo)} if with_parent else {}
        lines = (wire.header(f"n{number}", **parent), wire.regular(f"f{number}", b"%d" % number))
        answer = writer.commit(repo, *lines)
        accepted = answer.status == 200
        return answer.status, answer.json["commitOid"] if accepted else "", f"f{number}"

    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(one, range(100)))
    accepted = {commit: path for status, commit, path in done if status == 200}
    assert {status for status, _, _ in done} <= {200, 412}
    assert len(accepted) == 100 or (with_parent and accepted)
    log = _log(writer, repo)
    made = [each for each in log if each["title"].startswith("n")]
    assert {each["id"] for each in made} == set(accepted)
    files = {each["path"] for each in writer.ask("GET", f"/api/models/{repo}/tree/main").json}
    assert files >= set(accepted.values())
    assert len(files & {path for _, _, path in done}) == len(accepted)


def _log(writer: Wire, repo: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    path = f"/api/models/{repo}/commits/main"
    while path:
        answer = writer.ask("GET", path)
        found += answer.json
        link = answer.headers.get("link", "")
        path = link.split(">")[0].removeprefix("<") if 'rel="next"' in link else ""
    return found


# --- paths ------------------------------------------------------------------------------------

HOSTILE = (
    "../outside",
    "a/../../outside",
    "/etc/passwd",
    "a//b",
    "./a",
    ".git/config",
    "a/.GIT/hooks/x",
    "a\\..\\b",
    "nul\0byte",
    "a/",
    "",
    "C:/windows",
    "con\ntrol",
    "x" * 3000,
)


@pytest.mark.parametrize("path", HOSTILE)
def test_paths_that_a_commit_may_not_have(writer: Wire, repo: str, path: str) -> None:
    before = writer.head(repo)
    push(writer, repo, BIG, "there.bin") if path == HOSTILE[0] else None
    before = writer.head(repo)
    removal = {"key": "deletedFolder", "value": {"path": path}}
    for line in (wire.regular(path, b"x"), wire.lfs(path, BIG), removal):
        answer = writer.commit(repo, wire.header(), line)
        assert answer.status in (400, 404), (path, line["key"], answer)
        assert answer.json["error"]
    document = {"files": [{"path": path, "sample": "", "size": 1}]}
    assert writer.send("POST", f"/api/models/{repo}/preupload/main", document).status == 400
    assert writer.head(repo) == before


@pytest.mark.parametrize(
    "path", ["../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/x", "%00", "a%5c.."]
)
def test_paths_that_a_download_may_not_have(writer: Wire, repo: str, path: str) -> None:
    for template in (
        "/{repo}/resolve/main/{path}",
        "/api/models/{repo}/tree/main/{path}",
        "/{repo}/resolve/{path}/first.txt",
        "/api/models/{repo}/revision/{path}",
        "/api/models/{path}",
        "/{path}/resolve/main/first.txt",
    ):
        answer = writer.ask("GET", template.format(repo=repo, path=path))
        assert answer.status in (400, 404), (template, answer)
        assert b"root:" not in answer.body


def test_names_that_repositories_branches_and_tags_may_not_have(writer: Wire, repo: str) -> None:
    for name in ("..", "a..b", ".git", "a/b/c", "x" * 97, "a b", "a\0b", "-a", ""):
        assert writer.send("POST", "/api/repos/create", {"name": name}).status == 400, name
    for name in ("..%2Fx", "%2e%2e", "a..b", "refs%2Fheads%2Fx", "a%00b", "x.lock"):
        for kind in ("branch", "tag"):
            answer = writer.send("POST", f"/api/models/{repo}/{kind}/{name}", {"tag": name})
            assert answer.status in (400, 404), (kind, name)


# --- who may ----------------------------------------------------------------------------------


def test_tokens_wrong_missing_revoked_read_only_and_of_another_namespace(
    hub: hubkit.Hub, writer: Wire, repo: str
) -> None:
    address, commit = f"/api/models/{repo}", (wire.header(), wire.regular("x", b"x"))
    wrong = Wire(hub.url, "ahub_wrong")
    for answer in (wrong.ask("GET", address), wrong.ask("GET", "/api/whoami-v2")):
        assert answer.status == 401
        assert answer.headers["x-error-message"] == "Invalid credentials in Authorization header"
    missing = Wire(hub.url)
    assert (missing.ask("GET", address).status, missing.ask("GET", address).code) in (
        (401, "RepoNotFound"),
        (404, "RepoNotFound"),
    )
    assert missing.commit(repo, *commit).status == 401
    reader = Wire(hub.url, hub.token("--read"))
    assert reader.ask("GET", address).status == 200
    assert reader.commit(repo, *commit).status == 403
    assert reader.create("faults/by-reader").status == 403
    foreign = Wire(hub.url, hub.token("--write", "--namespace", "elsewhere"))
    assert foreign.ask("GET", address).code == "RepoNotFound"
    assert foreign.commit(repo, *commit).code == "RepoNotFound"
    assert foreign.create("faults/by-foreign").status == 403
    assert foreign.create("elsewhere/own").status == 200
    assert writer.file(repo, "x").code == "EntryNotFound"


@pytest.mark.slow
def test_a_token_that_has_expired(hub: hubkit.Hub) -> None:
    brief = Wire(hub.url, hub.token("--read", "--expires", "4s"))
    assert brief.ask("GET", "/api/whoami-v2").status == 200
    end = time.monotonic() + 15
    while brief.ask("GET", "/api/whoami-v2").status == 200:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert brief.ask("GET", "/api/whoami-v2").status == 401


def test_public_repositories_are_read_by_everyone(hub: hubkit.Hub, writer: Wire, repo: str) -> None:
    anonymous = Wire(hub.url)
    assert anonymous.file(repo, "first.txt").code == "RepoNotFound"
    settings = {"visibility": "public"}
    assert writer.send("PUT", f"/api/models/{repo}/settings", settings).status == 200
    assert anonymous.file(repo, "first.txt").body == b"first"
    assert anonymous.commit(repo, wire.header(), wire.regular("x", b"x")).status == 401
    listed = anonymous.ask("GET", "/api/models?author=faults").json
    assert [each["id"] for each in listed] == [repo]


def test_secrets_are_in_no_log(hub: hubkit.Hub, writer: Wire, repo: str) -> None:
    href = writer.upload_href(repo, BIG + b"1")
    Wire(hub.url).ask("PUT", href, BIG)
    signature = href.rsplit("=", 1)[-1]
    log = "".join(hub.log)
    assert repo in log and writer.token not in log and signature not in log


# --- the disk ---------------------------------------------------------------------------------


def test_a_blob_that_was_damaged_is_not_served_as_whole(
    hub: hubkit.Hub, writer: Wire, repo: str, tmp_path: Path
) -> None:
    """Clients check sizes only, so a file that lost its end must not look whole."""
    data = os.urandom(100_000)
    push(writer, repo, data)
    digits = wire.oid(data)
    path = hub.home / "blobs" / "sha256" / digits[:2] / digits
    path.chmod(0o644)
    os.truncate(path, 50_000)
    answer = writer.file(repo, "model.safetensors")
    assert answer.status >= 400
