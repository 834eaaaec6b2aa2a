"""Pictures of lesions and their clusters: the space, the elbow, examples, slices."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cxr_jax import figures
from cxr_jax.data.records import LESION_TYPES
from cxr_jax.data.sources.base import peek
from cxr_jax.figures.style import BLUE, FONT, GREY, plain_axes, white_figure, write
from cxr_jax.lesion_space.collected import Found
from cxr_jax.lesion_space.space import Space
from cxr_jax.tasks.lesions import Lesions
from cxr_jax.trained import TrainedRun

# Bright on a slice, none of them the truth's blue.
_COLORS = (
    *("#ffb000", "#dc267f", "#44bb99", "#9f86ff", "#fe6100"),
    *("#bbcc33", "#ff9ec6", "#c9a66b", "#9be7ff", "#b8b8b8"),
    *("#d62728", "#17becf", "#7f4f24", "#6a4c93", "#2a9d8f"),
    *("#e9c46a", "#f4a261", "#8ecae6", "#ffafcc", "#606c38"),
)
EXAMPLES = 8  # of a cluster
_UNTYPED = 0  # a lesion of which no type is known
_MARKS = {_UNTYPED: "o", 1: "o", 2: "s", -1: "x"}  # of true types
_CELL = 128  # px of an example


def cluster_color(cluster: int) -> str:
    """The colour of a cluster, the same in every picture."""
    return _COLORS[cluster % len(_COLORS)]


def space_chart(found: Found, clusters: np.ndarray, space: Space, places: np.ndarray) -> Figure:
    """All lesions in two dimensions (Fig. 9): the colour is the cluster, the mark the true type.

    Args:
      found: the lesions.
      clusters: int [L].
      space: for the clusters' names.
      places: [L, 2].
    """
    fig = white_figure(6.4, 5.2)
    ax = fig.add_subplot()
    marks = np.where(found.on_lesion & (found.types < 0), _UNTYPED, found.types)
    if not found.masked.any():
        marks = np.full(len(found), _UNTYPED)
    for kind in np.unique(marks):
        mine = marks == kind
        colors = [cluster_color(c) for c in clusters[mine]]
        label = _mark_name(kind) if found.masked.any() else None
        ax.scatter(
            *places[mine].T, c=colors, marker=_MARKS[int(kind)], s=16, alpha=0.75, linewidths=0.8
        )
        if label:  # the legend is of marks, not of colours
            ax.scatter([], [], c=GREY, marker=_MARKS[int(kind)], s=22, label=label)
    for cluster in range(len(space)):
        name = f"cluster {cluster + 1} ({(clusters == cluster).sum()})"
        if space.types[cluster] >= 0:
            name += f": {LESION_TYPES[space.types[cluster]]}"
        ax.scatter([], [], c=cluster_color(cluster), marker="o", s=30, label=name)
    if len(found):
        ax.legend(frameon=False, prop={"family": FONT, "size": 8.5}, loc="best")
    else:
        write(ax, 0.5, 0.5, "no lesion was found", ha="center", transform=ax.transAxes)
    ax.set(xticks=[], yticks=[])
    ax.set_title("lesions by what the network sees there (SVD, t-SNE)", fontsize=10, family=FONT)
    fig.tight_layout(pad=0.8)
    return fig


def _mark_name(kind: int) -> str:
    if kind == _UNTYPED:
        return "truth: a lesion"
    return f"truth: {LESION_TYPES[kind]}" if kind > 0 else "truth: no lesion"


def elbow_chart(space: Space) -> Figure:
    """The distances within clusters against their number, and the number chosen."""
    fig = white_figure(4.6, 3.6)
    ax = fig.add_subplot()
    numbers = np.arange(1, len(space.distances) + 1)
    ax.plot(numbers, space.distances / space.distances[0], "o-", color=BLUE, linewidth=1.6)
    ax.axvline(len(space), color=GREY, linestyle="--", linewidth=1)
    ax.set(xlabel="clusters", ylabel="squared distances, of one cluster's")
    ax.set_ylim(0, 1.05)
    plain_axes(ax)
    fig.tight_layout(pad=0.8)
    return fig


def examples_sheet(found: Found, placed: dict[str, np.ndarray]) -> Figure | None:
    """The lesions nearest to each cluster's middle, a row a cluster, each in the square around its
    box; None where there is no lesion."""
    crops, titles = [], []
    for cluster in range(placed["distances"].shape[1]):
        mine = np.flatnonzero(placed["cluster"] == cluster)
        order = mine[np.argsort(placed["distances"][mine, cluster], kind="stable")][:EXAMPLES]
        for rank in range(EXAMPLES):
            if rank >= len(order):  # a row has one length
                crops.append(np.full((_CELL, _CELL), 20, np.uint8))
                titles.append("")
                continue
            lesion = order[rank]
            crops.append(_crop(found, lesion))
            titles.append(f"{cluster + 1}: {found.ids[lesion]}")
    if not crops:
        return None
    return figures.contact_sheet(crops, EXAMPLES, titles=titles, cell=_CELL)


def _crop(found: Found, lesion: int) -> np.ndarray:
    image = found.source[int(found.slices[lesion])]["image"]
    x0, y0, x1, y1 = found.boxes[lesion]
    half = max(x1 - x0, y1 - y0) * 0.65
    (cx, cy), (height, width) = ((x0 + x1) / 2, (y0 + y1) / 2), image.shape
    rows = slice(max(int(cy - half), 0), min(int(np.ceil(cy + half)), height))
    columns = slice(max(int(cx - half), 0), min(int(np.ceil(cx + half)), width))
    return image[rows, columns]


def slice_panel(run: TrainedRun, found: Found, clusters: np.ndarray, number: int) -> Figure:
    """A slice with its lesions, each in the colour and with the number of its cluster (Fig. 10)."""
    task: Lesions = run.task
    record = found.source[int(number)]
    mine = np.flatnonzero(found.slices == number)
    drawn = figures.DrawnLesions(
        found.boxes[mine],
        found.points[mine],
        tags=[str(c + 1) for c in clusters[mine]],
        colors=[cluster_color(c) for c in clusters[mine]],
    )
    return task.panel(record, run.explain(record), drawn)


def chosen_slices(found: Found, count: int) -> Sequence[int]:
    """Slices with most lesions first, at most one of a patient as long as there are others."""
    numbers, counts = np.unique(found.slices, return_counts=True)
    order = numbers[np.argsort(-counts, kind="stable")]
    groups = [str(peek(found.source, int(number), "group")) for number in order[: 20 * count]]
    seen: set[str] = set()
    fresh, again = [], []
    for number, group in zip(order, groups):
        (again if group in seen else fresh).append(int(number))
        seen.add(group)
    return [*fresh, *again][:count]
