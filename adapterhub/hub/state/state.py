"""Hub: repositories, their history and who may do what, over one store.

    with Store(home) as store, Hub(store) as hub:
        caller = hub.tokens.caller(secret)                    # or model.ANONYMOUS
        repository = hub.access.write(caller, parse_id("ns/name"))
        content = hub.contents.put_bytes(repository, data)    # or deliver(…) what arrived
        hub.commit(repository, "main", Request((Add("a.txt", content.digest),), "Add a"), "ns")
        found = hub.file(repository, "main", "a.txt")         # store.open_blob(found.file.digest)

Methods take what `access` handed out and ask no more questions about rights. A revision is
unquoted: a branch, a tag, a commit (7 of its 40 hex digits or more), `refs/heads/…`,
`refs/tags/…`, `refs/pr/N`. Everything may be called from any thread; nothing here is async.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from adapterhub.hub.state.access import Access
from adapterhub.hub.state.commits import Commits
from adapterhub.hub.state.contents import Contents
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.model import Commit, Committed, Entry, Found, Listing, Log, Pull, Ref
from adapterhub.hub.state.names import RepoId
from adapterhub.hub.state.operations import Request
from adapterhub.hub.state.pulls import Pulls
from adapterhub.hub.state.refs import Refs
from adapterhub.hub.state.repositories import Repositories, Repository
from adapterhub.hub.state.tokens import Tokens
from adapterhub.store import Store


class Hub:
    """The state of a server: `hub.db` at `path` (default: in the store's home), made if missing.

    Safe between threads and processes. Raises OutputError, StoreError, IntegrityError. Its parts:
    repositories (get, list, unindexed …), contents (put_file, put_bytes, deliver, find, share),
    refs (resolve, list), commits (get, log), pulls (get, list, set_status), tokens, access.
    """

    repositories: Repositories
    contents: Contents
    refs: Refs
    commits: Commits
    pulls: Pulls
    tokens: Tokens
    access: Access

    def __init__(
        self,
        store: Store,
        path: Path | None = None,
        limits: Limits | None = None,
        *,
        public_read: bool = True,
    ) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- repositories

    def create(
        self, id: RepoId, *, private: bool = True, gated: str = "", author: str = "system"
    ) -> Repository:
        """With a branch main whose first commit holds `.gitattributes`. Raises Conflict."""
        raise NotImplementedError

    # move, delete, configure: see `repositories`

    # --- reading

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        """Raises RevisionNotFound."""
        raise NotImplementedError

    def file(self, repository: Repository, revision: str, path: str) -> Found:
        """Raises RevisionNotFound; EntryNotFound (with `commit`), for a folder too."""
        raise NotImplementedError

    def tree(
        self,
        repository: Repository,
        revision: str,
        folder: str = "",
        *,
        recursive: bool = False,
        expand: bool = False,
        limit: int = 1000,
        after: str = "",
    ) -> Listing:
        """A page of a folder, sorted; folders come before what is in them. `expand`: with `last`.

        Later pages are asked for with the first one's commit. Raises as `file`, for a file too.
        """
        raise NotImplementedError

    def paths(
        self, repository: Repository, revision: str, paths: Sequence[str], *, expand: bool = False
    ) -> Listing:
        """What lies at these paths, files and folders; what is not there is left out."""
        raise NotImplementedError

    def log(
        self, repository: Repository, revision: str, *, limit: int = 50, after: str | None = None
    ) -> Log:
        """`after`: the id of the last commit of the page before."""
        raise NotImplementedError

    # --- changing

    def commit(
        self,
        repository: Repository,
        revision: str,
        request: Request,
        author: str,
        *,
        create_pr: bool = False,
    ) -> Committed:
        """Carries a request out upon a branch or pull request, or upon a new pull request for it.

        All of it or nothing, durably. A request that the branch has seen already (same parent; or
        without a parent, its last commit) gives that commit again. One that changes nothing makes
        a commit all the same, as the Hub does. Raises Stale, RevisionNotFound, EntryNotFound,
        InvalidPath, InvalidRequest, TooLarge.
        """
        raise NotImplementedError

    def create_branch(self, repository: Repository, name: str, start: str | None = None) -> Ref:
        """At `start` (a revision; main where None). Raises Conflict, RevisionNotFound."""
        raise NotImplementedError

    def delete_branch(self, repository: Repository, name: str) -> None:
        """Raises InvalidRequest for main, RevisionNotFound."""
        raise NotImplementedError

    def create_tag(
        self, repository: Repository, name: str, revision: str = "main", message: str = ""
    ) -> Ref:
        raise NotImplementedError

    def delete_tag(self, repository: Repository, name: str) -> None:
        raise NotImplementedError

    def squash(self, repository: Repository, branch: str, title: str, author: str) -> Commit:
        """One commit in place of a branch's history; what no ref reaches then is gone."""
        raise NotImplementedError

    # --- pull requests

    def open_pull(
        self,
        repository: Repository,
        title: str,
        description: str,
        author: str,
        *,
        target: str = "main",
    ) -> Pull:
        """A draft without commits of its own; commit to its `ref`."""
        raise NotImplementedError

    def conflicts(self, repository: Repository, number: int) -> tuple[str, ...]:
        """Paths that both a pull request and its target have changed, each in another way."""
        raise NotImplementedError

    def merge(self, repository: Repository, number: int, author: str) -> Commit:
        """One commit on the target with all that the request changes. Raises Conflict."""
        raise NotImplementedError

