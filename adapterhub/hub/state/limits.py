"""How much a repository takes. The defaults are about those of the public Hub."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.errors import InvalidOption
from adapterhub.hub.state.errors import TooLarge


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes. `regular_size` is for files that arrive within the commit itself.

    How deep and long a path may be is a rule of `paths`, and the same everywhere.
    """

    operations: int = 25_000  # in one commit
    files: int = 100_000  # in one revision
    file_size: int = 200 * 2**30
    regular_size: int = 64 * 2**20
    repository_size: int = 2 * 2**40  # contents of all revisions, each counted once
    title: int = 1000  # characters
    message: int = 50_000
    refs: int = 10_000  # branches, tags and pull requests of one repository

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise InvalidOption(f"limit {name} is {value}", remedy="give a positive number")

    def check(self, name: str, value: int, what: str, remedy: str = "") -> None:
        """Raises TooLarge where `value` is above the limit `name`."""
        most = getattr(self, name)
        if value > most:
            raise TooLarge(
                f"{what}: {value}, and this hub takes at most {most}",
                remedy=remedy or "split it, or ask who runs the hub to raise its limit",
            )
