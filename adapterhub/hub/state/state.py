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

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from adapterhub.hub.state import attributes
from adapterhub.hub.state.access import Access
from adapterhub.hub.state.commits import Commits, Text
from adapterhub.hub.state.committing import Committer
from adapterhub.hub.state.contents import Contents
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.errors import InvalidRequest
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.model import Commit, Committed, Found, Listing, Log, Pull
from adapterhub.hub.state.names import BRANCH, RepoId
from adapterhub.hub.state.operations import Add, Request, check_author, check_text, check_title
from adapterhub.hub.state.pruning import Pruning
from adapterhub.hub.state.pulls import Pulls
from adapterhub.hub.state.refs import MAIN, Refs
from adapterhub.hub.state.repositories import Repositories, Repository
from adapterhub.hub.state.tokens import Tokens
from adapterhub.store import Store

MAX_PAGE = 10_000


class Hub:
    """The state of a server: `hub.db` in the store's home, where `gc` looks; made if missing.

    Safe between threads and processes. Raises OutputError, StoreError, IntegrityError. Its parts:

        repositories   get, list, again, move, configure, delete, unindexed, mark_indexed
        contents       put_file, put_bytes, deliver, deliver_all, check_room, find, share, used
        refs           resolve, list, create_branch, create_tag, delete_branch, delete_tag
        pulls          get, list, count, set_status, rename, conflicts
        tokens         create, list, revoke, caller
        access         see, read, write, create, list
    """

    def __init__(
        self,
        store: Store,
        limits: Limits | None = None,
        *,
        public_read: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.limits = limits or Limits()
        self._database = db = Database(store.home / "hub.db")
        self.repositories = Repositories(db, now)
        self.contents = Contents(db, store, self.limits, now)
        self.refs = Refs(db, self.limits, now)
        self.commits = Commits(db, self.limits, now)
        self.pulls = Pulls(db, self.refs, self.commits, self.limits, now)
        self.tokens = Tokens(db, now)
        self.access = Access(self.repositories, public_read=public_read)
        self._pruning = Pruning(db, self.commits, now)
        self._committer = Committer(
            db, store, self.limits, self.contents, self.refs, self.commits, self.pulls
        )

    def close(self) -> None:
        """Of every thread; the store stays open."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def create(self, id: RepoId, *, private: bool = True, gated: str = "") -> Repository:
        """With a branch main whose first commit holds `.gitattributes`, as on the Hub.

        Raises Conflict, InvalidRequest.
        """
        with self.store.writing():
            digest, _ = self.store.put_blob_bytes(attributes.CONTENT)
            with self._database.transaction():
                repository = self.repositories.insert(id, private=private, gated=gated)
                self.contents.deliver(repository, digest)
                first = Request((Add(attributes.PATH, digest),), "initial commit")
                self._committer.begin(repository, MAIN, first, "system")
                return self.repositories.again(repository)

    # --- reading

    def commit_of(self, repository: Repository, revision: str) -> Commit:
        """Raises RevisionNotFound."""
        with self._database.snapshot():
            return self.commits.get(repository, self.refs.resolve(repository, revision))

    def file(self, repository: Repository, revision: str, path: str) -> Found:
        """Raises RevisionNotFound; EntryNotFound (with `commit`), for a folder too."""
        with self._database.snapshot():
            return self.commits.file(repository, self.commit_of(repository, revision), path)

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
        _check_page(limit)
        with self._database.snapshot():
            return self.commits.tree(
                repository,
                self.commit_of(repository, revision),
                folder.rstrip("/"),
                recursive=recursive,
                expand=expand,
                limit=limit,
                after=after,
            )

    def paths(
        self, repository: Repository, revision: str, paths: Sequence[str], *, expand: bool = False
    ) -> Listing:
        """What lies at these paths, files and folders; what is not there is left out."""
        _check_page(max(len(paths), 1))
        with self._database.snapshot():
            commit = self.commit_of(repository, revision)
            return self.commits.paths(repository, commit, paths, expand=expand)

    def log(
        self, repository: Repository, revision: str, *, limit: int = 50, after: str | None = None
    ) -> Log:
        """`after`: the id of the last commit of the page before. Raises RevisionNotFound."""
        _check_page(limit)
        with self._database.snapshot():
            return self.commits.log(repository, self.commit_of(repository, revision), limit, after)

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
        check_author(author)
        return self._committer.commit(repository, revision, request, author, create_pr)

    def squash(self, repository: Repository, branch: str, title: str, author: str) -> Commit:
        """One commit in place of a branch's history; what no ref reaches then is gone.

        Raises RevisionNotFound, InvalidRequest.
        """
        text = Text(check_author(author), check_title(title, self.limits))
        with self._database.transaction():
            ref = self.refs.writable(repository, branch)
            if not ref.name.startswith(BRANCH):
                raise InvalidRequest(f"{ref.name} is not a branch", remedy="squash a branch")
            head = self.commits.get(repository, ref.target)
            if head.parent is None and (head.title, head.author) == (text.title, author):
                return head
            commit = self.commits.insert_root(repository, head.tree, text)
            self.refs.set(repository, ref.name, commit.id)
            self._pruning.run(repository)
            return commit

    # --- pull requests

    def open_pull(
        self,
        repository: Repository,
        title: str,
        description: str,
        author: str,
        *,
        target: str = MAIN,
    ) -> Pull:
        """A draft without commits of its own; commit to its `ref`. Raises RevisionNotFound."""
        check_author(author)
        description = check_text(description, "description", self.limits)
        with self._database.transaction():
            ref = self.refs.writable(repository, target)
            head = self.commits.get(repository, ref.target)
            return self.pulls.open(repository, title, description, author, ref, head, head, "draft")

    def merge(self, repository: Repository, number: int, author: str) -> Commit:
        """One commit on the target with all that it changes; the same one if asked again.

        Raises Conflict, InvalidRequest, NotFound, TooLarge.
        """
        return self.pulls.merge(repository, number, check_author(author))


def _check_page(limit: int) -> None:
    if not 0 < limit <= MAX_PAGE:
        raise InvalidRequest(f"a page of {limit}", remedy=f"ask for 1 to {MAX_PAGE}")
