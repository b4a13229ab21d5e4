"""The files of an AdapterHub adapter: weights and head, each as safetensors or as a pickle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub import strictjson
from adapterhub.adapter import Problem, SafeForm, SourceFile
from adapterhub.errors import AdapterHubError
from adapterhub.formats import pickles
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor, read_header

WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_WEIGHTS = ("model_head.safetensors", "pytorch_model_head.bin")
HEAD_CONFIG = "head_config.json"
# Belong to a composition of several adapters, or to the model; not read.
OTHERS = (
    "adapter_fusion_config.json",
    "pytorch_model_adapter_fusion.bin",
    "model_adapter_fusion.safetensors",
    "adapter_setup.json",
    "embedding.pt",
)


@dataclass(frozen=True)
class Part:
    """One file of weights, read."""

    file: SourceFile
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Parts:
    weights: Part | None
    head: Part | None
    files: tuple[SourceFile, ...]
    problems: tuple[Problem, ...]
    contents: tuple[Content, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the adapter's own tensors, as far as they show without consent."""
        return tuple(name for content in self.contents for name in content.shapes)

    @property
    def has_head(self) -> bool:
        """Whether there is a file of its weights, sound or not."""
        return any(file.name in HEAD_WEIGHTS for file in self.files)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {
            name: tensor
            for part in (self.weights, self.head)
            if part is not None
            for name, tensor in part.tensors.items()
        }


def parts(sight: Sight, is_weights: Callable[[Content], bool], allow_pickle: bool) -> Parts:
    """What lies there; damage, and what is missing, becomes problems."""
    problems: list[Problem] = []
    names = WEIGHTS
    if sight.file is not None and not sight.file.endswith(".json"):
        names = (sight.file, sight.file)
    weights = _part(sight, names, allow_pickle, problems)
    head = _part(sight, HEAD_WEIGHTS, allow_pickle, problems)
    if not any(sight.has(name) for name in names):
        text = f"{sight.directory} has no {WEIGHTS[0]}"
        remedy = "copy the weights beside the config"
        problems.append(Problem("no-weights", text, remedy, fatal=True))
    if head is not None and not sight.has(HEAD_CONFIG):
        text = f"the weights of a head have no {HEAD_CONFIG} beside them"
        problems.append(Problem("no-config", text, "copy it, or remove the weights", fatal=True))
    problems += _others(sight)
    present = [name for name in (*names[:2], *HEAD_WEIGHTS) if sight.has(name)]
    files = [_source(sight, name, (weights, head)) for name in dict.fromkeys(present)]
    config = sight.config_path.name
    texts = [n for n in (config, HEAD_CONFIG) if sight.has(n)]
    files += [SourceFile(n, sight.directory / n, "config") for n in texts]
    return Parts(weights, head, tuple(files), tuple(problems), sight.all(is_weights))


def _source(sight: Sight, name: str, found: tuple[Part | None, ...]) -> SourceFile:
    read = (part.file for part in found if part is not None and part.file.name == name)
    return next(read, SourceFile(name, sight.directory / name, "weights"))


def _part(
    sight: Sight, names: tuple[str, str], allow_pickle: bool, problems: list[Problem]
) -> Part | None:
    safe, pickle = names
    if safe != pickle and sight.has(safe) and sight.has(pickle):
        text = f"both {safe} and {pickle} are present, and they may differ"
        problems.append(Problem("two-weights", text, "remove the one out of date", fatal=True))
    name = next((name for name in names if sight.has(name)), None)
    if name is None:
        return None
    try:
        return _read(sight.directory / name, safe, allow_pickle)
    except AdapterHubError as error:
        problems.append(Problem(error.code, error.message, error.remedy, fatal=True))
        return None


def _read(path: Path, safe: str, allow_pickle: bool) -> Part:
    if path.suffix == ".safetensors":
        return Part(SourceFile(path.name, path, "weights"), read_header(path).tensors)
    tensors = pickles.with_consent(path, allow_pickle)
    target = safe if safe.endswith(".safetensors") else WEIGHTS[0]
    return Part(SourceFile(path.name, path, "weights", SafeForm(target, tensors)), tensors)


def _others(sight: Sight) -> list[Problem]:
    """Files of AdapterFusion and of embeddings: an adapter read without them would be less."""
    found = [name for name in OTHERS if sight.has(name)]
    if not found:
        return []
    text = f"{', '.join(found)} belong to the adapter and are not read by this version"
    remedy = "save the adapter by itself: model.save_adapter(directory, name)"
    return [Problem("format", text, remedy, fatal=True)]


def head_config(sight: Sight) -> tuple[Mapping[str, Any] | None, list[Problem]]:
    """The parsed head_config.json; None where there is none, or none that can be read."""
    if sight.file is not None or not sight.has(HEAD_CONFIG):
        return None, []
    try:
        return strictjson.load_object(sight.directory / HEAD_CONFIG), []
    except AdapterHubError as error:
        return None, [Problem("config", error.message, error.remedy, fatal=True)]
