"""A hospital's own CT volumes, from a CSV file and no code.

Columns (case does not count; any order):

| column | |
| --- | --- |
| `volume` | required: a NIfTI file, or a folder with one DICOM series, from the CSV's folder |
| `group` | required: the patient; all volumes of one are in one split |
| `split` | required: train, val or test |
| `label` | required: 1 there are lesions, 0 there are none, empty where nobody knows |
| `ranges` | slices with lesions, such as `100-110;140`, both ends included; empty: unknown |
| `lesions`, `lungs` | NIfTI masks on the volume's grid, 0 outside; may be empty |
| `window_center`, `window_width` | in HU; empty: -600 and 1500, the lung window |

Other columns are ignored, and named on the terminal. Cells may be parted by commas, semicolons or
tabs, in UTF-8 or cp1252.

**Slices are counted from 1 as the viewer shows them**: of a DICOM series in the order of
InstanceNumber (its lowest is 1, without gaps, whatever it is), of a NIfTI file in the order of the
file along the axis between feet and head (ITK-SNAP's axial slice number). `slice` of the records
is another number: from 0, from the feet to the head.

`slice_label` of a volume with label 1 is 1 inside `ranges`, unknown elsewhere: who marked some
slices did not say that the others are clean. Where label is 0 it is 0 everywhere, where label is
empty unknown. A volume with label 1 and no ranges is allowed: all its slices are unknown, nothing
is learned from them, and a note says so. **With `lesions`, the slices of val and test take their
label from the mask**; those of train do not, so that a method of weak labels never sees what the
mask knows. Without `lesions` a patient with lesions has no Dice; the slices in `ranges` still say
how well slices are told apart.

A volume must be in HU: one without a value below -200 (air is -1000) is refused, unless the row
states its window; with 127.5 and 255, values 0..255 are taken as they are.

`lungs` may have two labels, a lung each, or one: which lung is which is told from the picture. A
mask whose axes are not its volume's is turned, if its header puts it where the volume lies.

Volumes are heavy: a table is prepared once, to DATA_DIR/ct_volume/NAME_OF_THE_CSV/1.0.0, and
`data.path` is that folder.
"""

import dataclasses
import functools
import itertools
import pathlib
import re

import numpy as np
import tensorflow_datasets as tfds

from cxr_jax import small_files
from cxr_jax.data import preprocess, splits, volumes
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import SPLITS
from cxr_jax.errors import InputError

NAME = "ct_volume"
_FIELDS = {"image", "id", "group", "volume", "slice", "slice_label", "pixel_area"}
_MASKS = {"lesions": "lesion", "lungs": "lungs"}  # column -> field
_WINDOW = ("window_center", "window_width")
_REQUIRED = ("volume", "group", "split", "label")
_RANGE = re.compile(r"(\d{1,6})(?:\s*-\s*(\d{1,6}))?")
_COMMAND = "python -m cxr_jax.data.prepare ct_volume --source=VOLUMES.csv"


@dataclasses.dataclass(frozen=True)
class Options:
    """What `config.data` has beside the name.

    Attributes:
      path: the folder that `prepare ct_volume` printed
    """

    path: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """One row. `labels` float32 [S], the `slice_label` of each slice from the feet to the head."""

    path: pathlib.Path
    volume: str
    number: int
    group: str
    split: str
    masks: dict[str, pathlib.Path]  # field -> file
    window: tuple[float, float] | None
    clean: bool  # label 0
    outline: volumes.Outline
    labels: np.ndarray
    doubts: tuple[str, ...] = ()  # for the user


class CTVolume(prepared.RecordBuilder, skip_registration=True):
    """Writes a table's volumes to DATA_DIR/ct_volume/NAME_OF_THE_CSV/1.0.0."""

    name = NAME
    description = "CT volumes listed in a CSV file."


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> CTVolume:
    """The builder of the set from its table; reads headers, and masks of val and test.

    Raises:
      InputError: see `read_index`.
    """
    source = pathlib.Path(source)
    scans, notes = read_index(source)
    latest = volumes.Latest(_read_scan)
    films, columns = {}, {}
    for split in SPLITS:
        part = [scan for scan in scans if scan.split == split]
        if not part:
            continue
        rows = [(scan, position) for scan in part for position in range(len(scan.labels))]
        films[split] = [functools.partial(_record, latest, *row, max_side) for row in rows]
        columns[split] = prepared.slice_columns(
            [scan.number for scan, _ in rows],
            [position for _, position in rows],
            [float(scan.labels[position]) for scan, position in rows],
        )
    given = set(_MASKS.values()) & {field for scan in scans for field in scan.masks}
    files = [file for scan in scans for file in _files_of(scan)]
    return CTVolume(
        data_dir=prepared.data_folder(data_dir),
        config=tfds.core.BuilderConfig(name=_slug(source), description=source.name),
        fields=frozenset(_FIELDS | given),
        partial=frozenset(f for f in given if not all(f in scan.masks for scan in scans)),
        films=films,
        film_fold={split: [-1] * len(part) for split, part in films.items()},
        columns=columns,
        metadata={
            "fingerprint": prepared.fingerprint(source, files, max_side),
            "max_side": max_side,
        },
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.PreparedSlices:
    """Opens the folder that `prepare ct_volume` made of a table.

    Raises:
      InputError: no path, not such a folder (with the command), or no volume in the split.
    """
    if not options.path:
        raise InputError(f"data.path is empty; give the folder that this printed: {_COMMAND}")
    folder = pathlib.Path(options.path).expanduser()
    if small_files.is_file(folder):
        raise InputError(
            f"data.path={options.path} is a file; volumes are prepared first: "
            f"{_COMMAND.replace('VOLUMES.csv', options.path)}"
        )
    return prepared.PreparedSlices(folder, name=NAME, split=split, prepare=_COMMAND)


def read_index(table: pathlib.Path) -> tuple[list[Scan], list[str]]:
    """The volumes of a table, and notes on what is unknown.

    Raises:
      InputError: names the file, row, column, value and rule of each mistake, of the first ten; or
        the file that `volumes` refuses.
    """
    table = pathlib.Path(table)
    mistakes = tables.Mistakes(table)
    columns, rows = tables.read_table(
        table, _REQUIRED, separators=tables.SPREADSHEET, mistakes=mistakes
    )
    groups = {split: set() for split in SPLITS}
    for row in rows:
        groups[row.choice("split", SPLITS)].add(row.text("group"))
    if not mistakes.found:
        splits.check_disjoint(groups, where=str(table))
        splits.check_unique((_name(row.text("volume")) for row in rows), where=table, what="volume")
    scans = []
    for number, row in enumerate(rows):
        with mistakes.collecting():  # what is wrong with the volume's own files too
            scans.append(_scan(row, number))
    mistakes.tell()
    notes = [*tables.unknown_columns(columns, (*_REQUIRED, "ranges", *_MASKS, *_WINDOW))]
    for split in SPLITS:
        part = [scan for scan in scans if scan.split == split]
        labels = np.concatenate([np.zeros(0), *(scan.labels for scan in part)])
        notes.append(
            f"{split}: {len(part)} volumes; {int((labels == 1).sum())} slices with lesions, "
            f"{int((labels == 0).sum())} without, {int(np.isnan(labels).sum())} unknown"
        )
    undrawn = [
        scan
        for scan in scans
        if scan.split != "train" and not scan.clean and "lesion" not in scan.masks
    ]
    if undrawn:
        notes.append(
            f"{len(undrawn)} volumes of val and test, e.g. {undrawn[0].volume!r}, may have lesions "
            "and have no mask (column lesions): there is no Dice of them"
        )
    for row, scan in zip(rows, scans):
        notes += [f"row {row.line}, volume {scan.volume!r}: {doubt}" for doubt in scan.doubts]
        if row["label"] and np.isnan(scan.labels).all():
            notes.append(
                f"row {row.line}, volume {scan.volume!r}: label 1 without ranges, so no slice of "
                "it has a label"
            )
    return scans, notes


def _scan(row: tables.Row, number: int) -> Scan:
    path = row.path.parent / row.text("volume")
    if not small_files.exists(path):
        raise row.error("volume", f"there is no {path}; paths count from the CSV's folder")
    masks = {}
    for column, field in _MASKS.items():
        if row.cells.get(column):
            masks[field] = row.path.parent / row[column]
            if not small_files.is_file(masks[field]):
                raise row.error(column, f"there is no file {masks[field]}")
    window = _window(row)
    label = row.number("label", 0, 1)
    ranges = _ranges(row, label)
    outline = volumes.outline(path)
    labels = np.full(outline.shape[0], 0.0 if label == 0 else np.nan, np.float32)
    if ranges and outline.numbers is None:
        raise row.error(
            "ranges", f"slices of {path} have no InstanceNumber, or share one; they have no numbers"
        )
    for first, last in ranges:
        if last > len(labels):
            raise row.error("ranges", f"the volume has slices 1..{len(labels)}")
        labels[(outline.numbers >= first) & (outline.numbers <= last)] = 1.0
    split, doubts = row.choice("split", SPLITS), []
    if "lesion" in masks and split != "train":
        drawn = volumes.read_mask(masks["lesion"], outline)
        for first, last in ranges:
            inside = (outline.numbers >= first) & (outline.numbers <= last)
            if not drawn[inside].any():
                doubts.append(f"no lesion is drawn in slices {first}-{last}; the mask counts")
        labels = np.array([plane.any() for plane in drawn], np.float32)
        if label is not None and label != labels.max():
            raise row.error("label", f"{masks['lesion']} says {labels.max():.0f}; correct one")
    return Scan(
        path=path,
        volume=_name(row["volume"]),
        number=number,
        group=row["group"],
        split=split,
        masks=masks,
        window=window,
        clean=label == 0,
        outline=outline,
        labels=labels,
        doubts=tuple(doubts),
    )


def _ranges(row: tables.Row, label: int | None) -> list[tuple[int, int]]:
    """The ranges of a row, ascending, both ends included."""
    cell = row.cells.get("ranges", "")
    if not cell:
        return []
    if label != 1:
        raise row.error("ranges", f"ranges need label 1, this volume has {row['label']!r}")
    ranges = []
    for part in cell.split(";"):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise row.error("ranges", f"{part.strip()!r} is no range; expected e.g. 100-110;140")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise row.error("ranges", f"{part.strip()!r} is reversed; give the lower number first")
        if first < 1:
            raise row.error("ranges", f"{part.strip()!r}: slices are counted from 1")
        ranges.append((first, last))
    ranges.sort()
    for before, after in itertools.pairwise(ranges):
        if after[0] <= before[1]:
            raise row.error(
                "ranges", f"{before[0]}-{before[1]} and {after[0]}-{after[1]} overlap; join them"
            )
    return ranges


def _window(row: tables.Row) -> tuple[float, float] | None:
    """Centre and width; None where the row gives none."""
    given = [column for column in _WINDOW if row.cells.get(column)]
    if not given:
        return None
    if len(given) == 1:
        other = next(column for column in _WINDOW if column not in given)
        raise row.error(given[0], f"give {other} too, or leave both empty")
    return row.real("window_center", -10_000, 100_000), row.real("window_width", 1, 100_000)


def _read_scan(scan: Scan) -> dict[str, np.ndarray]:
    """uint8 [S, H, W] by field."""
    volume = volumes.read(scan.path)
    if scan.window is None:
        volumes.check_hounsfield(volume, scan.path, "state window_center and window_width")
    planes = {"image": volumes.pictures(volume, *(scan.window or volumes.LUNG_WINDOW))}
    del volume
    if "lesion" in scan.masks:
        drawn = volumes.read_mask(scan.masks["lesion"], scan.outline)
        planes["lesion"] = (drawn > 0).astype(np.uint8)
        if scan.clean and planes["lesion"].any():
            raise InputError(
                f"{scan.masks['lesion']}: lesions are drawn in a volume with label 0; correct one"
            )
    if "lungs" in scan.masks:
        drawn = volumes.read_mask(scan.masks["lungs"], scan.outline)
        planes["lungs"] = volumes.sided_lungs(drawn)
    return planes


def _record(latest: volumes.Latest, scan: Scan, position: int, max_side: int) -> Record:
    planes = latest(scan)
    record = {field: np.ascontiguousarray(plane[position]) for field, plane in planes.items()}
    record |= {
        "id": f"{scan.volume}-{position:04d}",
        "group": scan.group,
        "volume": scan.volume,
        "slice": position,
        "slice_label": float(scan.labels[position]),
        "pixel_area": 1.0,
    }
    return preprocess.shrink(record, max_side)


def _files_of(scan: Scan) -> list[pathlib.Path]:
    slices = [scan.path]
    if scan.path.is_dir():
        slices = sorted(file for file in scan.path.iterdir() if file.is_file())
    return [*slices, *scan.masks.values()]


def _name(text: str) -> str:
    """The volume's name: its path without the suffix of NIfTI."""
    return re.sub(r"\.nii(\.gz)?$", "", text.rstrip("/"))


def _slug(path: pathlib.Path) -> str:
    return "".join(c if c.isalnum() else "_" for c in path.stem.lower()) or "volumes"
