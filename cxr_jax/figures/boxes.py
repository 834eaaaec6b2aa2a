"""Boxes of findings on a film: predicted ones solid, true ones dashed, a colour a finding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cxr_jax.figures.overlays import (
    SMALL_HEIGHT,
    draw_boxes,
    draw_caption,
    draw_color_bar,
    draw_heat,
    draw_legend,
    draw_tag,
    film_row,
    fit_layers,
)
from cxr_jax.figures.style import FAINT, INK, OUTLINE, PREDICTION, add_axes, number, write

# Paul Tol's light qualitative colours: distinct to colour-blind eyes, and bright on a dark film.
# One a finding, by its number; from the tenth on they come again, so boxes are named too.
COLORS = (
    *("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF"),
    *("#44BB99", "#BBCC33", "#AAAA00", "#DDDDDD"),
)
_ROWS = 13  # of the list, as many as the film is high
_LIST_WIDTH = 3.1  # inches
_DASH, _SPACE = 3.0, 1.5  # of true boxes, in line widths
_TAG_LINE, _TAG_WIDTH = 0.13, 9  # inches; a tag's usual width in its height


class DrawnBoxes(NamedTuple):
    """Boxes of findings on a film.

    Attributes:
      xyxy: [M, 4] in pixels of the film; NaN where there is none.
      labels: int [M], the finding of each, -1 of none.
      scores: [M], None of true ones.
    """

    xyxy: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


class Region(NamedTuple):
    """A region and where its query looked, or a finding's box and the map that it is made of.

    Attributes:
      name: of the region or finding.
      xyxy: [4] in pixels of the film.
      attention: [h, w], of any scale; it covers the film.
    """

    name: str
    xyxy: np.ndarray
    attention: np.ndarray


def color_of(label: int) -> str:
    """The colour of a finding by its number."""
    return COLORS[label % len(COLORS)]


def boxes_panel(
    film: np.ndarray,
    predicted: DrawnBoxes,
    *,
    names: Sequence[str],
    true: DrawnBoxes | None = None,
    regions: np.ndarray | None = None,
    chosen: Region | None = None,
    title: str = "",
) -> Figure:
    """One film's boxes at a glance: the film with them, its regions, a list of findings.

    Left, the film with the predicted boxes, solid and named with their scores, and the true ones,
    dashed. Middle, where they are given: the regions, thin, the chosen one's box and name in yellow
    over where its query looked, or over its map, from 0 to the map's maximum. Right, the findings
    that have a box, the most probable first, with their scores and the number of true boxes.

    Args:
        film: uint8 [H, W].
        predicted: boxes with scores.
        names: the K findings.
        true: None where nobody knows.
        regions: [R, 4] xyxy in pixels of the film; where there is none, the picture says so.
        chosen: one of them; without regions, a finding.
        title: one line, e.g. the film's id.

    Returns:
        A figure of 5.4 inches height; its width follows the film's aspect.
    """
    height = np.asarray(film).shape[0]
    (film,) = fit_layers(film)
    scale = film.shape[0] / height
    predicted, true = _scaled(predicted, scale), true and _scaled(true, scale)
    count = 1 + (regions is not None or chosen is not None)
    beside = _LIST_WIDTH + (0.95 if chosen is not None else 0.35)
    fig, axes, end = film_row(film, count, title=title, beside=beside, small=True)
    _draw_findings(axes[0], predicted, true, names)
    if regions is not None:
        draw_boxes(axes[1], regions * scale, edgecolor=OUTLINE, linewidth=0.7)
    if chosen is not None:
        _draw_chosen(axes[1], chosen, scale)
        what = "map" if regions is None else "regions; attention"
        draw_caption(axes[1], f"{what} of the {chosen.name}")
        draw_color_bar(fig, left=end, width=0.12, height=SMALL_HEIGHT, relative=True)
        end += 0.6
    elif regions is not None:
        # Without regions nothing was looked at: not the same as a film without findings.
        draw_caption(axes[1], "regions" if len(regions) else "no region found: nothing is said")
    _list(fig, predicted, true, names=names, left=end)
    return fig


def _scaled(boxes: DrawnBoxes, scale: float) -> DrawnBoxes:
    """Those that are there, on a film that is so much smaller."""
    xyxy = np.asarray(boxes.xyxy, np.float64).reshape(-1, 4)
    labels = np.asarray(boxes.labels, int)
    there = ~np.isnan(xyxy).any(axis=1) & (labels >= 0)
    scores = None if boxes.scores is None else np.asarray(boxes.scores)[there]
    return DrawnBoxes(xyxy[there] * scale, labels[there], scores)


def _draw_findings(
    ax: Axes, predicted: DrawnBoxes, true: DrawnBoxes | None, names: Sequence[str]
) -> None:
    if true is not None:
        _draw_true(ax, true)
    for box, label in zip(*predicted[:2]):
        draw_boxes(ax, box[None], edgecolor=color_of(label), linewidth=1.8)
    _draw_tags(ax, predicted, names)
    lines = [("-", "predicted" if len(predicted.xyxy) else "predicted: none")]
    if true is not None:
        lines.append(("--", "truth" if len(true.xyxy) else "truth: none"))
    draw_legend(
        ax, [Line2D([], [], color=INK, linestyle=style, label=text) for style, text in lines]
    )


def _draw_true(ax: Axes, true: DrawnBoxes) -> None:
    """Dashed; the colours of findings that share a box take turns along it."""
    places: dict[tuple, list[int]] = {}
    for box, label in zip(true.xyxy.tolist(), true.labels.tolist()):
        places.setdefault(tuple(box), []).append(label)
    for box, labels in places.items():
        turn = _DASH + _SPACE
        for k, label in enumerate(labels):
            style = (turn * (len(labels) - k), (_DASH, turn * len(labels) - _DASH))
            draw_boxes(
                ax, np.array([box]), edgecolor=color_of(label), linestyle=style, linewidth=1.4
            )


def _draw_tags(ax: Axes, predicted: DrawnBoxes, names: Sequence[str]) -> None:
    """Names with scores at the boxes' corners, each below those that it would hide."""
    line = _TAG_LINE / SMALL_HEIGHT * (ax.get_ylim()[0] + 0.5)
    placed: list[tuple[float, float]] = []
    for box, label, score in zip(*predicted):
        x, y = np.maximum(box[:2], 0)
        for left, top in sorted(placed, key=lambda at: at[1]):
            if abs(x - left) < _TAG_WIDTH * line and abs(y - top) < line:
                y = top + line
        placed.append((x, y))
        draw_tag(ax, x, y, f"{names[label]} {number(score)}", color=color_of(label))


def _draw_chosen(ax: Axes, chosen: Region, scale: float) -> None:
    heat = np.nan_to_num(np.asarray(chosen.attention, np.float32))
    draw_heat(ax, heat / max(float(heat.max()), 1e-12))
    box = np.asarray(chosen.xyxy, np.float64) * scale
    draw_boxes(ax, box[None], edgecolor=PREDICTION, linewidth=1.8)
    draw_tag(ax, max(box[0], 0), max(box[1], 0), chosen.name, color=PREDICTION)


def _list(
    fig: Figure,
    predicted: DrawnBoxes,
    true: DrawnBoxes | None,
    *,
    names: Sequence[str],
    left: float,
) -> None:
    """The findings with a box, predicted or true; `left` in inches."""
    ax = add_axes(fig, left=left, width=_LIST_WIDTH - 0.3, height=SMALL_HEIGHT)
    ax.set(xlim=(0, _LIST_WIDTH - 0.3), ylim=(_ROWS, 0))
    ax.set_axis_off()
    best = {int(k): float(s) for k, s in sorted(zip(*predicted[1:]), key=lambda pair: pair[1])}
    targets = [] if true is None else true.labels.tolist()
    shown = sorted({*best, *targets}, key=lambda k: (-best.get(k, 0.0), k))
    style = dict(fontsize=9, va="center", color=FAINT)
    write(ax, 2.1, 0.5, "score", ha="right", **style)
    if true is not None:
        write(ax, 2.7, 0.5, "truth", ha="right", **style)
    style["color"] = INK
    for row, k in enumerate(shown[: _ROWS - 2], start=1):
        ax.plot([0.02, 0.2], [row + 0.5] * 2, color=color_of(k), linewidth=3)
        write(ax, 0.3, row + 0.5, names[k], **style)
        write(ax, 2.1, row + 0.5, number(best.get(k)), ha="right", **style)
        if true is not None:
            write(ax, 2.7, row + 0.5, str(targets.count(k) or "–"), ha="right", **style)
    if len(shown) > _ROWS - 2:
        write(ax, 0.3, _ROWS - 0.5, f"and {len(shown) - _ROWS + 2} more", **style)
    if not shown:
        write(ax, 0.02, 1.5, "no box", **style)
