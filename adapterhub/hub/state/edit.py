"""Changes to a tree, on the way to another one."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapterhub.hub.state.errors import EntryNotFound, InvalidPath
from adapterhub.hub.state.paths import check_siblings, shown
from adapterhub.hub.state.trees import Bodies, File, Folder, Nodes, Trees, encode


@dataclass
class _Open:
    """A folder being changed; `nodes` holds what is not open itself."""

    nodes: Nodes
    open: dict[str, _Open] = field(default_factory=dict)


class Edit:
    """Changes to a tree, kept in memory until `save`. Opens only the folders that it needs."""

    def __init__(self, trees: Trees, root: str | None) -> None:
        self._trees = trees
        self._root = _Open(trees.nodes(root) if root else {})
        self.written: Bodies = {}

    def put(self, path: str, file: File) -> None:
        """Raises InvalidPath where a folder is in the way."""
        *folders, name = path.split("/")
        here = self._root
        for depth, part in enumerate(folders):
            if isinstance(here.nodes.get(part), File):
                clash = "/".join(folders[: depth + 1])
                raise InvalidPath(
                    f"{shown(path)} needs a folder where {shown(clash)} is a file",
                    remedy="delete that file in the same commit, before",
                )
            here = self._enter(here, part) or here.open.setdefault(part, _Open({}))
        inner = self._enter(here, name)
        if inner is not None and not _is_empty(inner):
            raise InvalidPath(
                f"{shown(path)} is a folder and cannot become a file",
                remedy="delete the folder in the same commit, before",
            )
        here.open.pop(name, None)
        here.nodes[name] = file

    def remove(self, path: str) -> None:
        """Takes a file away. Raises EntryNotFound."""
        here, name = self._parent(path)
        if here is None or not isinstance(here.nodes.get(name), File):
            raise EntryNotFound(f"no file {shown(path)} to delete", remedy="list the folder")
        del here.nodes[name]

    def remove_folder(self, path: str) -> None:
        """Takes a folder away with all that is in it. Raises EntryNotFound."""
        here, name = self._parent(path)
        inner = self._enter(here, name) if here else None
        if here is None or inner is None or _is_empty(inner):
            raise EntryNotFound(f"no folder {shown(path)} to delete", remedy="list the folder")
        del here.open[name]

    def save(self) -> Folder:
        """The tree as it is now; `written` holds the bodies of the changed folders, by key.

        Raises InvalidPath where names of a changed folder differ in case only.
        """
        return self._save(self._root, "")

    def _save(self, folder: _Open, path: str) -> Folder:
        nodes = dict(folder.nodes)
        for name, inner in folder.open.items():
            if not _is_empty(inner):
                nodes[name] = self._save(inner, f"{path}/{name}" if path else name)
        check_siblings(path, sorted(nodes))
        made, bodies = encode(nodes)
        self.written |= bodies
        return made

    def _parent(self, path: str) -> tuple[_Open | None, str]:
        *folders, name = path.split("/")
        here: _Open | None = self._root
        for part in folders:
            here = self._enter(here, part) if here else None
        return here, name

    def _enter(self, here: _Open, part: str) -> _Open | None:
        node = here.nodes.get(part)
        if isinstance(node, Folder):
            here.open[part] = _Open(self._trees.nodes(node.key))
            del here.nodes[part]
        return here.open.get(part)


def _is_empty(folder: _Open) -> bool:
    return not folder.nodes and all(map(_is_empty, folder.open.values()))
