"""What `adapterhub.api` offers of this room; `registry=None` means the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from adapterhub.hub.client import pushing
from adapterhub.hub.client.planning import PushPlan, Request
from adapterhub.hub.client.pushing import Pushed, PushResult
from adapterhub.registry import Registry
from adapterhub.registry.opening import opened


def plan_push(
    ref: str,
    repo: str,
    *,
    revision: str = "main",
    public: bool = False,
    message: str | None = None,
    create_pr: bool = False,
    registry: Registry | None = None,
) -> PushPlan:
    """What `push` would send: files, bytes, what is there already, and what speaks against it.

    Works offline, without knowing what is there. Arguments as those of `push`.
    """
    request = Request(repo, revision, public, message, create_pr)
    with opened(registry) as reg:
        return pushing.plan(reg, ref, request)


def push(
    ref: str,
    repo: str,
    *,
    revision: str = "main",
    public: bool = False,
    message: str | None = None,
    create_pr: bool = False,
    registry: Registry | None = None,
    on_plan: Callable[[PushPlan], None] | None = None,
) -> PushResult:
    """A version → the repository `repo` (OWNER/NAME) of the hub at $HF_ENDPOINT, in one commit.

    What is there already is not sent, and where nothing is missing there is no commit. A new
    repository is private unless `public`. `revision`: a branch, made where there is none.
    `create_pr`: open a pull request instead of changing the branch. `on_plan` is given the plan
    before anything is sent.

    Raises InvalidAdapter with what speaks against it, RemoteConflict where somebody else has pushed
    meanwhile, RemoteError, NotFound.
    """
    request = Request(repo, revision, public, message, create_pr)
    with opened(registry) as reg:
        return pushing.push(reg, ref, request, on_plan)


def push_all(
    namespace: str,
    target: str,
    *,
    revision: str = "main",
    public: bool = False,
    message: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    registry: Registry | None = None,
) -> Iterator[Pushed]:
    """Every name `namespace/NAME` to the repository `target/NAME`; one that fails stops no other.

    With `dry_run` each has its plan instead of a result. Other arguments as those of `push`.
    """
    options: dict[str, Any] = {
        "revision": revision,
        "public": public,
        "message": message,
        "create_pr": create_pr,
    }
    with opened(registry) as reg:
        yield from pushing.push_all(reg, namespace, target, dry_run=dry_run, **options)
