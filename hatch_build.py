"""The package's build hook: compile the merge kernel if there is a compiler."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

KERNELS = Path("adapterhub", "kernels")


class KernelBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Wheels and editable installs get `_merge.so`; without a compiler they get numpy's pace."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        build = _load(Path(self.root, KERNELS, "build.py"))
        try:
            library: Path = build.build()
        except build.BuildError as error:
            # One left over from an earlier build could belong to other sources.
            build.LIBRARY.unlink(missing_ok=True)
            self.app.display_warning(f"{error}\nMerges will use the exact numpy fallback.")
            return
        build_data["artifacts"].append(f"/{(KERNELS / library.name).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"  # no ABI of Python is used


def platform_tag() -> str:
    """The plain `linux_…` tag: manylinux would promise an old C library that nobody checked."""
    tags = list(platform_tags())
    return next((tag for tag in tags if tag.startswith("linux_")), tags[0])


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("adapterhub_kernel_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
