"""From heat maps to boxes, on the host: stretch, cut, connected components (CAM, ChestX-ray8).

Zhou et al., CVPR 2016 (CAM), cut a map at a fifth of its maximum and take the box around the
largest component; Wang et al., CVPR 2017 (ChestX-ray8), cut maps of 0..255 at 60 and at 180 and
take boxes of all components.
"""

from typing import Literal

import cv2
import numpy as np

Component = Literal["peak", "largest"]
COMPONENTS = ("peak", "largest")


def map_boxes(
    maps: np.ndarray,
    *,
    size: int,
    threshold: float,
    component: Component,
    wanted: np.ndarray | None = None,
) -> np.ndarray:
    """One box of each map.

    A map is made as large as the film (bilinear, by pixels' centres), stretched to 0..1 by its own
    minimum and maximum, and cut: what is above the threshold falls into components, of which pixels
    touch by a side or a corner. The box is that of one component.

    Args:
      maps: float [B, h, w, K] of any scale.
      size: pixels on a side of the film.
      threshold: 0..1, below 1.
      component: 'peak', the one with the map's highest pixel, or 'largest', the one with the most
        pixels; of equal ones the first from the top.
      wanted: bool [B, K]; None: all.

    Returns:
      float32 [B, K, 4], xyxy as shares of the film; NaN where no box is wanted, or the map is flat
      or not finite, and so says of no place.

    Raises:
      ValueError: an unknown component, or a threshold out of range.
    """
    if component not in COMPONENTS:
        raise ValueError(f"component={component!r}; expected 'peak' or 'largest'.")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold}; expected 0 or more, and below 1.")
    maps = np.asarray(maps, np.float32)
    films, _, _, findings = maps.shape
    boxes = np.full((films, findings, 4), np.nan, np.float32)
    chosen = np.isfinite(maps).all(axis=(1, 2)) & (np.ptp(maps, axis=(1, 2)) > 0)
    if wanted is not None:
        chosen &= wanted
    for film, finding in zip(*np.nonzero(chosen)):
        large = cv2.resize(maps[film, :, :, finding], (size, size), interpolation=cv2.INTER_LINEAR)
        boxes[film, finding] = _box(large, threshold, component)
    return boxes / size


def _box(heat: np.ndarray, threshold: float, component: Component) -> np.ndarray:
    """xyxy in pixels of one component of a map [H, W] that is not flat."""
    low, high, _, (column, row) = cv2.minMaxLoc(heat)
    # (heat - low) / (high - low) > threshold; the highest pixel is above every threshold.
    inside = (heat > low + threshold * (high - low)).astype(np.uint8)
    inside[row, column] = 1
    if component == "peak":
        # Ten times as fast as finding all components.
        *_, (left, top, width, height) = cv2.floodFill(inside, None, (column, row), 2, flags=8)
    else:
        _, _, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
        largest = 1 + np.argmax(stats[1:, cv2.CC_STAT_AREA])  # 0 is what lies outside
        left, top, width, height = stats[largest, :4]
    return np.array([left, top, left + width, top + height], np.float32)
