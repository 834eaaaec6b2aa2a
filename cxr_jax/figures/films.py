"""Panels of one film or slice: the film beside its overlays, and a table of what is predicted.

Truth is green (on CT blue) and prediction yellow. A panel's height is fixed; its width follows the
film's aspect and how often the film is shown.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from cxr_jax.figures.overlays import (
    LUNG_LABELS,
    SMALL_HEIGHT,
    draw_anatomy,
    draw_boxes,
    draw_caption,
    draw_color_bar,
    draw_contours,
    draw_heat,
    draw_labels,
    draw_legend,
    draw_lungs,
    draw_named_boxes,
    draw_peak,
    draw_tint,
    film_pair,
    film_row,
    film_width,
    fit_layers,
    stroke,
)
from cxr_jax.figures.style import (
    CT_TRUTH,
    HEAT_ALPHA,
    LEFT_LUNG,
    OUTLINE,
    PREDICTION,
    RIGHT_LUNG,
    THRESHOLD,
    TRUTH,
    number,
)
from cxr_jax.figures.tables import findings_table, score_table

_MOST_MAPS = 3  # beside one film


def severity_panel(
    film: np.ndarray,
    lungs: np.ndarray,
    zones: np.ndarray,
    prob_map: np.ndarray,
    severity_probs: np.ndarray,
    *,
    severity_scores: np.ndarray | None = None,
    severity_true: np.ndarray | None = None,
    lesion_true: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """One film's severity at a glance: contours, probability map, 3x2 score table.

    Left, the film with lung and zone outlines and the contour of `prob_map` at 0.5 (yellow), over
    the true lesion's (green) where there is one. Middle, the same film under the probability map,
    with a colour bar from 0 to 1. Right, the table of zones, the right lung in the left column, and
    the global score: soft (sum of probabilities) and hard (zones with p >= 0.5). Of a model that
    tells scores 0 to 3, these stand in the table, and their sum beneath.

    Args:
        film: uint8 [H, W].
        lungs: [H, W] 0 outside, 1 right lung, 2 left lung.
        zones: [H, W] 0 outside, 1..6 (see `data.zones.zone_map`); a zone without a pixel counts as
            absent in table and sums.
        prob_map: [H, W] lesion probability 0..1, at the film's size.
        severity_probs: [3, 2] zone probabilities 0..1.
        severity_scores: [3, 2] zone scores 0..3, of a model that has them.
        severity_true: [3, 2] true zone scores, 0/1 or 0..3; below 0 or NaN where not scored.
        lesion_true: [H, W] true lesion mask.
        title: one line, e.g. the film's id.

    Returns:
        A figure of 6.7 inches height; its width follows the film's aspect.

    Raises:
        ValueError: a mask or map has another size than the film, or a table is not 3x2.
    """
    probs = _zone_scores("severity_probs", severity_probs)
    true = None if severity_true is None else _zone_scores("severity_true", severity_true)
    scores = None if severity_scores is None else _zone_scores("severity_scores", severity_scores)
    present = _zones_present(zones) & ~np.isnan(probs)
    film, lungs, zones, prob_map, lesion = fit_layers(
        film, lungs=lungs, zones=zones, prob_map=prob_map, lesion_true=lesion_true
    )
    fig, outlined, mapped = film_pair(film, title=title, beside=4.7)
    draw_anatomy(outlined, lungs, zones)
    _draw_lesions(outlined, np.nan_to_num(prob_map), lesion)
    draw_heat(mapped, prob_map)
    draw_anatomy(mapped, lungs)
    draw_caption(mapped, "lesion probability p")
    width = film_width(film)
    draw_color_bar(fig, left=0.5 + 2 * width)
    score_table(fig, probs, scores=scores, present=present, true=true, left=1.4 + 2 * width)
    return fig


def _zone_scores(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != (3, 2):
        raise ValueError(f"{name} is {values.shape}; expected [3, 2].")
    return values


def _zones_present(zones: np.ndarray) -> np.ndarray:
    """[3, 2] bool: which of the zones 1..6 have a pixel."""
    return np.array([np.any(zones == zone) for zone in range(1, 7)]).reshape(3, 2)


def _draw_lesions(ax: Axes, prob_map: np.ndarray, lesion: np.ndarray | None) -> None:
    """Contours of the truth, if there is one, and of the prediction over it; the legend."""
    legend = [stroke(OUTLINE, "lungs, zones")]
    if lesion is not None:
        draw_contours(ax, lesion, color=TRUTH)
        legend.append(stroke(TRUTH, "lesion, truth" if lesion.any() else "truth: no lesion"))
    draw_contours(ax, prob_map, color=PREDICTION)
    found = bool((prob_map >= THRESHOLD).any())
    text = "lesion, predicted (p ≥ 0.5)" if found else "predicted: none (p ≥ 0.5)"
    draw_legend(ax, [*legend, stroke(PREDICTION, text)])


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
        dice = _lungs_dice(lungs_pred, lungs_true)  # before the film is shrunk
    film, pred, true = fit_layers(film, lungs_pred=lungs_pred, lungs_true=lungs_true)
    fig, bare, ax = film_pair(film, title=title)
    draw_labels(ax, pred, colors=dict(zip(LUNG_LABELS, (RIGHT_LUNG, LEFT_LUNG))))
    legend = _lungs_legend(pred, dice)
    if true is not None:
        draw_lungs(ax, true, color=TRUTH)
        legend.append(stroke(TRUTH, "truth"))
    draw_lungs(ax, pred, color=PREDICTION)
    legend.append(stroke(PREDICTION, "predicted"))
    draw_legend(bare, legend)  # from the left edge: it may be wider than a narrow film
    return fig


def _lungs_dice(pred: np.ndarray, true: np.ndarray) -> list[float]:
    """Right, left; NaN for a lung that neither has."""
    return [_dice(pred == label, true == label) for label in LUNG_LABELS]


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def _lungs_legend(pred: np.ndarray, dice: Sequence[float] | None) -> list[Patch]:
    handles = []
    for label, name, color in zip(
        LUNG_LABELS, ("right lung", "left lung"), (RIGHT_LUNG, LEFT_LUNG)
    ):
        found = bool(np.any(pred == label))
        text = name if found else f"no {name} found"
        text += "" if dice is None else f", Dice {number(dice[label - 1])}"
        handles.append(Patch(color=color if found else "none", label=text))
    return handles


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
    film, true, *preds = fit_layers(film, lungs_true=lungs_true, **layers)
    fig, films, _ = film_row(film, len(preds), title=title)
    for ax, name, pred in zip(films, lungs_pred, preds):
        draw_lungs(ax, true, color=TRUTH)
        draw_lungs(ax, pred, color=PREDICTION)
        dice = ", ".join(map(number, _lungs_dice(pred, true)))
        area = number(np.sum(pred > 0) / max(np.sum(true > 0), 1))
        draw_caption(ax, f"{name}: Dice {dice} (right, left), area {area} of the true")
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
    probs, heat, true = _findings_arrays(probs, heat, findings_true, names=names)
    boxes, labels = _labelled_boxes(boxes, box_label)
    height = np.asarray(film).shape[0]
    (film,) = fit_layers(film)
    boxes = boxes * (film.shape[0] / height)
    shown = _shown_findings(probs, names)
    fig, (bare, *mapped), end = film_row(film, 1 + len(shown), title=title, beside=4.5, small=True)
    draw_named_boxes(bare, boxes, labels, names=names)
    if len(boxes):
        draw_legend(bare, [stroke(TRUTH, "boxes, truth")])
    elif true is not None:
        draw_caption(bare, "no box was drawn")
    for ax, k in zip(mapped, shown):
        _draw_finding(ax, heat[..., k], boxes[labels == k])
        draw_caption(ax, f"{names[k]}, p = {probs[k]:.2f}")
    draw_color_bar(fig, left=end, width=0.12, height=SMALL_HEIGHT)
    findings_table(fig, probs, true=true, names=names, shown=shown, left=end + 0.6)
    return fig


def _findings_arrays(
    probs: np.ndarray, heat: np.ndarray, true: np.ndarray | None, *, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """All as floats and of as many findings as there are names."""
    probs, heat = np.asarray(probs, np.float64), np.asarray(heat, np.float32)
    true = None if true is None else np.asarray(true, np.float64)
    lengths = [len(names), len(probs), heat.shape[-1], *([] if true is None else [len(true)])]
    if len(set(lengths)) != 1:
        raise ValueError(
            f"names, probs, heat, findings_true are {lengths} findings; must be equal."
        )
    return probs, heat, true


def _labelled_boxes(
    boxes: np.ndarray | None, labels: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [M, 4] and int [M]; M is 0 where there is none."""
    boxes = np.reshape([] if boxes is None else boxes, (-1, 4)).astype(np.float64)
    labels = np.reshape([] if labels is None else labels, -1).astype(int)
    if len(boxes) != len(labels):
        raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels; must be equal.")
    return boxes, labels


def _shown_findings(probs: np.ndarray, names: Sequence[str]) -> list[int]:
    """The most probable findings but 'no finding': three at most, those with p >= 0.5, or one."""
    order = [k for k in np.argsort(-probs, kind="stable") if names[k] != "no finding"]
    likely = [k for k in order if probs[k] >= THRESHOLD]
    return likely[:_MOST_MAPS] or order[:1]


def _draw_finding(ax: Axes, heat: np.ndarray, boxes: np.ndarray) -> None:
    """The map of one finding, its highest point, and the boxes of the truth."""
    draw_heat(ax, heat)
    draw_peak(ax, heat)
    draw_boxes(ax, boxes)


def diagnosis_panel(
    film: np.ndarray,
    probs: np.ndarray,
    names: Sequence[str],
    *,
    maps: Mapping[str, np.ndarray],
    label: int | None = None,
    lesion_true: np.ndarray | None = None,
    title: str = "",
) -> Figure:
    """One film's diagnosis at a glance: the film, what explains it, a table of probabilities.

    Left, the film, with the contour of the true lesion (green) where there is one. Then the same
    film under each map of `maps`; each map is divided by its own
    maximum, so colours compare places and not maps; its highest point has a yellow cross.

    Args:
        film: uint8 [H, W].
        probs: [K] sum to one.
        names: the K classes.
        maps: name -> float [H, W], how much a place speaks for the class; below 0 counts as 0.
        label: the true class.
        lesion_true: [H, W] true lesion mask.
        title: one line, e.g. the film's id.

    Returns:
        A figure of 5.4 inches height; its width follows the film's aspect and the number of maps.

    Raises:
        ValueError: a map has another size than the film, or the numbers of classes differ.
    """
    probs = np.asarray(probs, np.float64)
    if len(probs) != len(names):
        raise ValueError(f"{len(probs)} probabilities and {len(names)} names; must be equal.")
    film, lesion, *fitted = fit_layers(film, lesion_true=lesion_true, **maps)
    fig, (bare, *mapped), end = film_row(film, 1 + len(maps), title=title, beside=4.5, small=True)
    outlined = [bare, *mapped] if lesion is not None else []
    for ax in outlined:
        draw_contours(ax, lesion, color=TRUTH)
    if lesion is not None:
        text = "lesion, truth" if lesion.any() else "truth: no lesion"
        draw_legend(bare, [stroke(TRUTH, text)])
    for ax, name, heat in zip(mapped, maps, fitted):
        _draw_explanation(ax, np.maximum(np.nan_to_num(heat), 0))
        draw_caption(ax, name)
    if maps:
        draw_color_bar(fig, left=end, width=0.12, height=SMALL_HEIGHT, relative=True)
    true = None if label is None else (np.arange(len(names)) == label).astype(np.float64)
    called = [int(probs.argmax())]
    findings_table(fig, probs, true=true, names=names, shown=called, left=end + 0.6)
    return fig


def _draw_explanation(ax: Axes, heat: np.ndarray) -> None:
    """A map over its own maximum; none where it is flat at 0."""
    if heat.max() > 0:
        draw_heat(ax, heat / heat.max())
        draw_peak(ax, heat)


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
    image, heat, true = fit_layers(image, lesion_map=lesion_map, lesion_true=lesion_true)
    fig, bare, ax = film_pair(image, title=title)
    draw_tint(ax, heat, color="red")
    legend = [Patch(color=to_rgba("red", HEAT_ALPHA), label="lesion map")] if shown else []
    if true is not None:
        for axes in (bare, ax):
            draw_contours(axes, true > 0, color=CT_TRUTH)
        legend.append(stroke(CT_TRUTH, "truth" if true.any() else "truth: no lesion"))
    draw_contours(ax, heat > threshold, color=PREDICTION, linewidth=1.2)
    found = f"{'found' if (heat > threshold).any() else 'found: nothing'} above {threshold:g}"
    legend.append(stroke(PREDICTION, found if shown else "called free of lesions: no map"))
    draw_legend(ax, legend)
    if slice_prob is not None:
        draw_caption(bare, f"a lesion is in the slice: p = {slice_prob:.2f}")
    return fig
