"""Lesions of a CT slice: boxes and places on it, and the activation map they were cut from."""

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
    draw_contours,
    draw_heat,
    draw_legend,
    draw_lungs,
    draw_tag,
    film_row,
    fit_layers,
    stroke,
)
from cxr_jax.figures.style import CT_TRUTH, OUTLINE, PREDICTION
from cxr_jax.figures.tables import findings_table


class DrawnLesions(NamedTuple):
    """Lesions that a map has found.

    Attributes:
      boxes: [L, 4] xyxy, pixels of the slice.
      points: [L, 2] x and y, their places.
      tags: of each, e.g. its cluster; () for none.
      colors: of each; () for one of all.
    """

    boxes: np.ndarray
    points: np.ndarray
    tags: Sequence[str] = ()
    colors: Sequence[str] = ()

    def scaled(self, scale: float) -> "DrawnLesions":
        """On a slice drawn smaller."""
        return self._replace(boxes=self.boxes * scale, points=self.points * scale)


def lesions_panel(
    image: np.ndarray,
    lesion_map: np.ndarray,
    found: DrawnLesions,
    *,
    probs: np.ndarray,
    names: Sequence[str],
    label: int | None = None,
    lesion_true: np.ndarray | None = None,
    lungs: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """One slice's lesions at a glance (Fig. 7 of Wu et al. 2022).

    Left, the slice with the boxes of the lesions that were found, and their places (yellow, or the
    colours of their clusters), over the contour of the true ones (blue) and of the lungs that the
    network saw (pale). Middle, the slice under its lesion activation map. Right, the classes.

    Args:
        image: uint8 [H, W].
        lesion_map: float [H, W], 0..1.
        found: the lesions.
        probs: [K] sum to one.
        names: the K classes.
        label: the true class.
        lesion_true: [H, W], lesion where not 0.
        lungs: [H, W], 0 outside, 1 and 2.
        title: one line, e.g. the slice's id.

    Returns:
        A figure of 5.4 inches height; its width follows the slice's aspect.
    """
    height = np.asarray(image).shape[0]
    lesion_map = np.asarray(lesion_map, np.float32)
    image, heat, true, lungs = fit_layers(
        image, lesion_map=lesion_map, lesion_true=lesion_true, lungs=lungs
    )
    fig, (left, middle), end = film_row(image, 2, title=title, beside=4.5, small=True)
    if lungs is not None:
        draw_lungs(left, lungs, color=OUTLINE, linewidth=0.8)
    legend = [stroke(PREDICTION, "found" if len(found.boxes) else "found: nothing")]
    if true is not None:
        for ax in (left, middle):
            draw_contours(ax, true > 0, color=CT_TRUTH, linewidth=1.2)
        legend.append(stroke(CT_TRUTH, "truth" if true.any() else "truth: no lesion"))
    draw_lesions(left, found.scaled(image.shape[0] / height))
    draw_legend(left, legend)
    draw_heat(middle, heat)
    draw_caption(middle, "lesion activation map")
    draw_color_bar(fig, left=end, width=0.12, height=SMALL_HEIGHT, relative=True)
    called = [int(np.asarray(probs).argmax())]
    known = None if label is None else (np.arange(len(names)) == label).astype(np.float64)
    findings_table(
        fig, np.asarray(probs, np.float64), true=known, names=names, shown=called, left=end + 0.6
    )
    return fig


def draw_lesions(ax: Axes, found: DrawnLesions) -> None:
    """Boxes, a cross at each place, and tags."""
    colors = list(found.colors) or [PREDICTION] * len(found.boxes)
    for box, (x, y), color in zip(found.boxes, found.points, colors):
        draw_boxes(ax, [box], edgecolor=color, linewidth=1.2)
        ax.add_line(Line2D([x - 0.5], [y - 0.5], marker="+", color=color, markersize=7, zorder=5))
    for tag, (x, y), color in zip(found.tags, found.points, colors):
        draw_tag(ax, x, y, tag, color=color)
