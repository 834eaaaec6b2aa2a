"""Axial CT slices with COVID-19 lesions and lungs drawn: 16 volumes of 14 patients.

Source: repository dstaroff/COVID19-CT-Segmentation, made from the COVID-19 CT Lung and Infection
Segmentation Dataset (doi 10.5281/zenodo.3757476); Ma et al., Medical Physics 2021,
doi 10.1002/mp.14676. **The same patients are in `covid19_ct_seg`**, whose test split is that of
this set.

The folder: `ct/`, `lesions/` and `lungs/` with `NNNN.png`, `slices.csv` (slice, volume,
index_in_volume, lesion_pixels, split, ...), `volumes.csv` (volume, patient, spine_at, split, ...)
and `halves.csv` (slice, volume, side, x0, y0, x1, y1, label, lesion_pixels; here, or in `ct_half/`
beside the folder).

What the pictures are: 256 x 256, each slice scaled by its own lowest and highest value and its
contrast equalised (CLAHE) by the repository, so brightness is not HU and jumps from slice to slice.
Slices without a lesion were removed: a step of 1 in `slice` is the next slice that was kept, in a
few places not the next one of the body. Volumes go from the feet to the head, but for
radiopaedia_7_85703_0, which the repository has the other way round.

Volumes that lie upside down (`spine_at` top) are turned over, top to bottom only: left and right
are the same in both kinds. `lungs` are 0/1 in the files; here 1 is the right and 2 the left lung
(`volumes.both_lungs`, from the picture alone; a seam between touching lungs is a straight column).

Whole slices (`halves` False) all have a lesion, `slice_label` 1. With `halves` every slice gives
two records, the crops of `halves.csv`, in volumes of their own, 'VOLUME-left' and 'VOLUME-right' by
the side of the image (left is the patient's right lung). A crop is padded with black to a square,
centred, and enlarged to 128 px where it is smaller; `slice_label` is the table's label, which says
whether a lesion pixel is in the box, nothing of where. A crop can show the margin of the other
lung, which keeps its own number in `lungs`. `pixel_area` counts a record's pixel in pixels of the
slice, so that areas add up over slices and halves alike.

Splits, whole patients: the table's. The training volumes are dealt to five folds by patient,
balanced by the lesion's share of the lung.
"""

import collections
import dataclasses
import functools
import pathlib

import cv2
import numpy as np

from cxr_jax.data import readers, splits, volumes
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import FoldedOptions, SliceTable
from cxr_jax.errors import InputError

NAME = "ct_lesions"
SOURCE = "the folder with ct/, lesions/, lungs/, slices.csv, volumes.csv and halves.csv"
FIELDS = frozenset(
    {"image", "id", "group", "volume", "slice", "slice_label", "pixel_area", "lesion", "lungs"}
)
SIDES = ("left", "right")  # of the image
HALF_SIZE = 128  # px, of a half at least
EDGES = (0.01, 0.05, 0.15)  # of the lesion's share of the lung, between the classes of the folds
_MOST = 65536  # of anything that is counted in pixels or slices
_BOX = ("x0", "y0", "x1", "y1")
_PICTURES = {"image": "ct", "lesion": "lesions", "lungs": "lungs"}


@dataclasses.dataclass(frozen=True)
class Options(FoldedOptions):
    """See the module.

    Attributes:
      halves: True for the crops of one lung each with a weak label, in place of the slices
    """

    halves: bool = False


@dataclasses.dataclass(frozen=True)
class Half:
    """One row of halves.csv; `box` is half-open, in pixels of the file's slice."""

    box: tuple[int, int, int, int]
    label: int
    lesion_pixels: int


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice; `number` is its volume's number in volumes.csv, in the order of its rows."""

    files: dict[str, pathlib.Path]  # field -> picture
    volume: str
    number: int
    position: int
    group: str
    split: str
    upside_down: bool
    lesion_pixels: int
    share: float
    halves: dict[str, Half]  # by side


class CTLesions(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/ct_lesions/1.0.0."""

    name = NAME
    description = "Axial CT slices with COVID-19 lesions and lungs drawn."
    homepage = "https://github.com/dstaroff/COVID19-CT-Segmentation"
    citation = (
        "Ma et al., Towards Data-Efficient Learning: A Benchmark for COVID-19 CT Lung and "
        "Infection Segmentation. Medical Physics 48, 2021. doi:10.1002/mp.14676"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> CTLesions:
    """The builder of the set from its folder; reads the tables, no picture yet.

    Raises:
      InputError: see `read_index`.
    """
    source = pathlib.Path(source)
    index = read_index(source)
    parts = {split: [s for s in index if s.split == split] for split in ("train", "test")}
    folds = splits.balanced_folds(
        [s.group for s in parts["train"]],
        [s.share for s in parts["train"]],
        folds=prepared.FOLDS,
        edges=EDGES,
    )
    files = [file for s in index for file in s.files.values()]
    more = [prepared.fingerprint(table, ()) for table in (source / "volumes.csv", _halves(source))]
    return CTLesions(
        data_dir=prepared.data_folder(data_dir),
        fields=FIELDS,
        partial=frozenset(),
        films={
            split: [functools.partial(_read_slice, s, max_side) for s in part]
            for split, part in parts.items()
        },
        film_fold={"train": folds, "test": [-1] * len(parts["test"])},
        columns={split: _columns(part) for split, part in parts.items()},
        metadata={
            "fingerprint": prepared.fingerprint(source / "slices.csv", files, *more, max_side),
            "max_side": max_side,
        },
        notes=[
            f"{len({s.volume for s in index})} volumes of {len({s.group for s in index})} patients",
            f"{sum(h.label for s in index for h in s.halves.values())} of {2 * len(index)} halves "
            "have a lesion",
        ],
    )


def open_split(options: Options, split: str) -> "prepared.PreparedSlices | Halves":
    """Opens the prepared set.

    Args:
      options: `fold` is 0..4, or -1: all training volumes are 'train' and there is no 'val'.
      split: 'test' is the table's. With `fold` k, 'val' is fold k of the training volumes and
        'train' the others.

    Raises:
      InputError: what `prepared.open_folded` raises.
    """
    slices = prepared.open_folded(
        options.data_dir,
        NAME,
        split,
        fold=options.fold,
        source=SOURCE,
        kind=prepared.PreparedSlices,
    )
    return Halves(slices) if options.halves else slices


class Halves:
    """The two halves of each slice, left of the image first; see the module."""

    def __init__(self, slices: prepared.PreparedSlices):
        self._slices = slices
        self.name, self.split = slices.name, slices.split
        self.version = f"{slices.version}+halves"
        self.fields, self.partial = slices.fields, slices.partial
        names = [f"{side}_{name}" for side in SIDES for name in (*_BOX, "label")]
        columns = slices.columns("upside_down", *names)
        self._upside_down = columns["upside_down"].astype(bool)
        # [N, 2] and [N, 2, 4]
        self._labels = np.stack([columns[f"{side}_label"] for side in SIDES], 1)
        boxes = [np.stack([columns[f"{side}_{name}"] for name in _BOX], 1) for side in SIDES]
        self._boxes = np.stack(boxes, 1)

    def __len__(self) -> int:
        return 2 * len(self._slices)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row, side = divmod(index % len(self), 2)
        whole = self._slices[row]
        box = self._boxes[row, side]
        if self._upside_down[row]:
            box = turned_over(box, whole["image"].shape[0])
        pictures, area = half_of({name: whole[name] for name in _PICTURES}, box)
        volume = f"{whole['volume']}-{SIDES[side]}"
        return whole | pictures | {
            "id": f"{volume}-{whole['slice']:04d}",
            "volume": volume,
            "slice_label": np.float32(self._labels[row, side]),
            "pixel_area": np.float32(area),
        }  # fmt: skip

    def slice_table(self) -> SliceTable:
        """As `base.SliceSource`; each side of a volume is a volume of its own."""
        whole = self._slices.slice_table()
        return SliceTable(
            volume=(2 * whole.volume[:, None] + np.arange(2)).ravel(),
            position=np.repeat(whole.position, 2),
            label=self._labels.astype(np.float32).ravel(),
        )


def turned_over(box: np.ndarray, height: int) -> np.ndarray:
    """A half-open box x0, y0, x1, y1 in the slice turned over top to bottom."""
    x0, y0, x1, y1 = (int(edge) for edge in box)
    return np.array([x0, height - y1, x1, height - y0])


def half_of(
    pictures: dict[str, np.ndarray], box: np.ndarray
) -> tuple[dict[str, np.ndarray], float]:
    """Cuts a half out of a slice.

    Args:
      pictures: uint8 [H, W] by field; masks are enlarged to the nearest pixel, `image` linearly.
      box: x0, y0, x1, y1, half-open, in their pixels.

    Returns:
      The fields, uint8 [n, n] with n at least 128, and a pixel's area in pixels of the slice.
    """
    x0, y0, x1, y1 = (int(edge) for edge in box)
    side = max(x1 - x0, y1 - y0)
    size = max(side, HALF_SIZE)
    top, left = (side - (y1 - y0)) // 2, (side - (x1 - x0)) // 2
    halves = {}
    for name, picture in pictures.items():
        square = np.zeros((side, side), np.uint8)
        square[top : top + y1 - y0, left : left + x1 - x0] = picture[y0:y1, x0:x1]
        if size > side:
            how = cv2.INTER_LINEAR if name == "image" else cv2.INTER_NEAREST_EXACT
            square = cv2.resize(square, (size, size), interpolation=how)
        halves[name] = square
    return halves, (side / size) ** 2


def read_index(folder: pathlib.Path) -> list[Slice]:
    """The slices of the folder, volume by volume, in the order of `index_in_volume`.

    Raises:
      InputError: a missing table, column or picture; a slice listed twice, or two at one place; a
        volume that volumes.csv lacks, or in two splits; a patient in both splits; a split without
        a slice; a slice without its two halves, or a half of no slice; an empty box; a label that
        contradicts the lesion's pixels.
    """
    folder = pathlib.Path(folder)
    if not (folder / "slices.csv").is_file():
        raise InputError(f"{folder}: there is no slices.csv in it; --source is {SOURCE}")
    table = folder / "volumes.csv"
    _, rows = tables.read_table(table, ("volume", "patient", "spine_at", "split"))
    splits.check_unique((row["volume"] for row in rows), where=table, what="volume")
    listed = {row.text("volume"): (number, row) for number, row in enumerate(rows)}
    patients = {split: set() for split in ("train", "test")}
    for row in rows:
        patients[row.choice("split", patients)].add(row.text("patient"))
    splits.check_disjoint(patients, where=str(table))
    table = folder / "slices.csv"
    columns = ("slice", "volume", "index_in_volume", "lesion_pixels", "lesion_fraction_of_lung")
    _, rows = tables.read_table(table, (*columns, "split"))
    splits.check_unique((row["slice"] for row in rows), where=table, what="slice")
    index = [_slice(row, listed) for row in rows]
    halves = _read_halves(_halves(folder), {row["slice"]: row["volume"] for row in rows})
    for k, row in enumerate(rows):
        for side in SIDES:
            if (row["slice"], side) not in halves:
                raise row.error("slice", f"halves.csv has no {side} half of it")
        both = {side: halves[row["slice"], side] for side in SIDES}
        index[k] = dataclasses.replace(index[k], halves=both)
    for (volume, position), count in collections.Counter(
        (s.volume, s.position) for s in index
    ).items():
        if count > 1:
            raise InputError(
                f"{table}: {count} slices of volume {volume!r} have index_in_volume {position}; "
                "each slice has its own"
            )
    for split in patients:
        if not any(s.split == split for s in index):
            raise InputError(f"{table}: no slice is in split {split!r}")
    return sorted(index, key=lambda s: (s.number, s.position))


def _slice(row: tables.Row, listed: dict[str, tuple[int, tables.Row]]) -> Slice:
    """Checks one row; its halves are still to come."""
    if row["volume"] not in listed:
        raise row.error("volume", "volumes.csv has no such volume")
    number, volume = listed[row["volume"]]
    split = row.choice("split", ("train", "test"))
    if split != volume.choice("split", ("train", "test")):
        raise row.error("split", f"volumes.csv says {volume['split']!r} of volume {row['volume']}")
    files = {}
    for field, name in _PICTURES.items():
        files[field] = row.path.parent / name / row.text("slice")
        if not files[field].is_file():
            raise row.error("slice", f"there is no file {files[field]}")
    return Slice(
        files=files,
        volume=row["volume"],
        number=number,
        position=_count(row, "index_in_volume"),
        group=volume["patient"],
        split=split,
        upside_down=volume.choice("spine_at", ("bottom", "top")) == "top",
        lesion_pixels=_count(row, "lesion_pixels"),
        share=row.real("lesion_fraction_of_lung", 0.0, 1.0),
        halves={},
    )


def _count(row: tables.Row, column: str) -> int:
    row.text(column)
    return row.number(column, 0, _MOST)


def _halves(folder: pathlib.Path) -> pathlib.Path:
    """Where halves.csv is."""
    places = [folder / "halves.csv", folder.resolve().parent / "ct_half" / "halves.csv"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{folder}: there is no halves.csv in it, nor {places[1]}; copy it there")
    return found


def _read_halves(path: pathlib.Path, volume_of: dict[str, str]) -> dict[tuple[str, str], Half]:
    """(slice, side) -> half."""
    halves = {}
    _, rows = tables.read_table(path, ("slice", "volume", "side", *_BOX, "label", "lesion_pixels"))
    for row in rows:
        if row["slice"] not in volume_of:
            raise row.error("slice", "slices.csv has no such slice")
        if row["volume"] != volume_of[row["slice"]]:
            raise row.error("volume", f"slices.csv says {volume_of[row['slice']]!r}")
        key = row["slice"], row.choice("side", SIDES)
        if key in halves:
            raise row.error("slice", f"its {key[1]} half is listed twice; leave one row")
        x0, y0, x1, y1 = box = tuple(_count(row, name) for name in _BOX)
        if not (x0 < x1 and y0 < y1):
            raise row.error("x1" if x0 >= x1 else "y1", f"the box {box} is empty")
        row.text("label")
        label, pixels = row.number("label", 0, 1), _count(row, "lesion_pixels")
        if label != (pixels > 0):
            raise row.error("label", f"lesion_pixels is {pixels}; label is 1 where it is not 0")
        halves[key] = Half(box, label, pixels)
    return halves


def _columns(part: list[Slice]) -> dict[str, list[int]]:
    columns = prepared.slice_columns(
        [s.number for s in part],
        [s.position for s in part],
        [float(s.lesion_pixels > 0) for s in part],
    )
    columns["upside_down"] = [int(s.upside_down) for s in part]
    for side in SIDES:
        for at, name in enumerate(_BOX):
            columns[f"{side}_{name}"] = [s.halves[side].box[at] for s in part]
        columns[f"{side}_label"] = [s.halves[side].label for s in part]
    return columns


def _read_slice(source: Slice, max_side: int) -> Record:
    """Reads the three pictures and holds the tables against them."""
    path = source.files["lesion"]
    image = readers.read_film(source.files["image"])
    height, width = image.shape
    if max(height, width) > max_side:
        raise InputError(
            f"--max_side={max_side}: {source.files['image']} is {width}x{height} px and its halves "
            f"are boxes in these pixels; give --max_side={max(height, width)} or more"
        )
    lesion = readers.read_mask(path, image.shape)
    lungs = readers.read_mask(source.files["lungs"], image.shape)
    for side, half in source.halves.items():
        x0, y0, x1, y1 = half.box
        if x1 > width or y1 > height:
            raise InputError(
                f"{source.files['image']}: the {side} box {half.box} of halves.csv leaves the "
                f"slice of {width}x{height} px"
            )
        if (pixels := int(lesion[y0:y1, x0:x1].sum())) != half.lesion_pixels:
            raise InputError(
                f"{path}: {pixels} lesion pixels in the {side} box {half.box}, halves.csv says "
                f"{half.lesion_pixels}; the table belongs to other masks"
            )
    if (pixels := int(lesion.sum())) != source.lesion_pixels:
        raise InputError(
            f"{path}: {pixels} lesion pixels, slices.csv says {source.lesion_pixels}; the table "
            "belongs to other masks"
        )
    if source.upside_down:
        image, lesion, lungs = (np.ascontiguousarray(a[::-1]) for a in (image, lesion, lungs))
    return {
        "image": image,
        "id": f"{source.volume}-{source.position:04d}",
        "group": source.group,
        "volume": source.volume,
        "slice": source.position,
        "slice_label": float(source.lesion_pixels > 0),
        "pixel_area": 1.0,
        "lesion": lesion,
        "lungs": volumes.both_lungs(lungs),
    }
