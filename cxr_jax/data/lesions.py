"""The lesions of a slice one by one: where each lies and of which kind it is.

A record has masks; a lesion is a 4-connected component of `lesion`, as those of an activation map
are (Wu et al. 2022, Sec. 3.2.1). Its kind is from `lesion_type`: consolidation, where at least a
quarter of it is consolidated (a consolidation often has a halo of ground glass), else ground glass.
"""

from typing import NamedTuple

import cv2
import numpy as np

from cxr_jax.data import zones
from cxr_jax.data.records import LESION_TYPES, Record

CONSOLIDATED = 0.25  # of a lesion that counts as a consolidation
UNKNOWN = -1  # kind


class Lesions(NamedTuple):
    """M lesions, the largest first.

    Attributes:
      boxes: float32 [M, 4], xyxy in pixels of `image`, around whole pixels.
      kinds: int32 [M], index into LESION_TYPES, or UNKNOWN where the record has none.
      pixels: int32 [M].
      labels: int32 [H, W], 0 outside, 1 .. M the lesion.
    """

    boxes: np.ndarray
    kinds: np.ndarray
    pixels: np.ndarray
    labels: np.ndarray


def lesions_of(record: Record, *, least: int = 1) -> Lesions:
    """The lesions of a record.

    Args:
      record: with `lesion`, and perhaps `lesion_type`.
      least: pixels of a lesion; smaller ones are left out.

    Returns:
      See the class; M is 0 where there is none.
    """
    count, parts, stats, _ = zones.components(record["lesion"] > 0)
    areas = stats[:, cv2.CC_STAT_AREA]
    # A stable sort, so that of two of one size the first in raster order comes first.
    order = [k for k in np.argsort(-areas, kind="stable") if areas[k] >= least]
    number = np.zeros(count + 1, np.int32)
    number[np.array(order, int) + 1] = np.arange(1, len(order) + 1)
    labels = number[parts]
    x0, y0, width, height, _ = stats[order].astype(np.float32).T
    kinds = np.full(len(order), UNKNOWN, np.int32)
    if "lesion_type" in record:
        solid = record["lesion_type"] == LESION_TYPES.index("consolidation")
        pixels = np.bincount(labels[solid], minlength=len(order) + 1)[1:]
        dense = pixels >= CONSOLIDATED * areas[order]
        kinds = np.where(dense, *map(LESION_TYPES.index, ("consolidation", "ground glass")))
    return Lesions(
        boxes=np.stack([x0, y0, x0 + width, y0 + height], axis=1),
        kinds=kinds.astype(np.int32),
        pixels=areas[order].astype(np.int32),
        labels=labels,
    )
