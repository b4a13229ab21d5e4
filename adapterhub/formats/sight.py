"""What lies at a path, gathered once: the evidence by which formats are told apart.

A `Sight` reads no values and runs nothing. Names are listed when it is made; the config and the
contents of weights are looked at when first asked for, within the limits of `contents`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub import strictjson
from adapterhub.adapter import Problem, SourceFile
from adapterhub.errors import AdapterHubError
from adapterhub.formats.contents import Content, look
from adapterhub.tensorfile import shown

CONFIG = "adapter_config.json"
MAX_ENTRIES = 20_000
MAX_LOOKS = 8
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".npy", ".lora")
# What a format calls its weights beside a config: a file of such a name is read with its directory.
_WITH_DIRECTORY = re.compile(
    r"adapter_model\.(safetensors|bin|pt)|(\d{7}_)?adapters\.(safetensors|npz)"
    r"|pytorch_(adapter|model_head|model_adapter_fusion)\.bin"
    r"|(adapter|model_head|model_adapter_fusion)\.safetensors"
    r"|adapter_config\.json|head_config\.json|lit_model\.pth\.lora"
)
# What trainers leave beside adapters, and what models are called: never an adapter's weights.
_NOT_WEIGHTS = re.compile(
    r"optimizer.*|scheduler.*|scaler.*|rng_state.*|training_args\.bin|trainer_state.*"
    r"|(pytorch_)?model(-\d+-of-\d+|\.fp16|\.fp32)?\.(safetensors|bin)|consolidated.*"
    r"|diffusion_pytorch_model.*|tf_model.*|flax_model.*"
)
_FINAL = re.compile(r"(adapters?|adapter_model|pytorch_\w+|lit_model|finish)\..+")


def may_be_weights(name: str) -> bool:
    """Whether a file of this name, in a directory, may hold an adapter's weights."""
    return name.endswith(_WEIGHTS) and not _NOT_WEIGHTS.fullmatch(name)


@dataclass(frozen=True)
class Sight:
    """`directory` holds what belongs together; `file` is set where one file was named alone.

    `names`: the regular files of the directory, or just `file`; sorted. `rest`: what else it has.
    """

    path: Path
    directory: Path
    names: tuple[str, ...]
    rest: tuple[str, ...] = ()
    file: str | None = None

    @staticmethod
    def of(path: Path) -> Sight:
        """Raises OSError where the path cannot be listed."""
        if path.is_dir():
            return Sight(path, path, *_listed(path))
        if _WITH_DIRECTORY.fullmatch(path.name):
            return Sight(path, path.parent, *_listed(path.parent))
        names = (path.name,) if path.is_file() else ()
        return Sight(path, path.parent, names, file=path.name)

    def has(self, name: str) -> bool:
        return name in self._set

    @cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.names)

    # --- the config ---------------------------------------------------------------------------

    @property
    def config_path(self) -> Path:
        """Where the config lies, or would lie: a bare config may have any name."""
        if self.file is not None and self.file.endswith(".json"):
            return self.directory / self.file
        return self.directory / CONFIG

    @cached_property
    def _config(self) -> tuple[Mapping[str, Any] | None, Problem | None]:
        if not self.has(self.config_path.name):
            return None, None
        try:
            return strictjson.load_object(self.config_path), None
        except AdapterHubError as error:
            return None, Problem("config", error.message, error.remedy, fatal=True)

    @property
    def config(self) -> Mapping[str, Any]:
        """The parsed config; empty where there is none, or none that can be read."""
        return self._config[0] or {}

    @property
    def config_problem(self) -> Problem | None:
        return self._config[1]

    @property
    def has_config(self) -> bool:
        return self.has(self.config_path.name)

    # --- the weights --------------------------------------------------------------------------

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """Names of files that may hold an adapter's weights; checkpoints after the final ones."""
        if self.file is not None:
            return () if self.file.endswith(".json") else self.names
        found = [name for name in self.names if may_be_weights(name)]
        return tuple(sorted(found, key=lambda name: _FINAL.fullmatch(name) is None))

    @cached_property
    def _looks(self) -> dict[str, Content]:
        return {}

    def content(self, name: str) -> Content:
        """Of one file of this directory; looked at once."""
        if name not in self._looks:
            self._looks[name] = look(self.directory / name)
        return self._looks[name]

    @property
    def contents(self) -> Iterator[Content]:
        """Of the weights; of the first few, where there are many."""
        return (self.content(name) for name in self.weights[:MAX_LOOKS])

    def find(self, test: Callable[[Content], bool]) -> Content | None:
        return next((content for content in self.contents if test(content)), None)

    def all(self, test: Callable[[Content], bool]) -> tuple[Content, ...]:
        return tuple(content for content in self.contents if test(content))

    def files(self, contents: Iterable[Content], *others: str) -> tuple[SourceFile, ...]:
        """These weights, then the config and `others`, as far as they are there."""
        found = [SourceFile(c.name, c.path, "weights") for c in contents]
        config = self.config_path.name
        names = [name for name in (config, *others) if self.has(name)]
        return (*found, *(SourceFile(n, self.directory / n, "config") for n in names))

    def described(self) -> str:
        """What was seen, for a message about what is not recognised."""
        parts = [_described(content) for content in self.contents][:3]
        if self.has_config:
            fields = ", ".join(shown(name) for name in sorted(self.config)[:6])
            said = "cannot be read" if self.config_problem else fields or "no fields"
            parts.insert(0, f"{_plain(self.config_path.name)} ({said})")
        if self.file is not None:
            return f"one file, {parts[0] if parts else _plain(self.file)}"
        known = {self.config_path.name, *(content.name for content in self.contents)}
        others = [name for name in (*self.names, *self.rest) if name not in known]
        parts += [_plain(name) for name in others[: max(0, 8 - len(parts))]]
        left = len(self.names) + len(self.rest) - len(parts)
        return (", ".join(parts) or "an empty directory") + (f" and {left} more" if left else "")


def _listed(directory: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the regular files, links followed, and of the rest; of the first 20,000 entries."""
    names: list[str] = []
    rest: list[str] = []
    with os.scandir(directory) as entries:
        for count, entry in enumerate(entries):
            if count >= MAX_ENTRIES:
                break
            (names if _is_file(entry) else rest).append(entry.name)
    return tuple(sorted(names)), tuple(sorted(rest))


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _described(content: Content) -> str:
    name = _plain(content.name)
    if content.problem:
        what = content.problem.message.removeprefix(f"{content.path}: ")
        return f"{name} ({what})"
    if not content.kind:
        return name
    names = list(content.shapes) or list(content.others)
    some = ", ".join(shown(each) for each in names[:2])
    what = "tensors" if content.shapes else "values that are no tensors"
    return f"{name} ({len(names)} {what}{': ' if some else ''}{some})"


def _plain(name: str) -> str:
    return name if name.isprintable() else ascii(name)
