"""A film beside two random views of it."""

import numpy as np
from matplotlib.figure import Figure

from cxr_jax.figures.overlays import draw_caption, film_row
from cxr_jax.figures.style import number


def views_panel(
    film: np.ndarray, views: tuple[np.ndarray, np.ndarray], *, agreement: float, title: str = ""
) -> Figure:
    """The film, its two views beside it, and how alike the network finds these.

    Args:
        film: uint8 [H, W].
        views: two of the film, uint8 [S, S]; they are shown as square as they are.
        agreement: the cosine of their projections.
        title: one line, e.g. the film's id.
    """
    fig, axes, _ = film_row(film, 3, title=title, small=True)
    for ax, view in zip(axes[1:], views):
        ax.clear()
        ax.set_axis_off()
        ax.imshow(view, cmap="gray", vmin=0, vmax=255, aspect="equal")
    captions = ("film", "first view", f"second view: cosine {number(agreement)}")
    for ax, caption in zip(axes, captions):
        draw_caption(ax, caption)
    return fig
