"""Sheets of many pictures."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

from cxr_jax.figures.style import DPI, INK, dark_figure, printable, write

_GAP, _CAPTION = 6, 22  # px


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
    across, down = cell + _GAP, cell + _GAP + (_CAPTION if titles is not None else 0)
    sheet = np.full((rows * down + _GAP, columns * across + _GAP, 3), 20, np.uint8)
    height, width = sheet.shape[:2]
    fig = dark_figure(width / DPI, height / DPI)
    for i, film in enumerate(films):
        top, left = _GAP + (i // columns) * down, _GAP + (i % columns) * across
        _paste(sheet[top : top + cell, left : left + cell], film)
        if titles is not None:
            x, y = (left + cell / 2) / width, 1 - (top + cell + 5) / height
            _write_under(fig, x, y, printable(titles[i], cell // 8))
    fig.figimage(sheet, zorder=-1)
    return fig


def _paste(cell: np.ndarray, film: np.ndarray) -> None:
    """The film, as large as the square cell [S, S, 3] allows, into its middle."""
    film = np.asarray(film)
    film = np.stack([film] * 3, axis=-1) if film.ndim == 2 else film
    scale = len(cell) / max(film.shape[:2])
    size = [max(round(side * scale), 1) for side in film.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    film = cv2.resize(film, size, interpolation=method)
    y, x = (len(cell) - film.shape[0]) // 2, (len(cell) - film.shape[1]) // 2
    cell[y : y + film.shape[0], x : x + film.shape[1]] = film


def _write_under(fig: Figure, x: float, y: float, title: str) -> None:
    style = dict(ha="center", va="top", fontsize=8.5, color=INK, parse_math=False)
    write(fig, x, y, title, **style)
