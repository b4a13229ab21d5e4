"""AdaMix as its authors save it: a state dict of the experts, and of the head trained with them.

    bert.encoder.layer.0.output.ExpertSoup.MoA_A.deepspeed_experts.0.weight     [r, width]
    bert.encoder.layer.0.output.ExpertSoup.MoA_A.expert_score_weight            [experts]
    classifier.weight                                                           of a head

One file without a config (`pytorch_model_mnli_expert_soup.bin` of the published ones). The names
are those of the native spelling. A pickle is read with consent. Their mixture of LoRA pairs
(`….experts_lora_A.0`) is named and not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from adapterhub.adapter import Adapter, Outline, Problem, Reading
from adapterhub.errors import NotSupported
from adapterhub.formats import named, native, statedict
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.methods.adamix import SOUP
from adapterhub.tensorfile import Tensor, shown, write_file

FORMAT = "adamix"
METHOD = "adamix"
_FILE = "expert_soup.safetensors"
_EXPERTS = re.compile(rf"([^:]+)\.{SOUP}\.MoA_[AB]\.[^:]+")
_PAIRS = re.compile(r"[^:]+\.experts_lora_[AB](\.\d+)?(\.weight)?")
_HEAD = re.compile(r"(classifier|score|qa_outputs|lm_head|cls)(\.[^:.]+)*\.(weight|bias)")


def recognises(sight: Sight) -> bool:
    return not sight.has_config and sight.find(_is_soup) is not None


def _is_soup(content: Content) -> bool:
    if content.kind not in ("pickle", "safetensors"):
        return False
    return any(_EXPERTS.fullmatch(name) or _PAIRS.fullmatch(name) for name in content.shapes)


def _modules(tensors: Mapping[str, Tensor]) -> statedict.Modules:
    return native.modules_of(METHOD, tensors)[0]


_KIND = statedict.Kind(FORMAT, METHOD, _FILE, "files of experts", _modules)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_soup)
    if any(_PAIRS.fullmatch(name) for name in found[0].shapes):
        outline = Outline(parameters=named.elements(found))
        title, remedy = "AdaMix's LoRA pairs", "average A and B over the experts, as a LoRA of PEFT"
        return named.reading(sight, FORMAT, title, found, outline, method=METHOD, remedy=remedy)
    refused, outline = _others(found[0]), Outline(targets=_layers(found[0]))
    return statedict.reading(_KIND, sight, found, allow_pickle, refused=refused, outline=outline)


def _others(content: Content) -> list[Problem]:
    """A whole model with experts in it is refused: what of it was trained does not show."""
    names = [n for n in content.shapes if not (_EXPERTS.fullmatch(n) or _HEAD.fullmatch(n))]
    if not names:
        return []
    text = f"{len(names)} tensors are neither experts nor a head, as {shown(names[0])}"
    remedy = (
        "save the experts and the trained head alone: "
        f"{{n: t for n, t in state.items() if {SOUP!r} in n or n.startswith('classifier')}}"
    )
    return [Problem("unknown-keys", text, remedy, fatal=True)]


def _layers(content: Content) -> tuple[str, ...]:
    found = (_EXPERTS.fullmatch(name) for name in content.shapes)
    return tuple(dict.fromkeys(match[1] for match in found if match))


def spelled(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under the authors' names. Raises NotSupported."""
    if adapter.method != METHOD:
        raise NotSupported(
            f"an AdaMix file has no place for the method {adapter.method}",
            remedy="write it in the format that it came in",
        )
    return native.spelled(adapter)


def write(adapter: Adapter, directory: Path) -> None:
    """Raises NotSupported for what the names cannot say."""
    tensors = spelled(adapter)
    if adapter.config:
        raise NotSupported(
            "an AdaMix file has no config, and this adapter has one", remedy="write it as native"
        )
    write_file(directory / _FILE, tensors)
