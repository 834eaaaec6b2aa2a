"""Redraws docs/phantoms.png: one film of each of 24 consecutive phantom patients.

    python docs/make_phantom_sheet.py

No film is picked: seed 0, the default population, patients 0 to 23.
"""

import pathlib

import cv2
import numpy as np

from cxr_jax.data.phantoms import phantom

COLUMNS, ROWS, SIZE = 6, 4, 216
GAP = 4


def main() -> None:
    sheet = np.full((ROWS * (SIZE + GAP) - GAP, COLUMNS * (SIZE + GAP) - GAP), 128, np.uint8)
    for k in range(ROWS * COLUMNS):
        y, x = (SIZE + GAP) * np.array(divmod(k, COLUMNS))
        film = phantom(0, 2 * k, 512)["image"]
        sheet[y : y + SIZE, x : x + SIZE] = cv2.resize(
            film, (SIZE, SIZE), interpolation=cv2.INTER_AREA
        )
    path = pathlib.Path(__file__).with_name("phantoms.png")
    cv2.imwrite(str(path), sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
