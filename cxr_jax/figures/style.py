"""The look of every figure: resolution, colours, fonts, blank figures, text, and saving.

Figures are matplotlib objects with the Agg canvas; nothing here touches pyplot or the global
settings, so they can be drawn in any thread. Lengths are in inches at `DPI`.
"""

import math
import os
import pathlib
import textwrap
import unicodedata

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from cxr_jax import safe_write

DPI = 110
FONT = "DejaVu Sans"  # comes with matplotlib
THRESHOLD = 0.5  # of the contour and of the hard score

TRUTH, PREDICTION = "#00e05a", "#ffe100"  # green, yellow: the colours of the paper's Fig. 3
CT_TRUTH = "#3aa0ff"  # blue on CT, as in Tang et al., Fig. 2: the heat is red
RIGHT_LUNG, LEFT_LUNG = "#58a6ff", "#ff9e58"
OUTLINE = (0.62, 0.85, 1.0, 0.55)  # lungs and zones: pale, thin
HEAT_MAP = matplotlib.colormaps["inferno"]
HEAT_ALPHA, LABEL_ALPHA = 0.65, 0.2

ROOM, INK, FAINT, EMPTY = "#141414", "#f2f2f2", "#a8a8a8", "#2b2b2b"  # a dark reading room
BLUE, RED = "#1f5fa8", "#b03a2e"  # of the charts, which are on white
GREY, GRID = "#999999", "#e2e2e2"


def dark_figure(width: float, height: float) -> Figure:
    """A figure for films, as dark as a reading room: so many inches, with a canvas of its own."""
    return _figure(width, height, ROOM)


def white_figure(width: float, height: float) -> Figure:
    """A figure for charts, likewise."""
    return _figure(width, height, "white")


def _figure(width: float, height: float, color: str) -> Figure:
    fig = Figure(figsize=(width, height), dpi=DPI, facecolor=color)
    FigureCanvasAgg(fig)
    return fig


def mark(fig: Figure, text: str) -> None:
    """Puts a warning across the head of a finished figure, which grows by its height."""
    across, up = fig.get_size_inches()
    lines = textwrap.wrap(text, max(20, int(across * 13)))
    more = 0.12 + 0.2 * len(lines)
    places = [(axes, axes.get_position()) for axes in fig.axes]
    fig.set_size_inches(across, up + more)
    for axes, place in places:  # the same inches from the foot
        share = up / (up + more)
        axes.set_position([place.x0, place.y0 * share, place.width, place.height * share])
    for words in fig.texts:
        x, y = words.get_position()
        words.set_position((x, y * up / (up + more)))
    band = Rectangle((0, up / (up + more)), 1, 1, transform=fig.transFigure, color=RED)
    fig.add_artist(band)
    fig.text(
        0.5,
        (up + more / 2) / (up + more),
        "\n".join(lines),
        ha="center",
        va="center",
        color="white",
        fontsize=9,
        weight="bold",
    )


def add_axes(fig: Figure, *, left: float, width: float, height: float, bottom: float = 0.5) -> Axes:
    """Axes at a place given in inches."""
    across, up = fig.get_size_inches()
    return fig.add_axes([left / across, bottom / up, width / across, height / up])


def plain_axes(*axes: Axes, grid: str = "both") -> None:
    """A pale grid behind the curves ('x', 'y' or 'both'), no frame."""
    for ax in axes:
        ax.grid(axis=grid, color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)


def write(place: Axes | Figure, x: float, y: float, text: str, **style) -> Text:
    """Text in the package's font; `style` as for matplotlib's `Text`."""
    return place.text(x, y, text, **{"family": FONT} | style)


def write_title(fig: Figure, x: float, y: float, text: str, **style) -> Text:
    """A bold line hanging from (x, y), in fractions of the figure; drawn as it is, no formulas."""
    style = {"fontsize": 12, "weight": "bold", "va": "top", "parse_math": False} | style
    return write(fig, x, y, text, **style)


def heading(fig: Figure, title: str) -> None:
    """The title of a dark figure, cut to its width, and the note that no picture goes without."""
    width, height = fig.get_size_inches()
    title = printable(title, int(width * 8))
    write_title(fig, 0.25 / width, 1 - 0.14 / height, title, color=INK)
    write(
        fig, 1 - 0.12 / width, 0.08 / height, "research software, not for diagnosis",
        color="#777777", fontsize=7.5, ha="right", va="bottom",
    )  # fmt: skip


def number(value: float | None) -> str:
    """Two digits after the point; a dash for what is undefined."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def printable(text: str, longest: int = 110) -> str:
    """One line that the font can draw: file names may hold any character."""
    glyphs = font_manager.get_font(font_manager.findfont(FONT)).get_charmap()
    # Composed first: macOS gives file names with the accents apart.
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    # Control characters (category C) could turn the text around.
    text = "".join(
        c if ord(c) in glyphs and unicodedata.category(c)[0] != "C" else "?" for c in text
    )
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


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
    kind = path.suffix[1:].lower() or "png"
    # Without the Software entry, equal figures are equal files.
    metadata = {"Software": None} if kind == "png" else None
    try:
        with safe_write.replacing(path) as partial:
            figure.savefig(partial, format=kind, dpi=figure.dpi, metadata=metadata)
    finally:
        figure.clear()
