"""What goes with changed weights: no saving of them as the base's, and the labels of a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

from adapterhub.errors import NotSupported
from adapterhub.registry.fit import LABELLED
from adapterhub.runtime.live import Live
from adapterhub.runtime.planning import Planned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAVE = "save_pretrained"


@dataclass(frozen=True)
class SaveRefused:
    """In the place of `model.save_pretrained`; copies of the model keep it.

    `loaded`: for good, by `load_model`.
    """

    names: tuple[str, ...]
    loaded: bool = False

    def __call__(self, *_: Any, **__: Any) -> None:
        raise NotSupported(
            f"{' and '.join(self.names)} attached to this model: save_pretrained would write "
            "something that is neither its base nor says what it is",
            remedy="detach first; adapterhub merge BASE ADAPTER --out DIR makes a model to keep",
        )


def guard(model: PreTrainedModel, names: Sequence[str], *, loaded: bool = False) -> None:
    model.__dict__[_SAVE] = SaveRefused(tuple(names), loaded)


def saving(model: PreTrainedModel) -> Any:
    """What stands in the place of `save_pretrained` now; None for the class's own."""
    return model.__dict__.get(_SAVE)


def unguard(model: PreTrainedModel, before: Any = None) -> None:
    """`before`: what `saving` said before."""
    if before is None:
        model.__dict__.pop(_SAVE, None)
    else:
        model.__dict__[_SAVE] = before


def refuse_copy(model: PreTrainedModel) -> None:
    """Raises NotSupported for a model without state that was copied from one with adapters: its
    original bits are in nobody's hands."""
    found = saving(model)
    if isinstance(found, SaveRefused) and not found.loaded:
        raise NotSupported(
            f"this model is a copy of one that {' and '.join(found.names)} attached to",
            remedy="detach, copy, and attach to the copy",
        )


class Dress:
    """What a model says about its head: the labels of who brings it, or its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = ref(model)
        self._own: tuple[dict[str, Any], dict[str, Any], dict[str, int]] | None = None

    def wear(self, planned: Planned) -> None:
        model = self._model()
        if model is None:
            return
        labels = _labels(model, planned)
        if labels is None and self._own is not None:
            _restore(model, *self._own)
            self._own = None
        elif labels is not None:
            if self._own is None:
                self._own = _own(model)
            _restore(model, *self._own)
            _wear(model, labels, planned)


def _labels(model: PreTrainedModel, planned: Planned) -> list[str] | None:
    """None where no head is replaced by one that has labels of its own."""
    if not any(work.replaces for work in planned.works.values()):
        return None
    found = Live(model).base.model_class
    if found is None or found.task not in LABELLED:
        return None
    heads = [
        work
        for name, work in planned.works.items()
        if work.replaces and found.is_head(name.rpartition(".")[0])
    ]
    if not heads:
        return None
    rows = heads[-1].shape[0]
    for source in planned.sources:
        brings = {tensor for _, _, tensor in source.adapter.tensors()}
        if source.adapter.labels and any(work.value in brings for work in heads):
            return list(source.adapter.labels)
    if rows == model.config.num_labels:
        return None
    return [f"LABEL_{number}" for number in range(rows)]


def _own(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    config = {key: model.config.__dict__.get(key) for key in ("id2label", "label2id")}
    attributes = (
        {"num_labels": model.__dict__["num_labels"]} if "num_labels" in model.__dict__ else {}
    )
    sizes = {
        name: module.out_features
        for name, module in model.named_modules()
        if hasattr(module, "out_features")
    }
    return config, attributes, sizes


def _restore(
    model: PreTrainedModel,
    config: dict[str, Any],
    attributes: dict[str, Any],
    sizes: dict[str, int],
) -> None:
    model.config.__dict__.update(config)
    model.__dict__.update(attributes)
    for name, size in sizes.items():
        model.get_submodule(name).out_features = size


def _wear(model: PreTrainedModel, labels: Sequence[str], planned: Planned) -> None:
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: number for number, name in enumerate(labels)}
    if "num_labels" in model.__dict__:
        model.num_labels = len(labels)
    for name, work in planned.works.items():
        module: Any = model.get_submodule(name.rpartition(".")[0])
        if work.replaces and hasattr(module, "out_features") and name.endswith(".weight"):
            module.out_features = work.shape[0]
