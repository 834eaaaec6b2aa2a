"""Charts of a whole split or run, on white: scores, intervals, thresholds, training curves."""

import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_jax import small_files
from cxr_jax.figures.style import (
    BLUE,
    FONT,
    GREY,
    RED,
    add_axes,
    number,
    plain_axes,
    printable,
    white_figure,
    write,
    write_title,
)
from cxr_jax.metrics import regression

_FEW_POINTS = 60  # of a curve: each is marked, and no mean is drawn over them


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
    fig = white_figure(7.4, height)
    ax = add_axes(fig, left=1.6, bottom=0.6, width=3.7, height=height - 1.3)
    values = [x for auc in aucs for x in auc if x is not None]
    ax.set(xlim=(min([0.45, *(x - 0.03 for x in values)]), 1.02), ylim=(len(names) - 0.4, -0.6))
    ax.axvline(0.5, color=GREY, linewidth=1, linestyle="--", zorder=1)  # a blind guess
    for y, (auc, note) in enumerate(zip(aucs, notes)):
        _draw_interval(ax, y, auc)
        _write_beside(ax, 1.04, y, number(auc[0]), weight="bold")
        _write_beside(ax, 1.18, y, note, color="#555555")
    _write_beside(ax, 1.18, -1, "positive films", color="#555555")
    ax.set_yticks(range(len(names)), names, fontsize=10, family=FONT)
    ax.set_xlabel("area under the ROC curve", fontsize=10, family=FONT)
    plain_axes(ax, grid="x")
    write_title(fig, 0.02, 1 - 0.12 / height, printable(title))
    return fig


def _draw_interval(ax: Axes, y: int, auc: tuple[float | None, float | None, float | None]) -> None:
    value, low, high = auc
    if value is None:
        _write_beside(ax, 0.5, y, "undefined: one class only", ha="center", color="#777777")
        return
    if low is not None:
        ax.plot([low, high], [y, y], color=BLUE, linewidth=2, zorder=2)
    ax.plot([value], [y], color=BLUE, marker="o", markersize=6, zorder=3)


def _write_beside(ax: Axes, x: float, y: float, text: str, **style) -> None:
    """Text in row y; x is a fraction of the axes."""
    write(ax, x, y, text, va="center", fontsize=10, transform=ax.get_yaxis_transform(), **style)


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
    fig = white_figure(9.6, 3.9)
    left, right = fig.subplots(1, 2)
    _draw_histogram(left, histogram)
    _draw_dice(right, thresholds, dice)
    right.axvline(chosen, color=GREY, linewidth=1, linestyle="--")
    # A curve may run behind it.
    right.legend(edgecolor="white", prop={"family": FONT, "size": 9.5})
    plain_axes(left, right)
    fig.tight_layout(pad=1.0)
    return fig


def _draw_histogram(ax: Axes, histogram: np.ndarray) -> None:
    """Shares of the pixels outside and inside lesions, by value."""
    edges = np.linspace(0, 1, len(histogram) + 1)
    for column, name, color in ((0, "outside lesions", "#7f8c8d"), (1, "in lesions", RED)):
        pixels = histogram[:, column].sum()
        if pixels:
            share = histogram[:, column] / pixels
            ax.stairs(share, edges, color=color, linewidth=1.6, label=name)
    ax.set(xlabel="value of the lesion map", ylabel="share of pixels", yscale="log", xlim=(0, 1))
    ax.legend(frameon=False, prop={"family": FONT, "size": 9.5})


def _draw_dice(ax: Axes, thresholds: np.ndarray, dice: Mapping[str, np.ndarray]) -> None:
    # Each has its colour, whichever others are there; thinner on thicker, where two coincide.
    for i, (name, values) in enumerate(dice.items()):
        style = dict(color=f"C{i}", linewidth=max(3.4 - i, 1.0), markersize=5 - i)
        if not np.isnan(values).all():
            ax.plot(thresholds, values, marker="o", label=name, **style)
    ax.set(xlabel="threshold", ylabel="mean Dice", xlim=(0, 1), ylim=(0, 1.02))


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
    fig = white_figure(5.2, 3.9)
    ax = fig.add_subplot()
    settings = sorted(values)
    ax.plot(settings, [np.mean(values[s]) for s in settings], color=BLUE, linewidth=1.6)
    for s in settings:
        ax.plot([s] * len(values[s]), values[s], "o", color=BLUE, markersize=4, alpha=0.6)
    ax.set(xlabel=printable(setting), ylabel=printable(metric))
    if min(map(min, values.values())) >= 0:  # a slight difference should look slight
        ax.set_ylim(0, ax.get_ylim()[1] * 1.1)
    _axes_title(ax, title)
    plain_axes(ax)
    fig.tight_layout(pad=1.0)
    return fig


def _axes_title(ax: Axes, title: str) -> None:
    ax.set_title(printable(title), fontsize=10.5, family=FONT, parse_math=False)


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
        functions = {"MSE": regression.mse, "MAE": regression.mae, "CC": regression.cc}
        metrics = {name: function(pred, true) for name, function in functions.items()}
    fig = white_figure(5.6, 5.9)
    ax = fig.add_axes((0.13, 0.1, 0.83, 0.79))
    _draw_identity(ax, maximum)
    ax.scatter(
        true + _spread(pred, true) * 0.16, pred, s=26, color=BLUE, alpha=0.65,
        edgecolors="white", linewidths=0.5, zorder=3,
    )  # fmt: skip
    _label_scores(ax, maximum)
    counted = f"{pred.size} film{'s' * (pred.size != 1)}"
    values = [f"{name} {number(value)}" for name, value in metrics.items()]
    # Above the axes: inside, it would hide the films that are far off.
    ax.set_title("    ".join([counted, *values]), fontsize=10.5, family=FONT, loc="left")
    if title:
        write_title(fig, 0.13, 0.975, printable(title, 60))
    return fig


def _draw_identity(ax: Axes, maximum: float) -> None:
    """The line of identity in its band, a sixth of the scale on either side."""
    ends = np.array([-0.04 * maximum, 1.04 * maximum])
    band = maximum / 6
    ax.fill_between(ends, ends - band, ends + band, color="#e8eef5", linewidth=0, zorder=0)
    ax.plot(ends, ends, color="#555555", linewidth=1, zorder=1)
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    write(
        ax, 0.98, 0.02, f"band: within ± {band:g}", transform=ax.transAxes, ha="right",
        va="bottom", fontsize=9, color="#555555",
    )  # fmt: skip


def _label_scores(ax: Axes, maximum: float) -> None:
    ticks = np.arange(0, maximum + 1, 1 if maximum <= 9 else 3)
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.grid(color="#dddddd", linewidth=0.6, zorder=0)
    ax.set_axisbelow(True)
    ax.set_xlabel("true score", fontsize=11, family=FONT)
    ax.set_ylabel("predicted score", fontsize=11, family=FONT)


def _spread(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """-1..1 for each film, evenly over the films of one true score, in the order of `pred`."""
    spread = np.zeros(len(true))
    for score in np.unique(true):
        films = np.flatnonzero(true == score)
        # The golden ratio: neighbours in `pred` end up far apart.
        place = np.argsort(np.argsort(pred[films], kind="stable"), kind="stable") * 0.6180339887
        spread[films] = 2 * (place % 1.0) - 1 if films.size > 1 else 0.0
    return spread


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
    columns = min(len(curves), 4) or 1
    rows = math.ceil(len(curves) / columns) or 1
    fig = white_figure(3.5 * columns + 0.3, 2.5 * rows + 0.4)
    if not curves:
        write(fig, 0.5, 0.5, "no step was logged", ha="center", va="center")
        return fig
    for i, name in enumerate(sorted(curves, key=_curve_rank)):
        _draw_curve(fig.add_subplot(rows, columns, i + 1), name, *curves[name])
    fig.tight_layout(pad=0.8)
    return fig


def _read_curves(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (steps, values) of `metrics.jsonl`, in the order of first appearance."""
    points: dict[str, list[tuple[float, float]]] = {}
    for _, values in small_files.scan_lines(path):
        step = (values or {}).pop("step", None)
        if isinstance(step, bool) or not isinstance(step, int):
            continue  # the half line of a killed run
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                points.setdefault(name, []).append((step, value))
    return {name: tuple(np.array(sorted(pairs)).T) for name, pairs in points.items()}


def _curve_rank(name: str) -> int:
    """Loss, learning rate, other training values, validation."""
    if name.startswith("val/"):
        return 3
    return {"loss": 0, "lr": 1}.get(name, 2)


def _draw_curve(ax: Axes, name: str, steps: np.ndarray, values: np.ndarray) -> None:
    validation, schedule = name.startswith("val/"), name == "lr"
    color = RED if validation else BLUE
    few = len(values) <= _FEW_POINTS
    if few or schedule:
        marker = "o" if few else ""
        ax.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3)
    else:  # many noisy steps: the points pale, their running mean on top
        ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
        ax.plot(steps, _running_mean(values, len(values) // 30), color=color, linewidth=1.6)
    if not validation and not schedule and values.min() > 0:
        ax.set_yscale("log" if values.max() > 30 * values.min() else "linear")
    _axes_title(ax, name)
    ax.set_xlabel("step", fontsize=9, family=FONT)
    ax.tick_params(labelsize=8.5)
    ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
    ax.margins(x=0.02)
    plain_axes(ax)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over 2 width + 1 values, fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - width, 0)
    last = np.minimum(np.arange(len(values)) + width + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
