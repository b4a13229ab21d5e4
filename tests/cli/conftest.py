from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from clikit import Run, Said

# Tiny bases and adapters are made by what the tests of the registry use.
sys.path.append(str(Path(__file__).parents[1] / "registry"))

from adapterhub.cli import main
from adapterhub.store import files


@pytest.fixture(autouse=True)
def _no_hook() -> Iterator[None]:
    yield
    files.HOOK = None


@pytest.fixture
def run(home: Path) -> Run:
    """Runs a command in this process; exceptions that are no named errors come through."""

    def call(*args: str | Path, stdin: str | None = None) -> Said:
        done = CliRunner().invoke(
            main, [str(arg) for arg in args], input=stdin, catch_exceptions=False
        )
        return Said(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture
def process(home: Path) -> Run:
    """Runs a command in a process of its own, as a user's shell would."""

    def call(*args: str | Path, **env: str) -> Said:
        done = subprocess.run(
            [sys.executable, "-m", "adapterhub", *map(str, args)],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def base(tmp_path: Path) -> Path:
    import regkit

    return regkit.save_base(tmp_path / "models" / "minibert")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    import regkit

    return regkit.save_adapter(tmp_path / "runs" / "first")


@pytest.fixture
def tagger(tmp_path: Path) -> Path:
    import regkit

    return regkit.save_tagger(tmp_path / "runs" / "tagger")
