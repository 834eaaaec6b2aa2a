"""CC-CCII of the China National Center for Bioinformation: CT slices of three classes, and slices
on which the kinds of lesion were drawn.

Source: ncov-ai.big.ac.cn/download; Zhang et al., Cell 2020, doi 10.1016/j.cell.2020.04.045. NCP is
COVID-19, CP common pneumonia, bacterial or viral, Normal neither: the three of `records.DIAGNOSES`.

`cncb`, the layout as unpacked: `NCP/PATIENT/SCAN/0000.png`, `CP/` and `Normal/` likewise (PNG or
JPEG of 8 bits, in a window that nobody states), and two tables:

- `unzip_filenames.csv` (zip_file, label, patient_id, scan_id, n_slice): the examinations;
- `lesions_slices.csv` (imgpath, as NCP/341/1834/0022.png): the slices with a lesion.

Of NCP and CP the slices of the second table are taken, with `slice_label` 1, of Normal all slices
of the examinations of the first, with 0. `slice` is the number in the file's name; which end is the
head is not told. `metadata.csv`, of the patients, is not read. Files that are not there, as of
archives that were broken when they were published, are left out and counted.

`cncb_lesions`: `ct_lesion_seg/image/PATIENT/NAME.jpg` and `mask/PATIENT/NAME.png`, 750 slices of
150 patients with COVID-19. A mask is 0 outside, 1 lung, 2 ground glass, 3 consolidation; lesions
count as lung. Which lung is which is told from the picture. A slice with a lesion has the diagnosis
covid-19, one without has none. Only slices that have a mask are taken. Its patients are numbered
apart from those of `cncb`, so the two sets are no test of each other.

Patients are numbered within each class. All are dealt to five folds, balanced by class (of
`cncb_lesions` by the kinds of lesion in a slice); the last is the test split and 0..3 are for
training and validation. No real file was at hand: the layout is as published, and as users of the
set read it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from cxr_jax import small_files
from cxr_jax.data import preprocess, readers, splits, volumes
from cxr_jax.data.records import DIAGNOSES, Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import FoldedOptions, told_classes
from cxr_jax.errors import InputError

LABELS = {"Normal": "normal", "CP": "other infection", "NCP": "covid-19"}
SUFFIXES = (".png", ".jpg", ".jpeg")
FIELDS = frozenset(
    {"image", "id", "group", "diagnosis", "volume", "slice", "slice_label", "pixel_area"}
)
DRAWN_FIELDS = frozenset({"image", "id", "group", "diagnosis", "lungs", "lesion", "lesion_type"})
COVID = DIAGNOSES.index("covid-19")
TEST_FOLD = prepared.FOLDS - 1
LUNG, GROUND_GLASS, CONSOLIDATION = 1, 2, 3  # of a mask


class CNCB(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/cncb/1.0.0."""

    name = "cncb"
    description = "CT slices of normal lungs, of common pneumonia and of COVID-19."
    homepage = "http://ncov-ai.big.ac.cn/download"
    citation = (
        "Zhang et al., Clinically applicable AI system for accurate diagnosis, quantitative "
        "measurements, and prognosis of COVID-19 pneumonia using computed tomography. Cell 181, "
        "2020. doi:10.1016/j.cell.2020.04.045"
    )


class CNCBLesions(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/cncb_lesions/1.0.0."""

    name = "cncb_lesions"
    description = "CT slices of COVID-19 with ground glass, consolidation and lungs drawn."
    homepage, citation = CNCB.homepage, CNCB.citation


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """A slice of `cncb`; `volume` is its examination, LABEL-PATIENT-SCAN."""

    path: pathlib.Path
    label: str
    group: str
    volume: str
    position: int


@dataclasses.dataclass(frozen=True, slots=True)
class DrawnSlice:
    """A slice of `cncb_lesions`; `kinds`: 0 no lesion, 1 ground glass alone, 2 consolidation."""

    path: pathlib.Path
    mask: pathlib.Path
    id: str
    group: str
    kinds: int


# cncb


def read_index(folder: pathlib.Path) -> tuple[list[Slice], list[str]]:
    """The slices of the folder, class by class, and notes on what was left out.

    Raises:
      InputError: a missing table or column, an unknown class, a path that is none of the set, a
        name that is no number, a slice listed twice, or a class without a slice.
    """
    folder = pathlib.Path(folder)
    names = {name: folder / name for name in ("unzip_filenames.csv", "lesions_slices.csv")}
    for name, table in names.items():
        if not table.is_file():
            raise InputError(f"{folder}: there is no {name} in it; --source is {SLICES.source}")
    listed = list(_normal(folder, names["unzip_filenames.csv"]))
    listed += _with_lesions(folder, names["lesions_slices.csv"])
    index = [one for one in listed if isinstance(one, Slice)]
    splits.check_unique((_id(one) for one in index), where=folder, what="slice")
    for label in LABELS:
        if not any(one.label == label for one in index):
            raise InputError(f"{folder}: no slice of class {label!r} is there; unpack its archives")
    missing = [one for one in listed if not isinstance(one, Slice)]
    told = told_classes(_diagnosis(one.label) for one in index)
    notes = [f"slices of {told}, of {len({one.group for one in index})} patients"]
    if missing:
        notes.append(f"left out: {len(missing)} files or folders not there, e.g. {missing[0]}")
    order = list(LABELS)
    index.sort(key=lambda one: (order.index(one.label), one.volume, one.position))
    return index, notes


def _normal(folder: pathlib.Path, table: pathlib.Path) -> Iterator[Slice | pathlib.Path]:
    """Every slice of the normal examinations; the path of what is not there."""
    for row in tables.read_table(table, ("label", "patient_id", "scan_id"))[1]:
        if row.choice("label", LABELS) != "Normal":
            continue
        patient, scan = (_plain(row, column) for column in ("patient_id", "scan_id"))
        place = folder / "Normal" / patient / scan
        if not small_files.is_folder(place):
            yield place
            continue
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in SUFFIXES and path.name[0] != ".":
                yield _slice(path, ("Normal", patient, scan))


def _with_lesions(folder: pathlib.Path, table: pathlib.Path) -> Iterator[Slice | pathlib.Path]:
    """The slices with a lesion; the path of what is not there."""
    for row in tables.read_table(table, ("imgpath",))[1]:
        parts = row.text("imgpath").replace("\\", "/").split("/")
        if len(parts) != 4 or parts[0] not in LABELS or {"", ".", ".."} & set(parts):
            raise row.error("imgpath", "expected a path as NCP/341/1834/0022.png")
        path = folder.joinpath(*parts)
        yield _slice(path, tuple(parts[:3])) if small_files.is_file(path) else path


def _plain(row: tables.Row, column: str) -> str:
    name = row.text(column)
    if pathlib.PurePath(name).name != name or name == "..":
        raise row.error(column, "expected a name without folders")
    return name


def _slice(path: pathlib.Path, place: tuple[str, str, str]) -> Slice:
    if not (path.stem.isdecimal() and len(path.stem) <= 6):
        raise InputError(f"{path}: the name of a slice is its number, as 0022.png")
    label, patient, _ = place
    return Slice(
        path,
        label=label,
        group=f"{label}-{patient}",
        volume="-".join(place),
        position=int(path.stem),
    )


def _id(one: Slice) -> str:
    return f"{one.volume}-{one.position:04d}"


def _diagnosis(label: str) -> int:
    return DIAGNOSES.index(LABELS[label])


def _read_slice(one: Slice, max_side: int) -> Record:
    record = {
        "image": readers.read_film(one.path),
        "id": _id(one),
        "group": one.group,
        "diagnosis": _diagnosis(one.label),
        "volume": one.volume,
        "slice": one.position,
        "slice_label": float(one.label != "Normal"),
        "pixel_area": 1.0,
    }
    return preprocess.shrink(record, max_side)


def slices_builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> CNCB:
    """The builder of `cncb`; reads the tables and lists files, no picture yet.

    Raises:
      InputError: see `read_index`.
    """
    index, notes = read_index(source)
    numbers = {volume: k for k, volume in enumerate(dict.fromkeys(one.volume for one in index))}
    labels = [_diagnosis(one.label) for one in index]
    return _dealt(
        CNCB,
        index,
        splits.folds_by_class([one.group for one in index], labels),
        read=_read_slice,
        fields=FIELDS,
        columns=lambda part: {
            **prepared.film_columns(diagnoses=(_diagnosis(one.label) for one in part)),
            **prepared.slice_columns(
                [numbers[one.volume] for one in part],
                [one.position for one in part],
                [float(one.label != "Normal") for one in part],
            ),
        },
        files=[one.path for one in index],
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


# cncb_lesions


def read_drawn(folder: pathlib.Path) -> tuple[list[DrawnSlice], list[str]]:
    """The slices that have a mask, by patient and name, and notes. Reads the masks.

    Raises:
      InputError: a missing folder, a mask without its slice, a value that is no label, or patients
        too few for five folds.
    """
    folder = pathlib.Path(folder)
    if (folder / "ct_lesion_seg").is_dir():
        folder = folder / "ct_lesion_seg"
    if not ((folder / "mask").is_dir() and (folder / "image").is_dir()):
        raise InputError(
            f"{folder}: there is no image/ beside mask/ in it; --source is {LESIONS.source}"
        )
    index = [_drawn(folder, mask) for mask in sorted((folder / "mask").glob("*/*.png"))]
    patients = len({one.group for one in index})
    if patients < prepared.FOLDS:
        raise InputError(
            f"{folder / 'mask'}: masks of {patients} patients (PATIENT/NAME.png); "
            f"{prepared.FOLDS} folds need at least {prepared.FOLDS}"
        )
    counts = np.bincount([one.kinds for one in index], minlength=3).tolist()
    return index, [
        f"{len(index)} slices of {patients} patients: {counts[0]} without a lesion, {counts[1]} "
        f"with ground glass alone, {counts[2]} with consolidation"
    ]


def _drawn(folder: pathlib.Path, mask: pathlib.Path) -> DrawnSlice:
    patient, name = mask.parent.name, mask.stem
    places = [folder / "image" / patient / f"{name}{suffix}" for suffix in (".jpg", ".png")]
    path = next((place for place in places if small_files.is_file(place)), None)
    if path is None:
        raise InputError(f"{mask}: there is no slice of it, {places[0]}")
    highest = int(readers.read_labels(mask, most=CONSOLIDATION).max())
    return DrawnSlice(
        path, mask, id=f"{patient}-{name}", group=f"drawn-{patient}", kinds=max(highest - 1, 0)
    )


def _read_drawn(one: DrawnSlice, max_side: int) -> Record:
    image = readers.read_film(one.path)
    mask = readers.read_labels(one.mask, image.shape, most=CONSOLIDATION)
    record = {
        "image": image,
        "id": one.id,
        "group": one.group,
        "lungs": volumes.both_lungs(mask),
        "lesion": (mask > LUNG).astype(np.uint8),
        # 0 none, 1 ground glass, 2 consolidation, as LESION_TYPES.
        "lesion_type": np.where(mask > LUNG, mask - LUNG, 0).astype(np.uint8),
    }
    if record["lesion"].any():
        record["diagnosis"] = COVID
    return preprocess.shrink(record, max_side)


def drawn_builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> CNCBLesions:
    """The builder of `cncb_lesions`; reads the masks, no slice yet.

    Raises:
      InputError: see `read_drawn`.
    """
    index, notes = read_drawn(source)
    groups, kinds = [one.group for one in index], [one.kinds for one in index]
    diagnoses = {0: None, 1: COVID, 2: COVID}
    return _dealt(
        CNCBLesions,
        index,
        splits.balanced_folds(groups, kinds, folds=prepared.FOLDS, edges=(1, 2)),
        read=_read_drawn,
        fields=DRAWN_FIELDS,
        partial=frozenset({"diagnosis"}),
        columns=lambda part: prepared.film_columns(diagnoses=(diagnoses[o.kinds] for o in part)),
        files=[path for one in index for path in (one.path, one.mask)],
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


# Both


def _dealt(
    kind: type[prepared.RecordBuilder],
    index: Sequence[Any],
    folds: np.ndarray,
    *,
    columns: Callable[[Sequence[Any]], Mapping[str, Sequence[int]]],
    files: Sequence[pathlib.Path],
    max_side: int,
    **options: Any,
) -> Any:
    """The builder of slices that were dealt to folds."""
    parts: dict[str, list] = {"train": [], "test": []}
    for one, fold in zip(index, folds):
        parts["test" if fold == TEST_FOLD else "train"].append(one)
    return prepared.film_builder(
        kind,
        parts,
        folds={"train": [int(fold) for fold in folds if fold != TEST_FOLD]},
        columns=columns,
        fingerprint=prepared.fingerprint(None, files, max_side),
        max_side=max_side,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class CNCBSet:
    """One of the two sets, as `sources.DataSet`.

    Attributes:
      name: of the set.
      source: what --source is.
      make_builder: its builder.
      kind: what opens it.
    """

    Options: ClassVar[type] = FoldedOptions
    name: str
    source: str
    make_builder: Callable[..., prepared.RecordBuilder]
    kind: type[prepared.Prepared]

    def builder(self, source: pathlib.Path, *, data_dir: str, max_side: int) -> Any:
        """The builder; raises as `make_builder`."""
        return self.make_builder(source, data_dir=data_dir, max_side=max_side)

    def open_split(self, options: FoldedOptions, split: str) -> prepared.Prepared:
        """Opens the prepared set.

        Args:
          options: `fold` is 0..3, or -1: folds 0..3 are all 'train' and there is no 'val'.
          split: 'test' is the last of five folds. With `fold` k, 'val' is fold k, 'train' the
            others.

        Raises:
          InputError: what `prepared.open_folded` raises.
        """
        return prepared.open_folded(
            options.data_dir,
            self.name,
            split,
            fold=options.fold,
            folds=TEST_FOLD,
            source=self.source,
            kind=self.kind,
        )


SLICES = CNCBSet(
    "cncb",
    "the folder with NCP/, CP/, Normal/, unzip_filenames.csv and lesions_slices.csv",
    slices_builder,
    prepared.PreparedSlices,
)
LESIONS = CNCBSet(
    "cncb_lesions",
    "the folder with ct_lesion_seg/, or that with image/ and mask/",
    drawn_builder,
    prepared.Prepared,
)
