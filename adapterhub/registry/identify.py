"""Which base is an adapter for? From what its tensors tell, not from what its config says.

Bases that fit equally well are one candidate: siblings of equal shape are named together, never
guessed between. What the config says is told apart from that, and changes no ranking.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adapterhub import known_bases
from adapterhub.known_bases import KnownBase, Structure
from adapterhub.methods.signature import Signature
from adapterhub.registry.matching import Fit, Seen, compare, seen
from adapterhub.tensorfile import shown

Sure = Literal["shapes", "sizes", "width"]
Found = tuple[str, bool, Fit | str]  # name, whether it is of the catalogue, how it fits
_SHOWN = 6  # names in a sentence
_VOCABULARY = re.compile(r"(^|\.)(embed_tokens|word_embeddings|wte|shared|lm_head|embed_in)$")


@dataclass(frozen=True)
class Candidate:
    """Bases that fit equally well; `known` are of the catalogue, `registered` of the registry.

    `sure`: every module's "shapes" fit, one of the two "sizes" of each where the method has
    vectors only, or no more than the "width" of a prompt. `whole`: the adapter changes every
    layer. `declared`: the config names one of them.
    """

    known: tuple[str, ...]
    registered: tuple[str, ...]
    sure: Sure
    whole: bool
    why: str
    declared: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.registered, *self.known)))


@dataclass(frozen=True)
class Declared:
    """What the config says. `means`: the base of the catalogue or the registry that it names.

    `variant`: whether it names other weights of the same shape, those of an instruction version,
    say. `fits` is None where nobody knows that name; `why_not` says what does not fit.
    """

    text: str
    means: str | None
    fits: bool | None
    variant: bool = False
    why_not: str | None = None


@dataclass(frozen=True)
class Identification:
    """`candidates`, best first. `skipped`: registered bases that could not be looked into.

    `nothing_told`: no tensor of the adapter tells anything about its base.
    """

    candidates: tuple[Candidate, ...]
    declared: Declared | None
    sentence: str
    skipped: tuple[str, ...] = ()
    nothing_told: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def identify(
    signature: Signature,
    *,
    declared: str | None = None,
    registered: Mapping[str, Structure] | None = None,
    known: Iterable[KnownBase] | None = None,
    cut: bool = False,
    skipped: tuple[str, ...] = (),
) -> Identification:
    """Compare with every base. `registered`: name → structure; `known`: by default the catalogue.

    With `cut`, people chose the layers (`layers_to_transform`), and a base that has more of them
    is as likely as one that has just these.
    """
    told = seen(signature)
    bases = tuple(known_bases.known() if known is None else known)
    fits: list[Found] = [(base.name, True, compare(told, base.structure)) for base in bases]
    fits += [(name, False, compare(told, own)) for name, own in (registered or {}).items()]
    said = _declared(declared, fits) if declared else None
    structures = {base.name: base.structure for base in bases} | dict(registered or {})
    groups = [] if told.empty else _ranked(fits, cut)
    candidates = tuple(_candidate(told, group, said, structures) for group in groups)
    sentence = _sentence(told, candidates, said)
    return Identification(candidates, said, sentence, skipped, told.empty)


def _ranked(fits: Iterable[Found], cut: bool) -> list[list[tuple[str, bool, Fit]]]:
    """Those of equal evidence together, the best evidence first."""
    groups: dict[tuple[Any, ...], list[tuple[str, bool, Fit]]] = {}
    for name, is_known, fit in fits:
        if isinstance(fit, Fit):
            whole = (True, 0) if cut else (fit.whole, -fit.share)
            key = (len(fit.new), bool(fit.outer), fit.grown is not None, not whole[0], whole[1])
            groups.setdefault(key, []).append((name, is_known, fit))
    return [groups[key] for key in sorted(groups)]


def _candidate(
    told: Seen,
    group: list[tuple[str, bool, Fit]],
    said: Declared | None,
    structures: Mapping[str, Structure],
) -> Candidate:
    names = [name for name, _, _ in group]
    return Candidate(
        known=tuple(name for name, is_known, _ in group if is_known),
        registered=tuple(name for name, is_known, _ in group if not is_known),
        sure=_sure(told),
        whole=all(fit.whole for _, _, fit in group),
        why=_why(told, [fit for _, _, fit in group], [structures[name] for name in names]),
        declared=bool(said and said.means in names),
    )


def _sure(told: Seen) -> Sure:
    if told.groups:
        return "shapes" if told.sized else "sizes"
    return "shapes" if told.whole else "width"


# --- sentences --------------------------------------------------------------------------------


def _why(told: Seen, fits: list[Fit], structures: list[Structure]) -> str:
    parts = [_layers(fits), _width(structures)]
    if not told.groups and told.signature.kv_width:
        parts.append(f"keys {told.signature.kv_width} wide")
    if fits[0].outer:
        parts.append(f"inside a larger model, under {' and '.join(fits[0].outer)}")
    if fits[0].grown is not None:
        parts.append(f"but for its vocabulary of {fits[0].grown}")
    if fits[0].new:
        parts.append(f"which lack {', '.join(map(shown, fits[0].new[:3]))}")
    return ", ".join(part for part in parts if part) or "all its tensors fit"


def _layers(fits: list[Fit]) -> str:
    of = {fit.layers for fit in fits}
    count = fits[0].covered
    if not count:
        return ""
    if len(of) > 1:
        return f"{count} of its layers"
    total = of.pop()
    return _so_many(total) if total == count else f"{count} of {_so_many(total)}"


def _so_many(layers: int) -> str:
    return f"{layers} layer{'s' if layers > 1 else ''}"


def _width(structures: list[Structure]) -> str:
    widths = {structure.facts.width for structure in structures}
    return f"{widths.pop()} wide" if len(widths) == 1 and None not in widths else ""


def _sentence(told: Seen, candidates: tuple[Candidate, ...], said: Declared | None) -> str:
    if told.empty:
        text = "nothing in it tells about its base"
    elif not candidates:
        text = f"no base of the catalogue or the registry has {_looks(told)}"
    else:
        best = candidates[0]
        text = f"fits {_listed(best.names)}: {best.why}"
    if said is None:
        return text
    named = _first(candidates[0].names) if candidates else ()
    unseen = said.fits and candidates and said.means not in named
    return f"{text}; {_says(said)}{', and fits' if unseen else ''}"


def _first(names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are named, where there are many."""
    return names if len(names) <= _SHOWN + 1 else names[:_SHOWN]


def _listed(names: tuple[str, ...]) -> str:
    first = _first(names)
    rest = len(names) - len(first)
    last = f"{rest} more" if rest else first[-1]
    others = ", ".join(first if rest else first[:-1])
    return f"{others} and {last}" if others else last


def _says(said: Declared) -> str:
    text = f"the config says {said.text[:200]!r}"
    if said.means is not None and said.means.lower() != said.text.lower():
        text += f", {'a variant of' if said.variant else 'which is'} {said.means}"
    return f"{text}, but {said.why_not}" if said.why_not else text


def _declared(text: str, fits: Iterable[Found]) -> Declared:
    results = {name: fit for name, _, fit in fits}
    known = known_bases.named(text)
    own = text in results
    means = text if own else known.base.name if known else None
    if means is None or means not in results:
        return Declared(text, None, None)
    fit, variant = results[means], bool(known and known.variant and not own)
    if isinstance(fit, Fit):
        return Declared(text, means, True, variant)
    return Declared(text, means, False, variant, fit)


def _looks(told: Seen) -> str:
    """Width, layers and vocabulary, as far as they show: what to look for by hand."""
    signature = told.signature
    sizes = Counter(
        size
        for group in told.groups
        for size in group.size
        if size is not None and "*" in group.path.tail
        for _ in group.numbers
    )
    width = signature.width or (sizes.most_common(1)[0][0] if sizes else None)
    layers = {n[0] for g in told.groups if "*" in g.path.tail for n in g.numbers}
    count = signature.layers or len(layers)
    tokens = [item.shape[0] for item in told.whole if _VOCABULARY.search(item.path.tail)]
    tokens += [g.size[0] for g in told.groups if _VOCABULARY.search(g.path.tail) and g.size[0]]
    parts = [_so_many(count) if count else "", f"a width of {width}" if width else ""]
    parts += [f"a vocabulary of {tokens[0]}"] if tokens else []
    told_of = " and ".join(part for part in parts if part)
    examples = [group.example for group in told.groups] + [item.name for item in told.whole]
    example = f", as {shown(examples[0])} shows" if examples else ""
    return f"{told_of or 'such modules'}{example}"
