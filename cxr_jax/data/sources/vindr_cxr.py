"""VinDr-CXR: 18,000 films of two hospitals with boxes of 22 findings by radiologists.

Source: physionet.org/content/vindr-cxr/1.0.0 (for credentialed users); Nguyen et al., Scientific
Data 2022, arXiv 2012.15029. DICOM films, PA. The 15,000 of the training part were each read by
three of 17 radiologists on their own, the 3,000 of the test part by five who had to agree.

The layout as downloaded: `train/ID.dicom`, `test/ID.dicom` and in `annotations/`

- `image_labels_train.csv`, `image_labels_test.csv`: image_id, in the first one rad_id, and 0 or 1
  of 28 findings: 22 that have boxes, five diseases and `No finding`;
- `annotations_train.csv`, `annotations_test.csv`: image_id, in the first one rad_id, class_name,
  x_min, y_min, x_max, y_max in pixels of the film; a film with `No finding` has empty corners.

The findings are the set's own, all 28 in lower case. Of a training film one is 1 where most of its
readers say so. Boxes of such findings are kept, and those of one finding that overlap by an IoU of
more than 0.4 are fused to their mean (`ops.box_fusion`): two boxes are one where the challenge on
this set (VinBigData 2020) counted them as one. Boxes of a finding that most readers do not see are
left out and counted, as are boxes without an area. The boxes of the test part stay as they are.

Splits: the test part is the test split; the training films are dealt to five folds, balanced by the
number of findings. The set does not say which films are of one patient: each counts as one.

No real film was at hand, and of the tables only the challenge's form.
"""

import dataclasses
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.boxes import clip
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.errors import InputError
from cxr_jax.ops import box_fusion

NAME = "vindr_cxr"
SOURCE = "the folder with train/, test/ and annotations/, from physionet.org/content/vindr-cxr"
FIELDS = frozenset({"image", "id", "group", "findings", "boxes", "box_label"})
Options = FoldedOptions
BOXED = (
    *("aortic enlargement", "atelectasis", "calcification", "cardiomegaly", "clavicle fracture"),
    *("consolidation", "edema", "emphysema", "enlarged pa", "ild", "infiltration", "lung opacity"),
    *("lung cavity", "lung cyst", "mediastinal shift", "nodule/mass", "pleural effusion"),
    *("pleural thickening", "pneumothorax", "pulmonary fibrosis", "rib fracture", "other lesion"),
)
NO_FINDING = "no finding"
FINDINGS = (
    *BOXED,
    *("copd", "lung tumor", "pneumonia", "tuberculosis", "other disease", NO_FINDING),
)
OTHER_SPELLING = {"other disease": "other diseases"}  # as one of the two tables has it
PARTS = ("train", "test")
SAME_BOX = 0.4  # IoU above which two readers' boxes are one
MAX_SIDE = 20_000  # px
UNSEEN = "boxes of findings that most readers do not see"
FINDING_COUNTS = (1, 2, 4)  # cuts of the number of findings by which folds are balanced
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True, slots=True)
class Film:
    """`labels` [28] are 0, 1 or NaN; `boxes` (finding, xyxy in pixels), those of all readers."""

    path: str
    id: str
    part: str
    labels: tuple[float, ...]
    boxes: tuple[tuple[int, tuple[float, ...]], ...]


class VinDrCXR(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/vindr_cxr/1.0.0."""

    name = NAME
    description = "Chest radiographs with boxes of 22 findings by radiologists."
    homepage = "https://physionet.org/content/vindr-cxr/1.0.0/"
    citation = (
        "Nguyen et al., VinDr-CXR: an open dataset of chest X-rays with radiologist's annotations. "
        "Scientific Data 9, 2022. arXiv:2012.15029"
    )
    findings = FINDINGS


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> VinDrCXR:
    """The builder of the set from its folder; reads the tables, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    films, notes = read_index(source)
    by_part = {part: [film for film in films if film.part == part] for part in PARTS}
    folds = splits.balanced_folds(
        [film.id for film in by_part["train"]],
        [sum(label == 1 for label in film.labels[:-1]) for film in by_part["train"]],
        folds=prepared.FOLDS,
        edges=FINDING_COUNTS,
    )
    kinds = [f"{kind}_{part}.csv" for kind in ("annotations", "image_labels") for part in PARTS]
    others = [pathlib.Path(source) / "annotations" / name for name in kinds]
    return prepared.film_builder(
        VinDrCXR,
        by_part,
        read=_read_film,
        fields=FIELDS,
        partial=frozenset({"boxes", "box_label"}),
        folds={"train": folds.tolist()},
        fingerprint=prepared.fingerprint(
            others[0],
            (pathlib.Path(film.path) for film in films),
            *(prepared.fingerprint(path, ()) for path in others[1:]),
            max_side,
        ),
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set.

    Args:
      options: `fold` is 0..4, or -1: all training films are 'train' and there is no 'val'.
      split: 'test' is the test part. With `fold` k, 'val' is fold k of the training films.

    Raises:
      InputError: what `prepared.open_folded` raises.
    """
    return prepared.open_folded(options.data_dir, NAME, split, fold=options.fold, source=SOURCE)


def read_index(folder: pathlib.Path) -> tuple[list[Film], list[str]]:
    """The films of both parts, in the order of the tables, and notes on what was left out.

    Raises:
      InputError: a missing table or column; an id, label, name or corner that is none; a film in
        both parts, or twice in the test part; a box of a film without labels; no film of a part.
    """
    folder, films, left_out = pathlib.Path(folder), [], Counter()
    for part in PARTS:
        labels = _read_labels(folder / "annotations" / f"image_labels_{part}.csv", part)
        boxes = _read_boxes(folder / "annotations" / f"annotations_{part}.csv", labels, left_out)
        there = []
        for name, row in labels.items():
            path = folder / part / f"{name}.dicom"
            if not path.is_file():
                left_out[f"films that are not in {part}/"] += 1
                continue
            drawn = tuple((finding, box) for finding, box in boxes[name] if row[finding] == 1)
            left_out[UNSEEN] += len(boxes[name]) - len(drawn)
            there.append(Film(path=str(path), id=name, part=part, labels=row, boxes=drawn))
        if not there:
            raise InputError(f"{folder}: no film of its tables is in {part}/; --source is {SOURCE}")
        films += there
    splits.check_disjoint(
        {part: [film.id for film in films if film.part == part] for part in PARTS},
        where=str(folder / "annotations"),
    )
    drawn = sum(len(film.boxes) for film in films)
    notes = [f"{drawn} boxes on {sum(bool(film.boxes) for film in films)} of {len(films)} films"]
    notes += [f"left out: {count} {what}" for what, count in left_out.items() if count]
    return films, notes


def _read_labels(path: pathlib.Path, part: str) -> dict[str, tuple[float, ...]]:
    """Film -> 1, 0 or NaN of each finding: what most of its readers say, NaN where none says."""
    header, rows = tables.scan_table(path, ["image_id", *FINDINGS[:-2], NO_FINDING])
    columns = [OTHER_SPELLING.get(name, name) if name not in header else name for name in FINDINGS]
    if absent := [name for name in columns if name not in header]:
        raise InputError(f"{path}: column {absent[0].removesuffix('s')!r} is missing")
    votes = defaultdict(list)
    for row in rows:
        found = [row.number(name, 0, 1) for name in columns]
        votes[_id(row)].append([np.nan if vote is None else vote for vote in found])
        if part == "test" and len(votes[row["image_id"]]) > 1:
            raise row.error("image_id", "this film is listed twice; leave one row")
    return {name: tuple(_majority(np.array(given)).tolist()) for name, given in votes.items()}


def _majority(votes: np.ndarray) -> np.ndarray:
    """[readers, findings] -> float32 [findings]."""
    known = (~np.isnan(votes)).sum(axis=0)
    yes = 2 * np.nansum(votes, axis=0) > known
    return np.where(known > 0, yes, np.nan).astype(np.float32)


def _read_boxes(
    path: pathlib.Path, films: Mapping[str, Sequence[float]], left_out: Counter
) -> defaultdict[str, list]:
    """Film -> (finding, xyxy) of every reader."""
    _, rows = tables.scan_table(path, ("image_id", "class_name", *_CORNERS))
    boxes = defaultdict(list)
    for row in rows:
        name = _id(row)
        if name not in films:
            raise row.error("image_id", "the table of image labels has no such film")
        finding = row.choice("class_name", (*BOXED, NO_FINDING))
        if finding == NO_FINDING:
            continue
        corners = tuple(row.real(corner, -MAX_SIDE, MAX_SIDE) for corner in _CORNERS)
        if corners[0] < corners[2] and corners[1] < corners[3]:
            boxes[name].append((FINDINGS.index(finding), corners))
        else:
            left_out[f"boxes of {path.name} without an area"] += 1
    return boxes


def _id(row: tables.Row) -> str:
    if not _ID.fullmatch(row["image_id"]):
        raise row.error("image_id", "expected 32 hexadecimal digits, as the films are named")
    return row["image_id"]


def _read_film(film: Film, max_side: int) -> Record:
    record = {
        "image": readers.read_film(film.path),
        "id": film.id,
        "group": film.id,
        "findings": np.array(film.labels, np.float32),
    }
    if film.boxes:
        corners = clip(np.array([box for _, box in film.boxes]), record["image"].shape)
        if np.isnan(corners).any():
            height, width = record["image"].shape
            outside = film.boxes[int(np.isnan(corners).any(axis=1).argmax())]
            raise InputError(
                f"{film.path}: the box {list(outside[1])} of {FINDINGS[outside[0]]} lies outside "
                f"the film of {width}x{height} px; give the films as published"
            )
        labels = np.array([finding for finding, _ in film.boxes], np.int32)
        if film.part == "train":
            corners, labels = fused(corners, labels)
        record["boxes"], record["box_label"] = corners.astype(np.float32), labels
    return preprocess.shrink(record, max_side)


def fused(xyxy: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [M, 4] of several readers with their findings [M] -> boxes [N, 4] and int32 [N], by
    finding: those of one finding that overlap are one, the mean of their corners."""
    findings = np.unique(labels)
    scores = np.where(labels == findings[:, None], 1.0, np.nan)  # [F, M]
    groups = np.broadcast_to(xyxy, (len(findings), *xyxy.shape))
    made = box_fusion.weighted_boxes_fusion(groups, scores, threshold=SAME_BOX, score="max")
    there = ~np.isnan(made.scores)
    return made.xyxy[there], np.repeat(findings, there.sum(axis=1)).astype(np.int32)
