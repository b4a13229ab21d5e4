"""`compose` for people: refs in, a version or a directory out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from adapterhub.composing import recipe as recipes
from adapterhub.composing import tensorwise
from adapterhub.composing.cases import Cases, checked
from adapterhub.composing.inputs import Input, check_unchanged, check_weight, input_of
from adapterhub.composing.methods.table import method as find_method
from adapterhub.composing.plan import Options, plan
from adapterhub.composing.recipe import Recipe
from adapterhub.composing.result import Report, adapter_of, artefact, report
from adapterhub.composing.run import run
from adapterhub.composing.wholes import AVERAGE, REFUSE
from adapterhub.composing.window import Progress
from adapterhub.composing.writing import check_target, deliver
from adapterhub.digest import is_digest
from adapterhub.errors import AdapterHubError, BaseMismatch, InvalidOption, OutputError
from adapterhub.registry import Registry
from adapterhub.registry.opening import opened

AdapterSpec = str | Path | tuple[str | Path, float]


@dataclass(frozen=True)
class Composition:
    """What was made: `version` (`name@sha256:…`) or `out`, one of them None."""

    version: str | None
    out: str | None
    report: Report

    def to_dict(self) -> dict[str, Any]:
        return {"version": self.version, "out": self.out, **self.report.to_dict()}


def compose(
    adapters: Sequence[AdapterSpec] = (),
    *,
    recipe: str | Path | None = None,
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
    on_plan: Callable[[int], Progress | None] | None = None,
) -> Composition:
    """Adapters of one base → one adapter: a version of `name`, or the new directory `out`.

    `adapters`: refs or paths, or pairs of one and its weight. `method`: see `compose --methods`;
    `parameters` are its own. `rank`, `energy`: truncate each module to a rank, or to the fewest
    singular values that keep this share of its energy, or both. `whole`: what becomes of heads and
    other tensors that are saved whole and differ: "refuse", "average", or the adapter (as it was
    given) whose tensors are taken. `seed`: of methods that drop elements by chance. `recipe`: a
    YAML file that says all of this; `name` or `out` given here take the place of its own.
    `on_plan` is given the number of modules before anything is computed, and may return a function
    that is told of those done.

    An adapter that leaves a module alone counts there as one that adds zeros, but for methods that
    say otherwise: `average` divides by the weights of all. What is computed is stored in fp32,
    whatever the inputs are stored in: bf16 would lose up to 2⁻⁹ of each element.

    Raises InvalidOption, BaseMismatch, NotMergeable, NotSupported, OutputError; nothing is written
    then.
    """
    if recipe is not None:
        if adapters:
            raise InvalidOption(
                "a recipe names its adapters itself", remedy="give one or the other"
            )
        wanted = recipes.read(Path(recipe))
    else:
        models = _models(adapters)
        wanted = Recipe(method, models, parameters or {}, None, rank, energy, whole, seed)
    name, out = _place(wanted, name, out)
    options = _options(wanted, force_base)  # all that needs no file is checked before one is read
    with opened(registry) as reg:
        inputs = [_input(reg, spec, weight, allow_pickle) for spec, weight in wanted.models]
        if wanted.base_model is not None:
            _check_base(reg, wanted.base_model, inputs)
        options = replace(options, whole=_whole(wanted, inputs))
        if all(each.adapter.method == "lora" for each in inputs):
            planned = plan(inputs, options)
            done = run(planned, progress=on_plan(len(planned.sites)) if on_plan else None)
            made, told = adapter_of(planned, done), report(planned, done)
        else:
            planned, made = tensorwise.composed(inputs, options)
            told = report(planned, ())
        names = [each.name for each in inputs]
        check = partial(check_unchanged, inputs)
        version = deliver(artefact(planned, made), name, out, reg, names, check)
        return Composition(version, None if out is None else str(out), told)


def _place(
    wanted: Recipe, name: str | None, out: str | Path | None
) -> tuple[str | None, str | Path | None]:
    """Where to, which can be there and is free. Raises InvalidOption, InvalidName, OutputError."""
    if name is None and out is None:
        name, out = wanted.name, wanted.out and _expanded(wanted.out)
    check_target(name, out)
    return name, out


def _expanded(out: str) -> Path:
    try:
        return Path(out).expanduser()
    except RuntimeError as error:
        raise OutputError(
            f"{out!r:.200} names a home that nobody has", remedy="give the whole path"
        ) from error


def _models(adapters: Sequence[AdapterSpec]) -> tuple[tuple[str | Path, float], ...]:
    """Raises InvalidOption for what is no adapter, and no pair of one and its weight."""
    if isinstance(adapters, str | Path):
        raise InvalidOption(f"{adapters} alone is no list of adapters", remedy=f"[{adapters!r}]")
    pairs = [(spec, 1.0) if isinstance(spec, str | Path) else spec for spec in adapters]
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str | Path)):
            raise InvalidOption(
                f"{pair!r:.100} is no adapter", remedy="a ref, a path, or (one of them, a weight)"
            )
    return tuple((spec, check_weight(str(spec), weight)) for spec, weight in pairs)


def _options(wanted: Recipe, force_base: bool) -> Options:
    """Of a composition whose inputs are not read yet. Raises InvalidOption."""
    find_method(wanted.method).check_count(len(wanted.models))
    for spec, weight in wanted.models:
        checked(weight, partial(check_weight, str(spec)))
    return Options(
        method=wanted.method,
        parameters=wanted.parameters,
        rank=wanted.rank,
        energy=wanted.energy,
        weights={n: w for n, (_, w) in enumerate(wanted.models) if isinstance(w, Cases)},
        seed=wanted.seed,
        force_base=bool(force_base),
    )


def _check_base(registry: Registry, base: str, inputs: Sequence[Input]) -> None:
    """Raises BaseMismatch for adapters that are for another base than the recipe's."""
    try:
        root = registry.base.resolve(base).weights_root(registry.cache)
    except AdapterHubError:
        root = None  # not at hand: then its name has to do
    wrong = [
        f"{each.name} is for {each.base_name or 'it does not say which'}"
        for each in inputs
        if (each.base_root != root if each.base_root and root else each.base_name != base)
    ]
    if wrong:
        raise BaseMismatch(
            f"the recipe is for {base}", details=wrong, remedy="correct base_model, or the models"
        )


def _input(
    registry: Registry, spec: str | Path, weight: float | Cases, allow_pickle: bool
) -> Input:
    """`spec` may be the digest of a version, as the recipe of one that was made has it."""
    if isinstance(spec, str) and is_digest(spec):
        loaded = registry.load_version(spec)
    else:
        loaded = registry.load(spec, allow_pickle=allow_pickle)
    return input_of(loaded, float(weight.of("", 1.0) if isinstance(weight, Cases) else weight))


def _whole(wanted: Recipe, inputs: Sequence[Input]) -> str | int:
    """What `whole` says; the number of the input that it names, if it is neither of two words."""
    whole, texts = str(wanted.whole), [str(model) for model, _ in wanted.models]
    if whole in (REFUSE, AVERAGE):
        return whole
    places = [n for n, text in enumerate(texts) if whole in (text, inputs[n].name)]
    if len(places) != 1:
        raise InvalidOption(
            f"whole is {whole!r}, which {'several' if places else 'none'} of the adapters are",
            remedy=f"one of {REFUSE}, {AVERAGE}, {', '.join(texts)}",
        )
    return places[0]
