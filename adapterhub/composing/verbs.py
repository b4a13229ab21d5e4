"""`compose` for people: refs in, a version or a directory out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.adapter import Adapter
from adapterhub.composing.inputs import Input, input_of
from adapterhub.composing.plan import Options, Plan, plan
from adapterhub.composing.result import Report, adapter_of, check_out, report, write, write_into
from adapterhub.composing.run import run
from adapterhub.composing.wholes import AVERAGE, REFUSE
from adapterhub.errors import InvalidOption
from adapterhub.registry import Registry
from adapterhub.registry.opening import opened
from adapterhub.store import check_name

AdapterSpec = str | Path | tuple[str | Path, float]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Composition:
    """What was made: `version` (`name@sha256:…`) or `out`, one of them None."""

    version: str | None
    out: str | None
    report: Report

    def to_dict(self) -> dict[str, Any]:
        return {"version": self.version, "out": self.out, **self.report.to_dict()}


def compose(
    adapters: Sequence[AdapterSpec],
    *,
    method: str = "sum",
    name: str | None = None,
    out: str | Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    whole: str = REFUSE,
    seed: int = 0,
    force_base: bool = False,
    allow_pickle: bool = False,
    registry: Registry | None = None,
    on_plan: Callable[[Plan], Progress | None] | None = None,
) -> Composition:
    """Adapters of one base → one adapter: a version of `name`, or the new directory `out`.

    `adapters`: refs or paths, or pairs of one and its weight. `method`: see `compose --methods`;
    `parameters` are its own. `rank`, `energy`: truncate each module to a rank, or to the fewest
    singular values that keep this share of its energy, or both. `whole`: what becomes of heads and
    other tensors that are saved whole and differ: "refuse", "average", or the adapter (as it was
    given) whose tensors are taken. `seed`: of methods that drop elements by chance. `on_plan` is
    given the plan before anything is computed, and may return a function that is told of modules
    done.

    Raises InvalidOption, BaseMismatch, NotMergeable, NotSupported, OutputError; nothing is written
    then.
    """
    if (name is None) == (out is None):
        raise InvalidOption("give one of name and out", remedy="--name NAME, or --out DIR")
    if name is not None:
        check_name(name)
    else:
        check_out(Path(str(out)))
    with opened(registry) as reg:
        inputs = [_input(reg, spec, allow_pickle) for spec in adapters]
        options = Options(
            method=method,
            parameters=parameters or {},
            rank=rank,
            energy=energy,
            whole=_whole(whole, adapters, inputs),
            seed=seed,
            force_base=force_base,
        )
        planned = plan(inputs, options)
        done = run(planned, progress=on_plan(planned) if on_plan else None)
        made, told = adapter_of(planned, done), report(planned, done)
        if out is not None:
            write(planned, made, Path(out))
            return Composition(None, str(out), told)
        return Composition(_added(reg, str(name), planned, made), None, told)


def _input(registry: Registry, spec: AdapterSpec, allow_pickle: bool) -> Input:
    text, weight = spec if isinstance(spec, tuple) else (spec, 1.0)
    return input_of(registry.load(text, allow_pickle=allow_pickle), float(weight))


def _whole(whole: str, specs: Sequence[AdapterSpec], inputs: Sequence[Input]) -> str | int:
    """The number of the input that `whole` names, if it is neither of the two words."""
    if whole in (REFUSE, AVERAGE):
        return whole
    texts = [str(spec[0] if isinstance(spec, tuple) else spec) for spec in specs]
    places = [n for n, text in enumerate(texts) if whole in (text, inputs[n].name)]
    if len(places) != 1:
        raise InvalidOption(
            f"whole is {whole!r}, which {'several' if places else 'none'} of the adapters are",
            remedy=f"one of {REFUSE}, {AVERAGE}, {', '.join(texts)}",
        )
    return places[0]


def _added(registry: Registry, name: str, planned: Plan, made: Adapter) -> str:
    with tempfile.TemporaryDirectory(prefix="compose-") as place:
        directory = Path(place)
        write_into(planned, made, directory)
        sources = [each.digest or each.name for each in planned.inputs]
        origin = {"operation": "compose", "inputs": sources}
        return registry.add(directory, name=name, origin=origin).version
