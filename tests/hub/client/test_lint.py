"""What stops a push, and the commands that mend it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pushkit import pushable, save_base

from adapterhub.hub.client.findings import Finding
from adapterhub.hub.client.licences import nearest
from adapterhub.hub.client.planning import Request, draft
from adapterhub.hub.client.secrets import secrets
from adapterhub.hub.client.version import version
from adapterhub.registry import Registry
from adapterhub.tensorfile import ArrayTensor, read_header, write_file


def findings(registry: Registry, public: bool = False) -> dict[str, Finding]:
    """Of the version of `a`, as a new repository."""
    plan = draft(version(registry, "a"), None, Request("me/a", public=public), "http://hub").plan
    return {finding.code: finding for finding in plan.findings}


def lint(registry: Registry, path: Path, public: bool = False) -> dict[str, Finding]:
    registry.add(path, name="a")
    return findings(registry, public)


def test_nothing_speaks_against_what_is_well_described(registry: Registry, tmp_path: Path) -> None:
    assert lint(registry, pushable(tmp_path / "a"), public=True) == {}


# --- base -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base", ["/home/jo/minilm", "./minilm", "C:\\models\\minilm", "models/minilm", "~/x"]
)
def test_a_base_is_no_path(registry: Registry, tmp_path: Path, base: str) -> None:
    found = lint(registry, pushable(tmp_path / "a", base_model_name_or_path=base))
    assert found["local-base"].is_error
    assert found["local-base"].message == (
        f"the base is a path on somebody's machine ({base}), not a Hub id"
    )


def test_nor_where_the_base_was_at_hand_and_its_digest_is_known(
    registry: Registry, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "minilm")
    path = pushable(tmp_path / "a", base_model_name_or_path=str(base))
    registry.add(path, name="a", base=base)
    assert registry.show("a")["manifest"]["base"]["name"] == "minilm"
    assert findings(registry)["local-base"].is_error  # its config would still say so


def test_the_remedy_for_a_path_knows_what_was_meant(registry: Registry, tmp_path: Path) -> None:
    path = pushable(tmp_path / "a", base_model_name_or_path="/content/Llama-2-7b-hf")
    remedy = lint(registry, path)["local-base"].remedy
    assert "to the base's Hub id, perhaps meta-llama/Llama-2-7b-hf; adapterhub add" in remedy


def test_the_remedy_for_a_path_works(registry: Registry, tmp_path: Path) -> None:
    found = lint(registry, pushable(tmp_path / "a", base_model_name_or_path="/x/y"))
    assert found["local-base"].remedy.startswith("adapterhub export a DIR; set base_model_name_or")
    registry.export("a", tmp_path / "DIR")
    config = tmp_path / "DIR" / "adapter_config.json"
    config.write_text(config.read_text().replace("/x/y", "owner/tiny-bert"))
    assert lint(registry, tmp_path / "DIR") == {}


def test_a_base_is_named(registry: Registry, tmp_path: Path) -> None:
    found = lint(registry, pushable(tmp_path / "a", base_model_name_or_path=...))
    assert found["no-base"].is_error


def test_a_format_without_a_config_has_its_base_given(registry: Registry, tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((20, 8), dtype=np.float32)
    np.save(tmp_path / "prompt.npy", values)
    found = lint(registry, tmp_path / "prompt.npy")
    assert found["no-base"].is_error
    remedy = 'adapterhub add "$(adapterhub path a)" --name a --base BASE'
    assert found["no-base"].remedy == remedy
    registry.add(registry.path("a"), name="a", base=save_base(tmp_path / "b", hidden_size=8))
    assert "no-base" not in findings(registry)


@pytest.mark.parametrize("revision", [..., "main", "abc123"])
def test_a_base_is_pinned_by_its_commit_or_its_digest(
    registry: Registry, tmp_path: Path, revision: Any
) -> None:
    found = lint(registry, pushable(tmp_path / "a", revision=revision))
    assert not found["unpinned-base"].is_error
    assert found["unpinned-base"].remedy == (
        'adapterhub add "$(adapterhub path a)" --name a --base owner/tiny-bert'
    )
    base = save_base(tmp_path / "minilm")  # as that command does
    registry.add(registry.path("a"), name="a", base=base)
    assert findings(registry) == {}


# --- licence ----------------------------------------------------------------------------------


def test_a_licence_is_stated_and_in_public_it_must_be(registry: Registry, tmp_path: Path) -> None:
    found = lint(registry, pushable(tmp_path / "a", None))
    assert not found["no-licence"].is_error
    assert findings(registry, public=True)["no-licence"].is_error
    assert found["no-licence"].remedy == "adapterhub edit a --licence ID, such as apache-2.0"
    registry.edit("a", {"licence": "Apache 2.0"})
    found = findings(registry, public=True)
    assert found["unknown-licence"].remedy == "adapterhub edit a --licence apache-2.0"
    registry.edit("a", {"licence": "apache-2.0"})
    assert findings(registry, public=True) == {}


def test_the_nearest_licence() -> None:
    assert nearest("Apache License 2.0") == "apache-2.0"
    assert nearest("LLaMA3") == "llama3"
    assert nearest("my own words") is None


# --- files ------------------------------------------------------------------------------------


def test_only_safetensors_leave(registry: Registry, tmp_path: Path) -> None:
    """A manifest of another hand may name files that `add` would never take."""
    registry.add(pushable(tmp_path / "a"), name="a")
    manifest = registry.show("a")["manifest"]
    digest, size = registry.store.put_blob_bytes(b"x")
    names = ("adapter_model.bin", "model.py", "sub/.git/config", "README.md", "a.pkl")
    extra = [{"path": name, "size": size, "sha256": digest} for name in names]
    changed = registry.store.put_manifest({**manifest, "files": manifest["files"] + extra})
    registry.store.add_version("a", changed)
    plan = draft(version(registry, "a"), None, Request("me/a"), "http://hub").plan
    found = {(finding.code, finding.message.split(" ")[0]) for finding in plan.errors}
    assert found == {
        ("not-safetensors", "adapter_model.bin"),
        ("not-safetensors", "a.pkl"),
        ("code", "model.py"),
        ("reserved-path", "sub/.git/config"),
        ("reserved-path", "README.md"),
    }


# --- secrets ----------------------------------------------------------------------------------

# In two halves, so that no scanner takes this file for a leak.
TOKENS = {
    "a Hugging Face token": "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567",
    "a token of adapterhub": "ahub_" + "a584b9ed624c6cb70fc5e25d116a1faabd28a98f",
    "an API key (sk-…)": "sk-" + "proj-abcdefghijklmnop1234567890",
    "a GitHub token": "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "a GitLab token": "glpat-" + "abcdefghij0123456789",
    "a Slack token": "xoxb-" + "1234567890-abcdef",
    "an AWS key": "AKIA" + "IOSFODNN7EXAMPLE",
    "an AWS secret": 'aws_secret_access_key": "' + "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY01",
    "a Google key": "AIza" + "SyA1234567890abcdefghijklmnopqrstuv",
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "an Authorization header": "Authorization: Bearer " + "abcdefghijklmnop0123456789",
    "a password in an address": "https://jo:" + "hunter22@example.org/x",
    "an API key": '"api_key": "' + 'abcdefgh12345678"',
}


@pytest.mark.parametrize("kind", TOKENS)
def test_secrets_are_seen_by_their_line_and_never_shown(kind: str) -> None:
    text = f'{{\n"x": "some words",\n"y": {TOKENS[kind]}\n}}'
    kinds = {(secret.kind, secret.line) for secret in secrets(text)}
    assert (kind, 3) in kinds


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download and hf_transfer, HF_TOKEN=hf_xxx",
        "a task-of-some-length-with-hyphens-in-it, sk-learn-and-other-packages-with-names",
        "https://example.org:8080/a@b and jo@example.org",
        '"password": "<your password here>", "auth_token": null, "use_auth_token": true',
        "sha256:" + "0123456789abcdef" * 4,
        "Bearer of the ring, bearer $HF_TOKEN",
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_what_only_looks_a_little_like_one_is_let_pass(text: str) -> None:
    assert list(secrets(text)) == []


def test_a_secret_stops_a_push_wherever_it_is(registry: Registry, tmp_path: Path) -> None:
    token = TOKENS["a Hugging Face token"]
    path = pushable(tmp_path / "a", f"---\nlicense: mit\n---\nlog in with {token}\n", note=token)
    weights = path / "adapter_model.safetensors"
    arrays = {name: tensor.read() for name, tensor in read_header(weights).tensors.items()}
    write_file(weights, {n: ArrayTensor(a) for n, a in arrays.items()}, {"made_with": token})
    (path / "tokenizer_config.json").write_text(json.dumps({"auth": token}))
    registry.add(path, name="a")
    plan = draft(version(registry, "a"), None, Request("me/a"), "http://hub").plan
    assert {finding.message.split(",")[0] for finding in plan.errors} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer_config.json",
    }
    assert all(finding.code == "secret" for finding in plan.errors)
    assert token not in json.dumps(plan.to_dict())


def test_a_secret_in_a_description_is_edited_away(registry: Registry, tmp_path: Path) -> None:
    registry.add(pushable(tmp_path / "a", None), name="a")
    registry.edit("a", {"description": TOKENS["a GitHub token"], "licence": "mit"})
    finding = findings(registry)["secret"]
    assert finding.message == "the description holds what looks like a GitHub token"
    assert finding.remedy == 'revoke it; adapterhub edit a --description "…"'
    registry.edit("a", {"description": "…"})
    assert findings(registry) == {}
