"""What stands beside the weights: config.json brought up to date, tokenizer and other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.base import Base
from adapterhub.catalogue import ModelClass
from adapterhub.errors import BaseMismatch
from adapterhub.merging.work import Work
from adapterhub.registry.fit import LABELLED, Naming

TIED = "tie_word_embeddings"
# Small files of a checkpoint that say something about the model, not about its training.
OTHER_FILES = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "feature_extractor_config.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
)


def files(base: Base, tokenizer: Mapping[str, Path]) -> Mapping[str, Path]:
    """Files that come along unchanged: name in the result → where it lies."""
    others = {name: base.path / name for name in OTHER_FILES if (base.path / name).is_file()}
    return dict(sorted({**tokenizer, **others}.items()))


@dataclass(frozen=True)
class Changes:
    """What a merge changes of what config.json says; `tokens`: another number of them, or None."""

    labels: Sequence[str] = ()
    dtype: str | None = None
    tokens: int | None = None
    untied: bool = False


def config(naming: Naming, works: Mapping[str, Work], changes: Changes) -> Mapping[str, Any]:
    """config.json of the result: the base's, changed only where the merge changes what it says."""
    result = dict(naming.base.config)
    if naming.target is not None:
        result["architectures"] = [naming.target.name]
    count = _label_count(naming.result, works)
    if count is not None and (named := _labelled(naming, count, changes.labels)):
        result |= named
        result.pop("num_labels", None)
    if changes.dtype is not None:
        result["dtype" if "dtype" in result else "torch_dtype"] = changes.dtype
    if changes.tokens is not None:
        result = _said(result, "vocab_size", changes.tokens)
    if changes.untied:
        result = {**_said(result, TIED, False), TIED: False}
    return result


def _said(config: Mapping[str, Any], key: str, value: object) -> dict[str, Any]:
    """The config with this value where the key stands, be it in the part for text; else on top."""
    text = config.get("text_config")
    if not isinstance(text, dict) or (key in config and key not in text):
        return {**config, key: value}
    top = {key: value} if key in config else {}
    return {**config, **top, "text_config": {**text, key: value}}


def _labelled(naming: Naming, count: int, labels: Sequence[str]) -> dict[str, Any]:
    """id2label and label2id for a head of `count` rows. Raises BaseMismatch."""
    if not labels and naming.target is None and count == _labels_of(naming.base.config):
        return {}
    names = list(labels) or [f"LABEL_{i}" for i in range(count)]
    if len(names) != count:
        raise BaseMismatch(
            f"the adapter has {len(names)} labels ({', '.join(names[:8])}) and a head of "
            f"{count} rows",
            remedy="add it again with as many --labels as the head has rows",
        )
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _labels_of(config: Mapping[str, Any]) -> object:
    """The number of labels that transformers reads from a config; 2 where it says nothing."""
    id2label = config.get("id2label")
    return len(id2label) if isinstance(id2label, dict) else config.get("num_labels", 2)


def _label_count(found: ModelClass | None, works: Mapping[str, Work]) -> int | None:
    """Rows of the head's last layer, for classes whose task has labels."""
    if found is None or found.task not in LABELLED:
        return None
    for name in ("classifier", "score", "classifier.out_proj", "classification_head.out_proj"):
        if (work := works.get(f"{name}.weight")) and work.shape:
            return work.shape[0]
    return None
