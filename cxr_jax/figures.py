"""Pictures for people: overlays on films, score tables, scatters, training curves.

Films are shown as the reader sees them: the patient's right lung on the image's left, air dark.
Truth is green and prediction yellow everywhere. Figures are matplotlib objects with the Agg canvas;
nothing here touches pyplot or the global settings, so they can be drawn in any thread. Layouts are
in inches at `DPI`, so a picture's size depends on the film's aspect alone.

`save` writes a figure to a file; `to_array` turns it into pixels (for TensorBoard, contact sheets).
"""

import json
import math
import os
import pathlib
import unicodedata
from collections.abc import Mapping, Sequence

import cv2
import matplotlib
import numpy as np
import skimage.measure
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from cxr_jax.metrics import regression

DPI = 110
TRUTH, PREDICTION = "#00e05a", "#ffe100"  # green, yellow: the colours of the paper's Fig. 3
THRESHOLD = 0.5  # of the contour and of the hard score

_ROOM, _INK, _FAINT = "#141414", "#f2f2f2", "#a8a8a8"  # a dark reading room
_OUTLINE = (0.62, 0.85, 1.0, 0.55)  # lungs and zones: pale, thin
_CT_TRUTH = "#3aa0ff"  # blue on CT, as in Tang et al., Fig. 2: the heat is red
_RIGHT_LUNG, _LEFT_LUNG = "#58a6ff", "#ff9e58"
_MAP = matplotlib.colormaps["inferno"]
_MAP_ALPHA = 0.65
_FONT = "DejaVu Sans"  # comes with matplotlib
_LONGEST = 1024  # px; larger films are shrunk before drawing, the picture cannot show more
_FILM_HEIGHT = 5.6  # inches
_SMALL_HEIGHT = 4.3  # inches, where more than two films stand side by side
_ROWS, _COLUMNS = ("Upper", "Middle", "Lower"), ("Right lung", "Left lung")


def severity_panel(
    film: np.ndarray,
    lungs: np.ndarray,
    zones: np.ndarray,
    prob_map: np.ndarray,
    severity_probs: np.ndarray,
    *,
    severity_true: np.ndarray | None = None,
    lesion_true: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """One film's severity at a glance: contours, probability map, 3x2 score table.

    Left, the film with lung and zone outlines and the contour of `prob_map` at 0.5 (yellow), over
    the true lesion's (green) where there is one. Middle, the same film under the probability map,
    with a colour bar from 0 to 1. Right, the table of zones, the right lung in the left column, and
    the global score: soft (sum of probabilities) and hard (zones with p >= 0.5).

    Args:
        film: uint8 [H, W].
        lungs: [H, W] 0 outside, 1 right lung, 2 left lung.
        zones: [H, W] 0 outside, 1..6 (see `data.zones.zone_map`); a zone without a pixel counts as
            absent in table and sums.
        prob_map: [H, W] lesion probability 0..1, at the film's size.
        severity_probs: [3, 2] zone probabilities 0..1.
        severity_true: [3, 2] true zone scores, 0/1 or 0..3; below 0 or NaN where not scored.
        lesion_true: [H, W] true lesion mask.
        title: one line, e.g. the film's id.

    Returns:
        A figure of 6.7 inches height; its width follows the film's aspect.

    Raises:
        ValueError: a mask or map has another size than the film, or a table is not 3x2.
    """
    probs = _table("severity_probs", severity_probs)
    true = None if severity_true is None else _table("severity_true", severity_true)
    present = np.array([[np.any(zones == 2 * r + c + 1) for c in (0, 1)] for r in range(3)])
    present &= ~np.isnan(probs)
    film, lungs, zones, prob_map, lesion = _fit(
        film, lungs=lungs, zones=zones, prob_map=prob_map, lesion_true=lesion_true
    )
    prob_map = np.nan_to_num(prob_map)

    width = _film_width(film)
    fig = _figure(2 * width + 4.7, _FILM_HEIGHT + 1.1)
    _heading(fig, title)

    ax = _film_axes(fig, film, left=0.25, width=width)
    _draw_outlines(ax, lungs, zones)
    legend = []
    if lesion is not None:
        _contours(ax, lesion, color=TRUTH, linewidth=1.5)
        legend.append(_stroke(TRUTH, "lesion, truth" if lesion.any() else "truth: no lesion"))
    _contours(ax, prob_map, color=PREDICTION, linewidth=1.5)
    found = bool((prob_map >= THRESHOLD).any())
    text = "lesion, predicted (p ≥ 0.5)" if found else "predicted: none (p ≥ 0.5)"
    legend.append(_stroke(PREDICTION, text))
    _legend(ax, legend)

    ax = _film_axes(fig, film, left=0.4 + width, width=width)
    image = ax.imshow(
        prob_map, cmap=_MAP, vmin=0, vmax=1, interpolation="bilinear",
        # Clear where p is near 0, so that a healthy lung looks as it does on the film.
        alpha=_MAP_ALPHA * np.clip(prob_map / 0.3, 0, 1),
    )  # fmt: skip
    _draw_outlines(ax, lungs, None)
    bar = fig.add_axes(_inches(fig, 0.5 + 2 * width, 0.5, 0.14, _FILM_HEIGHT))
    _color_bar(fig, bar, ScalarMappable(image.norm, _MAP))
    _caption(ax, "lesion probability p")

    _score_table(fig, probs, present, true, left=1.4 + 2 * width)
    return fig


def lungs_panel(
    film: np.ndarray,
    lungs_pred: np.ndarray,
    lungs_true: np.ndarray | None = None,
    dice: Sequence[float] | None = None,
    title: str = "",
) -> Figure:
    """A lung segmentation: the bare film, and the film with each lung tinted and outlined.

    Args:
        film: uint8 [H, W].
        lungs_pred: [H, W] 0 outside, 1 right lung, 2 left lung. Outlined in yellow.
        lungs_true: [H, W] likewise. Outlined in green.
        dice: (right, left), shown as given; by default computed here where there is a truth.
        title: one line, e.g. the film's id.

    Returns:
        A figure of 6.7 inches height; its width follows the film's aspect.

    Raises:
        ValueError: a mask has another size than the film.
    """
    if dice is None and lungs_true is not None and np.shape(lungs_pred) == np.shape(lungs_true):
        dice = [_dice(lungs_pred == label, lungs_true == label) for label in (1, 2)]
    film, pred, true = _fit(film, lungs_pred=lungs_pred, lungs_true=lungs_true)
    width = _film_width(film)
    fig = _figure(2 * width + 0.65, _FILM_HEIGHT + 1.1)
    _heading(fig, title)
    bare = _film_axes(fig, film, left=0.25, width=width)
    ax = _film_axes(fig, film, left=0.4 + width, width=width)

    tint, legend = np.zeros((*film.shape, 4)), []
    for label, name, color in ((1, "right lung", _RIGHT_LUNG), (2, "left lung", _LEFT_LUNG)):
        tint[pred == label] = (*to_rgb(color), 0.2)
        text = name if np.any(pred == label) else f"no {name} found"
        text += "" if dice is None else f", Dice {_number(dice[label - 1])}"
        legend.append(Patch(color=color if np.any(pred == label) else "none", label=text))
    ax.imshow(tint, interpolation="nearest")
    if true is not None:
        for label in (1, 2):
            _contours(ax, true == label, color=TRUTH, linewidth=1.5)
        legend.append(_stroke(TRUTH, "truth"))
    for label in (1, 2):
        _contours(ax, pred == label, color=PREDICTION, linewidth=1.5)
    legend.append(_stroke(PREDICTION, "predicted"))
    _legend(bare, legend)  # from the left edge: it may be wider than a narrow film
    return fig


def lungs_comparison(
    film: np.ndarray,
    lungs_true: np.ndarray,
    lungs_pred: Mapping[str, np.ndarray],
    title: str = "",
) -> Figure:
    """Lungs of one film by several methods, side by side: truth green, prediction yellow.

    Args:
        film: uint8 [H, W].
        lungs_true: [H, W] 0 outside, 1 right lung, 2 left lung.
        lungs_pred: method -> [H, W] likewise. Under each: the Dice of both lungs, and their area as
            a share of the true one (below 1: under-segmented).
        title: one line, e.g. the film's id.

    Returns:
        A figure of 6.7 inches height, a film wide for each method.

    Raises:
        ValueError: no method, or a mask has another size than the film.
    """
    if not lungs_pred:
        raise ValueError("no method to compare.")
    layers = {f"lungs_pred[{name!r}]": pred for name, pred in lungs_pred.items()}
    film, true, *preds = _fit(film, lungs_true=lungs_true, **layers)
    width = _film_width(film)
    fig = _figure((width + 0.15) * len(preds) + 0.35, _FILM_HEIGHT + 1.1)
    _heading(fig, title)
    for i, (name, pred) in enumerate(zip(lungs_pred, preds)):
        ax = _film_axes(fig, film, left=0.25 + i * (width + 0.15), width=width)
        for mask, color in ((true, TRUTH), (pred, PREDICTION)):
            for label in (1, 2):
                _contours(ax, mask == label, color=color, linewidth=1.5)
        dice = ", ".join(_number(_dice(pred == label, true == label)) for label in (1, 2))
        area = _number(np.sum(pred > 0) / max(np.sum(true > 0), 1))
        _caption(ax, f"{name}: Dice {dice} (right, left), area {area} of the true")
    return fig


def findings_panel(
    film: np.ndarray,
    heat: np.ndarray,
    probs: np.ndarray,
    names: Sequence[str],
    *,
    findings_true: np.ndarray | None = None,
    boxes: np.ndarray | None = None,
    box_label: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """One film's findings at a glance: the film, heat maps, a table of probabilities.

    Left, the film with the boxes of truth (green, named; one box for findings that share it).
    Then the same film under the heat map of each of the most probable findings, at most three:
    those with p >= 0.5, or else the first. The map's highest point has a yellow cross, the boxes of
    that finding are green. Right, every finding with its probability and, where it is known, the
    truth. 'no finding' has no map: there is nothing to point at.

    Args:
        film: uint8 [H, W].
        heat: [h, w, K] a map a finding, 0..1, of any size; it covers the film.
        probs: [K] probabilities 0..1.
        names: the K findings.
        findings_true: [K] 0, 1 or NaN (unknown).
        boxes: [M, 4] true boxes, xyxy in pixels of the film.
        box_label: [M] their findings.
        title: one line, e.g. the film's id.

    Returns:
        A figure of 5.4 inches height; its width follows the film's aspect and the number of maps.

    Raises:
        ValueError: the numbers of maps, probabilities, names or labels differ.
    """
    probs, heat = np.asarray(probs, np.float64), np.asarray(heat, np.float32)
    true = None if findings_true is None else np.asarray(findings_true, np.float64)
    lengths = [len(names), len(probs), heat.shape[-1], *([] if true is None else [len(true)])]
    if len(set(lengths)) != 1:
        raise ValueError(
            f"names, probs, heat, findings_true are {lengths} findings; must be equal."
        )
    boxes = np.reshape([] if boxes is None else boxes, (-1, 4)).astype(np.float64)
    labels = np.reshape([] if box_label is None else box_label, -1).astype(int)
    if len(boxes) != len(labels):
        raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels; must be equal.")
    height = np.asarray(film).shape[0]
    (film,) = _fit(film)
    boxes = boxes * (film.shape[0] / height)
    shown = _shown_findings(probs, names)

    width = _film_width(film) * _SMALL_HEIGHT / _FILM_HEIGHT
    fig = _figure((1 + len(shown)) * (width + 0.15) + 4.5, _SMALL_HEIGHT + 1.1)
    _heading(fig, title)
    ax = _film_axes(fig, film, left=0.25, width=width, height=_SMALL_HEIGHT)
    _draw_named_boxes(ax, boxes, labels, names)
    if len(boxes):
        _legend(ax, [_stroke(TRUTH, "boxes, truth")])
    elif true is not None:
        _caption(ax, "no box was drawn")
    for i, k in enumerate(shown, start=1):
        left = 0.25 + i * (width + 0.15)
        ax = _film_axes(fig, film, left=left, width=width, height=_SMALL_HEIGHT)
        image = _draw_heat(ax, heat[..., k])
        _draw_boxes(ax, boxes[labels == k])
        _caption(ax, f"{names[k]}, p = {probs[k]:.2f}")
    left = 0.25 + (1 + len(shown)) * (width + 0.15)
    bar = fig.add_axes(_inches(fig, left, 0.5, 0.12, _SMALL_HEIGHT))
    _color_bar(fig, bar, ScalarMappable(image.norm, _MAP))
    _findings_table(fig, probs, true, names, shown, left=left + 0.6)
    return fig


def auc_chart(
    names: Sequence[str],
    aucs: Sequence[tuple[float | None, float | None, float | None]],
    notes: Sequence[str],
    *,
    title: str = "AUC per finding, with 95% bootstrap intervals",
) -> Figure:
    """One dot and interval a row: how well each finding is told apart.

    Args:
        names: one a row, from the top.
        aucs: (value, low, high) a row, 0..1; None where undefined.
        notes: words at the right of each row, e.g. how many films are positive.
        title: one line.

    Returns:
        A figure of 7.4 inches width; its height follows the number of rows.

    Raises:
        ValueError: the lengths differ.
    """
    if not len(names) == len(aucs) == len(notes):
        raise ValueError(
            f"{len(names)} names, {len(aucs)} AUCs, {len(notes)} notes; must be equal."
        )
    height = 0.36 * len(names) + 1.3
    fig = Figure(figsize=(7.4, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    ax = fig.add_axes(_inches(fig, 1.6, 0.6, 3.7, height - 1.3))
    values = [x for auc in aucs for x in auc if x is not None]
    left = min([0.45, *(x - 0.03 for x in values)])
    ax.set(xlim=(left, 1.02), ylim=(len(names) - 0.4, -0.6))
    ax.axvline(0.5, color="#999999", linewidth=1, linestyle="--", zorder=1)  # a blind guess
    style = dict(va="center", fontsize=10, family=_FONT, transform=ax.get_yaxis_transform())
    for y, ((value, low, high), note) in enumerate(zip(aucs, notes)):
        if value is None:
            ax.text(0.5, y, "undefined: one class only", ha="center", color="#777777", **style)
        else:
            if low is not None:
                ax.plot([low, high], [y, y], color="#1f5fa8", linewidth=2, zorder=2)
            ax.plot([value], [y], color="#1f5fa8", marker="o", markersize=6, zorder=3)
        ax.text(1.04, y, _number(value), weight="bold", **style)
        ax.text(1.18, y, note, color="#555555", **style)
    ax.text(1.18, -1, "positive films", color="#555555", **style)
    ax.set_yticks(range(len(names)), names, fontsize=10, family=_FONT)
    ax.set_xlabel("area under the ROC curve", fontsize=10, family=_FONT)
    ax.grid(axis="x", color="#e2e2e2", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    fig.text(
        0.02, 1 - 0.12 / height, _printable(title), fontsize=12, weight="bold", va="top",
        family=_FONT, parse_math=False,
    )  # fmt: skip
    return fig


def slice_panel(
    image: np.ndarray,
    lesion_map: np.ndarray,
    *,
    slice_prob: float | None = None,
    shown: bool = True,
    lesion_true: np.ndarray | None = None,
    threshold: float = THRESHOLD,
    title: str = "",
) -> Figure:
    """A CT slice, bare, and under its lesion map: heat in red, truth in blue (Tang et al., Fig. 2).

    Args:
        image: uint8 [H, W].
        lesion_map: [H, W] 0..1.
        slice_prob: the probability that a lesion is in the slice; shown under it.
        shown: False where the map was cleared, for the slice counts as free of lesions.
        lesion_true: [H, W], outlined in blue.
        threshold: of the map; outlined in yellow.
        title: one line, e.g. the slice's id.

    Returns:
        A figure of 6.7 inches height; its width follows the slice's aspect.

    Raises:
        ValueError: a map has another size than the slice.
    """
    lesion_map = np.asarray(lesion_map, np.float32)
    image, heat, true = _fit(image, lesion_map=lesion_map, lesion_true=lesion_true)
    width = _film_width(image)
    fig = _figure(2 * width + 0.65, _FILM_HEIGHT + 1.1)
    _heading(fig, title)
    bare = _film_axes(fig, image, left=0.25, width=width)
    ax = _film_axes(fig, image, left=0.4 + width, width=width)
    red = np.zeros((*image.shape, 4), np.float32)
    red[..., 0], red[..., 3] = 1.0, np.clip(heat, 0, 1) * _MAP_ALPHA
    ax.imshow(red, interpolation="bilinear")
    legend = [Patch(color=(1, 0, 0, _MAP_ALPHA), label="lesion map")] if shown else []
    if true is not None:
        for axes in (bare, ax):
            _contours(axes, true > 0, color=_CT_TRUTH, linewidth=1.5)
        legend.append(_stroke(_CT_TRUTH, "truth" if true.any() else "truth: no lesion"))
    _contours(ax, heat > threshold, color=PREDICTION, linewidth=1.2)
    found = f"{'found' if (heat > threshold).any() else 'found: nothing'} above {threshold:g}"
    legend.append(_stroke(PREDICTION, found if shown else "called free of lesions: no map"))
    _legend(ax, legend)
    if slice_prob is not None:
        _caption(bare, f"a lesion is in the slice: p = {slice_prob:.2f}")
    return fig


def threshold_chart(
    thresholds: np.ndarray,
    dice: Mapping[str, np.ndarray],
    histogram: np.ndarray,
    chosen: float,
) -> Figure:
    """What the maps hold, and what a threshold makes of it (Tang et al. 2021, Fig. 3).

    Left, how many pixels have which value, inside lesions and outside. Right, the mean Dice of the
    patients against the threshold. A threshold must not be chosen on a test split.

    Args:
        thresholds: [T] 0..1.
        dice: name of the patients -> [T] their mean Dice, NaN where there is none.
        histogram: [bins, 2] pixels outside and inside the truth, by value 0..1.
        chosen: the threshold in use.

    Returns:
        A figure of 9.6 x 3.9 inches.
    """
    fig = Figure(figsize=(9.6, 3.9), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    left, right = fig.subplots(1, 2)
    edges = np.linspace(0, 1, len(histogram) + 1)
    for column, name, color in ((0, "outside lesions", "#7f8c8d"), (1, "in lesions", "#b03a2e")):
        pixels = histogram[:, column].sum()
        if pixels:
            share = histogram[:, column] / pixels
            left.stairs(share, edges, color=color, linewidth=1.6, label=name)
    left.set(xlabel="value of the lesion map", ylabel="share of pixels", yscale="log", xlim=(0, 1))
    left.legend(frameon=False, prop={"family": _FONT, "size": 9.5})
    # Each has its colour, whichever others are there; thinner on thicker, where two coincide.
    for number, (name, values) in enumerate(dice.items()):
        style = dict(color=f"C{number}", linewidth=max(3.4 - number, 1.0), markersize=5 - number)
        if not np.isnan(values).all():
            right.plot(thresholds, values, marker="o", label=name, **style)
    right.axvline(chosen, color="#999999", linewidth=1, linestyle="--")
    right.set(xlabel="threshold", ylabel="mean Dice", xlim=(0, 1), ylim=(0, 1.02))
    # A curve may run behind it.
    right.legend(edgecolor="white", prop={"family": _FONT, "size": 9.5})
    _plain_axes(left, right)
    fig.tight_layout(pad=1.0)
    return fig


def setting_chart(
    values: Mapping[float, Sequence[float]], setting: str, metric: str, title: str = ""
) -> Figure:
    """A metric against a setting of the config: one dot a run, a line through the means.

    Args:
        values: setting -> the metric of each run with it.
        setting: its name, e.g. 'affinity.foreground'.
        metric: its name.
        title: one line.

    Returns:
        A figure of 5.2 x 3.9 inches.
    """
    fig = Figure(figsize=(5.2, 3.9), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    ax = fig.add_subplot()
    settings = sorted(values)
    ax.plot(settings, [np.mean(values[s]) for s in settings], color="#1f5fa8", linewidth=1.6)
    for s in settings:
        ax.plot([s] * len(values[s]), values[s], "o", color="#1f5fa8", markersize=4, alpha=0.6)
    ax.set(xlabel=_printable(setting), ylabel=_printable(metric))
    if min(map(min, values.values())) >= 0:  # a slight difference should look slight
        ax.set_ylim(0, ax.get_ylim()[1] * 1.1)
    ax.set_title(_printable(title), fontsize=10.5, family=_FONT, parse_math=False)
    _plain_axes(ax)
    fig.tight_layout(pad=1.0)
    return fig


def scatter_scores(
    pred: np.ndarray,
    true: np.ndarray,
    metrics: Mapping[str, float] | None = None,
    *,
    maximum: float = 6,
    title: str = "",
) -> Figure:
    """Predicted against true global score, one dot a film, with the line of identity.

    True scores are whole numbers, so the dots are spread a little sideways (always the same way),
    in the order of their predictions.

    Args:
        pred: [N] predicted global score.
        true: [N] true global score.
        metrics: name -> value, shown above the axes; by default MSE, MAE and CC of these films.
        maximum: upper end of both axes (6 for zones counted, 18 for Brixia sums).
        title: one line.

    Returns:
        A figure of 5.6 x 5.9 inches.

    Raises:
        ValueError: the lengths differ.
    """
    pred, true = np.asarray(pred, np.float64).ravel(), np.asarray(true, np.float64).ravel()
    if pred.shape != true.shape:
        raise ValueError(f"{pred.size} predictions and {true.size} true scores; must be equal.")
    if metrics is None:
        metrics = {
            "MSE": regression.mse(pred, true),
            "MAE": regression.mae(pred, true),
            "CC": regression.cc(pred, true),
        }
    fig = Figure(figsize=(5.6, 5.9), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    ax = fig.add_axes((0.13, 0.1, 0.83, 0.79))
    ends = np.array([-0.04 * maximum, 1.04 * maximum])
    band = maximum / 6
    ax.fill_between(ends, ends - band, ends + band, color="#e8eef5", linewidth=0, zorder=0)
    ax.plot(ends, ends, color="#555555", linewidth=1, zorder=1)
    ax.scatter(
        true + _spread(pred, true) * 0.16, pred, s=26, color="#1f5fa8", alpha=0.65,
        edgecolors="white", linewidths=0.5, zorder=3,
    )  # fmt: skip
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    step = 1 if maximum <= 9 else 3
    ax.set_xticks(np.arange(0, maximum + 1, step))
    ax.set_yticks(np.arange(0, maximum + 1, step))
    ax.grid(color="#dddddd", linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)
    ax.set_xlabel("true score", fontsize=11, family=_FONT)
    ax.set_ylabel("predicted score", fontsize=11, family=_FONT)
    counted = f"{pred.size} film{'s' * (pred.size != 1)}"
    values = [f"{name} {_number(value)}" for name, value in metrics.items()]
    # Above the axes: inside, it would hide the films that are far off.
    ax.set_title("    ".join([counted, *values]), fontsize=10.5, family=_FONT, loc="left")
    if title:
        fig.text(
            0.13, 0.975, _printable(title, 60), fontsize=12, weight="bold", family=_FONT, va="top",
            parse_math=False,
        )  # fmt: skip
    ax.text(
        0.98, 0.02, f"band: within ± {band:g}", transform=ax.transAxes, ha="right", va="bottom",
        fontsize=9, color="#555555", family=_FONT,
    )  # fmt: skip
    return fig


def training_curves(path: str | os.PathLike) -> Figure:
    """The curves of a run: loss, other training values, learning rate, each validation metric.

    Args:
        path: `metrics.jsonl`, one JSON object a line with `step` and numbers; null is undefined.

    Returns:
        A figure with one small panel a value, `val/...` last; values that were never defined are
        left out, and an empty file gives a figure that says so.

    Raises:
        FileNotFoundError: there is no such file.
    """
    curves = _read_curves(pathlib.Path(path))
    names = [n for n in curves if not n.startswith("val/")]
    names = [n for n in ("loss", "lr") if n in names] + [
        n for n in names if n not in ("loss", "lr")
    ]
    names += [n for n in curves if n.startswith("val/")]
    columns = min(len(names), 4) or 1
    rows = math.ceil(len(names) / columns) or 1
    fig = Figure(figsize=(3.5 * columns + 0.3, 2.5 * rows + 0.4), dpi=DPI, facecolor="white")
    FigureCanvasAgg(fig)
    if not names:
        fig.text(0.5, 0.5, "no step was logged", ha="center", va="center", family=_FONT)
        return fig
    for i, name in enumerate(names):
        ax = fig.add_subplot(rows, columns, i + 1)
        steps, values = curves[name]
        color = "#b03a2e" if name.startswith("val/") else "#1f5fa8"
        if (
            len(values) > 60 and name != "lr"
        ):  # many noisy steps: the points pale, their running mean on top
            ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            ax.plot(steps, _running_mean(values, len(values) // 30), color=color, linewidth=1.6)
        else:
            marker = "o" if len(values) <= 60 else ""
            ax.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3)
        if not name.startswith("val/") and name != "lr" and values.min() > 0:
            ax.set_yscale("log" if values.max() > 30 * values.min() else "linear")
        ax.set_title(_printable(name), fontsize=10.5, family=_FONT, parse_math=False)
        ax.set_xlabel("step", fontsize=9, family=_FONT)
        ax.tick_params(labelsize=8.5)
        ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
        ax.margins(x=0.02)
        ax.grid(color="#e2e2e2", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout(pad=0.8)
    return fig


def contact_sheet(
    films: Sequence[np.ndarray],
    columns: int = 6,
    *,
    titles: Sequence[str] | None = None,
    cell: int = 256,
) -> Figure:
    """Many films (or panels from `to_array`) on one sheet, each whole, in reading order.

    Args:
        films: uint8 [H, W] or [H, W, 3] each, of any sizes.
        columns: films a row.
        titles: one line under each film.
        cell: px, side of the square that each film is fitted into.

    Returns:
        A figure of `columns` cells width.

    Raises:
        ValueError: there is no film, or not one title for each.
    """
    if not films:
        raise ValueError("no film for the contact sheet.")
    if titles is not None and len(titles) != len(films):
        raise ValueError(f"{len(titles)} titles for {len(films)} films.")
    columns = min(columns, len(films))
    rows = math.ceil(len(films) / columns)
    gap, caption = 6, 22 if titles is not None else 0
    height = rows * (cell + caption + gap) + gap
    sheet = np.full((height, columns * (cell + gap) + gap, 3), 20, np.uint8)
    fig = _figure(sheet.shape[1] / DPI, height / DPI)
    for i, film in enumerate(films):
        film = np.asarray(film)
        film = np.stack([film] * 3, axis=-1) if film.ndim == 2 else film
        scale = cell / max(film.shape[:2])
        size = [max(round(side * scale), 1) for side in film.shape[1::-1]]
        film = cv2.resize(
            film, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        )
        top = gap + (i // columns) * (cell + caption + gap)
        left = gap + (i % columns) * (cell + gap)
        y, x = top + (cell - film.shape[0]) // 2, left + (cell - film.shape[1]) // 2
        sheet[y : y + film.shape[0], x : x + film.shape[1]] = film
        if titles is not None:
            fig.text(
                (left + cell / 2) / sheet.shape[1], 1 - (top + cell + 5) / height,
                _printable(titles[i], cell // 8), ha="center", va="top", fontsize=8.5,
                color=_INK, family=_FONT, parse_math=False,
            )  # fmt: skip
    fig.figimage(sheet, zorder=-1)
    return fig


def to_array(figure: Figure) -> np.ndarray:
    """The pixels of a figure at its own size: uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure to a file and frees it. A reader sees the old file or the whole new one.

    Args:
        figure: is empty afterwards.
        path: its suffix is the format (.png, .pdf, .svg, .jpg); missing folders are made.

    Raises:
        OSError: the file cannot be written (say, the disk is full); an older one is left as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id: two commands on one work directory must not write into one file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    kind = path.suffix[1:].lower() or "png"
    # Without the Software entry, equal figures are equal files.
    metadata = {"Software": None} if kind == "png" else None
    try:
        figure.savefig(partial, format=kind, dpi=figure.dpi, metadata=metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        figure.clear()


def _figure(width: float, height: float) -> Figure:
    """A dark figure of so many inches, with a canvas of its own."""
    fig = Figure(figsize=(width, height), dpi=DPI, facecolor=_ROOM)
    FigureCanvasAgg(fig)
    return fig


def _plain_axes(*axes: Axes) -> None:
    """A pale grid behind the curves, no frame."""
    for ax in axes:
        ax.grid(color="#e2e2e2", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)


def _inches(fig: Figure, left: float, bottom: float, width: float, height: float) -> list[float]:
    """A rectangle in inches as fractions of the figure."""
    total_width, total_height = fig.get_size_inches()
    return [left / total_width, bottom / total_height, width / total_width, height / total_height]


def _film_width(film: np.ndarray) -> float:
    """Width in inches of a film that is `_FILM_HEIGHT` high, within reason."""
    return float(np.clip(_FILM_HEIGHT * film.shape[1] / film.shape[0], 3.9, 7.5))


def _fit(film: np.ndarray, **layers: np.ndarray | None) -> list[np.ndarray | None]:
    """Checks that all layers have the film's size, and shrinks them together where it is huge."""
    film = np.asarray(film)
    if film.ndim != 2 or film.dtype != np.uint8:
        raise ValueError(f"film is {film.dtype} {film.shape}; expected uint8 [H, W].")
    scale = min(1.0, _LONGEST / max(film.shape))
    size = tuple(max(round(side * scale), 1) for side in film.shape[::-1])
    fitted: list[np.ndarray | None] = [film]
    for name, layer in layers.items():
        if layer is None:
            fitted.append(None)
            continue
        layer = np.asarray(layer)
        if layer.shape != film.shape:
            raise ValueError(f"{name} is {layer.shape} and the film {film.shape}; resize it first.")
        is_map = np.issubdtype(layer.dtype, np.floating)
        fitted.append(layer.astype(np.float32 if is_map else np.uint8))
    if scale == 1.0:
        return fitted
    shrunk = []
    for layer in fitted:
        smooth = layer is film or (layer is not None and layer.dtype == np.float32)
        method = cv2.INTER_AREA if smooth else cv2.INTER_NEAREST
        shrunk.append(None if layer is None else cv2.resize(layer, size, interpolation=method))
    return shrunk


def _table(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != (3, 2):
        raise ValueError(f"{name} is {values.shape}; expected [3, 2].")
    return values


def _heading(fig: Figure, title: str) -> None:
    width, height = fig.get_size_inches()
    fig.text(
        0.25 / width, 1 - 0.14 / height, _printable(title, int(width * 8)), color=_INK,
        fontsize=12, weight="bold", va="top", family=_FONT, parse_math=False,
    )  # fmt: skip
    fig.text(
        1 - 0.12 / width, 0.08 / height, "research software, not for diagnosis", color="#777777",
        fontsize=7.5, ha="right", va="bottom", family=_FONT,
    )  # fmt: skip


def _film_axes(
    fig: Figure, film: np.ndarray, *, left: float, width: float, height: float = _FILM_HEIGHT
) -> Axes:
    """Axes with the film, its R and L markers above its corners, off the picture."""
    ax = fig.add_axes(_inches(fig, left, 0.5, width, height))
    ax.imshow(film, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    ax.set_axis_off()
    ax.autoscale(False)
    marker = dict(color=_INK, fontsize=14, weight="bold", family=_FONT, va="bottom")
    ax.annotate("R", (0, 1), (2, 2), "axes fraction", "offset points", ha="left", **marker)
    ax.annotate("L", (1, 1), (-2, 2), "axes fraction", "offset points", ha="right", **marker)
    return ax


def _contours(ax: Axes, field: np.ndarray, **style) -> None:
    """The contour at 0.5 of a mask or a probability map, closed at the border."""
    padded = np.pad(np.asarray(field, np.float32), 1)
    lines = [line[:, ::-1] - 1 for line in skimage.measure.find_contours(padded, THRESHOLD)]
    color, linewidth = style["color"], style["linewidth"]
    ax.add_collection(LineCollection(lines, colors=color, linewidths=linewidth, zorder=4))


def _draw_outlines(ax: Axes, lungs: np.ndarray, zones: np.ndarray | None) -> None:
    """Thin pale outlines of the lungs, and the cuts between zones."""
    for label in (1, 2):
        _contours(ax, lungs == label, color=_OUTLINE, linewidth=0.8)
    if zones is None:
        return
    above, below = zones[:-1], zones[1:]
    # A cut lies between vertical neighbours in two zones of one lung (odd right, even left).
    cut = (above > 0) & (below > 0) & (above != below) & (above % 2 == below % 2)
    segments = []
    for y in np.flatnonzero(cut.any(axis=1)):
        edges = np.diff(np.pad(cut[y].astype(np.int8), 1))
        for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)):
            segments.append([(start - 0.5, y + 0.5), (stop - 0.5, y + 0.5)])
    ax.add_collection(
        LineCollection(segments, colors=[_OUTLINE], linewidths=0.8, linestyles="--", zorder=3)
    )


def _legend(ax: Axes, handles: Sequence[Artist]) -> None:
    """Labelled handles in one line under the film."""
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=len(handles),
        frameon=False, labelcolor=_INK, prop={"family": _FONT, "size": 9.5},
        handlelength=1.6, columnspacing=1.6, borderaxespad=0.35, borderpad=0,
    )  # fmt: skip


def _caption(ax: Axes, text: str) -> None:
    """One line under the film."""
    ax.annotate(
        text, (0, 0), (2, -10), "axes fraction", "offset points", color=_INK, fontsize=9.5,
        va="center", family=_FONT, parse_math=False,
    )  # fmt: skip


def _stroke(color: str, label: str) -> Line2D:
    return Line2D([], [], color=color, linewidth=2, label=label)


def _score_table(
    fig: Figure,
    probs: np.ndarray,
    present: np.ndarray,
    true: np.ndarray | None,
    *,
    left: float,
) -> None:
    """The 3x2 table: probability in each zone, its colour that of the map, truth beneath."""
    ax = fig.add_axes(_inches(fig, left, 0.5, 2.95, _FILM_HEIGHT))
    ax.set_axis_off()
    ax.set(xlim=(-0.42, 2), ylim=(4.55, -0.32))  # one unit a cell, rows downwards

    def write(x: float, y: float, text: str, **style) -> None:
        ax.text(x, y, text, **{"family": _FONT, "ha": "center", "va": "center", **style})

    for column, name in enumerate(_COLUMNS):
        write(column + 0.5, -0.14, f"{name} ({'RL'[column]})", color=_INK, fontsize=10.5)
    for row, name in enumerate(_ROWS):
        write(-0.1, row + 0.5, name, color=_INK, fontsize=10.5, rotation=90)
        for column in range(2):
            p = probs[row, column]
            face = _MAP(p) if present[row, column] else "#2b2b2b"
            box = (column + 0.03, row + 0.03)
            ax.add_patch(Rectangle(box, 0.94, 0.94, facecolor=face, edgecolor="#666666"))
            luminance = np.dot(to_rgb(face), (0.299, 0.587, 0.114))
            ink = "black" if luminance > 0.45 else "white"
            if not present[row, column]:
                write(column + 0.5, row + 0.5, "no lung", color=_FAINT, fontsize=10.5)
                continue
            height = 0.5 if true is None else 0.4
            write(column + 0.5, row + height, f"{p:.2f}", color=ink, fontsize=19, weight="bold")
            if true is None:
                continue
            truth = true[row, column]
            if not truth >= 0:
                text = "truth –"
            else:
                agree = (p >= THRESHOLD) == (truth > 0)
                text = f"truth {truth:g}  {'✓' if agree else '✗'}"
            write(column + 0.5, row + 0.76, text, color=ink, fontsize=10.5)

    num = int(present.sum())
    soft, hard = probs[present].sum(), int((probs[present] >= THRESHOLD).sum())
    write(-0.2, 3.3, f"Global score, 0 to {num}", color=_FAINT, fontsize=10, ha="left")
    write(-0.2, 3.62, f"{soft:.1f}", color=PREDICTION, fontsize=22, weight="bold", ha="left")
    write(0.36, 3.66, "predicted, sum of probabilities", color=_INK, fontsize=10, ha="left")
    write(-0.2, 3.98, f"{hard}", color=PREDICTION, fontsize=16, weight="bold", ha="left")
    write(0.36, 3.99, "predicted, zones with p ≥ 0.5", color=_INK, fontsize=10, ha="left")
    if true is not None:
        scored = present & (true >= 0)
        total = f"{int((true[scored] > 0).sum())}"
        text = "truth, positive zones"
        if scored.sum() < num:
            text += f" of {scored.sum()} scored"
        if np.any(true[scored] > 1):
            text += f" (sum {true[scored].sum():g})"
        write(-0.2, 4.31, total, color=TRUTH, fontsize=16, weight="bold", ha="left")
        write(0.36, 4.32, text, color=_INK, fontsize=10, ha="left")


def _shown_findings(probs: np.ndarray, names: Sequence[str]) -> list[int]:
    """The most probable findings but 'no finding': three at most, those with p >= 0.5, or one."""
    order = [k for k in np.argsort(-probs, kind="stable") if names[k] != "no finding"]
    likely = [k for k in order if probs[k] >= THRESHOLD]
    return likely[:3] or order[:1]


def _draw_heat(ax: Axes, heat: np.ndarray) -> ScalarMappable:
    """A map [h, w] over the film of the axes, its highest point marked by a yellow cross."""
    width, height = ax.get_xlim()[1] + 0.5, ax.get_ylim()[0] + 0.5
    heat = np.nan_to_num(heat)
    # The highest cell's middle, which bilinear enlargement keeps highest.
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    x, y = (x + 0.5) * width / heat.shape[1] - 0.5, (y + 0.5) * height / heat.shape[0] - 0.5
    heat = cv2.resize(heat, (round(width), round(height)), interpolation=cv2.INTER_LINEAR)
    image = ax.imshow(
        heat, cmap=_MAP, vmin=0, vmax=1, interpolation="bilinear",
        alpha=_MAP_ALPHA * np.clip(heat / 0.3, 0, 1),
    )  # fmt: skip
    for color, size, weight in (("black", 11, 3.2), (PREDICTION, 10, 1.6)):
        ax.plot([x], [y], "+", color=color, markersize=size, markeredgewidth=weight, zorder=5)
    return image


def _draw_boxes(ax: Axes, boxes: np.ndarray, **style) -> None:
    """Green rectangles [M, 4], xyxy where a pixel reaches from its number to the next."""
    for x1, y1, x2, y2 in boxes:
        rectangle = Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=TRUTH)
        rectangle.set(**{"linewidth": 1.2, "zorder": 4} | style)
        ax.add_patch(rectangle)


def _draw_named_boxes(
    ax: Axes, boxes: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> None:
    """Each place once, thin; each set of findings named once, at its largest box."""
    places: dict[tuple, list[int]] = {}
    for box, label in zip(boxes.tolist(), labels.tolist()):
        if 0 <= label < len(names):
            places.setdefault(tuple(box), []).append(label)
    _draw_boxes(ax, np.reshape(list(places), (-1, 4)), linewidth=0.9)
    named: set[tuple] = set()
    by_area = sorted(places.items(), key=lambda p: -(p[0][2] - p[0][0]) * (p[0][3] - p[0][1]))
    for (x1, y1, _, _), found in by_area:
        if tuple(found) in named:
            continue
        named.add(tuple(found))
        ax.annotate(
            ", ".join(names[k] for k in sorted(found)), (max(x1, 0), max(y1, 0)), (1, -1),
            textcoords="offset points", va="top", color=TRUTH, fontsize=6.5, family=_FONT,
            zorder=6, bbox=dict(facecolor="black", alpha=0.45, linewidth=0, pad=0.6),
        )  # fmt: skip


def _color_bar(fig: Figure, bar: Axes, scale: ScalarMappable) -> None:
    """The scale of a probability map, 0 to 1, with a mark at the threshold."""
    fig.colorbar(scale, cax=bar, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.tick_params(colors=_INK, labelsize=9, length=3)
    bar.axhline(THRESHOLD, color=PREDICTION, linewidth=1.5)
    bar.set_title("p", color=_INK, fontsize=10, family=_FONT, pad=5)


def _findings_table(
    fig: Figure,
    probs: np.ndarray,
    true: np.ndarray | None,
    names: Sequence[str],
    shown: Sequence[int],
    *,
    left: float,
) -> None:
    """A row a finding: name (bright where its map is shown), a bar of p, p, the truth."""
    ax = fig.add_axes(_inches(fig, left, 0.5, 3.5, _SMALL_HEIGHT))
    ax.set_axis_off()
    ax.set(xlim=(0, 3.5), ylim=(len(names) - 0.4, -1.1))  # inches; one unit a row, downwards

    def write(x: float, y: float, text: str, **style) -> None:
        ax.text(x, y, text, **{"family": _FONT, "va": "center", "fontsize": 10} | style)

    write(1.42, -0.85, "predicted p", color=_FAINT, fontsize=9)
    if true is not None:
        write(2.72, -0.85, "truth", color=_FAINT, fontsize=9)
    for y, (name, p) in enumerate(zip(names, probs)):
        write(0, y, name, color=_INK, weight="bold" if y in shown else "normal")
        ax.add_patch(Rectangle((1.42, y - 0.24), 0.75, 0.48, facecolor="#2b2b2b"))
        ax.add_patch(Rectangle((1.42, y - 0.24), 0.75 * np.nan_to_num(p), 0.48, facecolor=_MAP(p)))
        ax.plot([1.42 + 0.75 * THRESHOLD] * 2, [y - 0.24, y + 0.24], color=PREDICTION, linewidth=1)
        write(2.25, y, _number(p), color=_INK, weight="bold" if p >= THRESHOLD else "normal")
        if true is None:
            continue
        if np.isnan(true[y]):
            write(2.72, y, "unknown", color=_FAINT)
            continue
        agree = (p >= THRESHOLD) == (true[y] >= THRESHOLD)
        present = true[y] >= THRESHOLD
        write(2.72, y, "yes" if present else "no", color=TRUTH if present else _INK)
        write(3.1, y, "✓" if agree else "✗", color=_INK)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _spread(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """-1..1 for each film, evenly over the films of one true score, in the order of `pred`."""
    spread = np.zeros(len(true))
    for score in np.unique(true):
        films = np.flatnonzero(true == score)
        # The golden ratio: neighbours in `pred` end up far apart.
        place = np.argsort(np.argsort(pred[films], kind="stable"), kind="stable") * 0.6180339887
        spread[films] = 2 * (place % 1.0) - 1 if films.size > 1 else 0.0
    return spread


def _read_curves(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (steps, values) of `metrics.jsonl`, in the order of first appearance."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            step = values.pop("step")
        except (ValueError, KeyError, AttributeError):
            continue  # the half line of a killed run
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, []).append((step, value))
    return {name: tuple(np.array(sorted(pairs)).T) for name, pairs in points.items()}


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over 2 width + 1 values, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - width, 0)
    last = np.minimum(np.arange(len(values)) + width + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _printable(text: str, longest: int = 110) -> str:
    """One line that the font can draw: file names may hold any character."""
    glyphs = font_manager.get_font(font_manager.findfont(_FONT)).get_charmap()
    # Composed first: macOS gives file names with the accents apart.
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    # Control characters (category C) could turn the text around.
    text = "".join(
        c if ord(c) in glyphs and unicodedata.category(c)[0] != "C" else "?" for c in text
    )
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
