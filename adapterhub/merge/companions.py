"""What stands beside the weights: config.json brought up to date, tokenizer and other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base import TOKENIZER_FILES, Base
from adapterhub.catalogue import ModelClass
from adapterhub.errors import BaseMismatch

if TYPE_CHECKING:
    from adapterhub.merge.plan import Work

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


def files(base: Base) -> Mapping[str, Path]:
    """Files that come along unchanged: name in the result → where it lies."""
    names = sorted({*TOKENIZER_FILES, *OTHER_FILES})
    return {name: base.path / name for name in names if (base.path / name).is_file()}


def config(
    base: Base,
    target: ModelClass | None,
    works: Mapping[str, Work],
    labels: Sequence[str],
    dtype: str | None,
) -> Mapping[str, Any]:
    """config.json of the result: the base's, changed only where the merge changes what it says."""
    result = dict(base.config)
    if target is not None:
        result["architectures"] = [target.name]
    count = _label_count(target or base.model_class, works)
    if count is not None and (target is not None or labels):
        names = list(labels) or [f"LABEL_{i}" for i in range(count)]
        if len(names) != count:
            raise BaseMismatch(
                f"the adapter has {len(names)} labels ({', '.join(names[:8])}) and a head of "
                f"{count} rows",
                remedy="add it again with as many --labels as the head has rows",
            )
        result["id2label"] = {str(i): name for i, name in enumerate(names)}
        result["label2id"] = {name: i for i, name in enumerate(names)}
        result.pop("num_labels", None)
    if dtype is not None:
        result["dtype" if "dtype" in result else "torch_dtype"] = dtype
    return result


def _label_count(found: ModelClass | None, works: Mapping[str, Work]) -> int | None:
    """Rows of the head's last layer, for classes whose task has labels."""
    if found is None or found.task not in ("SEQ_CLS", "TOKEN_CLS", "IMAGE_CLS"):
        return None
    for name in ("classifier", "score", "classifier.out_proj", "classification_head.out_proj"):
        if work := works.get(f"{name}.weight"):
            return work.shape[0]
    return None
