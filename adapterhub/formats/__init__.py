"""How adapters are spelled on disk: one file per format, one row per format in `TABLE`.

Formats are told apart by what lies there (`Sight`), never by trying: the first row that recognises
it has it. The order of the rows is that of the evidence, the plainest first.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from adapterhub.adapter import Adapter, Problem, Reading
from adapterhub.errors import NotFound, NotSupported, UnknownFormat
from adapterhub.formats import named
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor

__all__ = [
    "TABLE",
    "UNKNOWN",
    "Format",
    "Implementation",
    "detect",
    "members",
    "read",
    "spelled",
    "write",
]

UNKNOWN = "unknown"


class Implementation(Protocol):
    """What each file of this room offers; the last two, where its row says `writes`."""

    def recognises(self, sight: Sight) -> bool:
        """Whether these files are of this format. Looks at nothing else, raises nothing."""

    def read(self, sight: Sight, *, allow_pickle: bool) -> Reading:
        """All that can be seen, damage included; raises only where nothing can be read."""

    def write(self, adapter: Adapter, directory: Path) -> None:
        """Write into an existing directory. Raises NotSupported for what it cannot express."""

    def spelled(self, adapter: Adapter) -> Mapping[str, Tensor]:
        """The tensors under the names that the format gives them. Raises NotSupported."""


@dataclass(frozen=True)
class Format:
    """`reads`: `add` takes it; else it is recognised and named. `writes`: what was read goes back
    to files of this format. `alone`: one file is an adapter by itself, so that a directory of
    several holds several.
    """

    name: str
    title: str
    files: str
    file: str
    reads: bool = False
    writes: bool = False
    alone: bool = False

    @property
    def does(self) -> str:
        """What this version does with it: `reads and writes`, `reads` or `names`."""
        if not self.reads:
            return "names"
        return "reads and writes" if self.writes else "reads"

    @property
    def implementation(self) -> Implementation:
        return cast(Implementation, importlib.import_module(f"{__name__}.{self.file}"))


TABLE: Mapping[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="gguf",
            title="llama.cpp LoRA (GGUF)",
            files="*.gguf with general.type = adapter",
            file="gguf",
            alone=True,
        ),
        Format(
            name="torchtune",
            title="torchtune",
            files="adapter_model.pt, adapter_0.pt",
            file="torchtune",
        ),
        Format(
            name="peft_merged_linear",
            title="PEFT before 0.4, MergedLinear",
            files="adapter_config.json with enable_lora + adapter_model.bin",
            file="merged_linear",
        ),
        Format(
            name="native",
            title="adapterhub's own",
            files="adapter_config.json with adapterhub and method + adapter_model.safetensors",
            file="native",
            reads=True,
            writes=True,
        ),
        Format(
            name="peft",
            title="Hugging Face PEFT",
            files="adapter_config.json + adapter_model.safetensors",
            file="peft",
            reads=True,
            writes=True,
        ),
        Format(
            name="adapterhub",
            title="AdapterHub (adapters)",
            files="adapter_config.json + adapter.safetensors or pytorch_adapter.bin",
            file="adapterhub",
            reads=True,
            writes=True,
        ),
        Format(
            name="mlx",
            title="mlx-lm",
            files="adapter_config.json + adapters.safetensors or adapters.npz",
            file="mlx",
        ),
        Format(
            name="lycoris", title="LyCORIS", files="one *.safetensors", file="lycoris", alone=True
        ),
        Format(
            name="kohya",
            title="kohya sd-scripts",
            files="one *.safetensors",
            file="kohya",
            alone=True,
        ),
        Format(
            name="diffusers",
            title="Hugging Face diffusers LoRA",
            files="pytorch_lora_weights.safetensors",
            file="diffusers",
        ),
        Format(
            name="litgpt",
            title="litgpt",
            files="lit_model.pth.lora + hyperparameters.yaml",
            file="litgpt",
        ),
        Format(
            name="loralib",
            title="microsoft/LoRA loralib",
            files="one *.pt",
            file="loralib",
            alone=True,
        ),
        Format(
            name="fish_mask",
            title="FISH mask (t-few, FISH)",
            files="mask.bin or mask_*.bin + the trained weights; added with --base",
            file="fish_mask",
            reads=True,
        ),
        Format(
            name="adamix",
            title="AdaMix experts",
            files="one *.bin with ExpertSoup",
            file="soup",
            reads=True,
            writes=True,
            alone=True,
        ),
        Format(
            name="said",
            title="Intrinsic SAID of its authors",
            files="one *.bin with intrinsic_parameter",
            file="said",
            alone=True,
        ),
        Format(
            name="ladder_state",
            title="Ladder side-tuning of its authors",
            files="a T5's state dict with side_ladder_module",
            file="ladder_state",
            alone=True,
        ),
        Format(
            name="tfew",
            title="t-few (IA)³",
            files="finish.pt",
            file="tfew",
            reads=True,
            writes=True,
            alone=True,
        ),
        Format(
            name="t5x_prompt",
            title="T5X soft prompt",
            files="one *.npy",
            file="t5x",
            reads=True,
            writes=True,
            alone=True,
        ),
        Format(
            name="biases",
            title="State dict of biases",
            files="one *.safetensors or *.pt",
            file="biases",
            reads=True,
            writes=True,
            alone=True,
        ),
        Format(name="pyreft", title="pyreft", files="config.json + intkey_*.bin", file="pyreft"),
    )
}


def detect(path: Path) -> Format | None:
    """The format of a directory or file, or None. Raises OSError where nothing can be listed."""
    return _recognised(Sight.of(path))


def members(path: Path) -> list[Path]:
    """What somebody meant for adapters right there, in a directory: itself, or files of it.

    Of a known format, or with its config's name. Raises OSError where nothing can be listed.
    """
    sight = Sight.of(path)
    found = _recognised(sight)
    if found is None:
        return [path] if sight.has_config else []
    if not found.alone or sight.file is not None or len(sight.weights) < 2:
        return [path]
    return [path / name for name in sight.weights]


def _recognised(sight: Sight) -> Format | None:
    return next((row for row in TABLE.values() if row.implementation.recognises(sight)), None)


def read(path: Path, *, allow_pickle: bool = False) -> Reading:
    """Read an adapter in whatever format it is.

    Where files could be those of an adapter, and are of no known format, the reading's format is
    UNKNOWN and its problem says what was seen. Raises NotFound, or UnknownFormat for a model and
    for anything else.
    """
    try:
        if not path.exists():
            raise NotFound(f"{path} does not exist", remedy="check the path")
        sight = Sight.of(path)
        found = _recognised(sight)
        if found is None:
            return _unknown(sight)
        return found.implementation.read(sight, allow_pickle=allow_pickle)
    except OSError as error:  # a name that is too long, a directory without permission
        raise NotFound(
            f"{str(path)[:200]} cannot be read: {error.strerror}",
            remedy="check the path and its permissions",
        ) from error


def _unknown(sight: Sight) -> Reading:
    text = f"{sight.path} is not an adapter of a known format; seen: {sight.described()}"
    remedy = "point at a directory that holds adapter_config.json"
    if like_model := [n for n in ("model.safetensors", "pytorch_model.bin") if sight.has(n)]:
        remedy += f", or name the file, if it is one: {sight.directory / like_model[0]}"
    contents = [c for c in sight.contents if c.kind or c.problem]
    is_model = not sight.has_config and sight.has("config.json")
    if is_model or not (contents or sight.has_config):
        raise UnknownFormat(text, remedy=remedy)
    return Reading(
        path=sight.directory if sight.file is None else sight.path,
        format=UNKNOWN,
        method=None,
        config=sight.config,
        adapter=None,
        files=sight.files(contents),
        problems=(
            Problem("unknown-format", text, remedy, fatal=True),
            *named.damage(sight, contents),
        ),
        tensors={name: t for content in contents for name, t in content.tensors.items()},
    )


def write(adapter: Adapter, directory: Path, *, to: str) -> None:
    """Write `adapter` into `directory`, which must exist, as the format named `to`.

    Raises UnknownFormat, or NotSupported for what this version or the format cannot express.
    """
    _writer(to).write(adapter, directory)


def spelled(adapter: Adapter) -> Mapping[str, Tensor]:
    """The tensors under the names that the adapter's own format gives them. As `write`."""
    return _writer(adapter.format).spelled(adapter)


def _writer(name: str) -> Implementation:
    if name not in TABLE:
        raise UnknownFormat(
            f"no format is called {name!r}", remedy=f"formats: {', '.join(sorted(TABLE))}"
        )
    row = TABLE[name]
    if not row.writes:
        known = ", ".join(sorted(row.name for row in TABLE.values() if row.writes))
        raise NotSupported(
            f"{row.title} adapters are not written by this version", remedy=f"written: {known}"
        )
    return row.implementation
