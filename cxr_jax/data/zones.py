"""Lung zones: from a lung mask to the six regions of the 3x2 severity score.

The patient's RIGHT lung lies on the LEFT of the image, for films are seen as a reader sees them. A
table of zones runs downwards (upper, middle, lower) and from the right lung to the left one.

Kim et al. 2021 divide each lung at 5/12 and 2/3 of its height into an upper, a middle and a lower
zone. All of this runs on the host, once a film; the maximum over a zone is `ops.pooling`.
"""

import cv2
import numpy as np

RIGHT, LEFT = 1, 2  # labels of the patient's lungs
SPECK = 0.1  # a component below this share of the largest one's pixels is no lung


def split_lungs(mask: np.ndarray) -> np.ndarray:
    """Labels the two lungs of a mask.

    The two largest 4-connected components are the lungs, the second one only if it has at least a
    tenth of the largest one's pixels; the one further left in the image is the right lung. If only
    one is kept, it is cut in two at the column with the fewest pixels in the middle third of its
    width, where that column has less than half the pixels of the fullest one on either side (lungs
    that touch); else it is one lung, on the image half where its mean column lies.

    Args:
        mask: [H, W] bool or integer, nonzero inside the lungs.

    Returns:
        uint8 [H, W]: 0 outside, 1 right lung (image left), 2 left lung. A lung may be missing.
    """
    mask = _as_plane(mask, "mask") != 0
    count, parts, stats, centres = components(mask)
    labels = np.zeros(mask.shape, np.uint8)
    if count == 0:
        return labels
    # A stable sort, so that of two parts of one size the first in raster order comes first.
    order = np.argsort(-stats[:, cv2.CC_STAT_AREA], kind="stable")
    largest = order[0]
    if count > 1:
        second = order[1]
        if stats[second, cv2.CC_STAT_AREA] >= SPECK * stats[largest, cv2.CC_STAT_AREA]:
            right, left = sorted((largest, second), key=lambda part: centres[part, 0])
            labels[parts == right + 1] = RIGHT
            labels[parts == left + 1] = LEFT
            return labels
    kept = parts == largest + 1
    cut = _touching_column(kept)
    if cut is not None:
        labels[:, :cut][kept[:, :cut]] = RIGHT
        labels[:, cut:][kept[:, cut:]] = LEFT
    else:
        centre = (mask.shape[1] - 1) / 2
        labels[kept] = RIGHT if centres[largest, 0] < centre else LEFT
    return labels


def zone_map(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divides each labelled lung into its upper, middle and lower zone.

    With `top` and `bottom` the first and last row of a lung, row y is upper where
    (y - top) / (bottom - top) < 5/12, middle where it is < 2/3, else lower.

    Args:
        labels: [H, W] integer, 0 outside, 1 right lung, 2 left lung (of `split_lungs`).

    Returns:
        zones: uint8 [H, W], 0 outside, 1 upper right, 2 upper left, 3 middle right, 4 middle left,
            5 lower right, 6 lower left (the patient's right and left).
        valid: bool [3, 2], the zone has at least one pixel.
    """
    labels = _as_plane(labels, "labels")
    zones = np.zeros(labels.shape, np.uint8)
    valid = np.zeros((3, 2), bool)
    for column, lung in enumerate((RIGHT, LEFT)):
        inside = labels == lung
        rows = np.flatnonzero(inside.any(axis=1))
        if rows.size == 0:
            continue
        top, bottom = int(rows[0]), int(rows[-1])
        height = max(bottom - top, 1)  # a lung of one row is all upper
        below = np.arange(top, bottom + 1) - top
        # In whole numbers, so that a row exactly on a cut does not depend on rounding.
        row_zone = (12 * below >= 5 * height).astype(np.uint8) + (3 * below >= 2 * height)
        lung_rows = inside[top : bottom + 1]
        zones[top : bottom + 1][lung_rows] = np.broadcast_to(
            (2 * row_zone + column + 1)[:, None], lung_rows.shape
        )[lung_rows]
        valid[np.unique(row_zone[lung_rows.any(axis=1)]), column] = True
    return zones, valid


def lungs_from_probs(
    right_prob: np.ndarray, left_prob: np.ndarray, *, threshold: float = 0.5
) -> np.ndarray:
    """Turns the two probability maps of a lung segmentation network into clean labels.

    A pixel belongs to the likelier lung where that probability is at least `threshold`. Of each
    lung the largest 4-connected component is kept and its holes are filled; a lung with less than
    a tenth of the other one's pixels is a speck and is dropped.

    Args:
        right_prob: [H, W] in 0..1, the patient's right lung.
        left_prob: [H, W] in 0..1, the left lung.
        threshold: on the probability.

    Returns:
        uint8 [H, W]: 0 outside, 1 right lung, 2 left lung.
    """
    right_prob, left_prob = _as_plane(right_prob, "right_prob"), _as_plane(left_prob, "left_prob")
    if right_prob.shape != left_prob.shape:
        raise ValueError(f"right_prob is {right_prob.shape} and left_prob {left_prob.shape}")
    is_right = right_prob >= left_prob
    right = _largest_filled(is_right & (right_prob >= threshold))
    left = _largest_filled(~is_right & (left_prob >= threshold))
    areas = right.sum(), left.sum()
    labels = np.zeros(right.shape, np.uint8)
    # A filled hole may hold pixels of the other lung: the larger lung has them.
    lungs = [(areas[0], RIGHT, right), (areas[1], LEFT, left)]
    for area, label, lung in sorted(lungs, key=lambda lung: lung[0]):
        if area >= SPECK * max(areas):
            labels[lung] = label
    return labels


def _as_plane(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}; expected [H, W]")
    return array


def components(mask: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """4-connected components: count, map (0 background), statistics and centroids of each."""
    count, parts, stats, centres = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=4
    )
    return count - 1, parts, stats[1:], centres[1:]  # OpenCV's component 0 is the background


def _touching_column(lung: np.ndarray) -> int | None:
    """The column where two lungs in one component touch; None where it is a single lung."""
    per_column = lung.sum(axis=0)
    columns = np.flatnonzero(per_column)
    first, width = int(columns[0]), int(columns[-1] - columns[0]) + 1
    start, stop = first + width // 3, first + (2 * width) // 3
    if stop <= start or start == first:
        return None
    cut = start + int(np.argmin(per_column[start:stop]))
    smaller_peak = min(per_column[first:cut].max(), per_column[cut + 1 : first + width].max())
    return cut if 2 * per_column[cut] < smaller_peak else None


def _largest_filled(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: the largest component of `mask`, its holes filled; all False if it is empty."""
    count, parts, stats, _ = components(mask)
    if count == 0:
        return np.zeros(mask.shape, bool)
    kept = parts == 1 + int(np.argmax(stats[:, cv2.CC_STAT_AREA]))
    # What the outside cannot reach is a hole. The frame of one pixel joins all of the outside.
    outside = np.pad(~kept, 1, constant_values=True).astype(np.uint8)
    _, reached = cv2.connectedComponents(outside, connectivity=4)
    return (reached != reached[0, 0])[1:-1, 1:-1]
