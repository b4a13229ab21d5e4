"""`push`: a version of the registry to a repository, in one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from adapterhub.errors import (
    AdapterHubError,
    InvalidAdapter,
    InvalidOption,
    NotFound,
    RemoteError,
)
from adapterhub.hub.client import network
from adapterhub.hub.client.findings import Finding
from adapterhub.hub.client.network import named_errors, quiet
from adapterhub.hub.client.planning import REMOVED, UNCHANGED, Draft, PushPlan, Request, draft
from adapterhub.hub.client.remote import Remote, look
from adapterhub.hub.client.version import Version, version
from adapterhub.registry import Registry

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

AGAIN = "to push again is safe: what has arrived is not sent twice"
PUSHED = "pushed"
_STALE = 412
_TROUBLE = 500


@dataclass(frozen=True)
class PushResult:
    """`status`: "pushed", or "unchanged" where all of it was there. `commit` is where it is.

    `sent`, `removed`, `unchanged` are paths; `bytes` the size of what was sent. `created`:
    "repository", "branch" or None. `pull_request` is its address, where one was asked for.
    """

    version: str
    repo: str
    url: str
    revision: str
    status: str
    commit: str | None
    sent: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: tuple[str, ...]
    bytes: int
    created: str | None
    private: bool | None
    pull_request: str | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Pushed:
    """One name of `push_all`: its result, or its plan where one was asked for, or an error."""

    name: str
    repo: str
    result: PushResult | None = None
    plan: PushPlan | None = None
    error: AdapterHubError | None = None

    @property
    def status(self) -> str:
        if self.result is not None:
            return self.result.status
        return "refused" if self.error or (self.plan and self.plan.errors) else "planned"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "repo": self.repo,
            "status": self.status,
            "result": self.result.to_dict() if self.result else None,
            "plan": self.plan.to_dict() if self.plan else None,
            "error": _error(self.error) if self.error else None,
        }


def _error(error: AdapterHubError) -> dict[str, Any]:
    return {
        "code": error.code,
        "message": error.message,
        "details": list(error.details),
        "remedy": error.remedy,
    }


def plan(registry: Registry, ref: str, request: Request) -> PushPlan:
    """What `push` would send; findings are listed, not raised. Sends nothing.

    Where the hub cannot be asked, files have the status "unknown" and a note says why.
    """
    found = version(registry, ref)
    try:
        api = network.client("asking the hub")
        remote = _look(api, found, request)
    except RemoteError as error:
        made = draft(found, None, request, network.host()).plan
        return replace(made, notes=(*made.notes, f"the hub was not asked: {error.message}"))
    _check_target(remote, request)
    return draft(found, remote, request, network.host()).plan


def push(
    registry: Registry,
    ref: str,
    request: Request,
    on_plan: Callable[[PushPlan], None] | None = None,
) -> PushResult:
    """Send what is not there yet, in one commit on top of what was looked at.

    `on_plan` is given the plan before anything is sent. Raises InvalidAdapter where a finding
    speaks against it, RemoteConflict where the branch has moved, RemoteError, NotFound.
    """
    api = network.client("push")
    found = version(registry, ref)
    remote = _look(api, found, request)
    _check_target(remote, request)
    made = draft(found, remote, request, network.host())
    _check(made.plan)
    if on_plan is not None:
        on_plan(made.plan)
    creates = made.plan.creates
    if creates is not None:
        remote = _created(api, found, request, remote)
        made = draft(found, remote, request, network.host(), is_new=creates == "repository")
        _check(made.plan)
    if made.is_empty:
        return _result(made.plan, creates, "unchanged", remote.commit)
    try:
        done = _commit(api, made, remote)
    except RemoteError as error:
        commit = _arrived(api, found, request, error)
        if commit is None:
            raise
        return _result(made.plan, creates, PUSHED, commit)
    return _result(made.plan, creates, PUSHED, done.oid, done.pr_url)


def push_all(
    registry: Registry, namespace: str, target: str, *, dry_run: bool = False, **options: Any
) -> Iterator[Pushed]:
    """Every name `namespace/*` to `target/*`, each by itself. `options` are those of Request.

    Raises NotFound where the namespace has no names, RemoteError offline.
    """
    space = namespace.removesuffix("*").rstrip("/")
    names = registry.store.names(f"{space}/")
    if not names:
        raise NotFound(
            f"no name begins with {space}/", remedy="adapterhub list; --all takes a namespace"
        )
    if "/" in target:
        raise InvalidOption(
            f"{target!a} is a repository; --all pushes to a namespace",
            remedy=f"adapterhub push {space} OWNER --all",
        )
    if not dry_run:
        network.client("push")  # else each name would be refused by itself
    for name in names:
        repo = f"{target}/{name.removeprefix(f'{space}/')}"
        try:
            request = Request(repo, **options)
            if dry_run:
                yield Pushed(name, repo, plan=plan(registry, name, request))
            else:
                yield Pushed(name, repo, push(registry, name, request))
        except AdapterHubError as error:
            yield Pushed(name, repo, error=error)


# --- checks -----------------------------------------------------------------------------------


def _look(api: HfApi, found: Version, request: Request) -> Remote:
    return look(api, request.repo, request.revision, [file.path for file in found.files])


def _check_target(remote: Remote, request: Request) -> None:
    if request.create_pr and not (remote.exists and remote.has_branch):
        what = f"branch {request.revision} of {request.repo}" if remote.exists else request.repo
        raise NotFound(
            f"there is no {what}, to which a pull request could be made",
            remedy="push without --create-pr first",
        )
    if request.revision.startswith("refs/") and not (remote.exists and remote.has_branch):
        raise NotFound(
            f"{request.repo} has no {request.revision}, and it cannot be made by a push",
            remedy="--create-pr opens a pull request; --revision takes a branch",
        )


def _check(plan: PushPlan) -> None:
    """Raises InvalidAdapter where a finding speaks against the plan."""
    if not plan.errors:
        return
    several = len(plan.errors) > 1
    raise InvalidAdapter(
        f"{plan.version} is not pushed to {plan.repo}, and nothing was sent",
        details=[each.sentence() if several else each.message for each in plan.errors],
        remedy="mend each of these, and push again" if several else plan.errors[0].remedy,
    )


# --- sending ----------------------------------------------------------------------------------


def _created(api: HfApi, found: Version, request: Request, remote: Remote) -> Remote:
    """The repository or the branch is made, and looked at again: somebody may have been faster."""
    repo = request.repo
    if not remote.exists:
        with named_errors(f"creating {repo}", repo=repo, safe="nothing was sent"):
            api.create_repo(repo, private=not request.public, exist_ok=True)
        remote = _look(api, found, request)
    if remote.exists and not remote.has_branch:
        with named_errors(f"creating the branch {request.revision} of {repo}", repo=repo):
            api.create_branch(repo, branch=request.revision, exist_ok=True)
        remote = _look(api, found, request)
    if not remote.exists:
        raise RemoteError(
            f"{repo} was created and is not to be seen since",
            remedy=f"wait a moment; {AGAIN}; hf auth whoami tells whose token is used",
        )
    return remote


def _commit(api: HfApi, made: Draft, remote: Remote) -> CommitInfo:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    plan = made.plan
    with named_errors(f"pushing to {plan.repo}", repo=plan.repo, safe=AGAIN), quiet():
        operations: list[Any] = [
            CommitOperationAdd(file.path, made.files[file.path].source) for file in plan.sent
        ]
        operations += [CommitOperationDelete(path) for path in plan.named(REMOVED)]
        return api.create_commit(
            plan.repo,
            operations,
            commit_message=plan.message,
            revision=plan.revision,
            parent_commit=remote.commit,
            create_pr=plan.create_pr,
        )


def _arrived(api: HfApi, found: Version, request: Request, error: RemoteError) -> str | None:
    """The head of the branch, if all of it is there: only the answer was lost on the way."""
    if request.create_pr or not (error.status in (None, _STALE) or error.status >= _TROUBLE):
        return None
    try:
        remote = _look(api, found, request)
    except AdapterHubError:
        return None
    return remote.commit if draft(found, remote, request, network.host()).is_empty else None


def _result(
    plan: PushPlan,
    created: str | None,
    status: str,
    commit: str | None,
    pull_request: str | None = None,
) -> PushResult:
    return PushResult(
        version=plan.version,
        repo=plan.repo,
        url=plan.url,
        revision=plan.revision,
        status=status,
        commit=commit,
        sent=tuple(file.path for file in plan.sent),
        removed=plan.named(REMOVED),
        unchanged=plan.named(UNCHANGED),
        bytes=plan.bytes,
        created=created,
        private=plan.private,
        pull_request=pull_request,
        findings=plan.findings,
        notes=plan.notes,
    )
