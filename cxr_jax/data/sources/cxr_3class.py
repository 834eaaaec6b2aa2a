"""Films of three classes, normal, other pneumonia and COVID-19; the first two with NIH findings.

Source: repository muhammedtalo/COVID-19; Ozturk et al., Computers in Biology and Medicine 2020,
doi 10.1016/j.compbiomed.2020.103792. 500 normal and 500 pneumonia films are NIH ChestX-ray14's
(Wang et al., CVPR 2017), 106 COVID-19 films those of ieee8023/covid-chestxray-dataset.

**The classes come from different hospitals and can be told apart without looking at the lungs**: a
score on them says little of the disease. The findings are all from one source and do not have that
flaw.

The folder: `labels.csv` (image, class, source, nih_findings, patient, fold, in_brixia_cohen),
`boxes.csv` (image, label, x, y, w, h in pixels of the film) and `images/`. Findings as in
`nih_cxr14`; those of COVID-19 films are all unknown. A film on which nobody drew has no `boxes`.

Splits, whole patients: the table deals them to five folds, of which any one may test
(`test_fold`) and any other one validate (`fold`); the rest is trained on. By default fold 4 tests.
The prepared set stores folds 0..3 as 'train' and fold 4 as 'test', whichever tests later.

Overlap: 68 COVID-19 films are in `brixia_cohen` too, 11 of them in its test split, and 3 more are
other films of patients who are in its test split. A model that is tested there must not have seen
these patients: `leave_out_overlap` leaves out every film of a patient one of whose films is in both
sets (76 films).
"""

import collections
import dataclasses
import pathlib

import numpy as np

from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.records import DIAGNOSES, FINDINGS, Record
from cxr_jax.data.sources import nih_cxr14, prepared, tables
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.errors import InputError

NAME = "cxr_3class"
SOURCE = "the folder with labels.csv, boxes.csv and images/"
FIELDS = frozenset({"image", "id", "group", "diagnosis", "findings", "boxes", "box_label"})
TEST_FOLD = 4  # unless another one is asked for; 'test' in the prepared files
CLASSES = {"normal": "normal", "pneumonia": "other infection", "covid": "covid-19"}
MAX_SIZE = 4096  # px; larger boxes are refused from the table, before the film is read


@dataclasses.dataclass(frozen=True)
class Options(FoldedOptions):
    """See the module.

    Attributes:
      fold: 0..4 but not test_fold: this fold validates; -1: none does
      test_fold: 0..4: this fold tests; -1: the one after fold
      leave_out_overlap: True if the model meets brixia_cohen later: without the patients in both
    """

    test_fold: int = TEST_FOLD
    leave_out_overlap: bool = False


@dataclasses.dataclass(frozen=True)
class Film:
    """One row: `labels` [10] are 0, 1 or NaN; `boxes` (finding, xyxy in pixels of the film)."""

    path: pathlib.Path
    id: str
    group: str
    diagnosis: int
    labels: np.ndarray
    boxes: list[tuple[int, tuple[float, ...]]]
    fold: int
    overlap: bool  # this very film is in brixia_cohen


class ThreeClasses(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/cxr_3class/1.0.0."""

    name = NAME
    description = "Normal, pneumonia and COVID-19 chest radiographs, with NIH findings."
    homepage = "https://github.com/muhammedtalo/COVID-19"
    citation = (
        "Ozturk et al., Automated detection of COVID-19 cases using deep neural networks with "
        "X-ray images. Computers in Biology and Medicine 121, 2020. "
        "doi:10.1016/j.compbiomed.2020.103792"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> ThreeClasses:
    """The builder of the set from its folder; reads the tables, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    index, notes = read_index(source)
    overlapping = {film.group for film in index if film.overlap}
    films = {
        "train": [film for film in index if film.fold != TEST_FOLD],
        "test": [film for film in index if film.fold == TEST_FOLD],
    }
    return prepared.film_builder(
        ThreeClasses,
        films,
        read=_read_film,
        fields=FIELDS,
        partial=frozenset({"boxes", "box_label"}),
        folds={"train": [film.fold for film in films["train"]]},
        columns=lambda part: {
            "known": [int((~np.isnan(film.labels)).sum()) for film in part],
            "overlap": [int(film.group in overlapping) for film in part],
            **prepared.film_columns(diagnoses=(film.diagnosis for film in part)),
        },
        fingerprint=prepared.fingerprint(
            source / "labels.csv",
            (film.path for film in index),
            prepared.fingerprint(source / "boxes.csv", ()),
            max_side,
        ),
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set.

    Args:
      options: `fold` is another one than `test_fold`, or -1: there is no 'val'. Where `test_fold`
        is -1 and fold k validates, fold k + 1 tests, and after the last one the first.
      split: 'test' is fold `test_fold`, 'val' fold `fold`, 'train' all others.

    Raises:
      InputError: what `prepared.open_folded` raises.
    """
    test_fold = options.test_fold
    if test_fold == -1 and 0 <= options.fold < prepared.FOLDS:
        test_fold = (options.fold + 1) % prepared.FOLDS
    opened = prepared.open_folded(
        options.data_dir,
        NAME,
        split,
        fold=options.fold,
        folds=TEST_FOLD,
        test_fold=test_fold,
        source=SOURCE,
        where={"overlap": {0}} if options.leave_out_overlap else None,
        known=["known"],
    )
    # What runs of before compare stays: nothing is said of the fold that has always tested.
    opened.version += f"+test-fold{test_fold}" if test_fold != TEST_FOLD else ""
    opened.version += "+without-overlap" if options.leave_out_overlap else ""
    return opened


def read_index(folder: pathlib.Path) -> tuple[list[Film], list[str]]:
    """The films of the folder, in the order of the table, and notes on what was left out.

    Raises:
      InputError: a missing table, column or film; an unknown class or finding; `No Finding` beside
        another finding; findings of a COVID-19 film or none of another; a film listed twice; a
        patient in training and test folds; a box of no film or outside its film.
    """
    folder = pathlib.Path(folder)
    table = folder / "labels.csv"
    if not table.is_file():
        raise InputError(f"{folder}: there is no labels.csv in it; --source is {SOURCE}")
    columns = ("image", "class", "nih_findings", "patient", "fold", "in_brixia_cohen")
    _, rows = tables.read_table(table, columns)
    boxes, lesions = _read_boxes(folder / "boxes.csv", {row["image"] for row in rows})
    films = [_film(row, boxes) for row in rows]
    splits.check_unique((film.id for film in films), where=table)
    splits.check_disjoint(
        {f"fold {k}": [f.group for f in films if f.fold == k] for k in range(prepared.FOLDS)},
        where=str(table),
    )
    for fold in range(prepared.FOLDS):
        if not any(film.fold == fold for film in films):
            raise InputError(f"{table}: no film is in fold {fold}; expected folds 0..{TEST_FOLD}")
    known = sum(not np.isnan(film.labels).all() for film in films)
    drawn = sum(len(film.boxes) for film in films)
    notes = [
        f"{known} of {len(films)} films have a known finding",
        f"{drawn} boxes on {sum(bool(film.boxes) for film in films)} films"
        + (f"; {lesions} of masses and nodules left out" if lesions else ""),
    ]
    return films, notes


def _film(row: tables.Row, boxes: dict[str, list]) -> Film:
    path = row.path.parent / "images" / row.text("image")
    if not path.is_file():
        raise row.error("image", f"there is no file {path}")
    diagnosis = CLASSES[row.choice("class", CLASSES)]
    labels = np.full(len(FINDINGS), np.nan, np.float32)
    if diagnosis != "covid-19":
        labels = nih_cxr14.findings_of(row, "nih_findings")
    elif row["nih_findings"]:
        raise row.error("nih_findings", "a film of class covid has no NIH findings; leave it empty")
    return Film(
        path=path,
        id=path.stem,
        group=row.text("patient"),
        diagnosis=DIAGNOSES.index(diagnosis),
        labels=labels,
        boxes=boxes[row["image"]],
        fold=_number(row, "fold", TEST_FOLD),
        overlap=bool(_number(row, "in_brixia_cohen", 1)),
    )


def _number(row: tables.Row, column: str, high: int) -> int:
    row.text(column)
    return row.number(column, 0, high)


def _read_boxes(path: pathlib.Path, images: set[str]) -> tuple[dict[str, list], int]:
    """Film -> its boxes, and how many boxes of masses and nodules were left out."""
    boxes, left_out = collections.defaultdict(list), 0
    _, rows = tables.read_table(path, ("image", "label", *"xywh"))
    for row in rows:
        if row["image"] not in images:
            raise row.error("image", "labels.csv has no such film")
        box = nih_cxr14.box_of(row, "label", MAX_SIZE)
        if box is None:
            left_out += 1
        else:
            boxes[row["image"]].append(box)
    return boxes, left_out


def _read_film(film: Film, max_side: int) -> Record:
    record = {
        "image": readers.read_film(film.path),
        "id": film.id,
        "group": film.group,
        "diagnosis": film.diagnosis,
        "findings": film.labels,
    }
    if film.boxes:
        record["boxes"] = np.array([box for _, box in film.boxes], np.float32)
        record["box_label"] = np.array([finding for finding, _ in film.boxes], np.int32)
        height, width = record["image"].shape
        # Boxes were scaled and rounded: they may leave the film by a pixel.
        if (record["boxes"][:, 2:] > np.array([width, height]) + 1).any():
            raise InputError(
                f"{film.path}: a box of boxes.csv leaves the film of {width}x{height} px; give "
                "boxes in pixels of the film in images/"
            )
    return preprocess.shrink(record, max_side)
