"""Unmodified clients, each in a process and environment of its own, against `adapterhub serve`.

The large matrix needs the environments that `make clients` makes; the small form runs with the
client that is installed beside adapterhub.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hubkit
import pytest

HERE = Path(__file__).resolve().parent
ENVIRONMENTS = Path(sys.prefix) / "clients"
XET = {"xet": {}, "lfs": {"HF_HUB_DISABLE_XET": "1"}}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hubkit.Hub]:
    with hubkit.serving(tmp_path_factory.mktemp("hub") / "home") as hub:
        yield hub


def run(
    hub: hubkit.Hub, python: Path, program: str, words: list[str], work: Path, **env: str
) -> list[str]:
    """The lines that a program printed; its failure is this test's."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token(),
        "HF_HOME": str(work / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **env,
    }
    done = subprocess.run(
        [str(python), str(HERE / program), *words],
        env=hubkit.environment(work / "unused", **settings),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{''.join(hub.log[-60:])}"
    return done.stdout.split()


def scenario(
    hub: hubkit.Hub, python: Path, transfer: str, namespace: str, work: Path, *without: str
) -> None:
    words = [hub.url, namespace, str(work), *without]
    steps = run(hub, python, "scenario.py", words, work, **XET[transfer])
    assert steps[-1] == "wrong_token" and len(steps) >= 14 - len(without)
    log = "".join(hub.log)
    assert ("/v1/xorbs/" in log) >= (transfer == "xet")
    assert "Traceback" not in log


# What transfers nothing, or through many processes; slow tests try it all the same.
OTHER = ["branches_and_tags", "pull_request", "command_line", "data_set", "settings_and_renaming"]


@pytest.mark.parametrize(
    ("transfer", "without"),
    [("lfs", OTHER), *(pytest.param(how, [], marks=pytest.mark.slow) for how in ("xet", "lfs"))],
    ids=["lfs-transfers", "xet", "lfs"],
)
def test_the_installed_client(
    hub: hubkit.Hub, transfer: str, without: list[str], tmp_path: Path
) -> None:
    namespace = f"installed-{transfer}-{len(without)}"
    scenario(hub, Path(sys.executable), transfer, namespace, tmp_path, *without)


@pytest.mark.slow
@pytest.mark.parametrize("transfer", XET)
@pytest.mark.parametrize("client", ["hub-1.33", "hub-2.4"])
def test_clients_of_their_own(hub: hubkit.Hub, client: str, transfer: str, tmp_path: Path) -> None:
    python = ENVIRONMENTS / client / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment {client}: `make clients` makes it")
    scenario(hub, python, transfer, f"{client}-{transfer}", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("transfer", XET)
def test_peft_and_transformers(hub: hubkit.Hub, transfer: str, tmp_path: Path) -> None:
    namespace = f"attaching-{transfer}"
    python = Path(sys.executable)
    steps = run(hub, python, "attaching.py", [namespace], tmp_path, **XET[transfer])
    assert steps[-1] == "loaded"
    assert f"{namespace}/adapter" in hubkit.cli(hub.home, "list")
