"""Push and pull through the hub, against the same client on servers that do nothing.

    python tools/bench_hub.py [--mb 300] [--rounds 5] [--large]

The client is huggingface_hub, in a process and with a cache of its own each time; its imports are
not counted. In every round a fresh random file is pushed with LFS and with Xet, to the hub and to
a sink that stores and hashes nothing, and pulled from the hub and from a bare file response of the
same HTTP server. Printed are seconds, the medians of the rounds' ratios, and the largest anonymous
memory of the hub's process. With `--large`, a file of 2 GB goes each way once as well.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

REPO, NAME = "bench/adapter", "model.safetensors"
LARGE_MB = 2000
PERIOD = 0.01
PULLS = 3  # in a round: the client's own disk makes them uneven
PIECE = 1 << 22

# --- the client, in a process of its own

CLIENT = """
import json, sys, time
from huggingface_hub import HfApi, hf_hub_download
what, path, repo, name = sys.argv[1:]
api = HfApi()
began = time.perf_counter()
if what == "push":
    api.upload_file(path_or_fileobj=path, path_in_repo=name, repo_id=repo)
else:
    path = hf_hub_download(repo, name)
print(json.dumps([time.perf_counter() - began, path]))
"""


@dataclass(frozen=True)
class Server:
    """A running server; `token` opens it."""

    url: str
    token: str
    watch: Watch


def client(server: Server, what: str, path: Path, *, xet: bool, work: Path) -> float:
    """Seconds that one push or pull took. Raises CalledProcessError; ValueError for other bytes."""
    with tempfile.TemporaryDirectory(dir=work) as cache:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | {
            "HF_ENDPOINT": server.url,
            "HF_TOKEN": server.token,
            "HF_HOME": cache,
            "HF_HUB_DISABLE_XET": "0" if xet else "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-c", CLIENT, what, str(path), REPO, NAME]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{what} failed:\n{done.stderr}")
        seconds, got = json.loads(done.stdout.splitlines()[-1])
        if what == "pull" and not same(Path(got), path):
            raise ValueError(f"{got} has other bytes than {path}")
    return float(seconds)


def same(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while (piece := first.read(PIECE)) == second.read(PIECE):
            if not piece:
                return True
    return False


# --- the servers


def run_hub(home: str, port: int) -> None:
    """The hub itself; its token and address go to stdout."""
    from adapterhub.hub.server.app import App
    from adapterhub.hub.server.routes import ROUTES
    from adapterhub.hub.server.service import Service, Settings
    from adapterhub.hub.server.serving import listening, run
    from adapterhub.hub.state.names import parse_id
    from adapterhub.registry import Registry

    service = Service.opened(Registry(home), Settings())
    service.hub.create(parse_id(REPO))
    _, secret = service.hub.tokens.create("bench", "write")
    print(secret, flush=True)
    with listening("127.0.0.1", port) as listener:
        run(App(service, ROUTES), listener, grace=5)


def run_sink(path: str, port: int) -> None:
    """Answers every step of a push, keeps nothing; pulls get the file at `path`."""
    print("none", flush=True)
    import uvicorn

    app = Sink(Path(path), f"http://127.0.0.1:{port}")
    uvicorn.run(app, port=port, http="h11", log_level="error", access_log=False)


class Sink:
    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse, Response

        if scope["type"] != "http":
            return
        if "/resolve/" in scope["path"]:
            await self.file(scope, receive, send)
            return
        body = await self.drained(receive, keep=scope["path"].endswith(("preupload/main", "batch")))
        answer = self.answer(scope["path"], body)
        response = Response(status_code=404) if answer is None else JSONResponse(answer)
        await response(scope, receive, send)

    async def file(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import FileResponse

        tag = f'"{self.path.stat().st_mtime_ns:064x}"'
        headers = {"X-Repo-Commit": "0" * 40, "ETag": tag}
        await FileResponse(self.path, headers=headers)(scope, receive, send)

    async def drained(self, receive: Any, *, keep: bool) -> bytes:
        kept = b""
        while True:
            message = await receive()
            if keep:
                kept += message.get("body", b"")
            if not message.get("more_body"):
                return kept

    def answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        """What clients need to go on."""
        if path.endswith("preupload/main"):
            one = {"path": NAME, "uploadMode": "lfs", "shouldIgnore": False}
            return {"files": [one]}
        if path.endswith("objects/batch"):
            objects = json.loads(body)["objects"]
            actions = {"upload": {"href": f"{self.url}/put"}}
            return {"transfer": "basic", "objects": [o | {"actions": actions} for o in objects]}
        if path.endswith("commit/main"):
            commit = "0" * 40
            page = f"{self.url}/{REPO}/commit/{commit}"
            return {"success": True, "commitOid": commit, "commitUrl": page}
        if "xet-write-token" in path:
            exp = int(time.time()) + 3600
            return {"casUrl": f"{self.url}/xet", "accessToken": "none", "exp": exp}
        if "/v1/xorbs/" in path:
            return {"was_inserted": True}
        if path.endswith("/v1/shards"):
            return {"result": 1}
        return {} if path == "/put" else None


class Watch(threading.Thread):
    """Keeps the largest RssAnon of a process. Linux only."""

    _FIELD = re.compile(rb"RssAnon:\s+(\d+) kB")

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.status = Path(f"/proc/{pid}/status")
        self.peak = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(PERIOD):
            try:
                found = self._FIELD.search(self.status.read_bytes())
            except OSError:
                return
            if found:
                self.peak = max(self.peak, 1024 * int(found[1]))


@contextmanager
def running(role: str, path: Path) -> Iterator[Server]:
    """This file as a server, in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--role", role, str(path), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    try:
        token = process.stdout.readline().strip() if process.stdout else ""
        wait_for(f"http://127.0.0.1:{port}/")
        watch.start()
        yield Server(f"http://127.0.0.1:{port}", token, watch)
    finally:
        watch.over.set()
        process.send_signal(signal.SIGINT)
        process.wait()


def wait_for(url: str) -> None:
    """Until anything answers there."""
    for _ in range(200):
        try:
            urllib.request.urlopen(url)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing answers at {url}")


# --- rounds


@dataclass
class Pairs:
    """Seconds on the hub and on the other server, round by round."""

    hub: list[float] = field(default_factory=list)
    other: list[float] = field(default_factory=list)

    def add(self, turn: int, hub: Any, other: Any) -> None:
        """Who goes first alternates."""
        if turn % 2:
            self.other.append(other())
            self.hub.append(hub())
        else:
            self.hub.append(hub())
            self.other.append(other())

    def line(self, what: str, most: float) -> str:
        ratio = statistics.median(a / b for a, b in zip(self.hub, self.other, strict=True))
        hub, other = statistics.median(self.hub), statistics.median(self.other)
        verdict = "ok" if ratio <= most else "TOO SLOW"
        return f"{what:28} {hub:7.2f} s {other:7.2f} s {ratio:6.2f} x (at most {most}) {verdict}"


def write_random(path: Path, mb: int) -> None:
    random = np.random.default_rng()
    with path.open("wb") as file:
        for _ in range(mb):
            file.write(random.bytes(1_000_000))
        file.flush()
        os.fsync(file.fileno())  # so that the disk does nothing else while the clock runs


def rounds(hub: Server, sink: Server, path: Path, options: argparse.Namespace) -> list[str]:
    lfs, xet, pull = Pairs(), Pairs(), Pairs()
    work = path.parent
    for turn in range(-1, options.rounds):
        pairs = (lfs, xet, pull) if turn >= 0 else (Pairs(), Pairs(), Pairs())  # one to warm up
        for kind, on in ((pairs[0], False), (pairs[1], True)):
            write_random(path, options.mb)
            kind.add(
                turn,
                lambda on=on: client(hub, "push", path, xet=on, work=work),
                lambda on=on: client(sink, "push", path, xet=on, work=work),
            )
        for again in range(PULLS):
            pairs[2].add(
                turn + again,
                lambda: client(hub, "pull", path, xet=True, work=work),
                lambda: client(sink, "pull", path, xet=True, work=work),
            )
    return [
        lfs.line(f"push {options.mb} MB, LFS, to a sink", 2.0),
        xet.line(f"push {options.mb} MB, Xet, to a sink", 2.0),
        pull.line(f"pull {options.mb} MB, to a file", 1.3),
    ]


def large(hub: Server, path: Path) -> list[str]:
    out = []
    for on in (False, True):
        write_random(path, LARGE_MB)
        seconds = client(hub, "push", path, xet=on, work=path.parent)
        out.append(f"push {LARGE_MB} MB, {'Xet' if on else 'LFS'}: {seconds:.1f} s")
    seconds = client(hub, "pull", path, xet=True, work=path.parent)
    return [*out, f"pull {LARGE_MB} MB: {seconds:.1f} s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=int, default=300, help="size of the file, in 10^6 bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="also a file of 2 GB each way")
    parser.add_argument("--role", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, place, port = options.role
        {"hub": run_hub, "sink": run_sink}[role](place, int(port))
        return
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = work / "random.bin"
        hub = stack.enter_context(running("hub", work / "home"))
        sink = stack.enter_context(running("sink", path))
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {options.rounds}")
        lines = rounds(hub, sink, path, options)
        print("\n".join([*lines, f"server memory: {hub.watch.peak / 1e6:.0f} MB anonymous"]))
        if options.large:
            print("\n".join(large(hub, path)))
            print(f"server memory: {hub.watch.peak / 1e6:.0f} MB anonymous (at most 300)")


if __name__ == "__main__":
    main()
