"""The README.md of a repository: what the Hub's users look for, and people's text as it was.

The text is the hub's own where there is one, else the adapter's, else a short one of ours. Its
front matter is extended where it says nothing; its body is replaced by a newer one only where it
is, word for word, one that came from here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapterhub.formats.peft import looks_like_path
from adapterhub.hub.client import frontmatter, licences
from adapterhub.hub.client.findings import Finding, warning
from adapterhub.hub.client.frontmatter import Document, FrontMatterError

LIBRARIES = {
    "peft": "peft",
    "adapterhub": "adapter-transformers",  # the name that the Hub has for the library `adapters`
    "diffusers": "diffusers",
}
PIPELINES = {
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
    "IMAGE_CLS": "image-classification",
}
# What must agree with the adapter; the rest of a front matter is its writer's own affair.
_MUST_AGREE = ("base_model", "license", "pipeline_tag", "library_name")
_BASE_TAG = "base_model:adapter:"
_MARK = re.compile(r"<!-- adapterhub ([0-9a-f]{16}):[^\n]*-->\s*\Z")


@dataclass(frozen=True)
class Subject:
    """What the card is about. `card`: the fields of the registry's card; `repo`: OWNER/NAME.

    `bodies`: bodies of READMEs that this adapter had in the registry, so that the hub's may be
    recognised as one of them; `before`: the manifest that lies on the hub, if it is one of ours.
    """

    repo: str
    manifest: Mapping[str, Any]
    card: Mapping[str, Any] = field(default_factory=dict)
    bodies: Collection[str] = ()
    before: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Card:
    """`text` is the whole README.md; `front` what its front matter says."""

    text: str
    front: Mapping[str, Any]
    findings: tuple[Finding, ...] = ()


def compose(subject: Subject, there: str | None) -> Card:
    """The README.md for `subject`; `there` is the one on the hub."""
    own = subject.card.get("readme")
    own = own if isinstance(own, str) and own.strip() else None
    ours = own if own is not None else _generated(subject)
    text = there if there is not None else ours
    try:
        document = frontmatter.split(text)
        if there is not None and _came_from_here(document, subject):
            document = _with_body(document, frontmatter.split(ours))
        return _completed(document, subject, own)
    except FrontMatterError as error:
        where = "on the hub" if there is not None else "of the adapter"
        finding = warning(
            "card-unreadable",
            f"the front matter of README.md {where} {error}; it is left as it is",
            "mend it there, and push again",
        )
        return Card(text, {}, (finding,))


def wanted(subject: Subject) -> dict[str, Any]:
    """The front matter that the manifest and the registry's card amount to."""
    manifest, card = subject.manifest, subject.card
    base = hub_id(manifest["base"]["name"])
    fields = {
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        "library_name": LIBRARIES.get(manifest["format"]),
        "pipeline_tag": PIPELINES.get(manifest["task"] or ""),
        **_licence(card.get("licence")),
        "language": _words(card.get("language")),
        "tags": _tags(manifest, card, base),
        "metrics": sorted(card["metrics"]) if isinstance(card.get("metrics"), Mapping) else None,
    }
    return {key: value for key, value in fields.items() if frontmatter.says(value)}


def hub_id(name: str | None) -> str | None:
    """`name` where it is spelled like a repository and not like a path."""
    return name if name and not looks_like_path(name) else None


def _licence(licence: Any) -> dict[str, str]:
    if not isinstance(licence, str) or not licence:
        return {}
    if licence.lower() in licences.KNOWN:
        return {"license": licence.lower()}
    return {"license": licences.OTHER, "license_name": licence}


def _tags(manifest: Mapping[str, Any], card: Mapping[str, Any], base: str | None) -> list[str]:
    tags = [*_words(card.get("topics")), manifest["method"]]
    tags += [f"{_BASE_TAG}{base}"] if base else []
    return list(dict.fromkeys(tags))


def _words(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [word for word in values if isinstance(word, str) and word]


# --- joining ----------------------------------------------------------------------------------


def _completed(document: Document, subject: Subject, own: str | None) -> Card:
    said = frontmatter.values(document.front)
    new = wanted(subject)
    from_own = _front_of(own)
    if "license" in new:
        from_own = {k: v for k, v in from_own.items() if not k.startswith("license")}
    additions = _without_what_stands(from_own | new, said, subject)
    items = _missing_items(said, new)
    try:
        document = frontmatter.extended(document, additions, items)
    except FrontMatterError:
        if not items:
            raise
        document = frontmatter.extended(document, additions)
    front = frontmatter.values(document.front)
    return Card(document.text, front, tuple(_differences(front, new)))


def _without_what_stands(
    fields: Mapping[str, Any], said: Mapping[str, Any], subject: Subject
) -> dict[str, Any]:
    """What may be written: where nothing is said, or what an earlier push or a program said."""
    ours = wanted(Subject(subject.repo, subject.before)) if subject.before else {}
    replaced = {k for k in ("base_model", "pipeline_tag", "library_name") if k in ours}
    replaced = {k for k in replaced if said.get(k) == ours[k] != fields.get(k)}
    base = said.get("base_model")
    if isinstance(base, str) and hub_id(base) is None:
        replaced.add("base_model")  # trainers write the path that they were given
    found = {k: v for k, v in fields.items() if k in replaced or not frontmatter.says(said.get(k))}
    if frontmatter.says(said.get("license")):
        found.pop("license_name", None)
    return found


def _front_of(text: str | None) -> dict[str, Any]:
    """What the adapter's own README.md says; nothing where it cannot be read."""
    try:
        values = frontmatter.values(frontmatter.split(text or "").front)
    except FrontMatterError:
        return {}
    return {key: value for key, value in values.items() if frontmatter.says(value)}


def _missing_items(said: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[str]]:
    """Tags, languages and metrics that a list lacks. A list with anything but texts is left."""
    found: dict[str, list[str]] = {}
    for key in ("tags", "language", "metrics"):
        there = said.get(key)
        if isinstance(there, list) and there and all(isinstance(item, str) for item in there):
            lacking = [item for item in new.get(key, ()) if item not in there]
            found |= {key: lacking} if lacking else {}
    return found


def _differences(front: Mapping[str, Any], new: Mapping[str, Any]) -> list[Finding]:
    found = [
        _differs(key, front[key], new[key])
        for key in _MUST_AGREE
        if key in new and not _agree(front[key], new[key])
    ]
    stale = [tag for tag in _words(front.get("tags")) if tag.startswith(_BASE_TAG)]
    stale = [tag for tag in stale if tag not in new.get("tags", ())]
    if stale and "base_model" in new:
        found.append(_differs("tags", stale[0], f"{_BASE_TAG}{new['base_model']}"))
    return found


def _agree(there: Any, ours: Any) -> bool:
    options = there if isinstance(there, list) else [there]
    return str(ours).lower() in (str(option).lower() for option in options)


def _differs(key: str, there: Any, ours: Any) -> Finding:
    return warning(
        "card-differs",
        f"README.md says {key}: {str(there)[:80]}, and the adapter {str(ours)[:80]}; "
        "people's text is kept",
        "change README.md on the hub if it is wrong there",
    )


# --- bodies -----------------------------------------------------------------------------------


def body(text: str) -> str:
    """A README.md without its front matter, as it is compared."""
    try:
        document = frontmatter.split(text)
    except FrontMatterError:
        return text.strip()
    return _body(document)


def _body(document: Document) -> str:
    fence = re.compile(r"\A---[ \t]*\r?\n?") if document.fenced else re.compile(r"\A")
    return fence.sub("", document.tail).replace("\r\n", "\n").strip()


def _came_from_here(document: Document, subject: Subject) -> bool:
    here = _body(document)
    mark = _MARK.search(here)
    if mark is not None:
        return mark.group(1) == _hash(here[: mark.start()].strip())
    return not here or here in subject.bodies


def _with_body(document: Document, other: Document) -> Document:
    """The front matter of one, the body of the other; the very same where the bodies are equal."""
    if _body(document) == _body(other):
        return document
    if not document.fenced:
        return other
    if other.fenced:
        return Document(document.head, document.front, other.tail)
    return Document(document.head, document.front, f"---\n\n{other.tail}")


def _generated(subject: Subject) -> str:
    manifest, card = subject.manifest, subject.card
    title = subject.repo.rpartition("/")[2]
    description = card.get("description") or _sentence(manifest)
    rows = [(name, value) for name, value in _facts(manifest, card) if value]
    table = "\n".join(f"| {_plain(name)} | {_plain(value)} |" for name, value in rows)
    use = f"```sh\nadapterhub pull {subject.repo}\n```"
    if manifest["format"] == "peft":
        load = f'model = PeftModel.from_pretrained(base_model, "{subject.repo}")'
        use = (
            f"```python\nfrom peft import PeftModel\n\n{load}\n```\n\nor, into a registry:\n\n{use}"
        )
    text = f"# {title}\n\n{_plain(description)}\n\n| | |\n|---|---|\n{table}\n\n## Use\n\n{use}"
    note = "written from adapterhub.json, and again with each push until somebody edits it"
    return f"{text}\n\n<!-- adapterhub {_hash(text)}: {note} -->\n"


def _sentence(manifest: Mapping[str, Any]) -> str:
    base = hub_id(manifest["base"]["name"])
    return f"An adapter ({manifest['method']}){f' for {base}' if base else ''}."


def _facts(manifest: Mapping[str, Any], card: Mapping[str, Any]) -> list[tuple[str, str]]:
    rank, base = manifest["rank"], manifest["base"]
    metrics = card.get("metrics")
    facts = [
        ("method", " + ".join((manifest["method"], *manifest["variants"]))),
        ("rank", _rank(rank) if rank else ""),
        ("alpha", f"{manifest['alpha']:g}" if manifest["alpha"] is not None else ""),
        ("base", hub_id(base["name"]) or ""),
        ("revision of the base", base["revision"] or ""),
        ("weights of the base", base["weights_root"] or ""),
        ("parameters", f"{manifest['parameters']:,}"),
        ("type", manifest["dtype"]),
        ("task", manifest["task"] or ""),
        ("labels", ", ".join(manifest["labels"][:50])),
    ]
    return facts + [
        (name, str(value))
        for name, value in sorted(metrics.items() if isinstance(metrics, Mapping) else ())
    ]


def _rank(rank: Mapping[str, Any]) -> str:
    return str(rank["min"]) if rank["min"] == rank["max"] else f"{rank['min']}–{rank['max']}"


def _plain(text: str) -> str:
    """One line that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
