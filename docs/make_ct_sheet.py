"""Redraws docs/phantoms_ct.png: slices of CT phantoms, with the exact outlines of their lesions.

    python docs/make_ct_sheet.py

No volume is picked: the first four positive ones of seed 0, each with six neighbouring slices about
the one with most lesion; below, six slices through the first negative volume, apex to base.
"""

import pathlib

import cv2
import numpy as np
from PIL import Image

from cxr_jax.data.phantoms.ct import ct_slice

COLUMNS, SLICES = 6, 32
POSITIVE, NEGATIVE = (0, 1, 2, 3), 4
SIZE, TILE, GAP = 448, 200, 4
ROWS_SHOWN = slice(24, 164)  # of a tile: the body
GREYS = 48
OUTLINE = GREYS  # its number in the palette


def main() -> None:
    rows = [_row(number, _about_most(number), positive=True) for number in POSITIVE]
    through = np.linspace(3, SLICES - 3, COLUMNS).astype(int)
    rows.append(_row(NEGATIVE, through, positive=False))
    sheet = np.concatenate(rows)[:-GAP, :-GAP]
    greys = np.linspace(0, 255, GREYS).astype(np.uint8)
    picture = Image.fromarray(sheet, mode="P")
    picture.putpalette([*np.repeat(greys, 3).tolist(), 255, 60, 40])
    path = pathlib.Path(__file__).with_name("phantoms_ct.png")
    picture.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def _about_most(number: int) -> np.ndarray:
    areas = [ct_slice(0, number, k, size=64, slices=SLICES)["lesion"].sum() for k in range(SLICES)]
    first = int(np.clip(np.argmax(areas) - COLUMNS // 2, 0, SLICES - COLUMNS))
    return np.arange(first, first + COLUMNS)


def _row(number: int, slices: np.ndarray, *, positive: bool) -> np.ndarray:
    height = ROWS_SHOWN.stop - ROWS_SHOWN.start
    row = np.full((height + GAP, COLUMNS * (TILE + GAP)), GREYS // 2, np.uint8)
    for column, k in enumerate(slices):
        record = ct_slice(0, number, int(k), size=SIZE, slices=SLICES, positive=positive)
        image = cv2.resize(record["image"], (TILE, TILE), interpolation=cv2.INTER_AREA)
        tile = (image.astype(int) * (GREYS - 1) // 255).astype(np.uint8)
        mask = cv2.resize(record["lesion"], (TILE, TILE), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, outlines, -1, OUTLINE, 1)
        x = column * (TILE + GAP)
        row[:height, x : x + TILE] = tile[ROWS_SHOWN]
    return row


if __name__ == "__main__":
    main()
