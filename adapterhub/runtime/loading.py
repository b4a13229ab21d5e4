"""From a base and an adapter to a working model, in memory.

The model is made as the class that the adapter was trained in, so that module paths mean the same
in both; the arithmetic is that of a merge, with the same kernel and so the same bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterhub.adapter import Adapter
from adapterhub.base import Base
from adapterhub.errors import BaseMismatch, NotMergeable
from adapterhub.merging.work import Source
from adapterhub.methods import Meaning, Replacement
from adapterhub.registry import fit
from adapterhub.registry.around import around_in, meaning_of
from adapterhub.runtime.changing import change
from adapterhub.runtime.guards import guard
from adapterhub.runtime.hooks import hooked, install
from adapterhub.runtime.live import Live
from adapterhub.runtime.originals import InMemory
from adapterhub.runtime.planning import How, Planned, plan
from adapterhub.runtime.resizing import resize
from adapterhub.runtime.splitting import apply, part
from adapterhub.tensorfile import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOATS: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# PEFT's task types, and ours for tasks that PEFT does not name.
AUTO_CLASSES: Mapping[str, str] = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
    "MASKED_LM": "AutoModelForMaskedLM",
    "IMAGE_CLS": "AutoModelForImageClassification",
}


def load(base: Base, source: Source, *, base_is_initialised: bool = False) -> PreTrainedModel:
    """A model of the adapter's task in the base's dtype, in eval mode, the adapter applied.

    What merges goes into the weights for good; what does not runs beside them, as do factors
    beside weights that bitsandbytes has quantised. Raises NotMergeable for what can do neither,
    BaseMismatch with everything that does not fit, or that neither base nor adapter has.
    """
    adapter = source.adapter
    how = How(base_is_initialised=base_is_initialised)
    meaning = _meaning(base, adapter, how)
    if not _is_quantised(base):  # whose files hold other shapes than the model
        fit.check(base, adapter, name="the adapter")  # before a model is loaded
    heads = _brought(meaning)
    model, missing = _from_pretrained(base, adapter, meaning)
    _refuse_random(missing, heads, base)
    resize(model, meaning)
    live = Live(model)
    kept = InMemory()
    planned = plan(live, [source], kept, [how])
    kept.keep(live, _paired(planned))
    if planned.split:
        _untie(live, planned)
    change(planned.works, live.tensors, live.held, planned.sources)
    for hooks in planned.hooks:
        install(model, hooks)
        if not hooks.empty:
            guard(model, [source.name], loaded=True)
    return model.eval()


def _meaning(base: Base, adapter: Adapter, how: How) -> Meaning:
    if hooked(adapter.method):
        return ()
    around = partial(around_in, base, adapter)
    return meaning_of(adapter, around, base_is_initialised=how.base_is_initialised)


def _untie(live: Live, planned: Planned) -> None:
    """For good, and as a merge does: config.json says that nothing is tied."""
    found = live.base.model_class
    if found is None or found.tying not in ("by-default", "on-request"):
        raise NotMergeable(
            f"the adapter changes {' and '.join(sorted(planned.split))} apart from what shares the "
            f"weight, and no config can say that of a {type(live.model).__name__}",
            remedy="attach it to a model in memory instead: adapterhub.attach(model, REF)",
        )
    apply(part(live, planned.split, {}), live)
    for config in (live.model.config, live.model.config.get_text_config()):
        config.tie_word_embeddings = False


def _paired(planned: Planned) -> list[str]:
    """Weights and biases that another library makes from each other."""
    theirs = {
        n for n, work in planned.works.items() if any(s.change and s.change.by for s in work.slabs)
    }
    modules = Counter(name.rpartition(".")[0] for name in theirs)
    return [name for name in theirs if modules[name.rpartition(".")[0]] > 1]


def _is_quantised(base: Base) -> bool:
    found = base.config.get("quantization_config")
    names = ("load_in_4bit", "load_in_8bit")
    return isinstance(found, dict) and any(found.get(name) for name in names)


def _brought(meaning: Meaning) -> dict[str, Tensor]:
    return {f"{p.module}.{p.parameter}": p.value for p in meaning if isinstance(p, Replacement)}


# --- the model --------------------------------------------------------------------------------


def _from_pretrained(
    base: Base, adapter: Adapter, meaning: Meaning
) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of parameters that the base's files do not have."""
    import transformers

    options: dict[str, Any] = {"dtype": _dtype(base), "local_files_only": True}
    if labels := _labels(adapter, _brought(meaning)):
        options["id2label"] = dict(enumerate(labels))
        options["label2id"] = {name: i for i, name in enumerate(labels)}
    auto = getattr(transformers, _class_name(base, adapter, meaning))
    with _quiet_loading():
        model, info = auto.from_pretrained(
            base.path, output_loading_info=True, use_safetensors=True, **options
        )
    return model, set(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]}


def _dtype(base: Base) -> str:
    """That of the files, where it is one; config.json may name another, which would round."""
    floats = [FLOATS[dtype] for dtype in base.dtypes if dtype in FLOATS]
    return floats[0] if len(floats) == 1 else "auto"


def _class_name(base: Base, adapter: Adapter, meaning: Meaning) -> str:
    """By the task; without one, the class that has the adapter's head, or the base's own."""
    if adapter.task and adapter.task in AUTO_CLASSES:
        return AUTO_CLASSES[adapter.task]
    found = fit.target_class(base, [(adapter, meaning)]) or base.model_class
    return found.name if found else "AutoModel"


def _labels(adapter: Adapter, heads: Mapping[str, Tensor]) -> list[str]:
    if adapter.labels:
        return list(adapter.labels)
    if adapter.task not in ("SEQ_CLS", "TOKEN_CLS", "IMAGE_CLS"):
        return []
    rows = [t.shape[0] for name, t in heads.items() if name.endswith(".bias") or len(t.shape) == 2]
    return [f"LABEL_{i}" for i in range(rows[-1])] if rows else []


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No progress bar, and no warning of a new head: `_refuse_random` looks at what matters."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_random(missing: set[str], heads: Mapping[str, Tensor], base: Base) -> None:
    random = sorted(missing - heads.keys())
    if random:
        raise BaseMismatch(
            "the model has parameters that neither base nor adapter brings; they would be random",
            details=random[:20],
            remedy=f"check that {base.path} is the base that this adapter was trained on",
        )
