"""What truncation to a rank kept and lost, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from adapterhub.cli import output

if TYPE_CHECKING:
    from adapterhub.composing.result import ModuleReport

WORST = 5
NOTHING = 1e-4  # of the norm: less is the rounding of factors, and no loss


def ranks(modules: Sequence[ModuleReport]) -> str | None:
    """`4–8`: the lowest and the highest."""
    found = sorted({one.rank for one in modules})
    return "–".join(str(rank) for rank in sorted({*found[:1], *found[-1:]})) or None


def said(error: float | None) -> str | None:
    """The energy is what `--energy` asks for: 1 − error²."""
    if error is None:
        return None
    if error < NOTHING:
        return f"nothing lost ({error:.0e} of the norm)" if error else "nothing lost"
    return f"keeps {_energy(error)} of the energy, loses {error:.2%} of the norm"


def print_worst(modules: Sequence[ModuleReport]) -> None:
    """The modules that lost most, if any lost anything."""
    lossy = sorted((m for m in modules if (m.error or 0) >= NOTHING), key=lambda m: -(m.error or 0))
    if not lossy:
        return
    click.echo()
    figures = ("rank", "energy kept", "norm lost")
    rows = [(m.module, m.rank, _energy(m.error or 0), f"{m.error:.2%}") for m in lossy[:WORST]]
    title = f"most lost in ({WORST} of {len(lossy)})" if len(lossy) > WORST else "lost in"
    output.print_table((title, *figures), rows, right=figures)


def _energy(error: float) -> str:
    return f"{max(0.0, 1 - error**2):.2%}"
