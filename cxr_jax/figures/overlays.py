"""What panels of films are made of: films side by side, and what is drawn over and under a film.

A panel is built in four steps:

    film, lesion = fit_layers(film, lesion=lesion)       # one size, checked
    fig, bare, marked = film_pair(film, title=title)     # dark, R and L above each film
    draw_contours(marked, lesion, color=TRUTH)           # likewise draw_heat, draw_boxes ...
    draw_legend(marked, [stroke(TRUTH, "lesion, truth")])  # or draw_caption; one line under it

Films are shown as the reader sees them: the patient's right lung on the image's left, air dark.
Everything drawn on a film is in pixels of the film that the axes show, the first one's middle at 0.
"""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import skimage.measure
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from cxr_jax.figures.style import (
    FONT,
    HEAT_ALPHA,
    HEAT_MAP,
    INK,
    LABEL_ALPHA,
    OUTLINE,
    PREDICTION,
    THRESHOLD,
    TRUTH,
    add_axes,
    dark_figure,
    heading,
)

LUNG_LABELS = (1, 2)  # right, left
FILM_HEIGHT = 5.6  # inches
SMALL_HEIGHT = 4.3  # inches, where more than two films stand side by side
GAP = 0.15  # inches between films

_LONGEST = 1024  # px; larger films are shrunk before drawing, the picture cannot show more
_CLEAR_BELOW = 0.3  # of a heat map


def fit_layers(film: np.ndarray, **layers: np.ndarray | None) -> list[np.ndarray | None]:
    """Checks that all layers have the film's size, and shrinks them together where it is huge.

    Args:
        film: uint8 [H, W].
        layers: [H, W] each, by the name an error should give it, or None. Floats are maps and are
            averaged; anything else is labels, which are kept whole.

    Returns:
        The film, then the layers in their order: float32 maps, uint8 labels, None where it was.

    Raises:
        ValueError: the film is no uint8 [H, W], or a layer has another size.
    """
    film = np.asarray(film)
    if film.ndim != 2 or film.dtype != np.uint8:
        raise ValueError(f"film is {film.dtype} {film.shape}; expected uint8 [H, W].")
    fitted = [_layer(name, layer, film.shape) for name, layer in layers.items()]
    longest = max(film.shape)
    if longest <= _LONGEST:
        return [film, *fitted]
    size = tuple(max(round(side * (_LONGEST / longest)), 1) for side in film.shape[::-1])
    shrunk = [cv2.resize(film, size, interpolation=cv2.INTER_AREA)]
    for layer in fitted:
        method = cv2.INTER_NEAREST if layer is None or layer.dtype == np.uint8 else cv2.INTER_AREA
        shrunk.append(None if layer is None else cv2.resize(layer, size, interpolation=method))
    return shrunk


def _layer(name: str, layer: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray | None:
    if layer is None:
        return None
    layer = np.asarray(layer)
    if layer.shape != shape:
        raise ValueError(f"{name} is {layer.shape} and the film {shape}; resize it first.")
    return layer.astype(np.float32 if np.issubdtype(layer.dtype, np.floating) else np.uint8)


def film_width(film: np.ndarray) -> float:
    """Width in inches of a film that is `FILM_HEIGHT` high, within reason."""
    return float(np.clip(FILM_HEIGHT * film.shape[1] / film.shape[0], 3.9, 7.5))


def film_axes(
    fig: Figure, film: np.ndarray, *, left: float, width: float, height: float = FILM_HEIGHT
) -> Axes:
    """Axes with the film, its R and L markers above its corners, off the picture."""
    ax = add_axes(fig, left=left, width=width, height=height)
    ax.imshow(film, cmap="gray", vmin=0, vmax=255, interpolation="bilinear")
    ax.set_axis_off()
    ax.autoscale(False)
    marker = dict(color=INK, fontsize=14, weight="bold", family=FONT, va="bottom")
    ax.annotate("R", (0, 1), (2, 2), "axes fraction", "offset points", ha="left", **marker)
    ax.annotate("L", (1, 1), (-2, 2), "axes fraction", "offset points", ha="right", **marker)
    return ax


def film_pair(film: np.ndarray, *, title: str, beside: float = 0.65) -> tuple[Figure, Axes, Axes]:
    """A dark figure with a film twice, from the left edge; `beside` inches are for the rest."""
    width = film_width(film)
    fig = dark_figure(2 * width + beside, FILM_HEIGHT + 1.1)
    heading(fig, title)
    left = film_axes(fig, film, left=0.25, width=width)
    right = film_axes(fig, film, left=0.4 + width, width=width)
    return fig, left, right


def film_row(
    film: np.ndarray, count: int, *, title: str, beside: float = 0.35, small: bool = False
) -> tuple[Figure, list[Axes], float]:
    """A dark figure with a film `count` times, `SMALL_HEIGHT` high where that is asked for.

    Returns:
        The figure, the axes from the left, and where the next thing would start, in inches;
        `beside` inches are left for it and the margins.
    """
    width, height = film_width(film), FILM_HEIGHT
    if small:
        width, height = width * SMALL_HEIGHT / FILM_HEIGHT, SMALL_HEIGHT
    fig = dark_figure(count * (width + GAP) + beside, height + 1.1)
    heading(fig, title)
    *lefts, end = (0.25 + i * (width + GAP) for i in range(count + 1))
    return fig, [film_axes(fig, film, left=x, width=width, height=height) for x in lefts], end


def draw_contours(
    ax: Axes, field: np.ndarray, *, color: str | tuple, linewidth: float = 1.5
) -> None:
    """The contour at 0.5 of a mask or a probability map, closed at the border."""
    padded = np.pad(np.asarray(field, np.float32), 1)
    lines = [line[:, ::-1] - 1 for line in skimage.measure.find_contours(padded, THRESHOLD)]
    ax.add_collection(LineCollection(lines, colors=color, linewidths=linewidth, zorder=4))


def draw_lungs(ax: Axes, lungs: np.ndarray, *, color: str | tuple, linewidth: float = 1.5) -> None:
    """The contour of each lung of [H, W]: 0 outside, 1 right, 2 left."""
    for label in LUNG_LABELS:
        draw_contours(ax, lungs == label, color=color, linewidth=linewidth)


def draw_anatomy(ax: Axes, lungs: np.ndarray, zones: np.ndarray | None = None) -> None:
    """Thin pale outlines of the lungs, and the cuts between zones."""
    draw_lungs(ax, lungs, color=OUTLINE, linewidth=0.8)
    if zones is None:
        return
    cuts = _zone_cuts(zones)
    ax.add_collection(
        LineCollection(cuts, colors=[OUTLINE], linewidths=0.8, linestyles="--", zorder=3)
    )


def _zone_cuts(zones: np.ndarray) -> list[list[tuple[float, float]]]:
    """Horizontal segments, from (x, y) to (x, y) in pixels."""
    above, below = zones[:-1], zones[1:]
    # A cut lies between vertical neighbours in two zones of one lung (odd right, even left).
    cut = (above > 0) & (below > 0) & (above != below) & (above % 2 == below % 2)
    segments = []
    for y in np.flatnonzero(cut.any(axis=1)):
        edges = np.diff(np.pad(cut[y].astype(np.int8), 1))
        for start, stop in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)):
            segments.append([(start - 0.5, y + 0.5), (stop - 0.5, y + 0.5)])
    return segments


def draw_heat(ax: Axes, heat: np.ndarray) -> None:
    """A map [h, w] of 0..1, of any size, over the whole film in the colours of `draw_color_bar`."""
    size = tuple(round(side) for side in _shown_size(ax))
    heat = cv2.resize(np.nan_to_num(heat), size, interpolation=cv2.INTER_LINEAR)
    ax.imshow(
        heat, cmap=HEAT_MAP, vmin=0, vmax=1, interpolation="bilinear",
        # Clear where the map is near 0, so that a healthy lung looks as it does on the film.
        alpha=HEAT_ALPHA * np.clip(heat / _CLEAR_BELOW, 0, 1),
    )  # fmt: skip


def draw_peak(ax: Axes, heat: np.ndarray) -> None:
    """A yellow cross on the middle of the highest cell of a map [h, w] that covers the film."""
    width, height = _shown_size(ax)
    # The cell's middle, which the bilinear enlargement of `draw_heat` keeps highest.
    y, x = np.unravel_index(np.argmax(np.nan_to_num(heat)), heat.shape)
    x, y = (x + 0.5) * width / heat.shape[1] - 0.5, (y + 0.5) * height / heat.shape[0] - 0.5
    for color, size, weight in (("black", 11, 3.2), (PREDICTION, 10, 1.6)):
        ax.plot([x], [y], "+", color=color, markersize=size, markeredgewidth=weight, zorder=5)


def _shown_size(ax: Axes) -> tuple[float, float]:
    """(width, height) in pixels of the film that the axes show."""
    return ax.get_xlim()[1] + 0.5, ax.get_ylim()[0] + 0.5


def draw_tint(ax: Axes, density: np.ndarray, *, color: str) -> None:
    """A map [H, W] of 0..1 at the film's size in one colour, the denser the higher."""
    tint = np.zeros((*density.shape, 4), np.float32)
    tint[..., :3], tint[..., 3] = to_rgb(color), np.clip(density, 0, 1) * HEAT_ALPHA
    ax.imshow(tint, interpolation="bilinear")


def draw_labels(ax: Axes, labels: np.ndarray, *, colors: Mapping[int, str]) -> None:
    """Pales each label of [H, W] into its colour; a label without one stays as on the film."""
    tint = np.zeros((*labels.shape, 4))
    for label, color in colors.items():
        tint[labels == label] = (*to_rgb(color), LABEL_ALPHA)
    ax.imshow(tint, interpolation="nearest")


def draw_boxes(ax: Axes, boxes: np.ndarray, **style) -> None:
    """Rectangles [M, 4], xyxy where a pixel reaches from its number to the next.

    They are green unless `style`, as for matplotlib's `Rectangle` (`edgecolor`, `linestyle` ...),
    says otherwise.
    """
    style = {"edgecolor": TRUTH, "linewidth": 1.2, "zorder": 4} | style
    for x1, y1, x2, y2 in boxes:
        ax.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, **style))


def draw_named_boxes(
    ax: Axes, boxes: np.ndarray, labels: np.ndarray, *, names: Sequence[str]
) -> None:
    """Boxes [M, 4] with their findings [M]: each place once, thin; each set of findings named once,
    at its largest box. A label without a name is left out."""
    places: dict[tuple, list[int]] = {}
    for box, label in zip(boxes.tolist(), labels.tolist()):
        if 0 <= label < len(names):
            places.setdefault(tuple(box), []).append(label)
    draw_boxes(ax, np.reshape(list(places), (-1, 4)), linewidth=0.9)
    named: set[tuple] = set()
    by_area = sorted(places.items(), key=lambda p: -(p[0][2] - p[0][0]) * (p[0][3] - p[0][1]))
    for (x1, y1, _, _), found in by_area:
        if tuple(found) not in named:
            named.add(tuple(found))
            draw_tag(ax, max(x1, 0), max(y1, 0), ", ".join(names[k] for k in sorted(found)))


def draw_tag(ax: Axes, x: float, y: float, text: str, *, color: str = TRUTH) -> None:
    """A small name, green unless said otherwise, its upper left corner on pixel (x, y)."""
    ax.annotate(
        text, (x, y), (1, -1),
        textcoords="offset points", va="top", color=color, fontsize=6.5, family=FONT,
        zorder=6, bbox=dict(facecolor="black", alpha=0.45, linewidth=0, pad=0.6),
    )  # fmt: skip


def draw_legend(ax: Axes, handles: Sequence[Artist]) -> None:
    """Labelled handles in one line under the film."""
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0, 0), ncols=len(handles),
        frameon=False, labelcolor=INK, prop={"family": FONT, "size": 9.5},
        handlelength=1.6, columnspacing=1.6, borderaxespad=0.35, borderpad=0,
    )  # fmt: skip


def stroke(color: str, label: str) -> Line2D:
    """The handle of a contour or a box in a legend."""
    return Line2D([], [], color=color, linewidth=2, label=label)


def draw_caption(ax: Axes, text: str) -> None:
    """One line under the film."""
    ax.annotate(
        text, (0, 0), (2, -10), "axes fraction", "offset points", color=INK, fontsize=9.5,
        va="center", family=FONT, parse_math=False,
    )  # fmt: skip


def draw_color_bar(
    fig: Figure,
    *,
    left: float,
    width: float = 0.14,
    height: float = FILM_HEIGHT,
    relative: bool = False,
) -> None:
    """The scale of `draw_heat`, 0 to 1; `left` in inches. Of probabilities, with a mark at the
    threshold, unless it is `relative` to each map's own maximum."""
    bar = add_axes(fig, left=left, width=width, height=height)
    scale = ScalarMappable(Normalize(0, 1), HEAT_MAP)
    fig.colorbar(scale, cax=bar, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.tick_params(colors=INK, labelsize=9, length=3)
    if not relative:
        bar.axhline(THRESHOLD, color=PREDICTION, linewidth=1.5)
    style = dict(color=INK, fontsize=10, family=FONT, pad=5)
    if relative:  # not in the middle: it would run into the film's L
        bar.set_title("of max", loc="left", **style)
    else:
        bar.set_title("p", **style)
