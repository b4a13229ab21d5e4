"""What is composed, and whether it may be: adapters of one base, as far as anybody knows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from numbers import Real
from pathlib import Path
from typing import Any

from adapterhub import schema, strictjson
from adapterhub.adapter import Adapter
from adapterhub.base import changed_file, fingerprints
from adapterhub.errors import AdapterHubError, BaseMismatch, InvalidAdapter, InvalidOption
from adapterhub.formats.roots import adapter_root
from adapterhub.known_bases import named
from adapterhub.registry import Loaded
from adapterhub.registry.checkout import MANIFEST
from adapterhub.tensorfile import FileTensor


@dataclass(frozen=True)
class Input:
    """An adapter and its weight.

    `digest` is its version's, where it comes from the registry; `root` its adapter_root; `base` the
    manifest's record; `files` are the fingerprints of those that its tensors are read from.
    """

    name: str
    adapter: Adapter
    weight: float = 1.0
    digest: str | None = None
    root: str = ""
    base: Mapping[str, Any] | None = None
    files: Mapping[Path, list[int]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_weight(self.name, self.weight)

    @property
    def base_name(self) -> str | None:
        return (self.base or {}).get("name") or self.adapter.base.name

    @property
    def base_root(self) -> str | None:
        return (self.base or {}).get("weights_root")

    @property
    def base_structure(self) -> str | None:
        return (self.base or {}).get("structure_root")

    def same(self, other: Input) -> bool:
        """Whether both are one adapter: equal tensors, and equal in what gives them a meaning."""
        one, two = self.adapter, other.adapter
        return (self.root, one.method, dict(one.config)) == (
            other.root,
            two.method,
            dict(two.config),
        )


def check_weight(name: str, weight: Any) -> float:
    """A finite number, as a float. Raises InvalidOption."""
    try:
        is_number = isinstance(weight, Real) and not isinstance(weight, bool)
        if is_number and math.isfinite(found := float(weight)):
            return found
    except OverflowError:  # an integer that no float can hold
        pass
    raise InvalidOption(f"the weight of {name} is {weight!r:.60}", remedy="give a finite number")


def input_of(loaded: Loaded, weight: float = 1.0) -> Input:
    """What was loaded, with its weight. Raises InvalidOption for one that is not finite."""
    manifest = loaded.manifest or {}
    root = manifest.get("adapter_root") or adapter_root(loaded.adapter)
    tensors = (tensor for _, _, tensor in loaded.adapter.tensors())
    paths = {tensor.path for tensor in tensors if isinstance(tensor, FileTensor)}
    return Input(
        name=loaded.name,
        adapter=loaded.adapter,
        weight=weight,
        digest=loaded.digest,
        root=root,
        base=manifest.get("base") or _recorded(loaded, root),
        files=fingerprints(sorted(paths)),
    )


def _recorded(loaded: Loaded, root: str) -> Mapping[str, Any] | None:
    """What the manifest beside an adapter that was exported or made says of its base, if it is
    about these very tensors."""
    directory = loaded.path if loaded.path.is_dir() else loaded.path.parent
    try:
        manifest = strictjson.load_object(directory / MANIFEST)
        schema.check(manifest, "manifest", what=MANIFEST)
    except (AdapterHubError, OSError):
        return None
    if (manifest["adapter_root"], manifest["method"]) != (root, loaded.adapter.method):
        return None
    found: Mapping[str, Any] = manifest["base"]
    return found


def check_unchanged(inputs: Iterable[Input]) -> None:
    """Raises InvalidAdapter where a file is not the one whose header was read."""
    for each in inputs:
        if changed := changed_file(each.files):
            raise InvalidAdapter(
                f"{changed} changed while it was in use", remedy="wait for its writer, try again"
            )


def cancels(weights: Iterable[float]) -> bool:
    """Whether they add up to 0 but for rounding, so that no average can be divided by the sum."""
    found = list(weights)
    return abs(sum(found)) <= 1e-12 * sum(map(abs, found))


def check_bases(inputs: Sequence[Input], *, force: bool = False) -> list[str]:
    """Notes on how sure it is that all are of one base.

    By the recorded weights_root where two have one, else by the base that they name. Raises
    BaseMismatch, with every pair that differs, unless `force`.
    """
    wrong, unsure = [], set()
    for one, other in combinations(inputs, 2):
        said, sure = compared_bases(one, other)
        if said:
            wrong.append(said)
        elif not sure:
            unsure.add(str(one.base_name))
    if wrong and not force:
        raise BaseMismatch(
            "these adapters are not known to be of one base",
            details=wrong,
            remedy="add them with --base DIR, which records it; --force-base composes all the same",
        )
    notes = [f"of one base by its name only: {name}" for name in sorted(unsure)]
    return [*notes, *(f"forced: {said}" for said in wrong)]


def compared_bases(one: Input, other: Input) -> tuple[str, bool]:
    """What speaks against one base, or "", and whether digests say that it is one."""
    if one.base_root and other.base_root:
        if one.base_root == other.base_root:
            return "", True
        return f"{one.name} and {other.name} were added with different bases", True
    names = [each.base_name for each in (one, other)]
    if None in names:
        nameless = one.name if names[0] is None else other.name
        return f"{nameless} does not say which base it is for", False
    if _meant(str(names[0])) != _meant(str(names[1])):
        return f"{one.name} is for {names[0]}, {other.name} for {names[1]}", False
    structures = {one.base_structure, other.base_structure} - {None}
    if len(structures) > 1:
        return f"{one.name} and {other.name} were added with bases of different structure", True
    revisions = {each.adapter.base.revision for each in (one, other)} - {None}
    if len(revisions) > 1:
        return f"{one.name} and {other.name} are for different revisions of {names[0]}", False
    return "", False


@lru_cache(4096)
def _meant(name: str) -> object:
    """What a base's name means: mirrors of a known base hold the same weights."""
    known = named(name)
    return (known.base.name, known.variant) if known else name.lower()
