"""The tree that the docstring of `errors` draws is the tree of its classes."""

from __future__ import annotations

import inspect
import re

import pytest

from adapterhub import errors
from adapterhub.errors import AdapterHubError

CLASSES = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, AdapterHubError)
}


def _drawn() -> dict[str, str]:
    """Class → parent, from the lines of the drawing; four columns are one level."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ((?:│   |├── |└── |    )*)([A-Z]\w+)\b", line):
            depth = len(found.group(1)) // 4
            path[depth:] = [found.group(2)]
            parents[path[depth]] = path[depth - 1] if depth else "Exception"
    return parents


def test_the_drawing_shows_every_class_under_its_parent() -> None:
    real = {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items()}
    assert _drawn() == real


def _example(cls: type[AdapterHubError]) -> AdapterHubError:
    if cls is errors.MissingExtra:
        return errors.MissingExtra("peft", "peft", "this")
    return cls("what", remedy="do")


def test_codes_are_kebab_case_and_unique() -> None:
    codes = [_example(cls).code for cls in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)
    assert errors.BaseMismatch("x").code == "base-mismatch"
    assert errors.InvalidTensorFile("x").code == "invalid-tensor-file"
    assert errors.NotFound("x").code == "not-found"


def test_text_is_message_then_details_then_remedy() -> None:
    error = AdapterHubError("it broke", remedy="mend it", details=["here", "there"])
    assert str(error) == "it broke\n  - here\n  - there\nRemedy: mend it"
    assert str(AdapterHubError("it broke")) == "it broke"
    assert error.details == ("here", "there")


def test_what_some_classes_add() -> None:
    assert errors.InvalidTensorFile("x", offset=8).offset == 8
    assert errors.InvalidTensorFile("x").offset is None
    missing = errors.MissingExtra("peft", "peft", "loading adapters")
    assert str(missing) == (
        "loading adapters needs the package peft, which is not installed\n"
        "Remedy: pip install 'adapterhub[peft]'"
    )


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
def test_every_class_is_caught_as_the_base(cls: type[AdapterHubError]) -> None:
    with pytest.raises(AdapterHubError) as caught:
        raise _example(cls)
    assert type(caught.value) is cls
