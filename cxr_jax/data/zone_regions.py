"""Regions from lung masks: the lungs and their six zones as rows of `records.REGIONS`.

ADPD learns 29 regions that Chest ImaGenome draws. A film with a lung mask, drawn or predicted, has
eight of them: a lung is the box of its mask, a zone that of its part of it (`zones.zone_map`).
Where the film has severity scores too, they are labels of these regions: a zone that scores above 0
has opacity in it.

The other 21 regions are on the film, but nobody knows where: `region_present` is False for them as
for a lung that is not there. What learns presence from these films must leave them out
(`LUNG_ROWS` are those that are known).
"""

from collections.abc import Sequence

import numpy as np

from cxr_jax.data import zones
from cxr_jax.data.records import FINDINGS, REGIONS, Record
from cxr_jax.errors import InputError

OPACITY = "lung opacity"  # what a severity score above 0 says
_SIDES = ("right", "left")
# Laid out as `records.ZONE_NAMES`: the row of each zone, [3, 2]; and of each lung, [2].
ZONE_ROWS = np.array(
    [[REGIONS.index(f"{s} {z} lung zone") for s in _SIDES] for z in ("upper", "mid", "lower")]
)
SIDE_ROWS = np.array([REGIONS.index(f"{side} lung") for side in _SIDES])
LUNG_ROWS = np.sort(np.concatenate([SIDE_ROWS, ZONE_ROWS.ravel()]))  # the eight


def zone_regions(lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the lungs and their zones.

    Args:
      lungs: integer [H, W], 0 outside, 1 right lung, 2 left lung.

    Returns:
      `regions` float32 [29, 4], xyxy in pixels by the corners, NaN for all but the eight and for
      those without a pixel; `region_present` bool [29].
    """
    regions = np.full((len(REGIONS), 4), np.nan, np.float32)
    parts, valid = zones.zone_map(lungs)
    for label, row in enumerate(ZONE_ROWS.ravel(), 1):
        if valid.ravel()[label - 1]:
            regions[row] = _box(parts == label)
    for side, row in enumerate(SIDE_ROWS):
        boxes = regions[ZONE_ROWS[:, side]][valid[:, side]]
        if len(boxes):  # a lung is its zones
            regions[row, :2], regions[row, 2:] = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    return regions, ~np.isnan(regions[:, 0])


def zone_findings(
    severity: np.ndarray, valid: np.ndarray, *, findings: Sequence[str] = FINDINGS
) -> np.ndarray:
    """What severity scores say of the regions.

    Args:
      severity: integer [3, 2], 0..3, laid out as `records.ZONE_NAMES`.
      valid: bool [3, 2], the zone was scored.
      findings: the K names; `OPACITY` is among them.

    Returns:
      float32 [29, K]: of `OPACITY` 1 in a zone that scores above 0 and 0 in one that scores 0; in a
      lung 1 where one of its zones has it and 0 where all three are scored 0. NaN for the rest.

    Raises:
      InputError: the findings lack `OPACITY`.
    """
    table = np.full((len(REGIONS), len(findings)), np.nan, np.float32)
    opacity = np.where(valid, np.asarray(severity) > 0, np.nan)  # [3, 2]
    column = _opacity_column(findings)
    table[ZONE_ROWS, column] = opacity
    table[SIDE_ROWS, column] = any_of(opacity, axis=0)
    return table


def with_zone_regions(record: Record, *, findings: Sequence[str] = FINDINGS) -> Record:
    """The record with `regions`, `region_present` and `region_findings` of its lungs.

    Args:
      record: has `lungs`; its `severity` labels the regions where it has one, and is the film's
        `OPACITY` where it has no `findings`. Without, `region_findings` are unknown.
      findings: that the data set names.

    Raises:
      InputError: as `zone_findings`.
    """
    regions, present = zone_regions(record["lungs"])
    table = np.full((len(REGIONS), len(findings)), np.nan, np.float32)
    made = {"regions": regions, "region_present": present}
    if "severity" in record:
        scored = record["severity"], record["severity_valid"]
        table = zone_findings(*scored, findings=findings)
        if "findings" not in record:
            known = np.full(len(findings), np.nan, np.float32)
            column = _opacity_column(findings)
            known[column] = any_of(table[ZONE_ROWS.ravel(), column], axis=0)
            made["findings"] = known
    table[~present] = np.nan  # as of every region that is not there
    return record | made | {"region_findings": table}


def any_of(labels: np.ndarray, *, axis: int) -> np.ndarray:
    """1 where one of the labels is 1, 0 where all are 0, else NaN; float32 without `axis`."""
    one, unknown = (labels == 1).any(axis=axis), np.isnan(labels).any(axis=axis)
    return np.where(one, 1, np.where(unknown, np.nan, 0)).astype(np.float32)


def _opacity_column(findings: Sequence[str]) -> int:
    if OPACITY not in findings:
        raise InputError(
            f"severity scores say where {OPACITY!r} is, but the findings are "
            f"{', '.join(findings)}; choose ones that have it"
        )
    return list(findings).index(OPACITY)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Of a mask with a pixel, by the pixels' corners."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
