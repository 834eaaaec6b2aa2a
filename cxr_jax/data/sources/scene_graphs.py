"""One scene graph of Chest ImaGenome: boxes of regions, and what a report says of each of them.

A file DICOM_SceneGraph.json holds of one film `image_id`, `patient_id`, `study_id`, `viewpoint` and

- `objects`: a region each, with `bbox_name` and the corners `original_x1`, `original_y1`,
  `original_x2`, `original_y2` in pixels of the film (`x1` .. are of a copy of 224 px);
- `attributes`: a region each, with `bbox_name` and `attributes`, a list for every sentence of
  CATEGORY|yes|NAME or CATEGORY|no|NAME, such as anatomicalfinding|no|pneumothorax.

Of the 36 regions that are drawn, the 29 of `records.REGIONS` are used (Müller et al. 2023). The
rules of their boxes:

- a box is kept to the film (`data.boxes.clip`); the published ones leave it by some pixels;
- one without an area on the film is none, and its region is not there;
- a region with two boxes is not known, and neither is the film: the released code leaves out such
  films too;
- a name that is no region is told.

A finding is positive where any sentence about the region has the attribute
anatomicalfinding|yes|NAME or disease|yes|NAME, and else negative (Sec. 3.4).
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from cxr_jax import small_files
from cxr_jax.data import boxes
from cxr_jax.data.records import REGIONS
from cxr_jax.errors import InputError

ANATOMICAL = (
    *("atelectasis", "vascular calcification", "vascular congestion", "lung opacity"),
    *("mediastinal displacement", "pleural effusion", "enlarged cardiac silhouette"),
    *("rib fracture", "hernia", "airspace opacity", "pleural/parenchymal scarring"),
    *("enlarged hilum", "subcutaneous air", "hyperaeration", "pulmonary edema/hazy opacity"),
    *("lung lesion", "mass/nodule (not otherwise specified)", "tortuous aorta"),
    *("linear/patchy atelectasis", "consolidation", "spinal degenerative changes"),
    *("pneumothorax", "calcified nodule", "scoliosis", "superior mediastinal mass/enlargement"),
    *("elevated hemidiaphragm", "multiple masses/nodules", "infiltration", "mediastinal widening"),
    *("shoulder osteoarthritis", "vascular redistribution", "costophrenic angle blunting"),
    *("lobar/segmental collapse", "hydropneumothorax", "spinal fracture", "bone lesion"),
    *("increased reticular markings/ild pattern", "pneumomediastinum"),
    *("diaphragmatic eventration (benign)", "sub-diaphragmatic air", "cyst/bullae"),
    *("bronchiectasis", "clavicle fracture"),
)
DISEASES = (
    *("pneumonia", "pericardial effusion", "copd/emphysema", "fluid overload/heart failure"),
    *("granulomatous disease", "goiter", "aspiration", "lung cancer", "alveolar hemorrhage"),
    "interstitial lung disease",
)
FINDINGS = (*ANATOMICAL, *DISEASES)  # the 53 of the released configuration; the paper says 55
# Drawn too, but not among the paper's 29.
OTHER_REGIONS = (
    *("right cardiophrenic angle", "left cardiophrenic angle", "right cardiac silhouette"),
    *("left cardiac silhouette", "right upper abdomen", "left upper abdomen", "descending aorta"),
)
SUFFIX = "_SceneGraph.json"
_CORNERS = ("original_x1", "original_y1", "original_x2", "original_y2")
_CATEGORIES = {"anatomicalfinding": ANATOMICAL, "disease": DISEASES}
_ROW = {name: row for row, name in enumerate(REGIONS)}
_COLUMN = {
    (category, name): FINDINGS.index(name)
    for category, names in _CATEGORIES.items()
    for name in names
}
_FARTHEST = 100_000  # px from a film's corner that a box may begin or end
_REMEDY = "unpack the scene graphs again"


@dataclasses.dataclass(frozen=True)
class SceneGraph:
    """What a scene graph says of its film.

    Attributes:
      image, patient, study: its ids.
      view: 'PA', 'AP' or another one.
      regions: float32 [29, 4], xyxy in pixels of the film, NaN where there is no box.
      findings: bool [29, 53], what is positive in each region, whether or not it has a box.
      anywhere: bool [53], positive in any region that the graph names, be it one of the 29 or not.
      twice: a region that has two boxes; else ''.
      faults: kind -> what there was of it, the first with its values: a line for the user each.
    """

    image: str
    patient: str
    study: str
    view: str
    regions: np.ndarray
    findings: np.ndarray
    anywhere: np.ndarray
    twice: str
    faults: dict[str, list[str]]


def read_graph(path: pathlib.Path, shape: tuple[int, int]) -> SceneGraph:
    """Reads one scene graph.

    Args:
      path: of the JSON file.
      shape: height and width of its film.

    Raises:
      InputError: names the file and what is wrong: no JSON, larger or deeper than any, without one
        of the entries in the module's list or with one of another kind; a corner that is no number;
        an attribute that is not CATEGORY|yes|NAME; a name other than that of the file.
    """
    graph = small_files.read_fields(path, _REMEDY)
    image = graph.get("image_id", str)
    if f"{image}{SUFFIX}" != path.name:
        raise InputError(f"{path} says it is of film {image[:80]!r}, not of its name's; {_REMEDY}")
    faults: dict[str, list[str]] = {}
    regions, twice = _regions(graph, shape, faults)
    findings, anywhere = _findings(graph, faults)
    return SceneGraph(
        image=image,
        patient=str(graph.get("patient_id", (int, str))),
        study=str(graph.get("study_id", (int, str))),
        view=graph.get("viewpoint", str),
        regions=regions,
        findings=findings,
        anywhere=anywhere,
        twice=twice,
        faults=faults,
    )


def _entries(graph: small_files.Fields, key: str) -> Iterator[small_files.Fields]:
    """The objects of a list, each under its number."""
    for number, values in enumerate(graph.get(key, list)):
        inside = f"{key}[{number}]"
        if not isinstance(values, dict):
            raise InputError(f"{graph.path} has no object as {inside}; {_REMEDY}")
        yield graph._replace(values=values, inside=f"{inside}.")


def _regions(
    graph: small_files.Fields, shape: tuple[int, int], faults: dict[str, list[str]]
) -> tuple[np.ndarray, str]:
    names, corners = [], []
    for entry in _entries(graph, "objects"):
        name = entry.get("bbox_name", str)
        box = [_corner(entry, corner) for corner in _CORNERS]
        if name in _ROW:
            names.append(name)
            corners.append(box)
        elif name not in OTHER_REGIONS:
            faults.setdefault("unknown regions", []).append(repr(name[:80]))
    given = np.array(corners, np.float64).reshape(-1, 4)
    clipped = boxes.clip(given, shape)
    there = ~np.isnan(clipped).any(axis=1)
    film = f"on a film of {shape[1]}x{shape[0]} px"
    for number in np.flatnonzero(~there):
        text = f"{names[number]!r} {given[number].tolist()} {film}"
        faults.setdefault("boxes without an area", []).append(text)
    regions = np.full((len(REGIONS), 4), np.nan, np.float32)
    valid = [name for name, fine in zip(names, there) if fine]
    regions[[_ROW[name] for name in valid]] = clipped[there]
    twice = [name for name, count in Counter(valid).items() if count > 1]
    # A float32 may round two corners that are nearly one to the same.
    regions[~(regions[:, :2] < regions[:, 2:]).all(axis=1)] = np.nan
    return regions, twice[0] if twice else ""


def _corner(entry: small_files.Fields, key: str) -> float:
    value = entry.get(key, (int, float))
    if not -_FARTHEST <= value <= _FARTHEST:
        raise InputError(
            f"{entry.path} has {str(value)[:40]} as {entry.inside}{key}, expected a number of "
            f"pixels -{_FARTHEST}..{_FARTHEST}; {_REMEDY}"
        )
    return float(value)


def _findings(
    graph: small_files.Fields, faults: dict[str, list[str]]
) -> tuple[np.ndarray, np.ndarray]:
    table, anywhere = np.zeros((len(REGIONS), len(FINDINGS)), bool), np.zeros(len(FINDINGS), bool)
    for entry in _entries(graph, "attributes"):
        row = _ROW.get(entry.get("bbox_name", str))
        for category, name in _positive(entry):
            column = _COLUMN.get((category, name))
            if column is None:
                faults.setdefault("unknown findings", []).append(repr(f"{category}|{name}"[:80]))
                continue
            anywhere[column] = True
            if row is not None:
                table[row, column] = True
    return table, anywhere


def _positive(entry: small_files.Fields) -> Iterator[tuple[str, str]]:
    """(category, name) of what is said to be there, of the categories that are findings."""
    for sentence in entry.get("attributes", list):
        for attribute in sentence if isinstance(sentence, list) else [None]:
            parts = attribute.split("|") if isinstance(attribute, str) else []
            if len(parts) != 3 or parts[1] not in ("yes", "no"):
                raise InputError(
                    f"{entry.path} has {str(attribute)[:80]!r} in {entry.inside}attributes, "
                    f"expected lists of CATEGORY|yes|NAME or CATEGORY|no|NAME; {_REMEDY}"
                )
            if parts[0] in _CATEGORIES and parts[1] == "yes":
                yield parts[0], parts[2]
