"""The home directory: its layout, how it is made, and where it must not lie."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import NotSupported, StoreError
from adapterhub.store import files

FORMAT = 1
# The folders of manifests that a new home has; others, and those of blobs, are made when needed.
FOLDERS = tuple(f"{number:02x}" for number in range(256))
NETWORK = {"nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "9p", "ceph", "lustre"}
NETWORK |= {"gpfs", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"}
NETWORK |= {"afpfs", "webdav", "davfs", "fuse.davfs2", "fuse.gcsfuse", "beegfs", "ncpfs"}


@dataclass(frozen=True)
class Home:
    """Paths below the home directory."""

    root: Path

    @property
    def blobs(self) -> Path:
        return self.root / "blobs" / "sha256"

    @property
    def manifests(self) -> Path:
        return self.root / "manifests" / "sha256"

    @property
    def refs(self) -> Path:
        return self.root / "refs"

    @property
    def intents(self) -> Path:
        return self.root / "intents.jsonl"

    @property
    def index(self) -> Path:
        return self.root / "index.db"

    @property
    def hub(self) -> Path:
        """What a server of the hub keeps, if there is one; the store only asks it for its roots."""
        return self.root / "hub.db"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def marker(self) -> Path:
        return self.root / "store.json"

    def lock(self, name: str) -> Path:
        """`commit`: the one writer of refs; `gc`: shared by adders, alone for the collector;
        `gate`: lets a waiting collector in before new adders."""
        return self.root / "locks" / name


def default() -> Path:
    """$ADAPTERHUB_HOME, or the platform's directory for data of the user."""
    given = os.environ.get("ADAPTERHUB_HOME")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("adapterhub"))


def prepare(root: Path, note: Callable[[str], None]) -> Home:
    """The home at `root`, made where it does not exist yet.

    Raises NotSupported on other systems, StoreError for a home of a later version, OutputError
    where it cannot be written.
    """
    if not sys.platform.startswith(("linux", "darwin")):
        raise NotSupported(
            f"adapterhub keeps its registry on Linux and macOS only, not on {sys.platform}",
            remedy="use a Linux virtual machine, a container or WSL",
        )
    home = Home(root)
    with files.named_errors(root):
        if not home.marker.exists():
            _create(home)
        _check_format(home)
    kind = network_filesystem(root)
    if kind:
        note(
            f"{root} lies on a network filesystem ({kind}), where locks and SQLite may fail; "
            "set $ADAPTERHUB_HOME to a local disk"
        )
    return home


def _create(home: Home) -> None:
    if home.root.exists() and not home.root.is_dir():
        raise StoreError(
            f"the registry's home {home.root} is not a directory",
            remedy="set $ADAPTERHUB_HOME to a directory",
        )
    for tree in (home.blobs, home.manifests):
        files.mkdir(tree)
        files.fsync_path(tree.parent)
    for name in FOLDERS:
        files.mkdir(home.manifests / name)
    files.fsync_path(home.manifests)
    for name in ("refs", "locks", "tmp", "bases", "cache"):
        files.mkdir(home.root / name)
    if not home.intents.exists():
        files.append(home.intents, 0, b"", sync=True)
    with files.temporary(home.tmp) as (fd, path):
        files.write_all(fd, json.dumps({"store": FORMAT}).encode() + b"\n", path)
        files.publish(fd, path, home.marker, 0o644)  # flushes the names of the folders too


def _check_format(home: Home) -> None:
    try:
        document = json.loads(home.marker.read_bytes())
        found = document["store"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{home.marker} is damaged",
            remedy='if this is a home of adapterhub, write {"store": 1} into it',
        ) from error
    if found != FORMAT:
        raise StoreError(
            f"the registry's home {home.root} has format {found!r}; this version reads {FORMAT}",
            remedy="upgrade adapterhub, or set $ADAPTERHUB_HOME to another directory",
        )


def network_filesystem(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The type of the network filesystem that holds `path`; None for a local or unknown one."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # macOS has no such file; its network mounts are below /Volumes or /Network
        return None
    target = path.resolve()
    best, kind = -1, ""
    for fields in map(str.split, lines):
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind if kind in NETWORK else None
