"""A plain state dict of biases, as a loop over `named_parameters()` saves after BitFit.

    bert.encoder.layer.0.attention.self.query.bias     [out]
    classifier.weight                                  of a head that was trained with them

One file without a config, all of whose names end in `.bias`, but for those of a head: it is BitFit,
whatever trained it. `requires_grad` of the trained model is the whole truth about such a file, so
that nothing is guessed here but the method. A pickle is read with consent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from adapterhub.adapter import REPLACE, Adapter, Outline, Reading
from adapterhub.errors import NotSupported
from adapterhub.formats import statedict
from adapterhub.formats.contents import Content
from adapterhub.formats.sight import Sight
from adapterhub.tensorfile import Tensor, shown, write_file

FORMAT = "biases"
METHOD = "bitfit"
_FILE = "biases.safetensors"
_BIAS = re.compile(r"[^:]+\.bias")
_HEAD = re.compile(r"(classifier|score|qa_outputs)(\.[^:.]+)*\.weight")


def recognises(sight: Sight) -> bool:
    return not sight.has_config and sight.find(_is_biases) is not None


def _is_biases(content: Content) -> bool:
    if content.kind not in ("pickle", "safetensors") or content.others:
        return False
    names = content.shapes
    biases = [name for name in names if _BIAS.fullmatch(name)]
    own = [name for name in biases if not name.startswith(("classifier", "score", "qa_outputs"))]
    flat = all(shape is None or len(shape) == 1 for n in biases for shape in (names[n],))
    return bool(own) and flat and all(n in biases or _HEAD.fullmatch(n) for n in names)


def _modules(tensors: Mapping[str, Tensor]) -> statedict.Modules:
    modules: statedict.Modules = {}
    for name in sorted(tensors):
        module, _, parameter = name.rpartition(".")
        modules.setdefault(module, {})[REPLACE + parameter] = tensors[name]
    return modules


_KIND = statedict.Kind(FORMAT, METHOD, _FILE, "files of biases", _modules)


def read(sight: Sight, *, allow_pickle: bool) -> Reading:
    found = sight.all(_is_biases)
    return statedict.reading(_KIND, sight, found, allow_pickle, outline=Outline())


def spelled(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors under their names in the model. Raises NotSupported."""
    found = {}
    for module, role, tensor in adapter.tensors():
        name = f"{module}.{role.removeprefix(REPLACE)}"
        fits = role.startswith(REPLACE) and (_BIAS.fullmatch(name) or _HEAD.fullmatch(name))
        if adapter.method != METHOD or not module or not fits:
            raise NotSupported(
                f"a state dict of biases has no place for {shown(f'{module}.{role}')} "
                f"({adapter.method})",
                remedy="write it as native",
            )
        found[name] = tensor
    return dict(sorted(found.items()))


def write(adapter: Adapter, directory: Path) -> None:
    """Raises NotSupported for what the names cannot say."""
    tensors = spelled(adapter)
    if adapter.config:
        raise NotSupported(
            "a state dict of biases has no config, and this adapter has one",
            remedy="write it as native",
        )
    write_file(directory / _FILE, tensors)
