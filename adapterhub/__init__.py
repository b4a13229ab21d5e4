"""A registry for adapters: keep them, find them, merge them, know which base they belong to.

    import adapterhub as ah

See `adapterhub.api` for the verbs. Names are imported when first used, so that `import adapterhub`
costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adapterhub.api import (
        attach,
        compare,
        compose,
        extract,
        inspect,
        load_model,
        merge,
        open,
        plan_merge,
        plan_push,
        pull,
        push,
        push_all,
        resize,
        verify_directory,
    )
    from adapterhub.errors import AdapterHubError
    from adapterhub.registry import Filters, Registry

__all__ = [
    "AdapterHubError",
    "Filters",
    "Registry",
    "attach",
    "compare",
    "compose",
    "extract",
    "inspect",
    "load_model",
    "merge",
    "open",
    "plan_merge",
    "plan_push",
    "pull",
    "push",
    "push_all",
    "resize",
    "verify_directory",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'adapterhub' has no attribute {name!r}")
    from adapterhub import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
