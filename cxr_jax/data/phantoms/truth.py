"""The truth of one film, from the very shapes that are drawn: findings, regions and boxes."""

import dataclasses

import cv2
import numpy as np

from cxr_jax.data.phantoms.anatomy import SIDES, Chest
from cxr_jax.data.phantoms.disease import CONSOLIDATION, Opacities
from cxr_jax.data.phantoms.drawing import Pen, band, ellipse, xy
from cxr_jax.data.phantoms.signs import Signs
from cxr_jax.data.records import FINDINGS, REGIONS, Record

_FINDING = {name: i for i, name in enumerate(FINDINGS)}
_REGION = {name: i for i, name in enumerate(REGIONS)}
_LUNG_REGIONS = (
    "lung",
    "upper lung zone",
    "mid lung zone",
    "lower lung zone",
    "hilar structures",
    "apical zone",
    "costophrenic angle",
)
# Findings of one side that are no opacity, with the regions of that side that have them.
_SIGN_REGIONS = {
    "atelectasis": ("lung", "lower lung zone"),
    "pneumothorax": ("lung", "upper lung zone", "apical zone"),
    "pleural effusion": ("lung", "lower lung zone", "costophrenic angle", "hemidiaphragm"),
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn on one film.

    Attributes:
      lungs, zones: uint8 [size, size], of `lung_labels` and `lung_zones`.
      sick: opacities of the lungs.
      signs: of atelectasis and pneumothorax.
      devices: a layer for each.
    """

    pen: Pen
    chest: Chest
    lungs: np.ndarray
    zones: np.ndarray
    sick: Opacities
    signs: Signs
    devices: list[np.ndarray]


def truth(drawn: Drawn) -> Record:
    """findings, regions, region_present, region_findings, boxes and box_label of the record."""
    device_masks = [drawn.pen.down(layer) > 40 for layer in drawn.devices]
    lesions = _lesion_masks(drawn.sick)
    spots = _spots(drawn, lesions=lesions, device_masks=device_masks)
    findings = np.zeros(len(FINDINGS), np.float32)
    findings[[label for label, _ in spots]] = 1
    findings[_FINDING["no finding"]] = float(not spots)

    regions = _regions(drawn)
    present = ~np.isnan(regions[:, 0])
    table = np.zeros((len(REGIONS), len(FINDINGS)), np.float32)
    _mark_lesions(table, lesions, regions=regions, lungs=drawn.lungs)
    _mark_signs(table, drawn.chest, findings)
    _mark_devices(table, device_masks, regions)
    table[~present] = 0
    table[:, _FINDING["no finding"]] = present & ~table[:, 1:].any(axis=1)
    return {
        "findings": findings,
        "regions": regions,
        "region_present": present,
        "region_findings": table,
        "boxes": np.array([box for _, box in spots], np.float32).reshape(-1, 4),
        "box_label": np.array([label for label, _ in spots], np.int32),
    }


def _lesion_masks(sick: Opacities) -> dict[str, np.ndarray]:
    if not sick.kind.any():
        return {}
    return {
        "lung opacity": sick.kind > 0,
        "consolidation": sick.kind == CONSOLIDATION,
        "pneumonia": sick.infection,
        "edema": sick.edema,
    }


def _spots(drawn: Drawn, *, lesions: dict, device_masks: list) -> list[tuple[int, np.ndarray]]:
    """(finding, box) of all that shows, by finding."""
    pen, chest, signs = drawn.pen, drawn.chest, drawn.signs
    places = {
        "cardiomegaly": _boxes(pen, [chest.heart]) if chest.patient.large_heart else [],
        "atelectasis": [] if signs.bands is None else [_mask_box(signs.bands > 0.25)],
        "pneumothorax": [] if signs.air is None else [_mask_box(signs.air > 0.5)],
        "pleural effusion": [] if chest.fluid is None else _boxes(pen, [chest.fluid]),
        "support devices": [_mask_box(mask) for mask in device_masks],
    }
    places.update({name: _component_boxes(mask) for name, mask in lesions.items()})
    spots = [
        (_FINDING[name], box) for name, boxes in places.items() for box in boxes if box is not None
    ]
    return sorted(spots, key=lambda spot: spot[0])


def _mark_lesions(
    table: np.ndarray, masks: dict[str, np.ndarray], *, regions: np.ndarray, lungs: np.ndarray
) -> None:
    """Marks in `table` [29, 10] the regions of each lung that a lesion covers to 1% or more."""
    for s, (side, _) in enumerate(SIDES):
        rows = [_REGION[f"{side} {name}"] for name in _LUNG_REGIONS]
        rows = [row for row in rows if not np.isnan(regions[row, 0])]
        for finding, mask in masks.items():
            mine = mask & (lungs == s + 1)
            if not mine.any():
                continue
            for row in rows:
                x0, y0, x1, y1 = np.rint(regions[row]).astype(int)
                count = np.count_nonzero(mine[y0:y1, x0:x1])
                table[row, _FINDING[finding]] = count >= max(1, 0.01 * (y1 - y0) * (x1 - x0))


def _mark_signs(table: np.ndarray, chest: Chest, findings: np.ndarray) -> None:
    """Marks in `table` the regions of what is found on one side, and of a large heart."""
    visit = chest.visit
    sides = (visit.atelectasis, visit.pneumothorax, visit.effusion)
    for side, (finding, names) in zip(sides, _SIGN_REGIONS.items()):
        if side is not None and findings[_FINDING[finding]]:
            rows = [_REGION[f"{SIDES[side][0]} {name}"] for name in names]
            table[rows, _FINDING[finding]] = 1
    large_heart = _FINDING["cardiomegaly"]
    table[_REGION["cardiac silhouette"], large_heart] = findings[large_heart]


def _mark_devices(table: np.ndarray, masks: list[np.ndarray], regions: np.ndarray) -> None:
    """Marks in `table` the regions in view that a device crosses."""
    for mask in masks:
        for r in np.flatnonzero(~np.isnan(regions[:, 0])):
            x0, y0, x1, y1 = np.rint(regions[r]).astype(int)
            if mask[y0:y1, x0:x1].any():
                table[r, _FINDING["support devices"]] = 1


def _boxes(pen: Pen, shapes: list[np.ndarray], least: float = 0.3) -> list[np.ndarray | None]:
    """Tight boxes of shapes, clipped to the film; None where under `least` of one is in view."""
    starts = np.cumsum([0] + [len(shape) for shape in shapes[:-1]])
    points = pen.pixels(np.concatenate(shapes))
    low = np.minimum.reduceat(points, starts)
    high = np.maximum.reduceat(points, starts)
    a, b = np.clip(low, 0, pen.size), np.clip(high, 0, pen.size)
    seen = np.prod(b - a, axis=1) >= least * np.prod(high - low, axis=1)
    seen &= (b - a).min(axis=1) >= 1
    boxes = np.concatenate([a, b], axis=1).astype(np.float32)
    return [box if shown else None for box, shown in zip(boxes, seen)]


def _mask_box(mask: np.ndarray) -> np.ndarray | None:
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    return np.array([x, y, x + w, y + h], np.float32) if w else None


def _component_boxes(mask: np.ndarray) -> list[np.ndarray]:
    """Boxes of the components; boxes under 0.1% of the film are left out unless alone."""
    if not mask.any():
        return []
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rects = np.array([cv2.boundingRect(outline) for outline in outlines], np.float32)
    rects = rects[np.argsort(-rects[:, 2] * rects[:, 3], kind="stable")]
    kept = rects[:, 2] * rects[:, 3] >= 0.001 * mask.size
    kept[0] = True
    x, y, w, h = rects[kept].T
    return list(np.stack([x, y, x + w, y + h], axis=1))


def _regions(drawn: Drawn) -> np.ndarray:
    """Boxes of the 29 regions, float32 [29, 4], NaN where out of view."""
    boxes, shapes = _lung_region_boxes(drawn), _region_shapes(drawn.chest)
    boxes.update(zip(shapes, _boxes(drawn.pen, list(shapes.values()))))
    out = np.full((len(REGIONS), 4), np.nan, np.float32)
    for name, box in boxes.items():
        if box is not None:
            out[_REGION[name]] = box
    return out


def _lung_region_boxes(drawn: Drawn) -> dict[str, np.ndarray | None]:
    """Of the regions that are pixels of the lungs."""
    boxes = {}
    for s, (side, _) in enumerate(SIDES):
        lung = drawn.lungs == s + 1
        boxes[f"{side} lung"] = box = _mask_box(lung)
        for z, name in enumerate(("upper", "mid", "lower")):
            boxes[f"{side} {name} lung zone"] = _mask_box(drawn.zones == 1 + 2 * z + s)
        if box is not None:
            end = int(box[1] + 0.16 * (box[3] - box[1])) + 1
            boxes[f"{side} apical zone"] = _mask_box(np.ascontiguousarray(lung[:end]))
    return boxes


def _region_shapes(chest: Chest) -> dict[str, np.ndarray]:
    """Outlines [n, 2] of the other regions in the patient's frame."""
    shapes = {}
    for s, (side, sign) in enumerate(SIDES):
        shapes[f"{side} hilar structures"] = ellipse(chest.hilum[s] + [0, 0.01], (0.045, 0.075), 8)
        corner = xy([-sign * 0.045, sign * 0.01], [-0.06, 0.012])
        shapes[f"{side} costophrenic angle"] = chest.tip[s] + corner
        shapes[f"{side} hemidiaphragm"] = chest.diaphragm[s]
        shapes[f"{side} clavicle"] = band(chest.clavicle[s], 0.012)
    shapes["trachea"] = band(chest.trachea, 0.0125)
    shapes["spine"] = band(chest.spine, 0.034)
    shapes["aortic arch"] = chest.knob
    shapes["mediastinum"] = np.concatenate([chest.great_vessels, chest.heart])
    high = chest.great_vessels[:, 1] <= chest.carina[1] + 0.01
    shapes["upper mediastinum"] = chest.great_vessels[high]
    shapes["svc"] = band(chest.svc, 0.013)
    shapes["cardiac silhouette"] = chest.heart
    shapes["cavoatrial junction"] = ellipse(chest.cavoatrial, (0.02, 0.02), 8)
    shapes["right atrium"] = chest.right_atrium
    shapes["carina"] = ellipse(chest.carina, (0.028, 0.022), 8)
    dome = min(path[:, 1].min() for path in chest.diaphragm)
    width = abs(chest.tip[0][0]) + 0.02
    shapes["abdomen"] = xy([-width, width], [dome, 1.05])
    return shapes
