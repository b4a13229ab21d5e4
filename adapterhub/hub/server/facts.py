"""What the files of a revision say of it: its card, its config, and the tags that follow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from adapterhub import strictjson
from adapterhub.hub.server import cards
from adapterhub.hub.state.errors import EntryNotFound
from adapterhub.hub.state.repositories import Repository
from adapterhub.hub.state.state import Hub
from adapterhub.store import Store

_PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
    "SEQ_2_SEQ_LM": "text2text-generation",
}
_SUFFIXES = {".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx"}
_CONFIG_KEYS = ("architectures", "model_type")
_PEFT_KEYS = ("peft_type", "base_model_name_or_path", "revision", "task_type")
MOST_TAGS, MOST_BASES, LONGEST = 500, 50, 200
_TAGGED = {"license": "license", "datasets": "dataset"}


@dataclass(frozen=True)
class Facts:
    """All of it is JSON, and small whatever the files are: thousands of these make up a listing.

    `relation`: adapter, merge, finetune …, where `bases` has any.
    """

    card: dict[str, Any]
    config: dict[str, Any]
    tags: tuple[str, ...]
    library: str | None
    pipeline: str | None
    bases: tuple[str, ...]
    relation: str | None


def gather(hub: Hub, store: Store, repository: Repository, commit: str) -> Facts:
    """Reads README.md, config.json and adapter_config.json of a commit, and names of files at its
    root. What cannot be read says nothing.
    """
    card = cards.front(_content(hub, store, repository, commit, "README.md"))
    config = _document(_content(hub, store, repository, commit, "config.json"))
    peft = _document(_content(hub, store, repository, commit, "adapter_config.json"))
    root = hub.tree(repository, commit)
    names = [entry.path for entry in root.entries]
    return _joined(card, config, peft, names, repository.id.kind)


def _joined(
    card: dict[str, Any],
    config: dict[str, Any],
    peft: dict[str, Any],
    names: list[str],
    kind: str,
) -> Facts:
    library = _text(card.get("library_name")) or _library(config, peft)
    pipeline = _text(card.get("pipeline_tag")) or _PIPELINES.get(str(peft.get("task_type")))
    bases = tuple(_bases(card, peft))
    relation = _relation(card, bases, bool(peft)) if bases else None
    tags = [library or "", *_formats(names), pipeline or "", *cards.words(card.get("tags"))]
    tags += [f"{tag}:{word}" for key, tag in _TAGGED.items() for word in cards.words(card.get(key))]
    tags += base_tags(bases, relation)
    languages = cards.words(card.get("language"))
    tags += languages if kind == "model" else [f"language:{each}" for each in languages]
    small: dict[str, Any] = {key: _short(config[key]) for key in _CONFIG_KEYS if key in config}
    tags += cards.words(small.get("model_type"))
    if peft:
        small["peft"] = {key: _short(peft.get(key)) for key in _PEFT_KEYS}
    return Facts(card, small, tuple(labels(tags)), library, pipeline, bases, relation)


def labels(tags: Iterable[str]) -> list[str]:
    """Different ones, neither long nor many."""
    fitting = (tag for tag in tags if 0 < len(tag) <= LONGEST)
    return list(islice(dict.fromkeys(fitting), MOST_TAGS))


def _short(value: Any) -> Any:
    """A text or some texts; None for what is longer, and for anything else."""
    if isinstance(value, list):
        return [each for each in map(_short, value[:MOST_BASES]) if isinstance(each, str)]
    return value if isinstance(value, str) and len(value) <= LONGEST else None


def base_tags(bases: tuple[str, ...], relation: str | None) -> list[str]:
    """`base_model:x` and `base_model:adapter:x` of each base, as the Hub flattens lineage."""
    tags = [f"base_model:{base}" for base in bases]
    return tags + ([f"base_model:{relation}:{base}" for base in bases] if relation else [])


def _bases(card: dict[str, Any], peft: dict[str, Any]) -> list[str]:
    """Of the card, else of PEFT's config, which often names a path; paths are no bases."""
    said = cards.words(card.get("base_model")) or cards.words(peft.get("base_model_name_or_path"))
    return [base for base in said if cards.HUB_ID.fullmatch(base)][:MOST_BASES]


def _relation(card: dict[str, Any], bases: tuple[str, ...], adapter: bool) -> str:
    said = _text(card.get("base_model_relation"))
    if said in ("adapter", "merge", "quantized", "finetune"):
        return said
    if adapter or _text(card.get("library_name")) == "peft":
        return "adapter"
    return "merge" if len(bases) > 1 else "finetune"


def _library(config: dict[str, Any], peft: dict[str, Any]) -> str | None:
    if peft:
        return "peft"
    return "transformers" if "architectures" in config or "model_type" in config else None


def _formats(names: list[str]) -> list[str]:
    return [tag for suffix, tag in _SUFFIXES.items() if any(n.endswith(suffix) for n in names)]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST else None


def _content(hub: Hub, store: Store, repository: Repository, commit: str, path: str) -> bytes:
    """Empty where there is no such file, or a larger one than such files are."""
    try:
        found = hub.file(repository, commit, path)
    except EntryNotFound:
        return b""
    if found.file.size > cards.LIMIT_BYTES:
        return b""
    with store.open_blob(found.file.digest) as file:
        return file.read()


def _document(data: bytes) -> dict[str, Any]:
    try:
        document = strictjson.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
