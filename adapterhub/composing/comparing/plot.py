"""The picture of a comparison: layers × modules and adapters × adapters, by matplotlib.

The same comparison gives the same bytes with one version of matplotlib: no dates, no ids by chance,
matplotlib's own font, and nothing of the user's settings.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.composing.comparing.comparison import Comparison, mean
from adapterhub.composing.comparing.meeting import natural
from adapterhub.errors import InvalidOption, MissingExtra, OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS: Mapping[str, Mapping[str, None]] = {  # what they would say of time and tool
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
_LIMITS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_COLOURS = "PuOr_r"  # diverges from white; its two sides differ to the colour-blind too
_MISSING = "#d9d9d9"
_LABEL = 22  # characters of an adapter's name
_LAYER = re.compile(r"(?:(?P<stem>.*?)\.)?(?P<number>[0-9]{1,9})\.(?P<tail>.+)")


def check(path: Path) -> None:
    """Before any work. Raises InvalidOption, OutputError, MissingExtra."""
    if path.suffix.lower() not in _FORMATS:
        raise InvalidOption(f"{path} is no kind of picture", remedy=f"one of {', '.join(_FORMATS)}")
    try:
        os.lstat(path)
        there = True
    except FileNotFoundError:
        there = False
    except (OSError, ValueError) as error:  # too long, or no name of a file at all
        raise OutputError(f"{str(path)!r:.200} cannot be written: {error}"[:500]) from error
    if not path.parent.is_dir():
        raise OutputError(
            f"{path} cannot be written: there is no directory {path.parent}",
            remedy="make it first, or name a file elsewhere",
        )
    if there and path.is_dir():
        raise OutputError(f"{path} cannot be written: it is a directory", remedy="name a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("matplotlib", "plot", "a picture")


def write(found: Comparison, path: Path) -> None:
    """Raises OutputError, MissingExtra."""
    check(path)
    import matplotlib

    settings = {
        **matplotlib.rcParamsDefault,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "svg.hashsalt": "adapterhub",
    }
    suffix = path.suffix.lower()
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}{suffix}")
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands in its place
        figure = draw(found)
        try:
            figure.savefig(partial, dpi=150, metadata=dict(_FORMATS[suffix]))
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            partial.unlink(missing_ok=True)


# --- layers and modules -----------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """`values[row][column]`: the mean cosine of what lies there, None where there is nothing."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def grid(found: Comparison) -> Grid:
    """Layers × modules. What has no layer's number stands in a row of its own, "–"."""
    cells: dict[tuple[tuple[str, int], str], list[float | None]] = {}
    for one in found.modules:
        if one.pairs:
            cells.setdefault(_place(one.module), []).append(one.cosine)
    layers = sorted({layer for layer, _ in cells}, key=lambda at: (at[1] < 0, natural(at[0]), at))
    tails = list(dict.fromkeys(tail for _, tail in cells))
    stems = sorted({stem for stem, number in layers if number >= 0})
    return Grid(
        rows=tuple(_row(layer, stems) for layer in layers),
        columns=tuple(_short(tail, tails) for tail in tails),
        values=tuple(
            tuple(mean(cells.get((layer, tail), [])) for tail in tails) for layer in layers
        ),
    )


def _place(module: str) -> tuple[tuple[str, int], str]:
    """`model.layers.3.mlp.experts.5.w1` → (("model.layers", 3), "mlp.experts.*.w1")."""
    parsed = _LAYER.fullmatch(module)
    if parsed is None:
        return ("", -1), module
    tail = ".".join("*" if part.isdecimal() else part for part in parsed["tail"].split("."))
    return (parsed["stem"] or "", int(parsed["number"])), tail


def _row(layer: tuple[str, int], stems: Sequence[str]) -> str:
    """The layer's number, after what tells several towers apart."""
    stem, number = layer
    if number < 0:
        return "–"
    if len(stems) == 1:
        return str(number)
    split = [each.split(".") for each in stems]
    same = [len(set(parts)) == 1 for parts in zip(*split, strict=False)]
    first = same.index(False) if False in same else len(same)
    return f"{'.'.join(stem.split('.')[first : first + 1])} {number}".strip()


def _short(tail: str, tails: Sequence[str]) -> str:
    """The last parts of a module's path that no other ends with: q_proj, output.dense."""
    parts = tail.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if not any(other != tail and f".{other}".endswith(f".{end}") for other in tails):
            return end
    return tail


# --- drawing ----------------------------------------------------------------------------------


def draw(found: Comparison) -> Figure:
    """Both pictures side by side; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    modules, count = grid(found), len(found.adapters)
    left = max(3.2, 0.5 * len(modules.columns) + 1.2)
    right = max(3.2, 0.75 * count + 1.8)
    height = min(16.0, max(4.0, 0.22 * len(modules.rows) + 1.9, 0.6 * count + 2.4))
    width = min(30.0, left + right + 1.0)
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    one, other = figure.subplots(1, 2, width_ratios=(left, right))
    _draw_modules(figure, one, modules, several=count > 2)
    _draw_adapters(figure, other, found)
    return figure


def _draw_modules(figure: Figure, axes: Axes, found: Grid, *, several: bool) -> None:
    what = "\n(mean over the pairs)" if several else ""
    axes.set_title(f"cosine by layer and module{what}", fontsize=10)
    if not found.rows:
        axes.text(0.5, 0.5, "no module in common", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    flat = [abs(value) for row in found.values for value in row if value is not None]
    limit = next((each for each in _LIMITS if max(flat, default=0.0) <= each), 1.0)
    image = _image(axes, found.values, limit, square=False)
    columns = [_plain(column) for column in found.columns]
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.xaxis.set_tick_params(rotation_mode="anchor")
    step = max(1, math.ceil(len(found.rows) / 60))
    layers = [_plain(row) for row in found.rows[::step]]
    axes.set_yticks(range(0, len(found.rows), step), layers)
    axes.set_ylabel("layer" if layers != ["–"] else "")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.ax.tick_params(labelsize=8)
    if any(value is None for row in found.values for value in row):
        axes.set_xlabel("grey: nothing to compare", fontsize=8, color="#555555")


def _draw_adapters(figure: Figure, axes: Axes, found: Comparison) -> None:
    axes.set_title("cosine of the whole deltas", fontsize=10)
    names = [_named(n, each.name) for n, each in enumerate(found.adapters)]
    values = found.cosine
    image = _image(axes, values, 1.0, square=True)
    axes.set_xticks(range(len(names)), [str(number + 1) for number in range(len(names))])
    axes.set_yticks(range(len(names)), names)
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            colour = "white" if value is not None and abs(value) > 0.6 else "black"
            text = "–" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")
            size = 9 if len(names) <= 8 else 6
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)
    shrink = min(0.8, (0.75 * len(names) + 1.2) / figure.get_figheight())
    bar = figure.colorbar(image, ax=axes, shrink=shrink)
    bar.ax.tick_params(labelsize=8)


def _image(
    axes: Axes, values: Sequence[Sequence[float | None]], limit: float, *, square: bool
) -> Any:
    import matplotlib
    import numpy as np

    known = np.array([[np.nan if v is None else v for v in row] for row in values], np.float64)
    colours = matplotlib.colormaps[_COLOURS].with_extremes(bad=_MISSING)
    image = axes.imshow(
        known,
        cmap=colours,
        vmin=-limit,
        vmax=limit,
        aspect="equal" if square else "auto",
        interpolation="nearest",
    )
    axes.set_xticks(np.arange(known.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(known.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    return image


def _named(number: int, name: str) -> str:
    """A ref without its digest, or the end of a path."""
    name = name.rpartition("@sha256:")[0] or name.rstrip("/").rpartition("/")[2] or name
    return f"{number + 1} {_plain(name if len(name) <= _LABEL else '…' + name[1 - _LABEL :])}"


def _plain(text: str) -> str:
    """Without what does not print, nor what matplotlib takes for a formula."""
    return "".join(c if c.isprintable() else " " for c in text).replace("$", r"\$")
