"""Carrying a request out: from delivered contents and a parent to the branch's next commit."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.hub.state.commits import Commits, Text
from adapterhub.hub.state.contents import Content, Contents
from adapterhub.hub.state.database import Database
from adapterhub.hub.state.edit import Edit
from adapterhub.hub.state.errors import InvalidRequest, Stale
from adapterhub.hub.state.limits import Limits
from adapterhub.hub.state.model import Commit, Committed
from adapterhub.hub.state.names import BRANCH, PULL
from adapterhub.hub.state.objects import pointer_oid
from adapterhub.hub.state.operations import Add, Copy, Delete, Operation, Request, checked
from adapterhub.hub.state.paths import check_path
from adapterhub.hub.state.pulls import Pulls
from adapterhub.hub.state.refs import MAIN, Refs
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.trees import File, Trees
from adapterhub.store import Store

Prepared = dict[str, Content]  # by digest


@dataclass(frozen=True)
class Committer:
    database: Database
    store: Store
    limits: Limits
    contents: Contents
    refs: Refs
    commits: Commits
    pulls: Pulls

    def commit(
        self, repository: Repository, revision: str, request: Request, author: str, create_pr: bool
    ) -> Committed:
        """See `Hub.commit`."""
        request = checked(request, self.limits)
        text = Text(author, request.title, request.message, request.fingerprint(author))
        with self.store.writing():
            prepared = self._prepare(repository, request)
            with self.database.transaction() as connection:
                make = self._propose if create_pr else self._follow
                made = make(repository, revision, request, text, prepared)
                if not made.repeated:
                    self.contents.settle(connection, repository, prepared.values())
                return made

    def begin(self, repository: Repository, branch: str, request: Request, author: str) -> None:
        """The first commit of a branch, within a transaction that has made the repository."""
        request = checked(request, self.limits)
        text = Text(author, request.title, request.message, request.fingerprint(author))
        prepared = self._prepare(repository, request)
        with self.database.transaction() as connection:
            commit = self._make(repository, None, request, text, prepared)
            self.refs.set(repository, f"{BRANCH}{branch}", commit.id)
            self.contents.settle(connection, repository, prepared.values())

    def _follow(
        self,
        repository: Repository,
        revision: str,
        request: Request,
        text: Text,
        prepared: Prepared,
    ) -> Committed:
        ref = self.refs.writable(repository, revision)
        pull = self._pull_number(repository, ref.name)
        head = self.commits.get(repository, ref.target)
        again = self._seen(repository, head, request.parent, text.fingerprint)
        if again is not None:
            return Committed(again, ref.name, pull, True)
        if request.parent is not None and not head.id.startswith(request.parent):
            raise Stale(
                f"{ref.short} of {repository.id} is at {head.id}, not at {request.parent}",
                remedy="look at what has changed, and commit upon that",
                head=head.id,
            )
        commit = self._make(repository, head, request, text, prepared)
        self.refs.set(repository, ref.name, commit.id)
        return Committed(commit, ref.name, pull, False)

    def _propose(
        self,
        repository: Repository,
        revision: str,
        request: Request,
        text: Text,
        prepared: Prepared,
    ) -> Committed:
        ref = self.refs.writable(repository, revision)
        head = self.commits.get(repository, ref.target)
        base = head if request.parent is None else self._base(repository, head, request.parent)
        known = self.pulls.proposed(repository, base, text.fingerprint)
        if known is not None:
            commit = self.commits.get(repository, known.head)
            return Committed(commit, known.ref, known.number, True)
        commit = self._make(repository, base, request, text, prepared)
        pull = self.pulls.open(
            repository, text.title, text.message, text.author, ref, base, commit, "open"
        )
        return Committed(commit, pull.ref, pull.number, False)

    def _seen(
        self, repository: Repository, head: Commit, parent: str | None, fingerprint: str
    ) -> Commit | None:
        """What this request has made already."""
        if parent is None:
            return head if head.fingerprint == fingerprint else None
        if head.id.startswith(parent):
            return None
        for id in self.refs.by_digits(repository, parent):
            start = self.commits.get(repository, id)
            found = self.commits.follower(repository, start, head, fingerprint)
            if found is not None:
                return found
        return None

    def _base(self, repository: Repository, head: Commit, parent: str) -> Commit:
        for id in self.refs.by_digits(repository, parent):
            found = self.commits.get(repository, id)
            if self.commits.is_ancestor(repository, found, head):
                return found
        raise Stale(
            f"{parent} is no commit of that branch of {repository.id}",
            remedy="commit upon what the branch has",
            head=head.id,
        )

    def _pull_number(self, repository: Repository, ref: str) -> int | None:
        if not ref.startswith(PULL):
            return None
        return self.pulls.check_open(repository, int(ref.removeprefix(PULL))).number

    # --- the tree

    def _prepare(self, repository: Repository, request: Request) -> Prepared:
        """Reads, before anyone has to wait, what is read of the contents."""
        prepared: Prepared = {}
        for each in request.operations:
            if not isinstance(each, Add):
                continue
            content = prepared.get(each.digest) or self.contents.need(repository, each.digest)
            if each.size is not None and each.size != content.size:
                raise InvalidRequest(
                    f"{each.path!r} has {content.size} bytes, and the commit says {each.size}",
                    remedy="upload the file again",
                )
            if not each.lfs:
                self.limits.check("regular_size", content.size, f"bytes in {each.path!r}")
                content = self.contents.with_oid(content)
            prepared[each.digest] = content
        return prepared

    def _make(
        self,
        repository: Repository,
        parent: Commit | None,
        request: Request,
        text: Text,
        prepared: Prepared,
    ) -> Commit:
        for digest in prepared:  # nothing has been collected since
            self.contents.need(repository, digest)
        trees = self.commits.trees(repository)
        edit = Edit(trees, parent.tree if parent else None)
        copied = 0
        for operation in request.operations:
            if isinstance(operation, Copy):
                copied += self._copy(repository, parent, trees, edit, operation)
                self.limits.check("files", copied, "files to be copied in one commit")
            else:
                _apply(edit, operation, prepared)
        return self.commits.insert(repository, parent, edit, text)

    def _copy(
        self,
        repository: Repository,
        parent: Commit | None,
        trees: Trees,
        edit: Edit,
        operation: Copy,
    ) -> int:
        source = parent
        if source is None or operation.revision is not None:
            id = self.refs.resolve(repository, operation.revision or MAIN)
            source = self.commits.get(repository, id)
        node = trees.find(source.tree, operation.source)
        if isinstance(node, File):
            edit.put(operation.path, node)
            return 1
        for path, each in trees.walk(node.key, operation.path, recursive=True):
            if isinstance(each, File):
                edit.put(check_path(path), each)
        return node.files


def _apply(edit: Edit, operation: Operation, prepared: Prepared) -> None:
    if isinstance(operation, Add):
        edit.put(operation.path, _file(prepared[operation.digest], operation.lfs))
    elif isinstance(operation, Delete):
        edit.remove(operation.path)
    else:
        edit.remove_folder(operation.path)


def _file(content: Content, lfs: bool) -> File:
    sha256 = content.digest.removeprefix("sha256:")
    oid = pointer_oid(sha256, content.size) if lfs else content.oid or ""
    return File(content.digest, content.size, oid, lfs)
