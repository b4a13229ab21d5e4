"""What speaks against sending a version, each with what mends it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub import known_bases, strictjson
from adapterhub.formats.peft import looks_like_path
from adapterhub.hub.client import licences
from adapterhub.hub.client.card import Card
from adapterhub.hub.client.findings import ERROR, WARNING, Finding, error, ordered, warning
from adapterhub.hub.client.secrets import secrets
from adapterhub.hub.client.version import README, Version
from adapterhub.registry.checkout import MANIFEST

CONFIG = "adapter_config.json"
_BASE_KEYS = ("base_model_name_or_path", "model_name")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TEXTS = (".json", ".jsonl", ".txt", ".md", ".jinja", ".yaml", ".yml", ".toml", ".csv", ".tsv")
_TOKENIZERS = (".model", ".spm", ".tiktoken", ".bpe", ".vocab")  # SentencePiece and the like
_CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".sh", ".ipynb", ".js", ".exe")
_RESERVED = (README, MANIFEST, ".gitattributes")
_TOOLS = (".git", ".cache", ".huggingface")


def lint(version: Version, card: Card, *, public: bool) -> tuple[Finding, ...]:
    """Errors stop a push. `public`: everybody will see it."""
    found = [
        *_base(version),
        *_licence(version.name, card, public),
        *_files(version),
        *_secrets(version, card),
        *card.findings,
    ]
    return ordered(found)


# --- base -------------------------------------------------------------------------------------


def _base(version: Version) -> Iterator[Finding]:
    base = version.manifest["base"]
    name, said = base["name"], _configured(version.texts.get(CONFIG, ""))
    key, written = said if said is not None else ("", None)
    if name is None and written is None:
        yield from _unnamed(version)
        return
    path = next((each for each in (written, name) if each and looks_like_path(each)), None)
    if path is not None:
        yield error(
            "local-base",
            f"the base is a path on somebody's machine ({path[:80]}), not a Hub id",
            _rewritten(version.name, key or _BASE_KEYS[0], path),
        )
        return
    if base["weights_root"] is None and not _COMMIT.fullmatch(base["revision"] or ""):
        said_revision = (
            f"revision {base['revision']!a} may move" if base["revision"] else "unpinned"
        )
        yield warning(
            "unpinned-base",
            f"nothing tells which weights {name} had: {said_revision}, and no digest is recorded",
            _added_to(version.name, name),
        )


def _unnamed(version: Version) -> Iterator[Finding]:
    """In a format without a config nothing can name the base; a digest can tell which it is."""
    if CONFIG in version.texts:
        key = "model_name" if version.manifest["format"] == "adapterhub" else _BASE_KEYS[0]
        yield error("no-base", "no base model is named", _rewritten(version.name, key))
    elif version.manifest["base"]["weights_root"] is None:
        yield error("no-base", "no base model is named", _added_to(version.name, "BASE"))


def _added_to(name: str, base: str) -> str:
    return f'adapterhub add "$(adapterhub path {name})" --name {name} --base {base}'


def _configured(text: str) -> tuple[str, str] | None:
    """The key by which the config names its base, and the name."""
    try:
        config = strictjson.loads(text, constants=True)
    except ValueError:
        return None
    said: Mapping[str, Any] = config if isinstance(config, dict) else {}
    pairs = ((key, said.get(key)) for key in _BASE_KEYS)
    return next(((key, v) for key, v in pairs if isinstance(v, str) and v), None)


def _rewritten(name: str, key: str, path: str | None = None) -> str:
    """Stored files never change: the config is mended in a copy, which becomes a new version."""
    known = known_bases.named(path) if path else None
    meant = (known.variant or known.base.name) if known else None
    hint = f", perhaps {meant}" if meant else ""
    return (
        f"adapterhub export {name} DIR; set {key} in DIR/{CONFIG} to the base's Hub id{hint}; "
        f"adapterhub add DIR --name {name}"
    )


# --- licence ----------------------------------------------------------------------------------


def _licence(name: str, card: Card, public: bool) -> Iterator[Finding]:
    licence = card.front.get("license")
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    if not isinstance(licence, str) or not licence:
        yield Finding(
            "no-licence",
            "no licence is stated" + (", and everybody will see it" if public else ""),
            f"adapterhub edit {name} --licence ID, such as apache-2.0",
            ERROR if public else WARNING,
        )
        return
    unknown = [each for each in licence.split(", ") if each.lower() not in licences.KNOWN]
    if licence == licences.OTHER and "license_name" in card.front:
        unknown = [str(card.front["license_name"])]
    if unknown and unknown[0]:
        near = licences.nearest(unknown[0])
        yield warning(
            "unknown-licence",
            f"the Hub knows no licence {unknown[0][:80]!a}",
            f"adapterhub edit {name} --licence {near}"
            if near
            else f"adapterhub edit {name} --licence ID, if it is one of the Hub's",
        )


# --- files ------------------------------------------------------------------------------------


def _files(version: Version) -> Iterator[Finding]:
    for file in version.files:
        name = file.path.rpartition("/")[2].lower()
        parts = file.path.lower().split("/")
        if file.path in _RESERVED or any(part in _TOOLS for part in parts):
            yield error(
                "reserved-path",
                f"{file.path} is a name that the hub or this program needs for itself",
                f"adapterhub export {version.name} DIR, rename it there, and add DIR again",
            )
        elif name.endswith(_CODE):
            yield error(
                "code",
                f"{file.path} is code, and only data is sent",
                f"adapterhub export {version.name} DIR, remove it there, and add DIR again",
            )
        elif name.endswith(".npy") and version.manifest["format"] == "t5x_prompt":
            yield warning(
                "npy", f"{file.path} is sent as it is; the Hub's libraries do not load it", "none"
            )
        elif not name.endswith((".safetensors", *_TEXTS, *_TOKENIZERS)) and "." in name:
            yield error(
                "not-safetensors",
                f"{file.path} is no safetensors file",
                f"adapterhub add PATH --name {version.name} --allow-pickle stores pickles as "
                "safetensors",
            )


# --- secrets ----------------------------------------------------------------------------------


def _secrets(version: Version, card: Card) -> Iterator[Finding]:
    for path, text in version.texts.items():
        for secret in secrets(text):
            yield error(
                "secret",
                f"{path}, line {secret.line}, holds what looks like {secret.kind}",
                f"revoke it; adapterhub export {version.name} DIR, take it out of DIR/{path}, and "
                f"adapterhub add DIR --name {version.name}",
            )
    for secret in secrets(version.sidecar_text):
        yield error(
            "secret",
            f"the manifest holds what looks like {secret.kind}",
            "revoke it; take it out of the adapter's config, and add it again",
        )
    described = str(version.card.get("description") or "")  # Markdown's backslashes would hide one
    for secret in secrets(described):
        yield error(
            "secret",
            f"the description holds what looks like {secret.kind}",
            f'revoke it; adapterhub edit {version.name} --description "…"',
        )
    for secret in secrets(card.text):
        yield error(
            "secret",
            f"README.md, line {secret.line}, holds what looks like {secret.kind}",
            "revoke it; take it out of README.md, there or in the adapter's directory, and add "
            "that again",
        )
