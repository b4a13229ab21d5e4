"""`attach` and `load_model` for people: refs in, a model with adapters on out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import BaseMismatch, InvalidOption, NotFound
from adapterhub.merging import Source, inputs
from adapterhub.registry import Loaded, Registry
from adapterhub.registry.opening import opened
from adapterhub.registry.origin import Origin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adapterhub.base import Base
    from adapterhub.runtime import Attached

AdapterSpec = str | Path | tuple[str | Path, float]


def load_model(
    ref: str | Path,
    *,
    base: str | Path | None = None,
    force_base: bool = False,
    base_is_initialised: bool = False,
    allow_pickle: bool = False,
    registry: Registry | None = None,
) -> PreTrainedModel:
    """A transformers model of the adapter's task, with the adapter in its weights.

    The base is the one recorded with the version, found among the registered ones; `base` (a BASE)
    names another place. `base_is_initialised`: as in `merge`. Raises NotFound if the base is not at
    hand, BaseMismatch if it is another.
    """
    with opened(registry) as reg:
        loaded = reg.load(ref, allow_pickle=allow_pickle)
        recorded = (loaded.manifest or {}).get("base", {}).get("weights_root")
        found = reg.base.resolve(base) if base else reg.base.find(recorded, _base_name(loaded))
        if found is None:
            raise NotFound(
                f"the base of {loaded.name} is not at hand: "
                f"{_base_name(loaded) or 'no name is recorded'}",
                remedy="give base=DIR, or register it: adapterhub base add DIR",
            )
        if recorded and not force_base and found.weights_root(reg.cache) != recorded:
            raise BaseMismatch(
                f"{found.path} is not the base recorded with {loaded.name}",
                remedy="give the recorded base, or force_base=True to use this one",
            )
    from adapterhub import runtime

    source = inputs.source_of(loaded)
    return runtime.load(found, source, base_is_initialised=base_is_initialised)


def attach(
    model: PreTrainedModel,
    adapters: AdapterSpec | Sequence[AdapterSpec],
    *,
    weight: float = 1.0,
    restore: str = "memory",
    base: str | Path | None = None,
    force_base: bool = False,
    base_is_initialised: bool = False,
    with_head: bool = True,
    allow_pickle: bool = False,
    registry: Registry | None = None,
) -> Attached:
    """Adapters on a transformers model that is in memory; off it again, bit for bit, at `detach`.

    `adapters`: a ref or path, a pair of one and its weight, or several in a list. `weight`: that of
    a single adapter. What merges goes into the weights, with the bits of `merge`; what does not
    runs beside them. `restore` says where the original bits are until then: "memory" keeps a copy
    of each changed tensor (`Attached.memory` says how many bytes), "base" reads them again from the
    files of `base` (a BASE; by default the one recorded with the adapter, else the directory that
    the model was loaded from), which are compared with the model first. `base_is_initialised`: as
    in `merge`. `with_head=False` leaves out the head that the adapter brings; `Attached.fates`
    lists what that is.

    A weight that the model shares under several names is taken apart where an adapter changes one
    of them only, and is shared again after `detach`.

    Shapes are always compared. The weights_root that an adapter records is compared with that of
    the files which `base` or the model's `name_or_path` names, if they were hashed before (as by
    `base add`, or a merge) or are no more than 1 GiB; `force_base` attaches all the same. Of a
    model whose origin cannot be told so, or which comes from quantised files, shapes are all.

        with ah.attach(model, "nli-graph") as attached:
            model(**inputs)
            attached.switch("nli-labels", weight=0.5)

    Raises BaseMismatch with all that does not fit, NotMergeable, NotSupported, AlreadyExists; the
    model is then as it was.
    """
    from adapterhub import runtime

    if restore not in runtime.RESTORE:
        raise InvalidOption(f"restore={restore!r}", remedy=f"one of {', '.join(runtime.RESTORE)}")

    with opened(registry) as reg:
        given = reg.base.resolve(base) if base is not None else None
        origin = Origin(model, reg.cache, given)

    def find(spec: Any, weight: float) -> Source:
        with opened(registry) as reg:
            pair = spec if isinstance(spec, tuple) else (spec, weight)
            source = inputs.source_of(reg.load(pair[0], allow_pickle=allow_pickle), float(pair[1]))
        if not force_base:
            origin.refuse_other(source.name, source.base_weights_root)
        return source

    single = isinstance(adapters, str | Path | tuple)
    specs: list[Any] = [adapters] if single else list(adapters)  # type: ignore[arg-type]
    if weight != 1.0 and (len(specs) != 1 or isinstance(specs[0], tuple)):
        raise InvalidOption("weight=… is that of a single adapter", remedy="give pairs: (ref, 0.5)")
    sources = [find(spec, weight) for spec in specs]
    files = given
    if restore == "base" and files is None:
        with opened(registry) as reg:
            files = _base_of(reg, model, sources)
    how = runtime.How(with_head=with_head, base_is_initialised=base_is_initialised)
    kept = files if restore == "base" else None
    return runtime.attach(model, sources, base=kept, find=find, how=how)


def _base_of(registry: Registry, model: PreTrainedModel, sources: Sequence[Source]) -> Base:
    """The files that a model in memory came from, as far as anybody says."""
    roots = [source.base_weights_root for source in sources if source.base_weights_root]
    found = registry.base.find(roots[0], None) if roots else None
    name = getattr(model, "name_or_path", None)
    if found is None and name:
        path = Path(name)
        found = registry.base.resolve(path if path.is_dir() else name)
    if found is None:
        raise NotFound(
            "nobody says which files this model was loaded from",
            remedy='give base=DIR, or restore="memory"',
        )
    return found


def _base_name(loaded: Loaded) -> str | None:
    return loaded.adapter.base.name
