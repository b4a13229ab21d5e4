"""What a push would send: the version against what lies on the hub. Decides, and sends nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adapterhub.digest import PREFIX
from adapterhub.errors import InvalidName, InvalidOption
from adapterhub.hub.client import card as cards
from adapterhub.hub.client.card import Subject
from adapterhub.hub.client.findings import Finding
from adapterhub.hub.client.lint import lint
from adapterhub.hub.client.remote import Remote
from adapterhub.hub.client.version import README, Outgoing, Version

NEW, CHANGED, UNCHANGED, REMOVED, UNKNOWN = "new", "changed", "unchanged", "removed", "unknown"
MAIN = "main"
_PART = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_REPO = re.compile(rf"(?=.{{1,96}}$){_PART}/{_PART}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT = 12


@dataclass(frozen=True)
class Request:
    """What the user asked for. `repo`: OWNER/NAME; `revision`: a branch, or refs/pr/N."""

    repo: str
    revision: str = MAIN
    public: bool = False
    message: str | None = None
    create_pr: bool = False

    def __post_init__(self) -> None:
        if not _REPO.fullmatch(self.repo) or "--" in self.repo or ".." in self.repo:
            raise InvalidName(
                f"{self.repo[:120]!a} is no repository of a hub",
                remedy="OWNER/NAME, of letters, digits, `-`, `_` and `.`, without `--` and `..`",
            )
        if self.repo.endswith(".git"):
            raise InvalidName(f"{self.repo} ends with .git", remedy="leave .git away")
        if _COMMIT.fullmatch(self.revision) or not self.revision.strip():
            raise InvalidOption(
                f"{self.revision!a} is no branch; a push needs one that can move",
                remedy="--revision BRANCH",
            )
        if self.message is not None and not self.message.strip():
            raise InvalidOption("the message is empty", remedy="--message TEXT, or leave it away")


@dataclass(frozen=True)
class PlannedFile:
    """`status` is new, changed, unchanged, removed, or unknown where the hub was not asked."""

    path: str
    size: int
    sha256: str | None
    status: str


@dataclass(frozen=True)
class PushPlan:
    """`creates`: "repository", "branch" or None. `commit`: the head that the push builds on.

    `private`: what the repository is, or will be; None where the hub did not tell.
    """

    version: str
    repo: str
    url: str
    revision: str
    create_pr: bool
    creates: str | None
    private: bool | None
    commit: str | None
    message: str
    files: tuple[PlannedFile, ...]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.is_error)

    @property
    def sent(self) -> tuple[PlannedFile, ...]:
        return tuple(file for file in self.files if file.status in (NEW, CHANGED, UNKNOWN))

    @property
    def bytes(self) -> int:
        """Of all that is sent; a hub that has a file under another name may take less."""
        return sum(file.size for file in self.sent)

    def named(self, status: str) -> tuple[str, ...]:
        return tuple(file.path for file in self.files if file.status == status)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}


@dataclass(frozen=True)
class Draft:
    """A plan, and the files that it names."""

    plan: PushPlan
    files: Mapping[str, Outgoing] = field(repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether all of it is there already."""
        return not self.plan.sent and not self.plan.named(REMOVED)


def draft(
    version: Version,
    remote: Remote | None,
    request: Request,
    endpoint: str,
    *,
    is_new: bool = False,
) -> Draft:
    """`remote` is None where the hub was not asked; `is_new`: this push has just created it."""
    there = remote or Remote()
    subject = Subject(
        request.repo,
        version.manifest,
        version.card,
        frozenset(cards.body(text) for text in version.readmes),
        there.manifest,
    )
    card = cards.compose(subject, there.readme)
    readme = Outgoing.of_bytes(README, card.text.encode("utf-8", errors="replace"))
    files = {file.path: file for file in (*version.files, version.sidecar, readme)}
    private = there.private if there.exists else not request.public
    plan = PushPlan(
        version=version.ref,
        repo=request.repo,
        url=f"{endpoint}/{request.repo}",
        revision=request.revision,
        create_pr=request.create_pr,
        creates=_creates(remote),
        private=private,
        commit=there.commit,
        message=request.message or _message(version),
        files=(*_planned(files, remote), *_removed(version, files, there)),
        findings=lint(version, card, public=private is False),
        notes=() if is_new else tuple(_notes(request, there)),
    )
    return Draft(plan, files)


def _creates(remote: Remote | None) -> str | None:
    if remote is None or (remote.exists and remote.has_branch):
        return None
    return "branch" if remote.exists else "repository"


def _message(version: Version) -> str:
    short = version.digest[: len(PREFIX) + _SHORT]
    return f"Push {version.manifest['method']} adapter {short}"


def _planned(files: Mapping[str, Outgoing], remote: Remote | None) -> list[PlannedFile]:
    return [
        PlannedFile(path, file.size, file.sha256, _status(file, remote))
        for path, file in sorted(files.items())
    ]


def _status(file: Outgoing, remote: Remote | None) -> str:
    if remote is None:
        return UNKNOWN
    entry = remote.entries.get(file.path)
    if entry is None:
        return NEW
    return UNCHANGED if entry.holds(file) else CHANGED


def _removed(version: Version, files: Mapping[str, Outgoing], remote: Remote) -> list[PlannedFile]:
    """What the version that lies there had and this one has not, if nobody has changed it since."""
    found = []
    for entry in (remote.manifest or {}).get("files", ()):
        there, pushed = remote.entries.get(entry["path"]), version.earlier(entry)
        if entry["path"] not in files and there is not None and there.holds(pushed):
            found.append(PlannedFile(pushed.path, pushed.size, pushed.sha256, REMOVED))
    return found


def _notes(request: Request, there: Remote) -> list[str]:
    """Of a repository that was there before."""
    if there.exists and there.private is False:
        return [f"{request.repo} is public already: everybody will see what is pushed"]
    if there.exists and there.private and request.public:
        return [f"{request.repo} stays private: --public is for new repositories"]
    return []
