"""The methods whose tensors `layouts` describes: recognised and checked, and not merged yet.

For methods without a layout only the config is checked; their tensors stand as their format's
reader placed them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from adapterhub import schema
from adapterhub.adapter import REPLACE, Adapter, Problem
from adapterhub.errors import InvalidAdapter, NotMergeable
from adapterhub.methods import saved, sizes, targets
from adapterhub.methods.beside import bottlenecks, widths
from adapterhub.methods.interface import Ranks
from adapterhub.methods.layout import Layout, Misfit, Sizes, bind, foreign, lacking, product
from adapterhub.methods.meaning import Meaning, Replacement
from adapterhub.methods.native_layouts import layout_of
from adapterhub.methods.signature import Signature
from adapterhub.methods.table import method
from adapterhub.tensorfile import Tensor, shown

REMEDY = "re-export the adapter with the config that it was trained with"
_MOST = 10  # of one kind of problem
# What stands beside the model's modules, or in places without a weight, so that only widths tell.
_BESIDE = ("adaption_prompt", "compacter", "shadow")
_PROMPTS = ("prefix_tuning", "prompt_tuning")
# What counts places or names them, and so is whole numbers.
_WHOLE_NUMBERS = ("indices", "_size", "seg_result")


def problems(adapter: Adapter) -> list[Problem]:
    found = config_problems(adapter)
    if any(problem.fatal for problem in found):
        return found
    if not adapter.modules:
        return [*found, _fatal("no-tensors", "the weights hold no tensor")]
    found += _capped(_dtype_problems(adapter))
    layout = layout_of(adapter.method)
    if layout is not None:
        found += _capped(_layout_problems(adapter, layout))
    found += saved.problems(adapter)
    return found + targets.problems(adapter)


def foreign_problems(adapter: Adapter) -> list[Problem]:
    """For tensors that another format has of this method: the config, and dtypes."""
    return [*config_problems(adapter), *_capped(_dtype_problems(adapter))]


def config_problems(adapter: Adapter) -> list[Problem]:
    row = method(adapter.method)
    sentences = schema.problems(dict(adapter.config), row.schema)
    return [
        _fatal("config", f"adapter_config.json: {sentence}", "correct the field")
        for sentence in sentences
    ]


def _fatal(code: str, message: str, remedy: str = REMEDY) -> Problem:
    return Problem(code, message, remedy, fatal=True)


def _capped(found: Iterator[Problem]) -> list[Problem]:
    """No more than a few of each code, and how many there are beside them."""
    kept: list[Problem] = []
    counts: dict[str, int] = {}
    for problem in found:
        counts[problem.code] = counts.get(problem.code, 0) + 1
        if counts[problem.code] <= _MOST:
            kept.append(problem)
    more = {code: count - _MOST for code, count in counts.items() if count > _MOST}
    return kept + [_fatal(code, f"{n} more like that ({code})") for code, n in more.items()]


def _own(roles: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without whole tensors, and without the rows of tokens that LoRA's kin may bring."""
    return {name: tensor for name, tensor in roles.items() if not name.startswith(REPLACE)}


def _dtype_problems(adapter: Adapter) -> Iterator[Problem]:
    for module, role, tensor in adapter.tensors():
        whole = any(word in role for word in _WHOLE_NUMBERS)
        if not (whole or role.startswith(REPLACE) or tensor.dtype.startswith(("F", "BF"))):
            text = f"{_at(module, role)} is {tensor.dtype}, expected a float type"
            yield _fatal("dtype", text)


def _at(module: str, role: str) -> str:
    return shown(f"{module}.{role}" if module else role)


# --- tensors against each other and against the config ----------------------------------------


def _layout_problems(adapter: Adapter, layout: Layout) -> Iterator[Problem]:
    is_saved = adapter.config.get("save_projection") is not False
    common: Sizes = {}
    for module, roles in sorted(adapter.modules.items()):  # "" comes first
        form = layout.shared if module == "" else _form(layout, roles, is_saved)
        if module and not _is_adapted(roles, layout):
            continue
        if not module and not layout.shared and adapter.format == "native" and _own(roles):
            name = shown(next(iter(_own(roles))))
            yield _fatal("odd-tensors", f"{name} belongs to no module, and none of these does")
            continue
        yield from _role_problems(module, _own(roles), form, is_saved)
        try:
            found = _bound(adapter, layout, module, roles, common)
        except Misfit as error:
            yield _fatal("shape", f"{shown(module)}: {error}" if module else str(error))
            continue
        common = {name: size for name, size in found.items() if name.startswith("@")}
        yield from _size_problems(adapter, layout, module, found)
    missing = lacking(layout.shared, list(adapter.modules.get("", {})), saved=is_saved)
    if missing and "" not in adapter.modules:
        yield _fatal("missing-tensors", f"the weights hold no {', '.join(missing)}")
    adapted = any(_is_adapted(roles, layout) for m, roles in adapter.modules.items() if m)
    if layout.forms and not layout.shared and not adapted:
        text = "the weights hold whole tensors only, and none of the method's own"
        yield Problem("no-own-tensors", text, "check that the right modules were targeted")


def _is_adapted(roles: Mapping[str, Tensor], layout: Layout) -> bool:
    return bool(layout.forms) and bool(_own(roles))


def _form(layout: Layout, roles: Mapping[str, Tensor], is_saved: bool) -> str:
    """The form that comes nearest to these roles."""
    names = list(_own(roles))
    if not layout.forms:
        return ""
    return min(
        layout.forms, key=lambda f: len(lacking(f, names, saved=is_saved)) + len(foreign(f, names))
    )


def _role_problems(
    module: str, roles: Mapping[str, Tensor], form: str, is_saved: bool
) -> Iterator[Problem]:
    missing, others = lacking(form, list(roles), saved=is_saved), foreign(form, list(roles))
    if missing:
        text = f"{_at(module, next(iter(roles), ''))} has no {', '.join(missing)} beside it"
        yield _fatal("missing-tensors", text)
    elif others and form:
        text = f"{_at(module, others[0])} does not go with the tensors beside it"
        yield _fatal("odd-tensors", text)


def _bound(
    adapter: Adapter,
    layout: Layout,
    module: str,
    roles: Mapping[str, Tensor],
    common: Mapping[str, int],
) -> Sizes:
    """The sizes of one module, by the first form that fits. Raises Misfit."""
    own = _own(roles)
    misfit: Misfit | None = None
    for form in (layout.shared,) if module == "" else _fitting(layout, list(own)):
        try:
            found = bind(form, own, common)
            derived = layout.derive(found, adapter.config) if layout.derive and module else {}
            return found | derived
        except Misfit as error:
            misfit = misfit or error
        except KeyError:  # a tensor is missing, which is said elsewhere
            return found
    if misfit:
        raise misfit
    return dict(common)


def _fitting(layout: Layout, names: Sequence[str]) -> list[str]:
    """The forms that know all of these roles, and lack the fewest."""
    known = [form for form in layout.forms if not foreign(form, names)]
    least = min((len(lacking(form, names, saved=False)) for form in known), default=0)
    return [form for form in known if len(lacking(form, names, saved=False)) == least]


def _size_problems(
    adapter: Adapter, layout: Layout, module: str, found: Sizes
) -> Iterator[Problem]:
    for name, size in layout.sizes.items():
        if name not in found or (name.startswith("@") and module and name != layout.rank):
            continue
        try:
            said = sizes.contradiction(adapter, size, module, found[name], _sides(layout, found))
        except InvalidAdapter as error:
            yield _fatal("pattern", error.message, error.remedy)
            return
        if said:
            code = "rank-mismatch" if name == layout.rank else "config-mismatch"
            what = "rank" if name == layout.rank else name.lstrip("@")
            where = f"{shown(module)} has" if module else "the weights have"
            yield _fatal(code, f"{where} {what} {found[name]}, {said}", "correct it or re-export")
    if module and "token_rows" in adapter.modules[module]:
        yield from _row_problems(adapter, module, found)


def _row_problems(adapter: Adapter, module: str, found: Sizes) -> Iterator[Problem]:
    indices = adapter.config.get("token_indices")
    if isinstance(indices, list) and found.get("tokens") not in (None, len(indices)):
        text = f"{shown(module)} has {found['tokens']} rows of tokens, config names {len(indices)}"
        yield _fatal("config-mismatch", text)


def _sides(layout: Layout, found: Mapping[str, int]) -> tuple[int | None, int | None]:
    return product(layout.out, found), product(layout.into, found)


# --- what the tensors tell --------------------------------------------------------------------


def ranks(adapter: Adapter) -> Ranks | None:
    layout = layout_of(adapter.method)
    if layout is None or not layout.rank:
        beside = widths(adapter)
        return Ranks(beside) if beside and method(adapter.method).rank else None
    found = {m: bound.get(layout.rank, 0) for m, bound in _all_bound(adapter, layout) if m}
    found = {module: rank for module, rank in found.items() if rank > 0}  # AdaLoRA may prune all
    return Ranks(found) if found else None


def _all_bound(adapter: Adapter, layout: Layout) -> Iterator[tuple[str, Sizes]]:
    """The sizes of every module whose tensors do not contradict each other."""
    common: Sizes = {}
    for module, roles in sorted(adapter.modules.items()):
        if module and not _is_adapted(roles, layout):
            continue
        try:
            found = _bound(adapter, layout, module, roles, common)
        except Misfit:
            continue
        common = {name: size for name, size in found.items() if name.startswith("@")}
        yield module, found


def signature(adapter: Adapter) -> Signature:
    layout = layout_of(adapter.method)
    if beside := bottlenecks(adapter):
        return beside
    other = adapter.format == "adapterhub" and adapter.method in _PROMPTS
    if adapter.method in _BESIDE or other:
        return Signature(whole=_whole(adapter), width=_width(adapter))
    if layout is None or layout.whole:
        return Signature(dict.fromkeys(_touched(adapter), (None, None)), _whole(adapter))
    bound = dict(_all_bound(adapter, layout))
    modules = {m: _sides(layout, bound.get(m, {})) for m in _touched(adapter)}
    width, layers, kv_width = sizes.prompt(adapter, bound)
    return Signature(modules, _whole(adapter), width, layers, kv_width)


def _width(adapter: Adapter) -> int | None:
    """Of LLaMA-Adapters, (1, tokens, width); AdapterHub's prompts, (tokens, width); Compacter's
    biases, (width,)."""
    roles = {"adaption_prompt": 3, "prompt_embedding.weight": 2, "adapter_up.b": 1}
    found = [t.shape for _, r, t in adapter.tensors() if roles.get(r) == len(t.shape)]
    return found[0][-1] if found else None


def _touched(adapter: Adapter) -> Sequence[str]:
    return [module for module, roles in adapter.modules.items() if module and _own(roles)]


def _whole(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    return {
        f"{module}.{role.removeprefix(REPLACE)}": tensor.shape
        for module, role, tensor in adapter.tensors()
        if role.startswith(REPLACE)
    }


# --- merging ----------------------------------------------------------------------------------


def parts(adapter: Adapter) -> Meaning:
    """The whole tensors; what the method itself does is nobody's part yet.

    Not the heads of AdapterHub, which are modules of its own classes.
    """
    if adapter.format == "adapterhub":
        return ()
    return tuple(
        Replacement(module, role.removeprefix(REPLACE), tensor, role)
        for module, role, tensor in adapter.tensors()
        if role.startswith(REPLACE)
    )


def meaning(adapter: Adapter, *, base_is_initialised: bool = False) -> Meaning:
    """Raises NotMergeable."""
    row = method(adapter.method)
    ways = {
        "yes": "the mathematics allows it, and this version does not do it yet",
        "base": "the mathematics allows it, with the base's own weights, and this version does not "
        "do it yet",
        "no": "what it does is no change of the base's weights",
    }
    if row.does == ("attach",):
        raise NotMergeable(
            f"{row.title} ({adapter.method}) cannot be merged: {ways[row.mathematics.merge]}",
            remedy="attach it to a model in memory: ah.attach(model, REF), or ah.load_model(REF)",
        )
    loader = "peft" if row.peft_type else "the library that it comes from"
    by_hand = "merge it with peft: PeftModel.from_pretrained(…).merge_and_unload()"
    can = row.mathematics.merge != "no" and row.peft_type
    raise NotMergeable(
        f"{row.title} ({adapter.method}) cannot be merged or loaded here: "
        f"{ways[row.mathematics.merge]}",
        remedy=by_hand if can else f"load it with {loader}",
    )


def idle(adapter: Adapter) -> tuple[tuple[str, str, str], ...]:
    return ()
