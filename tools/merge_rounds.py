"""What `bench_merge.py` runs: one model with its adapters, and rounds of the commands to time."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from measured import Measured, run
from merge_figures import (
    COLD16,
    COLD64,
    COPY,
    HASH,
    LABELS,
    MERGES,
    PEFT,
    R16,
    R64,
    TWO,
    VERIFY,
    Round,
)
from page_cache import Filler
from random_llama import Llama, write_adapter, write_base

from adapterhub import kernels
from adapterhub.tensorfile import open_checkpoint, tensor_digests, usable_cores

PEFT_PROGRAM = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""
# Seconds; a file that changed within 2 before it was hashed is not remembered by the digest cache.
QUIET = 2.1
Command = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where everything lies. `out` is what the timed commands write."""

    root: Path
    filler: Filler | None = None

    def adapter(self, name: str) -> str:
        return str(self.root / f"adapter-{name}")

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def out(self) -> Path:
        return self.root / "out" / "model"

    @property
    def merged(self) -> Path:
        """The merge of r=16, kept to be verified."""
        return self.root / "merged"

    @property
    def home(self) -> Path:
        return self.root / "home"

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "ADAPTERHUB_HOME": str(self.home),
            "OMP_NUM_THREADS": str(usable_cores()),
            "HF_HUB_OFFLINE": "1",
        }

    def clear(self, *also: Path) -> None:
        """No output, no dirty pages; memory full, with the inputs and `also` in it."""
        shutil.rmtree(self.out.parent, ignore_errors=True)
        self.out.parent.mkdir()
        os.sync()
        if self.filler:
            self.filler.fill()
        inputs = [*also, self.base, *self.root.glob("adapter-*")]
        for path in (path for directory in inputs for path in directory.iterdir()):
            _read(path)


def _read(path: Path) -> None:
    piece = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


class Bench:
    """One model, its adapters, and the commands to time."""

    def __init__(
        self, root: Path, model: Llama, ranks: Mapping[str, int], filler: Filler | None = None
    ) -> None:
        self.place = Place(root, filler)
        self.model = model
        self.ranks = ranks
        self.missing: dict[str, str] = {}
        self.roots: dict[str, set[str]] = {}

    def build(self) -> int:
        """Write the inputs; the number of shards."""
        shards = write_base(self.place.base, self.model)
        for seed, (name, rank) in enumerate(self.ranks.items(), 1):
            write_adapter(Path(self.place.adapter(name)), self.model, rank, seed=seed)
        return shards

    def fill_cache(self) -> None:
        """The first merge, not timed: fills the digest cache and is what `verify` looks at."""
        time.sleep(QUIET)
        done = run([self._merge(self.place.merged, "16")], self.place.environment())
        if done.status:
            raise SystemExit(f"the first merge failed:\n{done.err or done.out}")
        self._note_root(R16, done)

    @cached_property
    def commands(self) -> dict[str, tuple[Command, ...]]:
        place, base, out = self.place, str(self.place.base), str(self.place.out)
        verify = ("verify", str(place.merged), "--repeat", "--base", base)
        one, wide = self._merge(place.out, "16"), self._merge(place.out, "64")
        return {
            COPY: (("cp", "-r", "--reflink=never", base, out), ("sync", "-f", out)),
            R16: (one,),
            COLD16: (one,),
            TWO: (self._merge(place.out, "16=0.7", "16-other=-0.3"),),
            R64: (wide,),
            COLD64: (wide,),
            VERIFY: (_program(*verify, "--adapter", place.adapter("16")),),
            PEFT: ((sys.executable, "-c", PEFT_PROGRAM, base, place.adapter("16"), out),),
        }

    def _merge(self, out: Path, *adapters: str) -> Command:
        paths = map(self.place.adapter, adapters)
        return _program("merge", str(self.place.base), *paths, "--out", str(out), "--quiet")

    def measure(self, name: str) -> Measured | None:
        """None, and the reason in `missing`, for what cannot run here; merging and copying must."""
        self.place.clear(*([self.place.merged] if name == VERIFY else []))
        if name == HASH:
            return self._hash()
        if name in (COLD16, COLD64):
            shutil.rmtree(self.place.home / "cache" / "leaves")
        done = run(self.commands[name], self.place.environment())
        if done.status and name in (VERIFY, PEFT):
            self.missing[name] = _failure(done)
            return None
        if done.status:
            raise SystemExit(f"{LABELS[name]} failed:\n{done.err or done.out}")
        if name in MERGES:
            self._note_root(name, done)
        return done

    def _hash(self) -> Measured:
        start, before = time.perf_counter(), os.times()
        tensor_digests(open_checkpoint(self.place.base).tensors)
        wall, after = time.perf_counter() - start, os.times()
        return Measured(wall, after.user - before.user, after.system - before.system)

    def _note_root(self, name: str, done: Measured) -> None:
        merge = {COLD16: R16, COLD64: R64}.get(name, name)
        self.roots.setdefault(merge, set()).add(done.out.strip())

    def rounds(
        self, names: Sequence[str], count: int, peft: int = 0
    ) -> Iterator[dict[str, Measured]]:
        """All of `names`, in turns from first to last and from last to first.

        A copy before them does not count: on virtual machines memory and disk blocks that were
        never used before cost more, and who ran first would pay for that.
        """
        self.measure(COPY)
        for number in range(count):
            wanted = [n for n in names if n not in self.missing and (n != PEFT or number < peft)]
            found: dict[str, Measured] = {}
            for name in wanted if number % 2 == 0 else reversed(wanted):
                done = self.measure(name)
                if done is not None:
                    found[name] = done
                _say(f"round {number + 1} of {count}: {LABELS[name]:34}", done)
            yield found
        self.place.clear()

    def record(self, rounds: Sequence[Round]) -> dict[str, Any]:
        """All raw figures, for --json."""
        model = self.model
        return {
            "parameters": model.parameters,
            "bytes": model.nbytes,
            "config": model.config,
            "cores": usable_cores(),
            "kernel": kernels.name,
            "weights_roots": {name: sorted(found) for name, found in self.roots.items()},
            "not_available": self.missing,
            "rounds": [{name: each.record() for name, each in one.items()} for one in rounds],
        }


def _say(what: str, done: Measured | None) -> None:
    print(what, f"{done.wall:7.2f} s" if done else "not available", file=sys.stderr, flush=True)


def _program(*arguments: str) -> Command:
    return (sys.executable, "-m", "adapterhub", *arguments)


def _failure(done: Measured) -> str:
    """The exit code, and the line that names the error."""
    lines = (done.err.strip() or done.out.strip()).splitlines() or [""]
    errors = [line for line in lines if re.match(r"[\w.]*Error:", line)]
    return f"exit code {done.status}: {(errors or lines)[-1]}"
