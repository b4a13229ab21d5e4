"""What one registry pushes, another pulls: the same version, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hubkit
import pytest
from minihub import MiniHub
from pushkit import pushable, save_base, save_tagger

from adapterhub.hub.client import push
from adapterhub.hub.client.pulling import pull
from adapterhub.registry import Registry


@pytest.fixture
def elsewhere(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "elsewhere")


def test_a_version_keeps_its_digest_and_its_card(
    hub: MiniHub, registry: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    registry.add(
        pushable(tmp_path / "a"), name="team/ner", base=save_base(tmp_path / "b"), labels=["A", "B"]
    )
    registry.edit("team/ner", {"topics": ["biology"], "language": ["en"]})
    pushed = push("team/ner", "me/ner", registry=registry)
    pull("me/ner", registry=elsewhere)
    there, here = registry.show("team/ner"), elsewhere.show("me/ner")
    assert here["digest"] == there["digest"] == pushed.version.partition("@")[2]
    assert here["manifest"] == there["manifest"]
    assert here["card"]["licence"] == "mit"
    assert here["card"]["language"] == ["en"]
    assert "biology" in here["card"]["topics"]
    assert here["origin"]["commit"] == pushed.commit


def test_and_goes_back_without_a_commit(
    hub: MiniHub, registry: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    path = save_tagger(tmp_path / "a", revision="0" * 40)
    registry.add(path, name="tagger", labels=["O", "A", "B", "C"])
    first = push("tagger", "me/tagger", registry=registry)
    pull("me/tagger", registry=elsewhere)
    assert push("me/tagger", "me/tagger", registry=elsewhere).status == "unchanged"
    assert push("tagger", "me/tagger", registry=registry).commit == first.commit


def test_a_card_that_changed_on_main_is_pulled_too(
    hub: MiniHub, registry: Registry, elsewhere: Registry, tmp_path: Path
) -> None:
    registry.add(pushable(tmp_path / "a", None), name="a")
    push("a", "me/a", registry=registry)
    pull("me/a", registry=elsewhere)
    registry.edit("a", {"licence": "mit"})
    commit = push("a", "me/a", registry=registry).commit
    (again,) = pull("me/a", registry=elsewhere)
    assert (again.status, again.origin.commit) == ("updated", commit)
    assert elsewhere.show("me/a")["card"]["licence"] == "mit"


@pytest.mark.slow
@pytest.mark.parametrize("xet", ["0", "1"])
def test_to_a_real_hub_in_processes_of_their_own(tmp_path: Path, xet: str) -> None:
    """With Xet (0) and without it (1), as the environment says."""
    pushable(tmp_path / "a")
    with hubkit.serving(tmp_path / "hub") as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token(), "HF_HOME": str(tmp_path / "hf")}
        env |= {"HF_HUB_DISABLE_XET": xet}
        mine, theirs = tmp_path / "mine", tmp_path / "theirs"
        ah(mine, env, "add", str(tmp_path / "a"), "--name", "team/a")
        first = ah(mine, env, "push", "team/a", "me/a", "-q")
        assert ah(mine, env, "push", "team/a", "me/a", "-q") == first
        ah(theirs, env, "pull", "me/a")
        versions = (ah(mine, env, "show", "team/a", "-q"), ah(theirs, env, "show", "me/a", "-q"))
        assert len({version.partition("@")[2] for version in versions}) == 1
        assert "me/a" in hubkit.cli(hub.home, "list", "-q")


def ah(home: Path, env: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "adapterhub", *words],
        env=hubkit.environment(home, **env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert env["HF_TOKEN"] not in done.stdout + done.stderr
    return done.stdout.strip()
