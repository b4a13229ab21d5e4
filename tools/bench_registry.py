"""Measures the registry with many adapters: search, list, refs, names, and one more add.

    python tools/bench_registry.py [--n 100000] [--home DIR]

Targets: search and a filtered page of the list under 50 ms; one add costs at most six fsyncs beyond
its blobs, and reads no directory.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from adapterhub import digest
from adapterhub.store import Filters, Store, files, refs

WORDS = "graph relation entity arsenal summary dialogue clinical legal polite news code poetry"
TEAMS = ("", "", "research/", "search/", "speech/")
TASKS = ("TOKEN_CLS", "SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION", None)
METHODS = ("lora",) * 18 + ("ia3", "dora")
TARGET_MS = 50.0
T = TypeVar("T")


def manifest(number: int, rng: random.Random) -> dict[str, Any]:
    rank = rng.choice((4, 8, 8, 16, 16, 32, 64, 128))
    base = rng.randrange(40)
    return {
        "schema": 1,
        "kind": "adapter",
        "format": "peft",
        "method": rng.choice(METHODS),
        "variants": [],
        "rank": {"min": rank, "max": rank, "pattern": {}},
        "alpha": 2 * rank,
        "targets": ["query", "value"],
        "dtype": "F32",
        "parameters": rank * 9216,
        "task": rng.choice(TASKS),
        "labels": ["O", "SRC", "REL", "TGT"],
        "base": {
            "name": f"org-{base % 7}/model-{base}",
            "revision": None,
            "structure_root": digest.of_bytes(b"structure %d" % base),
            "weights_root": digest.of_bytes(b"weights %d" % base),
            "quantization": None,
        },
        "files": [],
        "adapter_root": digest.of_bytes(b"adapter %d" % number),
        "lineage": None,
    }


def name_of(number: int, rng: random.Random) -> str:
    return f"{rng.choice(TEAMS)}{'-'.join(rng.sample(WORDS.split(), 2))}-{number:06d}"


def build(home: Path, count: int) -> list[str]:
    """Writes manifests and ref logs directly and without fsync; the index comes from reindex.

    What this leaves out (fsync, locks, intents, rows) is what `one_add` measures.
    """
    rng = random.Random(0)
    Store(home).close()
    names = []
    for number in range(count):
        data = digest.canonical(manifest(number, rng))
        digits = digest.sha256(data).hex()
        folder = home / "manifests" / "sha256" / digits[:2]
        folder.mkdir(exist_ok=True)
        (folder / digits).write_bytes(data)
        name = name_of(number, rng)
        tags = ["latest"] + ["production"] * (rng.random() < 0.02)
        moves = {"from_": None, "to": "sha256:" + digits, "op": "add", "origin": None}
        events = [refs.event("tag", tag=tag, **moves) for tag in tags]
        topics = [*rng.sample(WORDS.split(), 2), "adapter"]
        card = {"description": f"{' and '.join(topics)} number {number}", "topics": topics}
        card |= {"licence": rng.choice(("apache-2.0", "mit", "cc-by-4.0"))}
        path = refs.log_path(home / "refs", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(refs.encode((*events, refs.event("card", set=card, unset=[]))))
        names.append(name)
    return names


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Milliseconds, and what the action returned."""
    start = time.perf_counter()
    result = action()
    return (time.perf_counter() - start) * 1000, result


def quantiles(action: Callable[[], object], repeat: int) -> tuple[float, float, float]:
    times = sorted(timed(action)[0] for _ in range(repeat))
    return statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.95))], times[-1]


def questions(store: Store, names: list[str]) -> dict[str, Callable[[], object]]:
    rng = random.Random(1)
    deep = len(names) * 9 // 10
    middle = store.list(offset=deep, limit=1)[0].cursor
    some = [rng.choice(names) for _ in range(64)]
    wrong = [n[:3] + n[4:-2] + n[-1] + n[-2] for n in some] + ["rabbit", "x" * 128]
    table: dict[str, Callable[[], object]] = {}

    def ask(label: str, action: Callable[[], object]) -> None:
        table[label] = action

    for text in ("arsenal", "graph relation", "a", "adapter", "polite 0042", "zzz", some[0]):
        ask(f"search {text!r}", partial(store.search, text))
    ask("search 'adapter' method=ia3", lambda: store.search("adapter", Filters(method="ia3")))
    ask("search 'adapter' method=lora", lambda: store.search("adapter", Filters(method="lora")))
    ask("search 'number' rank>=900", lambda: store.search("number", Filters(rank_min=900)))
    pages: dict[str, Filters] = {
        "": Filters(),
        "method=ia3": Filters(method="ia3"),
        "base~model-7": Filters(base="model-7"),
        "root prefix": Filters(base=digest.of_bytes(b"weights 7")[:20]),
        "rank 16..32": Filters(rank_min=16, rank_max=32),
        "rank>=900 (none)": Filters(rank_min=900),
        "tag=production": Filters(tag="production"),
        "topic=adapter (all)": Filters(topic="adapter"),
        "topic=arsenal": Filters(topic="arsenal"),
        "task, licence, method": Filters(task="SEQ_CLS", licence="mit", method="dora"),
        "text=arsenal": Filters(text="arsenal"),
        "text=adapter (all)": Filters(text="adapter"),
        "nothing fits": Filters(topic="adapter", tag="production", base="no such", method="lora"),
    }
    for label, filters in pages.items():
        ask(f"list {label}", partial(store.list, filters))
    ask(f"list offset {deep}", lambda: store.list(offset=deep))
    ask("list after a cursor", lambda: store.list(after=middle))
    ask(
        "list by name, method=lora, deep",
        lambda: store.list(Filters(method="lora"), order="name", offset=len(names) // 2),
    )
    ask("count all", lambda: store.count())
    ask("resolve", lambda: store.resolve(rng.choice(some)))
    ask("nearest names", lambda: store.nearest(rng.choice(wrong)))
    ask("names by prefix", lambda: store.names("research/gr", 50))
    return table


class Calls:
    """Counts the store's own fsyncs and, with patches, reads of directories."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def hook(self, kind: str, path: Path) -> None:
        self.kinds[
            "fsync beyond blobs" if kind == "fsync" and "blobs" not in path.parts else ""
        ] += 1

    def counted(self, action: Callable[[], object]) -> float:
        scandir, listdir = os.scandir, os.listdir

        def scans(call: Callable[..., Any]) -> Callable[..., Any]:
            def inner(*arguments: Any) -> Any:
                self.kinds["scans"] += 1
                return call(*arguments)

            return inner

        files.HOOK = self.hook
        try:
            with mock.patch("os.scandir", scans(scandir)), mock.patch("os.listdir", scans(listdir)):
                return timed(action)[0]
        finally:
            files.HOOK = None


def one_add(store: Store, number: int) -> str:
    with store.writing():
        found = store.put_manifest(manifest(10_000_000 + number, random.Random(number)))
        store.add_version(f"bench-{number}", found, card={"topics": ["adapter"]})
    return found


def adds(store: Store, count: int) -> list[tuple[str, str]]:
    one_add(store, 0)
    times, fsyncs, scans = [], [], 0
    for number in range(1, count + 1):
        calls = Calls()
        times.append(calls.counted(partial(one_add, store, number)))
        fsyncs.append(calls.kinds["fsync beyond blobs"])
        scans += calls.kinds["scans"]
    return [
        ("one more add: median, ms", f"{statistics.median(times):.1f}"),
        ("one more add: slowest, ms", f"{max(times):.1f}"),
        ("one more add: fsyncs, median", f"{statistics.median(fsyncs):.0f}"),
        ("one more add: fsyncs, most", f"{max(fsyncs):.0f}"),
        ("one more add: directories read", str(scans)),
    ]


def fresh_process_fsyncs(home: Path) -> str:
    """All fsyncs of a process that opens, adds and closes, SQLite's too, as strace counts them."""
    tracer = shutil.which("strace")
    if tracer is None:
        return "strace is not installed"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import bench_registry as b;"
        "from pathlib import Path; s = b.Store(Path(sys.argv[2])); b.one_add(s, 99999); s.close()"
    )
    command = [tracer, "-f", "-c", "-e", "trace=fsync,fdatasync", sys.executable, "-c", code]
    command += [str(Path(__file__).parent), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stderr.splitlines() if "sync" in line]
    return str(sum(int(row[3]) for row in rows))


def run(home: Path, count: int, repeat: int) -> None:
    built, names = timed(lambda: build(home, count))
    print(f"{count} adapters: written in {built / 1000:.1f} s", flush=True)
    with Store(home) as store:
        store.names()  # makes the index
        indexed, _ = timed(store.reindex)
        print(f"index derived from them in {indexed / 1000:.1f} s", flush=True)
        print(f"\n{'question':<42}{'p50 ms':>9}{'p95 ms':>9}{'max ms':>9}")
        worst = 0.0
        for label, action in questions(store, names).items():
            p50, p95, most = quantiles(action, repeat)
            worst = max(worst, p95)
            print(f"{label[:41]:<42}{p50:>9.2f}{p95:>9.2f}{most:>9.2f}", flush=True)
        print()
        rows = adds(store, 128)
    rows.append(("open, add, close: all fsyncs, SQLite's included", fresh_process_fsyncs(home)))
    for label, value in rows:
        print(f"{label:<52}{value:>8}")
    print(f"\nslowest p95 {worst:.1f} ms, target {TARGET_MS:.0f} ms: {_verdict(worst)}")


def _verdict(worst: float) -> str:
    return "met" if worst < TARGET_MS else "MISSED"


def main(arguments: Mapping[str, Any]) -> None:
    if arguments["home"]:
        run(Path(arguments["home"]), arguments["n"], arguments["repeat"])
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "home", arguments["n"], arguments["repeat"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--n", type=int, default=100_000, help="how many adapters")
    parser.add_argument("--repeat", type=int, default=20, help="how often each question is asked")
    parser.add_argument("--home", help="an empty directory to use and to keep")
    main(vars(parser.parse_args()))
