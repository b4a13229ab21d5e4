"""A hub in a process of its own, as `adapterhub serve` starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner

from adapterhub.cli import main

START_SECONDS = 60.0
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


@dataclass
class Hub:
    """`log` is what it wrote to both streams."""

    home: Path
    url: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    def token(self, *options: str) -> str:
        """A new token; without options, one that may write everywhere."""
        words = ["token", "create", *(options or ("--write",)), "--json"]
        done = CliRunner().invoke(
            main, words, env={"ADAPTERHUB_HOME": str(self.home)}, catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return str(json.loads(done.stdout)["result"]["secret"])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def anonymous_memory(self) -> int:
        """Bytes of RssAnon."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's own Hub settings."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {**kept, "ADAPTERHUB_HOME": str(home), **more}


def cli(home: Path, *words: str) -> str:
    command = [sys.executable, "-m", "adapterhub", *words]
    done = subprocess.run(
        command, env=environment(home), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def serving(home: Path, *options: str) -> Iterator[Hub]:
    """Ends by SIGTERM, and checks that the server then leaves with 0."""
    command = [sys.executable, "-m", "adapterhub", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        command,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    )
    hub = Hub(home, "", process)
    reader = threading.Thread(target=_collect, args=(hub,), daemon=True)
    reader.start()
    try:
        _await_start(hub)
        yield hub
        if process.poll() is None:
            process.terminate()
            assert process.wait(30) == 0, "".join(hub.log)
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        if process.stdout is not None:
            process.stdout.close()


def _collect(hub: Hub) -> None:
    assert hub.process.stdout is not None
    for line in hub.process.stdout:
        hub.log.append(line)


def _await_start(hub: Hub) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        found = _ADDRESS.search("".join(hub.log))
        if found:
            hub.url = found[0]
            try:
                with urllib.request.urlopen(f"{hub.url}/health", timeout=5):
                    return
            except OSError:
                pass
        if hub.process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError("the server did not start:\n" + "".join(hub.log))
