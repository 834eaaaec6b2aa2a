"""The tables beside a film: what is predicted, how likely, and whether it is true."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cxr_jax.figures.overlays import FILM_HEIGHT, SMALL_HEIGHT
from cxr_jax.figures.style import (
    EMPTY,
    FAINT,
    HEAT_MAP,
    INK,
    PREDICTION,
    THRESHOLD,
    TRUTH,
    add_axes,
    number,
    write,
)

_ROWS, _COLUMNS = ("Upper", "Middle", "Lower"), ("Right lung (R)", "Left lung (L)")
_ZONES, HIGHEST_SCORE = 6, 3  # of a zone
_LEAST_ROWS = 8  # of the findings table: fewer would be as high as these
_CENTRED = {"ha": "center", "va": "center"}
# Of the findings table, in inches from its left edge.
_BAR_LEFT, _BAR_WIDTH, _P_LEFT, _TRUTH_LEFT, _MARK_LEFT = 1.42, 0.75, 2.25, 2.72, 3.1


def score_table(
    fig: Figure,
    probs: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    present: np.ndarray,
    true: np.ndarray | None,
    left: float,
) -> None:
    """The severity of the six lung zones, and the global scores beneath.

    Each cell has the colour of its probability in the map, or of its share of the highest score,
    and the truth under it.

    Args:
        fig: a dark figure with films of `FILM_HEIGHT`.
        probs: [3, 2] 0..1; the right lung is the left column.
        scores: [3, 2] 0..3, shown in place of the probabilities.
        present: [3, 2] bool; False where the film shows no such zone.
        true: [3, 2] true zone scores, 0/1 or 0..3; below 0 or NaN where not scored.
        left: inches.
    """
    ax = add_axes(fig, left=left, width=2.95, height=FILM_HEIGHT)
    ax.set_axis_off()
    ax.set(xlim=(-0.42, 2), ylim=(4.55, -0.32))  # one unit a cell, rows downwards
    for column, name in enumerate(_COLUMNS):
        write(ax, column + 0.5, -0.14, name, color=INK, fontsize=10.5, **_CENTRED)
    for row, name in enumerate(_ROWS):
        write(ax, -0.1, row + 0.5, name, color=INK, fontsize=10.5, rotation=90, **_CENTRED)
    for row, column in np.ndindex(3, 2):
        truth = None if true is None else true[row, column]
        if present[row, column]:
            score = None if scores is None else scores[row, column]
            _zone_cell(ax, row, column, p=probs[row, column], score=score, truth=truth)
        else:
            _fill_cell(ax, row, column, color=EMPTY)
            write(ax, column + 0.5, row + 0.5, "no lung", color=FAINT, fontsize=10.5, **_CENTRED)
    _predicted_scores(ax, probs[present], None if scores is None else scores[present])
    if true is not None:
        _true_score(ax, true[present])


def _fill_cell(ax: Axes, row: int, column: int, *, color: str | tuple) -> None:
    corner = (column + 0.03, row + 0.03)
    ax.add_patch(Rectangle(corner, 0.94, 0.94, facecolor=color, edgecolor="#666666"))


def _zone_cell(
    ax: Axes, row: int, column: int, *, p: float, score: float | None, truth: float | None
) -> None:
    face = HEAT_MAP(p if score is None else score / HIGHEST_SCORE)
    _fill_cell(ax, row, column, color=face)
    luminance = np.dot(to_rgb(face), (0.299, 0.587, 0.114))
    style = {"color": "black" if luminance > 0.45 else "white", **_CENTRED}
    y = row + (0.5 if truth is None else 0.4)
    shown = f"{p:.2f}" if score is None else f"{score:.1f}"
    write(ax, column + 0.5, y, shown, fontsize=19, weight="bold", **style)
    if truth is not None:
        write(ax, column + 0.5, row + 0.76, _zone_truth(p, truth), fontsize=10.5, **style)


def _zone_truth(p: float, truth: float) -> str:
    if not truth >= 0:  # a NaN too
        return "truth –"
    return f"truth {truth:g}  {_mark((p >= THRESHOLD) == (truth > 0))}"


def _mark(agree: bool) -> str:
    return "✓" if agree else "✗"


def _predicted_scores(ax: Axes, probs: np.ndarray, scores: np.ndarray | None) -> None:
    """Of the zones that the film shows, [n]."""
    highest = probs.size * (1 if scores is None else HIGHEST_SCORE)
    missing = "" if probs.size == _ZONES else f", of the {probs.size} zones that are seen"
    write(
        ax, -0.2, 3.3, f"Global score, 0 to {highest}{missing}",
        color=FAINT, fontsize=10, ha="left", va="center",
    )  # fmt: skip
    soft = f"{(probs if scores is None else scores).sum():.1f}"
    told = "predicted, sum of probabilities" if scores is None else "predicted, sum of zone scores"
    hard = f"{(probs >= THRESHOLD).sum()}"
    _score_line(ax, (3.62, 3.66), soft, told, fontsize=22)
    _score_line(ax, (3.98, 3.99), hard, "predicted, zones with p ≥ 0.5")


def _true_score(ax: Axes, true: np.ndarray) -> None:
    """Likewise, [n]."""
    scored = true[true >= 0]
    text = "truth, positive zones"
    if scored.size < true.size:
        text += f" of {scored.size} scored"
    if np.any(scored > 1):
        text += f" (sum {scored.sum():g})"
    _score_line(ax, (4.31, 4.32), f"{(scored > 0).sum()}", text, color=TRUTH)


def _score_line(
    ax: Axes,
    y: tuple[float, float],
    value: str,
    text: str,
    *,
    color: str = PREDICTION,
    fontsize: int = 16,
) -> None:
    """A large number and what it is, at the heights `y`."""
    left = {"ha": "left", "va": "center"}
    write(ax, -0.2, y[0], value, color=color, fontsize=fontsize, weight="bold", **left)
    write(ax, 0.36, y[1], text, color=INK, fontsize=10, **left)


def findings_table(
    fig: Figure,
    probs: np.ndarray,
    *,
    true: np.ndarray | None,
    names: Sequence[str],
    shown: Sequence[int],
    left: float,
) -> None:
    """A row a finding: name, a bar of p, p, the truth.

    Args:
        fig: a dark figure with films of `SMALL_HEIGHT`.
        probs: [K] 0..1.
        true: [K] 0, 1 or NaN (unknown).
        names: the K findings.
        shown: those with a map beside the table; their names are bright.
        left: inches.
    """
    ax = add_axes(fig, left=left, width=3.5, height=SMALL_HEIGHT)
    ax.set_axis_off()
    rows = max(len(names), _LEAST_ROWS)
    ax.set(xlim=(0, 3.5), ylim=(rows - 0.4, -1.1))  # inches; one unit a row, downwards
    head = dict(color=FAINT, fontsize=9, va="center")
    write(ax, _BAR_LEFT, -0.85, "predicted p", **head)
    if true is not None:
        write(ax, _TRUTH_LEFT, -0.85, "truth", **head)
    for y, (name, p) in enumerate(zip(names, probs)):
        _cell(ax, 0, y, name, weight="bold" if y in shown else "normal")
        _probability_bar(ax, y, p)
        _cell(ax, _P_LEFT, y, number(p), weight="bold" if p >= THRESHOLD else "normal")
        if true is not None:
            _finding_truth(ax, y, p=p, truth=true[y])


def _cell(ax: Axes, x: float, y: int, text: str, **style) -> None:
    write(ax, x, y, text, **{"color": INK, "fontsize": 10, "va": "center"} | style)


def _probability_bar(ax: Axes, y: int, p: float) -> None:
    for share, color in ((1.0, EMPTY), (np.nan_to_num(p), HEAT_MAP(p))):
        corner = (_BAR_LEFT, y - 0.24)
        ax.add_patch(Rectangle(corner, _BAR_WIDTH * share, 0.48, facecolor=color))
    x = _BAR_LEFT + _BAR_WIDTH * THRESHOLD
    ax.plot([x, x], [y - 0.24, y + 0.24], color=PREDICTION, linewidth=1)


def _finding_truth(ax: Axes, y: int, *, p: float, truth: float) -> None:
    if np.isnan(truth):
        _cell(ax, _TRUTH_LEFT, y, "unknown", color=FAINT)
        return
    present = truth >= THRESHOLD
    _cell(ax, _TRUTH_LEFT, y, "yes" if present else "no", color=TRUTH if present else INK)
    _cell(ax, _MARK_LEFT, y, _mark((p >= THRESHOLD) == present))
