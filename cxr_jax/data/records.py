"""The standard record: one film (or study) under the same names in every data set.

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

FIELDS = frozenset(
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
