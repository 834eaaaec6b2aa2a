"""The standard record: one film, or one slice of a CT volume, under the same names everywhere.

A source gives the fields it has; a task states the fields it needs.

| field | type | meaning |
| --- | --- | --- |
| `image` | uint8 [H, W] | air dark; the patient's right on the image's left |
| `id`, `group` | str | the film; the patient (splits and intervals are by group) |
| `view` | str | 'PA', 'AP' or '' where unknown |
| `lungs` | uint8 [H, W] | 0 outside, 1 right lung (image left), 2 left lung |
| `severity` | int8 [3, 2] | zone scores 0..3: rows upper, middle, lower; right lung first |
| `severity_second` | int8 [3, 2] | the same by a second reader, never trained on |
| `severity_valid` | bool [3, 2] | the zone was scored |
| `diagnosis` | int | index into `DIAGNOSES` |
| `findings` | float32 [10] | 0, 1 or NaN (unknown), in the order of `FINDINGS` |
| `lesion` | uint8 [H, W] | 1 on parenchymal opacity (what severity scores), else 0 |
| `lesion_type` | uint8 [H, W] | index into `LESION_TYPES` |
| `regions` | float32 [29, 4] | boxes of `REGIONS`, xyxy in pixels of `image`; NaN where absent |
| `region_present` | bool [29] | the region is visible |
| `region_findings` | float32 [29, 10] | findings per region, NaN for unknown |
| `boxes` | float32 [M, 4] | boxes of findings, xyxy in pixels of `image` |
| `box_label` | int32 [M] | index into `FINDINGS` |
| `volume` | str | CT: the series that the slice belongs to |
| `slice` | int32 | CT: its number in the volume; neighbours in the body differ by 1 |
| `slice_label` | float32 | CT: 1 a lesion is in the slice, 0 none is, NaN unknown |
| `pixel_area` | float32 | CT: what a pixel of `image` counts for in a sum over the volume |
"""

from typing import Any

Record = dict[str, Any]

ZONE_NAMES = (
    ("upper right", "upper left"),
    ("middle right", "middle left"),
    ("lower right", "lower left"),
)

# PAPERS: the ten findings on which the corpus is pre-trained (Park et al. 2021, CheXpert labels).
FINDINGS = (
    "no finding",
    "cardiomegaly",
    "lung opacity",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural effusion",
    "support devices",
)

DIAGNOSES = ("normal", "other infection", "covid-19")

LESION_TYPES = ("none", "ground glass", "consolidation")

# Müller et al. 2023: Chest ImaGenome's 29 anatomical regions, each sided one right before left.
REGIONS = (
    "right lung",
    "left lung",
    "right upper lung zone",
    "left upper lung zone",
    "right mid lung zone",
    "left mid lung zone",
    "right lower lung zone",
    "left lower lung zone",
    "right hilar structures",
    "left hilar structures",
    "right apical zone",
    "left apical zone",
    "right costophrenic angle",
    "left costophrenic angle",
    "right hemidiaphragm",
    "left hemidiaphragm",
    "trachea",
    "spine",
    "right clavicle",
    "left clavicle",
    "aortic arch",
    "mediastinum",
    "upper mediastinum",
    "svc",
    "cardiac silhouette",
    "cavoatrial junction",
    "right atrium",
    "carina",
    "abdomen",
)

CT_FIELDS = frozenset({"volume", "slice", "slice_label", "pixel_area"})

FILM_FIELDS = frozenset(
    {
        "image",
        "id",
        "group",
        "view",
        "lungs",
        "severity",
        "severity_second",
        "severity_valid",
        "diagnosis",
        "findings",
        "lesion",
        "lesion_type",
        "regions",
        "region_present",
        "region_findings",
        "boxes",
        "box_label",
    }
)

FIELDS = FILM_FIELDS | CT_FIELDS
