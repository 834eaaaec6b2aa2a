"""Charts of a classifier over a whole split, on white: ROC, precision and recall, confusion matrix,
reliability; and of the maps that explain it, hit rates."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cxr_jax.figures.style import BLUE, FONT, GREY, RED, plain_axes, white_figure, write
from cxr_jax.metrics import calibration

_SIDE = 4.6  # inches


def roc_chart(probs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """A ROC curve a class, against the rest; a class that is absent, or alone, has none.

    Args:
        probs: [N, K].
        labels: int [N].
        names: of the K classes.
    """
    import sklearn.metrics  # takes a second

    fig, ax = _square()
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for k, name in enumerate(names):
        mine = labels == k
        if mine.any() and not mine.all():
            x, y, _ = sklearn.metrics.roc_curve(mine, probs[:, k])
            text = f"{name}, AUC {sklearn.metrics.auc(x, y):.3f}"
            ax.plot(x, y, color=f"C{k}", linewidth=1.8, label=text)
    ax.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1), ylim=(0, 1.01))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, loc="lower right", prop={"family": FONT, "size": 9.5})
    else:
        write(ax, 0.5, 0.1, "undefined: one class only", ha="center", color="#777777")
    plain_axes(ax)
    fig.tight_layout(pad=0.8)
    return fig


def precision_recall_chart(probs: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """Precision against recall, a curve a class, against the rest; as `roc_chart`."""
    import sklearn.metrics  # takes a second

    fig, ax = _square()
    for k, name in enumerate(names):
        mine = labels == k
        if mine.any() and not mine.all():
            precision, recall, _ = sklearn.metrics.precision_recall_curve(mine, probs[:, k])
            area = sklearn.metrics.average_precision_score(mine, probs[:, k])
            # A step curve: the precision at a recall is that of the next point it reaches.
            text = f"{name}, AP {area:.3f}"
            ax.step(recall, precision, where="post", color=f"C{k}", linewidth=1.8, label=text)
    ax.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, loc="lower left", prop={"family": FONT, "size": 9.5})
    else:
        write(ax, 0.5, 0.1, "undefined: one class only", ha="center", color="#777777")
    plain_axes(ax)
    fig.tight_layout(pad=0.8)
    return fig


def hit_rate_chart(overlaps: np.ndarray, rates: Mapping[str, Sequence[float]]) -> Figure:
    """Hit rates of maps against the overlap that a hit asks for (Wu et al. 2022, Table 5).

    Args:
        overlaps: [T].
        rates: map -> [T] 0..1, NaN where there is no lesion to hit.
    """
    fig, ax = _square()
    if any(np.isfinite(values).any() for values in rates.values()):
        for k, (name, values) in enumerate(rates.items()):
            ax.plot(overlaps, values, "o-", color=f"C{k}", linewidth=1.6, markersize=4, label=name)
        ax.legend(frameon=False, loc="upper right", prop={"family": FONT, "size": 9.5})
    else:
        write(ax, 0.5, 0.5, "undefined: no slice has a lesion", ha="center", color="#777777")
    ax.set(xlabel="overlap, share of the lesion's box", ylabel="hit rate", xlim=(0, 1))
    ax.set_ylim(0, 1.02)
    plain_axes(ax)
    fig.tight_layout(pad=0.8)
    return fig


def confusion_chart(called: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """How many films of each true class (rows) were called what (columns), and their share of the
    row.

    Args:
        called: int [N], the most probable class.
        labels: int [N].
        names: of the K classes.
    """
    import sklearn.metrics  # takes a second

    fig, ax = _square()
    counts = sklearn.metrics.confusion_matrix(labels, called, labels=range(len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else "black"
        text = f"{count}\n{shares[row, column]:.0%}"
        write(ax, column, row, text, ha="center", va="center", fontsize=11, color=color)
    ax.set_xticks(range(len(names)), names, fontsize=9.5, family=FONT)
    ax.set_yticks(range(len(names)), names, fontsize=9.5, family=FONT, rotation=90, va="center")
    ax.set_xlabel("called", fontsize=10, family=FONT)
    ax.set_ylabel("truth", fontsize=10, family=FONT)
    ax.spines[:].set_visible(False)
    fig.tight_layout(pad=0.8)
    return fig


def reliability_chart(probs: np.ndarray, labels: np.ndarray, temperature: float) -> Figure:
    """Accuracy against confidence, bin by bin (Guo et al., ICML 2017, Fig. 1); a dot's area follows
    its films. With a temperature, that was chosen elsewhere, the scaled probabilities too.

    Args:
        probs: [N, K] sum to one.
        labels: int [N].
        temperature: NaN: none was chosen.
    """
    fig, ax = _square()
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    _draw_reliability(ax, probs, labels, color=RED, name="as predicted")
    if not np.isnan(temperature):
        scaled = calibration.scale(probs, temperature)
        name = f"temperature {temperature:.2f}"
        _draw_reliability(ax, scaled, labels, color=BLUE, name=name)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.04))
    ax.legend(frameon=False, loc="lower right", prop={"family": FONT, "size": 9.5})
    plain_axes(ax)
    fig.tight_layout(pad=0.8)
    return fig


def _draw_reliability(
    ax: Axes, probs: np.ndarray, labels: np.ndarray, *, color: str, name: str
) -> None:
    counts, confidence, accuracy = calibration.reliability(probs, labels)
    there = counts > 0
    ece = calibration.expected_calibration_error(probs, labels)
    ax.plot(
        confidence[there], accuracy[there],
        color=color, linewidth=1.2, label=f"{name}, ECE {ece:.3f}",
    )  # fmt: skip
    area = 12 + 160 * counts[there] / counts.sum()
    ax.scatter(confidence[there], accuracy[there], s=area, color=color, alpha=0.7)


def _square() -> tuple[Figure, Axes]:
    fig = white_figure(_SIDE, _SIDE)
    return fig, fig.subplots()
