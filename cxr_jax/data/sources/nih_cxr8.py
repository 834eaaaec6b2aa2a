"""NIH ChestX-ray8: the eight findings of which NIH's radiologists drew boxes, for detection.

The films and tables are those of `nih_cxr14` (Wang et al., CVPR 2017), read as there; the findings
are the set's own, under NIH's names in lower case, and none is left out. `Infiltrate` of the boxes
is infiltration. Read are `Data_Entry_2017_v2020.csv` (or `Data_Entry_2017.csv`),
`BBox_List_2017.csv` and the films.

Splits (Müller et al. 2023, Sec. 3.4): the films with boxes, 882 by the paper, 880 by the table, are
half validation and half test split, whole patients, balanced by the finding of a film's first box.
The released code shuffles patients in an order that changes from run to run. 'train' is every film
of the other patients, without boxes: what weakly supervised detectors learn from. The released code
leaves the boxed films in there. The paper's supervised detector is trained on some 500 training
films that its own radiologists boxed, which nobody else has; with the option `boxed` the validation
half takes their place: it is 'train', and there is no 'val'.

`findings` are NIH's, mined from reports, and 1 wherever a box of that finding is drawn. A film has
at most one box of a finding, and not every finding of a boxed film has one.

Overlap: the films are those of `nih_cxr14`, and 1,000 of them are in `cxr_3class`, under the same
patient names: the sets are no test of each other.
"""

import dataclasses
import pathlib

import numpy as np

from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.boxes import clip, scale
from cxr_jax.data.records import Record
from cxr_jax.data.sources import nih_cxr14, prepared, tables
from cxr_jax.data.sources.base import PreparedOptions
from cxr_jax.errors import InputError

NAME = "nih_cxr8"
SOURCE = nih_cxr14.SOURCE
FIELDS = frozenset({"image", "id", "group", "view", "findings", "boxes", "box_label"})
FINDINGS = (
    *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule"),
    *("pneumonia", "pneumothorax"),
)
HALVES = ("val", "test")


@dataclasses.dataclass(frozen=True)
class Options(PreparedOptions):
    """Of the set.

    Attributes:
      boxed: True: the boxed films of the validation half are trained on, and none validate
    """

    boxed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Film:
    """One row: `labels` [8] are 0 or 1; `boxes` (finding, xyxy in pixels of `nih_cxr14.FRAME`)."""

    path: str
    id: str
    group: str
    view: str
    labels: tuple[int, ...]
    boxes: tuple[tuple[int, tuple[float, ...]], ...]


class NIHChestXray8(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/nih_cxr8/1.0.0."""

    name = NAME
    description = "Frontal chest radiographs with eight findings, some with boxes of them."
    homepage = nih_cxr14.NIHChestXray14.homepage
    citation = nih_cxr14.NIHChestXray14.citation
    findings = FINDINGS


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> NIHChestXray8:
    """The builder of the set from its folder; reads the tables, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    by_split, notes = read_index(source)
    films = [film for part in by_split.values() for film in part]
    return prepared.film_builder(
        NIHChestXray8,
        by_split,
        read=_read_film,
        fields=FIELDS,
        partial=frozenset({"boxes", "box_label"}),
        columns=lambda part: prepared.film_columns(views=(film.view for film in part)),
        fingerprint=prepared.fingerprint(
            nih_cxr14.table_of(source),
            (pathlib.Path(film.path) for film in films),
            prepared.fingerprint(source / nih_cxr14.BOXES, ()),
            max_side,
        ),
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; see the module for its splits.

    Raises:
      InputError: not prepared (with the command), or damaged; 'val' where its films are trained on.
    """
    stored = {"train": "val", "val": ""}.get(split, split) if options.boxed else split
    if not stored:
        raise InputError(
            f"data set {NAME!r} has no validation split with data.boxed=True, which trains on it; "
            "set config.eval_every to 0, or data.boxed to False"
        )
    return prepared.open_whole(options.data_dir, NAME, split, source=SOURCE, stored=stored)


def read_index(folder: pathlib.Path) -> tuple[dict[str, list[Film]], list[str]]:
    """The films of each split, in the order of the table, and notes on what was left out.

    Raises:
      InputError: a missing table, column or film; an unknown finding or view; a film listed twice;
        a box outside the film; boxed films of fewer than two patients, or of all.
    """
    folder = pathlib.Path(folder)
    table, paths = nih_cxr14.table_of(folder), nih_cxr14.find_films(folder)
    boxes = nih_cxr14.read_boxes(folder / nih_cxr14.BOXES)
    boxes = {name: _numbered(drawn) for name, drawn in boxes.items()}
    _, rows = tables.scan_table(
        table, ("Image Index", "Finding Labels", "Patient ID", "View Position")
    )
    films = [_film(row, paths, boxes) for row in rows]
    splits.check_unique((film.id for film in films), where=table)
    boxed = [film for film in films if film.boxes]
    patients = {film.group for film in boxed}
    by_split = {"train": [film for film in films if film.group not in patients], **_halves(boxed)}
    if empty := [split for split, part in by_split.items() if not part]:
        raise InputError(
            f"{folder}: no film for split {empty[0]!r}; {len(boxed)} films of {len(patients)} "
            f"patients in {table.name} have a box in {nih_cxr14.BOXES}; download both again"
        )
    others = len(films) - sum(map(len, by_split.values()))
    drawn = sum(len(film.boxes) for film in boxed)
    notes = [f"{drawn} boxes on {len(boxed)} films of {len(patients)} patients"]
    notes += [f"left out: {others} films without a box, of these patients"] if others else []
    if elsewhere := sum(map(len, boxes.values())) - drawn:
        notes.append(f"left out: {elsewhere} boxes of films that are not in {table.name}")
    return by_split, notes


def _numbered(drawn: list[tuple[str, tuple[float, ...]]]) -> tuple[tuple[int, tuple], ...]:
    """The boxes of a film whose findings are among the eight; the table has no other."""
    numbered = [(name.casefold(), box) for name, box in drawn]
    return tuple((FINDINGS.index(name), box) for name, box in numbered if name in FINDINGS)


def _film(row: tables.Row, paths: dict[str, str], boxes: dict[str, tuple]) -> Film:
    names = {name.casefold() for name in nih_cxr14.names_of(row, "finding labels")}
    drawn = boxes.get(row["image index"], ())
    labels = [name in names or k in {n for n, _ in drawn} for k, name in enumerate(FINDINGS)]
    return Film(**nih_cxr14.film_ids(row, paths), labels=tuple(map(int, labels)), boxes=drawn)


def _halves(boxed: list[Film]) -> dict[str, list[Film]]:
    kinds = range(1, len(FINDINGS))  # cuts between the numbers of findings
    dealt = splits.balanced_folds(
        [film.group for film in boxed],
        [film.boxes[0][0] for film in boxed],
        folds=len(HALVES),
        edges=kinds,
    )
    return {
        split: [film for film, half in zip(boxed, dealt) if half == k]
        for k, split in enumerate(HALVES)
    }


def _read_film(film: Film, max_side: int) -> Record:
    record = {
        "image": readers.read_film(film.path),
        "id": film.id,
        "group": film.group,
        "view": film.view,
        "findings": np.array(film.labels, np.float32),
    }
    if film.boxes:
        corners = clip(np.array([box for _, box in film.boxes]), nih_cxr14.FRAME)
        record["boxes"] = scale(corners, nih_cxr14.FRAME, record["image"].shape)
        record["box_label"] = np.array([finding for finding, _ in film.boxes], np.int32)
    return preprocess.shrink(record, max_side)
