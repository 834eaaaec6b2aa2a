"""NIH ChestX-ray14: frontal films with findings mined from reports, boxes on some of them.

Source: NIH Clinical Center (nihcc.app.box.com/v/ChestXray-NIHCC); Wang et al., CVPR 2017, arXiv
1705.02315. 112,120 films of 30,805 patients, 1024 x 1024; 984 boxes on 880 films. The NIH ask for
a citation and a link.

The layout as downloaded: `Data_Entry_2017_v2020.csv` (or the older `Data_Entry_2017.csv`),
`BBox_List_2017.csv`, `train_val_list.txt`, `test_list.txt`, and the films in `images/` or in
`images_001/images/` .. `images_012/images/`.

The 14 NIH findings become the ten of `records.FINDINGS`:

- cardiomegaly, edema, consolidation, pneumonia, atelectasis, pneumothorax are themselves,
  `Effusion` is pleural effusion, `No Finding` is no finding;
- lung opacity is `Infiltration`, or any of edema, consolidation, pneumonia and atelectasis, which
  are lung opacities in CheXpert. A film with `Mass` or `Nodule` and none of these has it unknown:
  what CheXpert calls a lung lesion is an opacity too, but its reports name it apart;
- support devices are not labelled: unknown;
- `Emphysema`, `Fibrosis`, `Hernia`, `Pleural_Thickening` only rule out `no finding`.

For the three classes of Park et al. 2021 the set gives normal films: those of `No Finding` alone,
PA (its Table 1, 3,768 of them) and AP (Table 2, 3,390). No other film has a `diagnosis`: its
pneumonias were mined from reports, and the paper takes its other infections from a hospital.

Boxes are in pixels of the film of 1024 and are stored in those of the stored picture. `Infiltrate`
is a box of lung opacity; boxes of `Mass` and `Nodule` are left out and counted. A film on which
nobody drew has no `boxes`: that says nothing of what is on it.

Splits: 'official' are the two lists (no patient in both), the films of the first dealt to five
folds for validation; 'patient' deals all patients to five folds, of which the last is the test
split and 0..3 are for training and validation. Both are balanced by the number of findings.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.boxes import scale as scale_boxes
from cxr_jax.data.records import DIAGNOSES, FINDINGS, Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.errors import InputError

NAME = "nih_cxr14"
SOURCE = (
    "the folder with Data_Entry_2017_v2020.csv, BBox_List_2017.csv, train_val_list.txt, "
    "test_list.txt and images/, from https://nihcc.app.box.com/v/ChestXray-NIHCC"
)
FIELDS = frozenset({"image", "id", "group", "view", "findings", "diagnosis", "boxes", "box_label"})
NORMAL = DIAGNOSES.index("normal")
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
SPLITS_BY = ("official", "patient")
FRAME = (1024.0, 1024.0)  # px, the film on which boxes are given

NO_FINDING = "No Finding"
NIH_FINDINGS = {  # the name in the table -> ours
    NO_FINDING: "no finding",
    "Cardiomegaly": "cardiomegaly",
    "Infiltration": "lung opacity",
    "Edema": "edema",
    "Consolidation": "consolidation",
    "Pneumonia": "pneumonia",
    "Atelectasis": "atelectasis",
    "Pneumothorax": "pneumothorax",
    "Effusion": "pleural effusion",
}
LUNG_LESIONS = ("Mass", "Nodule")
OTHER_FINDINGS = ("Emphysema", "Fibrosis", "Hernia", "Pleural_Thickening")
OPACITIES = ("edema", "consolidation", "pneumonia", "atelectasis")  # ours, besides lung opacity

_BOX_COLUMNS = ("image index", "finding label", "x", "y", "w", "h")


@dataclasses.dataclass(frozen=True)
class Options(FoldedOptions):
    """See the module.

    Attributes:
      split_by: official, the two lists; or patient, five folds of all patients
    """

    split_by: str = "official"


@dataclasses.dataclass(frozen=True, slots=True)
class Film:
    """One row: `labels` [10] are 0, 1 or NaN; `boxes` (finding, xyxy in pixels of `FRAME`)."""

    path: str
    id: str
    group: str
    view: str
    split: str  # of the official lists
    labels: tuple[float, ...]
    boxes: tuple[tuple[int, tuple[float, float, float, float]], ...]

    @property
    def diagnosis(self) -> int | None:
        """Of the three classes, see the module."""
        return NORMAL if self.labels[FINDINGS.index("no finding")] == 1 else None


class NIHChestXray14(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/nih_cxr14/1.0.0."""

    name = NAME
    description = "Frontal chest radiographs with findings from reports, some with boxes."
    homepage = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
    citation = (
        "Wang et al., ChestX-ray8: hospital-scale chest X-ray database and benchmarks. CVPR 2017. "
        "arXiv:1705.02315"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> NIHChestXray14:
    """The builder of the set from its folder; reads the tables, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    index, notes = read_index(source)
    films = {split: [f for f in index if f.split == split] for split in LISTS}
    table, others = table_of(source), [source / name for name in (BOXES, *LISTS.values())]
    by_patient = dict(zip((f.id for f in index), _patient_folds(index)))
    train = films["train"]
    folds = splits.folds_by_findings([f.group for f in train], [f.labels for f in train])
    return prepared.film_builder(
        NIHChestXray14,
        films,
        read=_read_film,
        fields=FIELDS,
        partial=frozenset({"boxes", "box_label", "diagnosis"}),
        folds={"train": folds.tolist()},
        columns=lambda part: (
            {"patient_fold": [by_patient[film.id] for film in part]}
            | prepared.film_columns(
                views=(film.view for film in part), diagnoses=(film.diagnosis for film in part)
            )
        ),
        fingerprint=prepared.fingerprint(
            table,
            (pathlib.Path(film.path) for film in index),
            *(prepared.fingerprint(path, ()) for path in others),
            (max_side, "diagnosis"),  # a set prepared before it had this is another one
        ),
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set.

    Args:
      options: `fold` is 0..4 ('official') or 0..3 ('patient'), or -1: there is no 'val'.
      split: 'test'; with `fold` k, 'val' is fold k of the other patients, 'train' the rest.

    Raises:
      InputError: an unknown `split_by`; what `prepared.open_folded` raises.
    """
    if options.split_by not in SPLITS_BY:
        raise InputError(
            f"data.split_by={options.split_by!r}; expected one of {', '.join(SPLITS_BY)}"
        )
    dealt = {"fold": options.fold, "source": SOURCE}
    if options.split_by == "patient":
        dealt |= {"column": "patient_fold", "folds": prepared.FOLDS - 1, "stored": "train+test"}
    return prepared.open_folded(options.data_dir, NAME, split, **dealt)


def read_index(folder: pathlib.Path) -> tuple[list[Film], list[str]]:
    """The films of a folder, in the order of the table, and notes on what was left out.

    Raises:
      InputError: a missing table, list, column or film; an unknown finding or view; a film listed
        twice, in both lists or in none; a patient in both; a box outside the film.
    """
    folder = pathlib.Path(folder)
    table = table_of(folder)
    _, rows = tables.scan_table(
        table, ("Image Index", "Finding Labels", "Patient ID", "View Position")
    )
    split_of = _read_lists(folder)
    paths = find_films(folder)
    boxes, lesions = _without_lesions(read_boxes(folder / BOXES))
    films = [_film(row, paths, split_of, boxes) for row in rows]
    splits.check_unique((film.id for film in films), where=table)
    splits.check_disjoint(
        {name: [f.group for f in films if f.split == split] for split, name in LISTS.items()},
        where=str(table),
    )
    for split, name in LISTS.items():
        if not any(film.split == split for film in films):
            raise InputError(f"{table}: none of its films is in {name}; download both again")
    drawn = sum(len(film.boxes) for film in films)
    elsewhere = sum(map(len, boxes.values())) - drawn
    note = f"{drawn} boxes on {sum(bool(film.boxes) for film in films)} films"
    note += f"; {lesions} of masses and nodules left out" if lesions else ""
    note += f"; {elsewhere} of films that are not in {table.name} left out" if elsewhere else ""
    normal = sum(film.diagnosis is not None for film in films)
    normal = f"{normal} films are of diagnosis normal, the others have none"
    return films, ["every film has known findings", note, normal]


def names_of(row: tables.Row, column: str) -> list[str]:
    """The NIH findings of a cell, joined by '|', under their own names.

    Raises:
      InputError: an empty cell, an unknown finding, `No Finding` beside another.
    """
    names = row.text(column).split("|")
    known = (*NIH_FINDINGS, *LUNG_LESIONS, *OTHER_FINDINGS)
    for name in names:
        if name not in known:
            raise row.error(column, f"{name!r} is no NIH finding; expected {', '.join(known)}")
    if NO_FINDING in names and len(set(names)) > 1:
        raise row.error(column, f"{NO_FINDING!r} cannot stand beside another finding")
    return names


def findings_of(row: tables.Row, column: str) -> np.ndarray:
    """The NIH findings of a cell, joined by '|', as float32 [10]: 0, 1 or NaN (see the module).

    Raises:
      InputError: as `names_of`.
    """
    names = names_of(row, column)
    ours = {NIH_FINDINGS[name] for name in names if name in NIH_FINDINGS}
    labels = np.array([finding in ours for finding in FINDINGS], np.float32)
    labels[FINDINGS.index("support devices")] = np.nan
    if ours.intersection(OPACITIES):
        labels[FINDINGS.index("lung opacity")] = 1
    elif "lung opacity" not in ours and set(names).intersection(LUNG_LESIONS):
        labels[FINDINGS.index("lung opacity")] = np.nan
    return labels


def box_of(row: tables.Row, column: str, size: float) -> tuple[int, tuple[float, ...]] | None:
    """A row with a finding in `column` and x, y, w, h in pixels of a film of at most `size`.

    Returns:
      The finding's number and the box xyxy; None for a mass or nodule.

    Raises:
      InputError: as `named_box`.
    """
    name, box = named_box(row, column, size)
    return None if name in LUNG_LESIONS else (FINDINGS.index(NIH_FINDINGS[name]), box)


def named_box(row: tables.Row, column: str, size: float) -> tuple[str, tuple[float, ...]]:
    """As `box_of`, under NIH's name of the finding, of masses and nodules too.

    Raises:
      InputError: an unknown finding, a number that is none, an empty box, one outside the film.
    """
    name = "Infiltration" if row[column] == "Infiltrate" else row[column]
    x, y, w, h = (row.real(key, 0, size) for key in "xywh")
    if not w or not h:
        raise row.error("h" if w else "w", "a box must have a width and a height")
    # Boxes were scaled and rounded: they may leave the film by a pixel.
    for key, end in (("w", x + w), ("h", y + h)):
        if end > size + 1:
            raise row.error(key, f"the box ends at {end:g}, outside the film of {size:g} px")
    known = [*(n for n in NIH_FINDINGS if n != NO_FINDING), *LUNG_LESIONS]
    if name not in known:
        raise row.error(column, f"no finding that has boxes; expected {', '.join(known)}")
    return name, (x, y, x + w, y + h)


def table_of(folder: pathlib.Path) -> pathlib.Path:
    """The table of films in a folder.

    Raises:
      InputError: there is none.
    """
    for name in TABLES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: found none of {', '.join(TABLES)}; --source is {SOURCE}")


def film_ids(row: tables.Row, paths: Mapping[str, str]) -> dict[str, str]:
    """`path`, `id`, `group` and `view` of a row's film.

    Args:
      row: of the table of films.
      paths: of `find_films`.

    Raises:
      InputError: a film that is not there, a patient that is no number, an unknown view.
    """
    name = row.text("image index")
    if name not in paths:
        raise row.error(
            "image index", "there is no such film in images/ or images_*/images/; download it too"
        )
    patient = row.number("patient id", 0, 10**8 - 1)
    if patient is None:
        raise row.error("patient id", "this column must not be empty")
    return {
        "path": paths[name],
        "id": pathlib.PurePath(name).stem,
        "group": f"nih-{patient:08d}",
        "view": row.choice("view position", ("PA", "AP", "")),
    }


def _film(
    row: tables.Row,
    paths: Mapping[str, str],
    split_of: Mapping[str, str],
    boxes: Mapping[str, list],
) -> Film:
    name = row.text("image index")
    ids = film_ids(row, paths)
    if name not in split_of:
        raise row.error("image index", f"the film is in neither of {', '.join(LISTS.values())}")
    return Film(
        **ids,
        split=split_of[name],
        labels=tuple(findings_of(row, "finding labels").tolist()),
        boxes=tuple(boxes.get(name, ())),
    )


def find_films(folder: pathlib.Path) -> dict[str, str]:
    """File name -> path of every film of the folder.

    Raises:
      InputError: there is none.
    """
    found = {}
    for place in sorted(folder.glob("images*")):
        for inner in (place / "images", place):
            if inner.is_dir():
                found |= {p.name: str(p) for p in inner.iterdir() if p.suffix.lower() == ".png"}
    if not found:
        raise InputError(f"{folder}: there is no film in images/ or images_*/images/")
    return found


def _read_lists(folder: pathlib.Path) -> dict[str, str]:
    """File name -> its split in the official lists."""
    names = {split: set(_read_list(folder / file)) for split, file in LISTS.items()}
    if both := names["train"] & names["test"]:
        raise InputError(
            f"{folder}: film {min(both)!r} is in both {' and '.join(LISTS.values())}; download the "
            "lists again"
        )
    return {name: split for split, part in names.items() for name in part}


def _read_list(path: pathlib.Path) -> Iterator[str]:
    return (cells[0] for _, cells in tables.scan_lines(path) if cells and cells[0])


def read_boxes(path: pathlib.Path) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """File name -> NIH's name of the finding and xyxy in pixels of `FRAME`, of each of its boxes.

    The header is `Image Index,Finding Label,Bbox [x,y,w,h],,,`: nine cells over rows of six. Some
    copies have cells to spare in the rows too.

    Raises:
      InputError: no such table, or a row as in `named_box`.
    """
    boxes = {}
    lines = tables.scan_lines(path)
    _, header = next(lines, (0, []))
    if [cell.casefold() for cell in header[:2]] != list(_BOX_COLUMNS[:2]):
        raise InputError(
            f"{path}: the first line is {','.join(header)[:80]!r}; expected "
            "'Image Index,Finding Label,Bbox [x,y,w,h],,,'"
        )
    for line, cells in lines:
        if not any(cells):
            continue
        if len(cells) < len(_BOX_COLUMNS) or any(cells[len(_BOX_COLUMNS) :]):
            raise InputError(
                f"{path}: row {line} has {len(cells)} cells; expected {', '.join(_BOX_COLUMNS)}"
            )
        row = tables.Row(path, line, dict(zip(_BOX_COLUMNS, cells)))
        box = named_box(row, "finding label", FRAME[0])
        boxes.setdefault(row["image index"], []).append(box)
    return boxes


def _without_lesions(named: Mapping[str, list]) -> tuple[dict[str, list], int]:
    """The boxes by our findings, and how many of masses and nodules were left out."""
    boxes = {
        film: [(FINDINGS.index(NIH_FINDINGS[n]), box) for n, box in drawn if n not in LUNG_LESIONS]
        for film, drawn in named.items()
    }
    return boxes, sum(map(len, named.values())) - sum(map(len, boxes.values()))


def _patient_folds(films: list[Film]) -> list[int]:
    """Folds 0..3 of all films by patient, -1 for the last of five, which tests."""
    folds = splits.folds_by_findings([f.group for f in films], [f.labels for f in films])
    return np.where(folds == prepared.FOLDS - 1, -1, folds).tolist()


def _read_film(film: Film, max_side: int) -> Record:
    record = {
        "image": readers.read_film(film.path),
        "id": film.id,
        "group": film.group,
        "view": film.view,
        "findings": np.array(film.labels, np.float32),
    }
    if film.diagnosis is not None:
        record["diagnosis"] = film.diagnosis
    if film.boxes:
        corners = np.array([box for _, box in film.boxes])
        record["boxes"] = scale_boxes(corners, FRAME, record["image"].shape)
        record["box_label"] = np.array([finding for finding, _ in film.boxes], np.int32)
    return preprocess.shrink(record, max_side)
