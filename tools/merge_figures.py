"""What `bench_merge.py` prints of its rounds: costs, and ratios against the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from measured import Measured, Memory
from rich.table import Table

# What ran in one round, by name; rounds may lack some.
Round = Mapping[str, Measured]

COPY, R16, R64, COLD16, COLD64 = "copy", "r16", "r64", "r16 cold", "r64 cold"
TWO, VERIFY, PEFT, HASH = "two", "verify", "peft", "hash"
LABELS = {
    COPY: "cp -r --reflink=never + sync -f",
    R16: "merge r=16, warm digests",
    COLD16: "merge r=16, cold",
    TWO: "merge r=16 + r=16, warm",
    R64: "merge r=64, warm",
    COLD64: "merge r=64, cold",
    VERIFY: "verify --repeat r=16, warm",
    PEFT: "PEFT merge + save r=16",
    HASH: "sha256 of the base, this process",
}
MERGES = (R16, R64, COLD16, COLD64, TWO)
START = 0.7  # seconds allowed for what does not depend on the model's size
LIMIT_MB = 500.0


@dataclass(frozen=True)
class Target:
    """`value` is None where it could not be measured; `aside` are further figures in words."""

    what: str
    value: float | None
    limit: float
    at_least: bool = False
    aside: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def paired(
    rounds: Sequence[Round], names: Sequence[str], figure: Callable[..., float]
) -> float | None:
    """Median of `figure` over the rounds that have all of `names`; None without such a round."""
    found = [
        figure(*(each[name] for name in names))
        for each in rounds
        if all(name in each for name in names)
    ]
    return statistics.median(found) if found else None


def wall_ratio(rounds: Sequence[Round], name: str, other: str) -> float | None:
    return paired(rounds, (name, other), lambda x, y: x.wall / y.wall)


def beyond_start(rounds: Sequence[Round], name: str, start: float = START) -> float | None:
    """How many times (cp + sync) a merge takes that is allowed `start` seconds of its own."""
    return paired(rounds, (name, COPY), lambda x, y: (x.wall - start) / y.wall)


def peak_anonymous(rounds: Sequence[Round], names: Sequence[str] = MERGES) -> float | None:
    """MB, the highest of all runs of all these."""
    found = [each[name].memory.anonymous for each in rounds for name in names if name in each]
    return max(found) / 1e6 if found else None


def targets(rounds: Sequence[Round]) -> list[Target]:
    """What merging is measured by; each a median over paired rounds, but the memory a maximum."""
    return [
        _speed(rounds, R16, 1.3),
        _speed(rounds, R64, 1.5),
        _cold(rounds, R16, COLD16),
        _cold(rounds, R64, COLD64),
        _against_peft(rounds, "wall time", 6, lambda ours, peft: peft.wall / ours.wall),
        _against_peft(rounds, "CPU seconds", 8, lambda ours, peft: peft.cpu / ours.cpu),
        Target("peak anonymous memory of any merge, MB", peak_anonymous(rounds), LIMIT_MB),
        _second(rounds),
        Target("verify --repeat ÷ merge, r=16", wall_ratio(rounds, VERIFY, R16), 1),
    ]


def _speed(rounds: Sequence[Round], name: str, limit: float) -> Target:
    whole = wall_ratio(rounds, name, COPY)
    aside = "" if whole is None else f"merge ÷ (cp + sync) {whole:.2f}"
    rank = name.removeprefix("r")
    what = f"(merge − {START} s) ÷ (cp + sync), r={rank}"
    return Target(what, beyond_start(rounds, name), limit, aside=aside)


def _cold(rounds: Sequence[Round], warm: str, cold: str) -> Target:
    share = paired(rounds, (cold, warm, HASH), lambda x, y, h: (x.wall - y.wall) / h.wall)
    more = paired(rounds, (cold, warm), lambda x, y: x.wall - y.wall)
    one = paired(rounds, (HASH,), lambda h: h.wall)
    aside = "" if more is None or one is None else f"{more:+.2f} s, one pass {one:.2f} s"
    rank = warm.removeprefix("r")
    return Target(f"(cold − warm) ÷ one sha256 pass, r={rank}", share, 1, aside=aside)


def _against_peft(
    rounds: Sequence[Round], what: str, limit: float, figure: Callable[..., float]
) -> Target:
    value = paired(rounds, (R16, PEFT), figure)
    count = sum(R16 in each and PEFT in each for each in rounds)
    aside = f"of {count} paired round{'s' * (count != 1)}" if count else ""
    return Target(f"PEFT's {what} ÷ merge's, r=16", value, limit, at_least=True, aside=aside)


def _second(rounds: Sequence[Round]) -> Target:
    more = paired(rounds, (TWO, R16), lambda two, one: 100 * (two.wall / one.wall - 1))
    cpu = paired(rounds, (TWO, R16), lambda two, one: 100 * (two.cpu / one.cpu - 1))
    aside = "" if cpu is None else f"CPU seconds {cpu:+.0f} %"
    return Target("a second adapter of r=16 in the pass, % more wall", more, 25, aside=aside)


def same_roots(roots: Mapping[str, set[str]]) -> list[Target]:
    """Promise 2: whatever ran it, cold or warm, a merge has one weights_root."""
    most = max((len(found) for found in roots.values()), default=None)
    return [Target("weights_roots of one merge over all its runs", most, 1)]


# --- tables -----------------------------------------------------------------------------------


def cost_table(rounds: Sequence[Round], nbytes: int, missing: Mapping[str, str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("medians; memory: highest of all rounds")
    for title in ("wall s", "from … to", "GB/s", "CPU s", "system", "anon MB", "file MB", "HWM MB"):
        table.add_column(title, justify="right")
    for name, label in LABELS.items():
        found = [each[name] for each in rounds if name in each]
        if found:
            table.add_row(f"{label} ({len(found)}×)", *_cells(found, nbytes, name != HASH))
        elif name in missing:
            table.add_row(label, "not available")
    return table


def _cells(found: Sequence[Measured], nbytes: int, with_memory: bool) -> list[str]:
    walls = [each.wall for each in found]
    wall = statistics.median(walls)
    memory = found[0].memory
    for each in found:
        memory = memory.or_higher(each.memory)
    sizes = (memory.anonymous, memory.file_backed + memory.shared, memory.high_water)
    return [
        f"{wall:.2f}",
        f"{min(walls):.2f} … {max(walls):.2f}",
        f"{nbytes / 1e9 / wall:.2f}",
        f"{statistics.median(each.cpu for each in found):.2f}",
        f"{statistics.median(each.system for each in found):.2f}",
        *(f"{size / 1e6:.0f}" if with_memory else "–" for size in sizes),
    ]


def copy_parts(rounds: Sequence[Round]) -> str:
    copying, syncing = (paired(rounds, (COPY,), lambda c, i=i: c.walls[i]) or 0 for i in (0, 1))
    return f"of the copy: cp {copying:.2f} s, sync {syncing:.2f} s"


def _number(value: float | None) -> str:
    if value is None:
        return "not available"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def target_table(found: Sequence[Target]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("medians over paired rounds")
    for title in ("measured", "target", ""):
        table.add_column(title, justify="right")
    table.add_column("")
    marks = {True: "✓", False: "✗", None: "–"}
    for each in found:
        value = _number(each.value)
        sign = "≥" if each.at_least else "≤"
        table.add_row(each.what, value, f"{sign} {each.limit:g}", marks[each.met], each.aside)
    return table


# --- growing models ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    parameters: int
    nbytes: int
    rounds: Sequence[Round]

    def wall(self, name: str) -> float:
        return statistics.median(each[name].wall for each in self.rounds)

    @property
    def anonymous(self) -> float:
        """MB, the highest of all rounds."""
        return max(each[R16].memory.anonymous for each in self.rounds) / 1e6


def growth_table(sizes: Sequence[Size]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    titles = ("parameters", "GB", "cp+sync s", "GB/s", "merge s", "GB/s", "merge ÷ cp")
    for title in (*titles, f"(merge−{START}) ÷ cp", "anon MB", "file MB", "HWM MB"):
        table.add_column(title, justify="right")
    for size in sizes:
        memory = Memory()
        for each in size.rounds:
            memory = memory.or_higher(each[R16].memory)
        gigabytes, copy, merge = size.nbytes / 1e9, size.wall(COPY), size.wall(R16)
        figures = (gigabytes, copy, gigabytes / copy, merge, gigabytes / merge)
        ratios = (wall_ratio(size.rounds, R16, COPY), beyond_start(size.rounds, R16))
        table.add_row(
            f"{size.parameters / 1e9:.3g} B",
            *(f"{figure:.2f}" for figure in (*figures, *ratios)),
            f"{size.anonymous:.0f}",
            f"{(memory.file_backed + memory.shared) / 1e6:.0f}",
            f"{memory.high_water / 1e6:.0f}",
        )
    return table


def growth(sizes: Sequence[Size]) -> list[str]:
    """Whether memory is flat and time linear, in sentences."""
    by_size = sorted(sizes, key=lambda size: size.nbytes)
    small, large = by_size[0], by_size[-1]
    highest = max(size.anonymous for size in sizes)
    mark = "✓" if highest <= LIMIT_MB else "✗"
    lines = [f"{mark} anonymous memory: at most {highest:.0f} MB, target ≤ {LIMIT_MB:.0f} MB"]
    if large.nbytes == small.nbytes:
        return lines
    merge, copy = (large.wall(name) / small.wall(name) for name in (R16, COPY))
    slope = (large.wall(R16) - small.wall(R16)) / (large.nbytes - small.nbytes)
    start = small.wall(R16) - slope * small.nbytes
    lines.append(
        f"  {large.nbytes / small.nbytes:.1f} × the bytes: anonymous memory "
        f"× {large.anonymous / small.anonymous:.2f}, merge × {merge:.2f}, copy × {copy:.2f}"
    )
    lines.append(
        f"  line through the smallest and the largest: {start:.2f} s + {slope * 1e9:.2f} s per GB"
    )
    for size in by_size[1:-1]:
        expected = start + slope * size.nbytes
        lines.append(
            f"  at {size.parameters / 1e9:.3g} B it says {expected:.2f} s; measured "
            f"{size.wall(R16):.2f} s ({size.wall(R16) / expected - 1:+.0%})"
        )
    return lines
