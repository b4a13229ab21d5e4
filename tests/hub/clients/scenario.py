"""What a Hugging Face client does with a hub, from a new repository to its deletion.

A program of its own: it runs in the environment of the client under test, which has neither pytest
nor adapterhub. `scenario.py ENDPOINT NAMESPACE WORKDIR [WITHOUT …]`, the token in $HF_TOKEN. Each
step prints its name when it holds; the first that does not ends the program with a traceback.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LARGE = 12_000_000
STEPS: list[Callable[[Scene], None]] = []


class Scene:
    def __init__(self, endpoint: str, namespace: str, work: Path) -> None:
        self.endpoint = endpoint
        self.namespace = namespace
        self.repo = f"{namespace}/Ada-pter_1.0"
        self.api = HfApi(endpoint=endpoint, token=os.environ["HF_TOKEN"])
        self.work = work
        self.folder = work / "folder"
        self.first = ""

    def content(self, repo: str | None = None, **options: Any) -> dict[str, bytes]:
        """All files of a snapshot, downloaded into a new cache."""
        cache = self.work / f"cache-{random.getrandbits(48)}"
        place = Path(snapshot_download(repo or self.repo, cache_dir=cache, **options))
        paths = [path for path in sorted(place.rglob("*")) if path.is_file()]
        found = {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}
        found.pop(".gitattributes", None)
        return found


def step(function: Callable[[Scene], None]) -> Callable[[Scene], None]:
    STEPS.append(function)
    return function


def same(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"found {str(found)[:2000]}\nexpected {str(expected)[:2000]}")


def raises(kind: type[BaseException], call: Callable[[], Any]) -> BaseException:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


def on_disk(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def pattern(size: int, seed: int) -> bytes:
    """Half noise, half repetition, so that every packing of a client is met."""
    noise = random.Random(seed).randbytes(size // 2)
    return noise + (noise[:4096] * (size // 8192 + 1))[: size - len(noise)]


# --- identity, and a new repository -----------------------------------------------------------


@step
def whoami(scene: Scene) -> None:
    same(scene.api.whoami()["type"], "user")


@step
def create(scene: Scene) -> None:
    url = scene.api.create_repo(scene.repo, private=True)
    same(url.repo_id, scene.repo)
    scene.api.create_repo(scene.repo, exist_ok=True)
    error = raises(HfHubHTTPError, lambda: scene.api.create_repo(scene.repo))
    same(error.response.status_code, 409)  # type: ignore[attr-defined]
    same(scene.api.repo_exists(scene.repo), True)
    same(scene.api.repo_exists(f"{scene.namespace}/absent"), False)


@step
def upload_folder(scene: Scene) -> None:
    files = {
        "README.md": b"---\nlicense: mit\nlibrary_name: peft\ntags: [one, two]\n---\nHello\n",
        "config.json": b'{"a": 1}\n',
        "model.safetensors": pattern(LARGE, 1),
        "nested/deeper/weights.bin": pattern(3_000_000, 2),
        "nested/empty.txt": b"",
        "na\u00efve file (1).txt": "caf\u00e9\n".encode(),
    }
    for name, data in files.items():
        path = scene.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    commit = scene.api.upload_folder(repo_id=scene.repo, folder_path=scene.folder)
    scene.first = commit.oid
    same(len(commit.oid), 40)
    same(scene.content(), files)


@step
def upload_the_same_again(scene: Scene) -> None:
    commit = scene.api.upload_folder(repo_id=scene.repo, folder_path=scene.folder)
    same(commit.oid, scene.first)
    same(scene.content(), on_disk(scene.folder))


@step
def upload_file(scene: Scene) -> None:
    scene.api.upload_file(path_or_fileobj=b"second\n", path_in_repo="b.txt", repo_id=scene.repo)
    scene.api.upload_file(
        path_or_fileobj=pattern(LARGE, 3), path_in_repo="x/big.safetensors", repo_id=scene.repo
    )
    found = scene.content()
    same(found["b.txt"], b"second\n")
    same(found["x/big.safetensors"], pattern(LARGE, 3))


# --- looking ----------------------------------------------------------------------------------


@step
def listings(scene: Scene) -> None:
    names = {*on_disk(scene.folder), "b.txt", "x/big.safetensors"}
    same(set(scene.api.list_repo_files(scene.repo)) - {".gitattributes"}, names)
    tree = {each.path: each for each in scene.api.list_repo_tree(scene.repo, recursive=True)}
    big = tree["x/big.safetensors"]
    same(big.size, LARGE)
    same(big.lfs.sha256, hashlib.sha256(pattern(LARGE, 3)).hexdigest())
    one = {each.path for each in scene.api.list_repo_tree(scene.repo, "nested", expand=True)}
    same(one, {"nested/deeper", "nested/empty.txt"})
    (info,) = scene.api.get_paths_info(scene.repo, ["config.json", "absent"], expand=True)
    data = b'{"a": 1}\n'
    same(info.blob_id, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())
    same(info.last_commit.oid, scene.first)


@step
def information(scene: Scene) -> None:
    info = scene.api.model_info(scene.repo, files_metadata=True)
    same((info.id, info.private, info.library_name), (scene.repo, True, "peft"))
    same({"one", "two", "license:mit"} <= set(info.tags), True)
    same(info.card_data.license, "mit")
    sizes = {each.rfilename: each.size for each in info.siblings}
    same(sizes["model.safetensors"], LARGE)
    old = scene.api.model_info(scene.repo, revision=scene.first)
    same((old.sha, "b.txt" in {each.rfilename for each in old.siblings}), (scene.first, False))
    found = scene.api.list_models(author=scene.namespace, search="ada-pter", filter="two")
    same([each.id for each in found], [scene.repo])
    same(list(scene.api.list_models(author=scene.namespace, filter="three")), [])


@step
def downloads(scene: Scene) -> None:
    old = scene.content(revision=scene.first)
    same(old, on_disk(scene.folder))
    cache = scene.work / "single"
    path = hf_hub_download(scene.repo, "nested/deeper/weights.bin", cache_dir=cache)
    same(Path(path).read_bytes(), pattern(3_000_000, 2))
    same(scene.api.file_exists(scene.repo, "config.json"), True)
    same(scene.api.file_exists(scene.repo, "absent"), False)
    raises(EntryNotFoundError, lambda: hf_hub_download(scene.repo, "absent", cache_dir=cache))
    raises(RevisionNotFoundError, lambda: scene.content(revision="absent"))
    raises(RepositoryNotFoundError, lambda: scene.content(f"{scene.namespace}/absent"))
    anonymous = HfApi(endpoint=scene.endpoint, token=False)
    raises(RepositoryNotFoundError, lambda: anonymous.model_info(scene.repo))


# --- changing ---------------------------------------------------------------------------------


@step
def commits(scene: Scene) -> None:
    head = scene.api.model_info(scene.repo).sha
    operations = [
        CommitOperationAdd("c.txt", b"third"),
        CommitOperationDelete("b.txt"),
        CommitOperationDelete("nested/", is_folder=True),
        CommitOperationCopy("x/big.safetensors", "y/copy.safetensors"),
    ]
    options: dict[str, Any] = {"commit_message": "Title", "commit_description": "Text\nmore"}
    scene.api.create_commit(scene.repo, operations, parent_commit=head, **options)
    found = scene.content()
    same({"b.txt", "nested/empty.txt"} & set(found), set())
    same((found["c.txt"], found["y/copy.safetensors"]), (b"third", pattern(LARGE, 3)))
    stale = [CommitOperationAdd("d.txt", b"x")]
    late = {"commit_message": "Late", "parent_commit": scene.first}
    error = raises(HfHubHTTPError, lambda: scene.api.create_commit(scene.repo, stale, **late))
    same(error.response.status_code, 412)  # type: ignore[attr-defined]
    log = scene.api.list_repo_commits(scene.repo)
    same((log[0].title, log[0].message.strip()), ("Title", "Text\nmore"))
    same(scene.first in [each.commit_id for each in log], True)
    scene.api.delete_file("c.txt", repo_id=scene.repo)
    scene.api.delete_folder("y", repo_id=scene.repo)
    same({"c.txt", "y/copy.safetensors"} & set(scene.content()), set())


@step
def branches_and_tags(scene: Scene) -> None:
    scene.api.create_branch(scene.repo, branch="dev/one", revision=scene.first)
    scene.api.create_branch(scene.repo, branch="dev/one", exist_ok=True)
    scene.api.upload_file(
        path_or_fileobj=b"dev", path_in_repo="dev.txt", repo_id=scene.repo, revision="dev/one"
    )
    same(scene.content(revision="dev/one")["dev.txt"], b"dev")
    same("dev.txt" in scene.content(), False)
    scene.api.create_tag(scene.repo, tag="v1", revision=scene.first, tag_message="first")
    same(scene.content(revision="v1"), on_disk(scene.folder))
    refs = scene.api.list_repo_refs(scene.repo)
    same({each.name for each in refs.branches}, {"main", "dev/one"})
    same([(each.name, each.target_commit) for each in refs.tags], [("v1", scene.first)])
    raises(HfHubHTTPError, lambda: scene.api.create_tag(scene.repo, tag="v1"))
    scene.api.delete_tag(scene.repo, tag="v1")
    scene.api.delete_branch(scene.repo, branch="dev/one")
    refs = scene.api.list_repo_refs(scene.repo)
    same(([each.name for each in refs.branches], refs.tags), (["main"], []))


@step
def pull_request(scene: Scene) -> None:
    commit = scene.api.upload_file(
        path_or_fileobj=b"proposed",
        path_in_repo="pr.txt",
        repo_id=scene.repo,
        create_pr=True,
        commit_message="Please",
    )
    number = commit.pr_num
    same(scene.content(revision=f"refs/pr/{number}")["pr.txt"], b"proposed")
    same("pr.txt" in scene.content(), False)
    refs = scene.api.list_repo_refs(scene.repo, include_pull_requests=True)
    same([each.ref for each in refs.pull_requests], [f"refs/pr/{number}"])
    details = scene.api.get_discussion_details(scene.repo, number)
    same((details.title, details.status, details.is_pull_request), ("Please", "open", True))
    scene.api.merge_pull_request(scene.repo, number)
    same(scene.content()["pr.txt"], b"proposed")
    same(scene.api.get_discussion_details(scene.repo, number).status, "merged")
    opened = scene.api.create_pull_request(scene.repo, title="Another")
    scene.api.upload_folder(
        repo_id=scene.repo,
        folder_path=scene.folder,
        path_in_repo="again",
        revision=f"refs/pr/{opened.num}",
    )
    found = scene.content(revision=f"refs/pr/{opened.num}")
    same(found["again/config.json"], b'{"a": 1}\n')
    scene.api.change_discussion_status(scene.repo, opened.num, "closed")
    same([each.status for each in scene.api.get_repo_discussions(scene.repo)][:1], ["closed"])


# --- the command line, other types, the end ---------------------------------------------------


def hf(scene: Scene, *words: str) -> str:
    program = Path(sys.executable).with_name("hf")
    done = subprocess.run([str(program), *words], capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise AssertionError(f"hf {' '.join(words)}: {done.stdout}\n{done.stderr}")
    return done.stdout


@step
def command_line(scene: Scene) -> None:
    repo = f"{scene.namespace}/by-hand"
    same("user" in hf(scene, "auth", "whoami").lower() or scene.namespace != "", True)
    hf(scene, "repos", "create", repo, "--private")
    hf(scene, "upload", repo, str(scene.folder), ".")
    target = scene.work / "by-hand"
    hf(scene, "download", repo, "--local-dir", str(target))
    found = on_disk(target)
    same({name: found.get(name) for name in on_disk(scene.folder)}, on_disk(scene.folder))
    hf(scene, "repos", "tag", "create", repo, "v2")
    hf(scene, "repos", "branch", "create", repo, "side")
    hf(scene, "repos", "delete", repo, "--yes")
    same(scene.api.repo_exists(repo), False)


@step
def data_set(scene: Scene) -> None:
    repo = f"{scene.namespace}/data"
    scene.api.create_repo(repo, repo_type="dataset")
    scene.api.upload_folder(repo_id=repo, folder_path=scene.folder, repo_type="dataset")
    same(scene.content(repo, repo_type="dataset"), on_disk(scene.folder))
    same([each.id for each in scene.api.list_datasets(author=scene.namespace)], [repo])
    scene.api.delete_repo(repo, repo_type="dataset")


@step
def settings_and_renaming(scene: Scene) -> None:
    scene.api.update_repo_settings(scene.repo, private=False)
    anonymous = HfApi(endpoint=scene.endpoint, token=False)
    same(anonymous.model_info(scene.repo).private, False)
    renamed = f"{scene.namespace}/renamed"
    scene.api.move_repo(from_id=scene.repo, to_id=renamed)
    same(scene.api.repo_exists(scene.repo), False)
    same(scene.content(renamed, revision=scene.first), on_disk(scene.folder))
    scene.api.super_squash_history(renamed, commit_message="Squashed")
    same([each.title for each in scene.api.list_repo_commits(renamed)], ["Squashed"])
    same(scene.content(renamed)["pr.txt"], b"proposed")
    scene.repo = renamed


@step
def deletion(scene: Scene) -> None:
    scene.api.delete_repo(scene.repo)
    same(scene.api.repo_exists(scene.repo), False)
    scene.api.delete_repo(scene.repo, missing_ok=True)
    raises(RepositoryNotFoundError, lambda: scene.api.delete_repo(scene.repo))


@step
def wrong_token(scene: Scene) -> None:
    wrong = HfApi(endpoint=scene.endpoint, token="hf_wrong")
    error = raises(HfHubHTTPError, wrong.whoami)
    same(error.response.status_code, 401)  # type: ignore[attr-defined]


def main() -> None:
    endpoint, namespace, work, *without = sys.argv[1:]
    scene = Scene(endpoint, namespace, Path(work))
    for each in (each for each in STEPS if each.__name__ not in without):
        each(scene)
        print(each.__name__, flush=True)


if __name__ == "__main__":
    main()
