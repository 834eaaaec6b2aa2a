"""The standard record: one film, or one slice of a CT volume, under the same names everywhere.

A source gives the fields it has; a task states the fields it needs. `SCHEMA` says what each field
is. Whatever handles records by field (resizing, augmentation, storage, `check`) goes by the
field's `kind`, so that a new field is one entry here.
"""

import dataclasses
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from cxr_jax.errors import InputError

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

# The kinds of fields: what is done to a field when its film is resized, moved or flipped.
IMAGE = "image"  # resampled
MASK = "mask"  # of labels: nearest pixel; a flip may exchange labels
BOXES = "boxes"  # xyxy in pixels of `image`; [29, 4] are those of `REGIONS`, row by row
ZONE_TABLE = "zone table"  # [3, 2], laid out as `ZONE_NAMES`: a flip exchanges the columns
REGION_TABLE = "region table"  # rows are `REGIONS`: a flip exchanges right and left rows
TEXT = "text"
NUMBER = "number"  # one or many, but of no place in the film: stays
SLICES = "slices"  # a list of records

# Whose a field is.
FILM, SLICE, NEIGHBOURS = "a film's or slice's", "a CT slice's", "a CT slice's with its neighbours"

REGION_ROWS = len(REGIONS)


@dataclasses.dataclass(frozen=True)
class Field:
    """What a field of a record is.

    Attributes:
      dtype: of the array; of a single number or a text its Python or NumPy type.
      shape: () is a single number or a text. H and W are those of `image`, M the number of boxes.
      kind: see the constants above.
      meaning: in one line.
      values: the ones that may be there; None: any; 'K': -1 .. K - 1, findings by number; 'D':
        0 .. D - 1, diagnoses by number.
      nan: NaN may be there too: unknown, or of boxes (the whole row): not there.
      positive: the numbers are above 0.
      exchanged: of a mask, the pairs of labels (patient's right, left) that a flip exchanges.
      boxes: the field of boxes to which this one has one row each.
      gone: the row's value where that box is NaN.
      of: whose it is: `FILM`, `SLICE` or `NEIGHBOURS`.
    """

    dtype: type
    shape: tuple[int | str, ...]
    kind: str
    meaning: str
    values: Sequence[Any] | str | None = None
    nan: bool = False
    positive: bool = False
    exchanged: tuple[tuple[int, int], ...] = ()
    boxes: str = ""
    gone: Any = None
    of: str = FILM

    @property
    def by_region(self) -> bool:
        """Its rows are those of `REGIONS`."""
        return self.shape[:1] == (REGION_ROWS,)

    def empty(self, sizes: Mapping[str, int], *, unknown: bool = False) -> Any:
        """Zeros (or '') of this type and shape; with `unknown` NaN where that may be.

        Args:
          sizes: length of the letters in `shape`.
          unknown: see above.
        """
        shape = tuple(sizes.get(length, length) for length in self.shape)
        if not shape:
            return self.dtype(np.nan if unknown and self.nan else self.dtype())
        return np.full(shape, np.nan if unknown and self.nan else 0, self.dtype)


_PLANE, _PER_ZONE, _PER_REGION = ("H", "W"), (3, 2), (REGION_ROWS,)
_NAMED = "K"  # as many as the data set names findings
_CLASSES = "D"  # as many as it names diagnoses
_SCORES = range(4)

SCHEMA = {
    "image": Field(
        np.uint8, _PLANE, IMAGE, "the film; air dark, the patient's right on the image's left"
    ),
    "id": Field(str, (), TEXT, "which film"),
    "group": Field(str, (), TEXT, "the patient; splits and intervals are by group"),
    "view": Field(str, (), TEXT, "the projection, '' where unknown", values=("PA", "AP", "")),
    "lungs": Field(
        np.uint8,
        _PLANE,
        MASK,
        "0 outside, 1 right lung (image left), 2 left lung",
        values=range(3),
        exchanged=((1, 2),),
    ),
    "severity": Field(
        np.int8, _PER_ZONE, ZONE_TABLE, "zone scores, laid out as ZONE_NAMES", values=_SCORES
    ),
    "severity_second": Field(
        np.int8,
        _PER_ZONE,
        ZONE_TABLE,
        "the same by a second reader, never trained on",
        values=_SCORES,
    ),
    "severity_valid": Field(np.bool_, _PER_ZONE, ZONE_TABLE, "the zone was scored"),
    "diagnosis": Field(
        int, (), NUMBER, "index into DIAGNOSES or the set's own diagnoses", values=_CLASSES
    ),
    "findings": Field(
        np.float32,
        (_NAMED,),
        NUMBER,
        "1 present, 0 absent, NaN unknown, in the order of FINDINGS or of the set's own findings",
        values=(0, 1),
        nan=True,
    ),
    "lesion": Field(
        np.uint8,
        _PLANE,
        MASK,
        "1 on parenchymal opacity (what severity scores), else 0",
        values=range(2),
    ),
    "lesion_type": Field(
        np.uint8, _PLANE, MASK, "index into LESION_TYPES", values=range(len(LESION_TYPES))
    ),
    "regions": Field(
        np.float32,
        (*_PER_REGION, 4),
        BOXES,
        "boxes of REGIONS, xyxy in pixels of image; NaN where absent",
        nan=True,
    ),
    "region_present": Field(
        np.bool_, _PER_REGION, REGION_TABLE, "the region is visible", boxes="regions", gone=False
    ),
    "region_findings": Field(
        np.float32,
        (*_PER_REGION, _NAMED),
        REGION_TABLE,
        "findings of each region: 1, 0, or NaN where unknown",
        values=(0, 1),
        nan=True,
        boxes="regions",
        gone=np.nan,
    ),
    "boxes": Field(
        np.float32, ("M", 4), BOXES, "boxes of findings, xyxy in pixels of image", nan=True
    ),
    "box_label": Field(
        np.int32,
        ("M",),
        NUMBER,
        "index into the set's findings; -1 where the box is NaN",
        values=_NAMED,
        boxes="boxes",
        gone=-1,
    ),
    "volume": Field(str, (), TEXT, "the series that the slice belongs to", of=SLICE),
    "slice": Field(
        np.int32,
        (),
        NUMBER,
        "its number in the volume; neighbours in the body differ by 1",
        of=SLICE,
    ),
    "slice_label": Field(
        np.float32,
        (),
        NUMBER,
        "1 a lesion is in the slice, 0 none is, NaN unknown",
        values=(0, 1),
        nan=True,
        of=SLICE,
    ),
    "pixel_area": Field(
        np.float32,
        (),
        NUMBER,
        "what a pixel of image counts for in a sum over the volume",
        positive=True,
        of=SLICE,
    ),
    "bag_label": Field(
        float, (), NUMBER, "of a bag of slices: 1 or -1", values=(-1, 1), of=NEIGHBOURS
    ),
    "instance_valid": Field(
        np.bool_, ("B",), NUMBER, "of a bag: False where it was filled up", of=NEIGHBOURS
    ),
    "slices": Field(
        list,
        ("S",),
        SLICES,
        "records of consecutive slices, the neighbours first and last (data/bags.py); not stored",
        of=NEIGHBOURS,
    ),
}

FILM_FIELDS = frozenset(name for name, field in SCHEMA.items() if field.of == FILM)
CT_FIELDS = frozenset(name for name, field in SCHEMA.items() if field.of == SLICE)
FIELDS = FILM_FIELDS | CT_FIELDS


def check(
    record: Mapping[str, Any],
    *,
    coded: Collection[str] = (),
    findings: Sequence[str] = FINDINGS,
    diagnoses: Sequence[str] = DIAGNOSES,
) -> None:
    """Holds a record against `SCHEMA`.

    Args:
      record: has `image` if it has masks.
      coded: fields that may have other values, in the codes of their data set.
      findings: that the data set names.
      diagnoses: that it names.

    Raises:
      InputError: names the record, the first field that breaks the schema, what it holds and the
        rule: another type or shape, a value that may not be there, a box whose corners are the
        wrong way round, a box without its label or a label without its box, a field that no record
        has.
    """
    who = f"record {record.get('id', '')!r}"
    if unknown := sorted(record.keys() - SCHEMA.keys()):
        raise InputError(f"{who}: no record has a field {unknown[0]!r}; see records.SCHEMA")
    sizes = {_NAMED: len(findings)}
    ranges = {_NAMED: range(-1, len(findings)), _CLASSES: range(len(diagnoses))}
    for name in SCHEMA:  # `image` first: it says what H and W are
        if name not in record:
            continue
        fault = _form_fault(name, record, sizes)
        if fault is None and name not in coded:
            fault = _content_fault(name, record, ranges)
        if fault is not None:
            found, rule = fault
            raise InputError(f"{who}: field {name!r} {found}; expected {rule}")


def blank(fields: Collection[str], side: int = 64, *, findings: Sequence[str] = FINDINGS) -> Record:
    """A small record of these fields, for its shapes: two rectangles are lungs.

    Args:
      fields: of `SCHEMA`; `image`, `id` and `group` are always there. With `slices` the image is
        black, and its neighbours are the same image.
      side: height and width in pixels, at least 16.
      findings: that the data set names.

    Returns:
      A record that `check` accepts. What may be unknown is; there are no boxes.
    """
    sizes = {"H": side, "W": side, "M": 0, "B": 1, _NAMED: len(findings)}
    names = [name for name in SCHEMA if name in fields]
    record = {name: SCHEMA[name].empty(sizes, unknown=True) for name in names if name != "slices"}
    record |= {"id": "blank", "group": "blank"}
    lungs = SCHEMA["lungs"].empty(sizes)
    rows = slice(side // 4, 3 * side // 4)
    lungs[rows, side // 8 : 7 * side // 16] = 1
    lungs[rows, 9 * side // 16 : 7 * side // 8] = 2
    record["image"] = lungs * 60
    if "lungs" in fields:
        record["lungs"] = lungs
    for name in names:  # of numbers of which none may be 0
        field = SCHEMA[name]
        if field.positive or (isinstance(field.values, tuple) and 0 not in field.values):
            record[name] = record[name] if field.kind == TEXT else field.dtype(1)
    if "slices" in fields:
        record["image"] = np.zeros_like(lungs)
        record["slices"] = [{"image": record["image"]}] * 3
    return record


# What breaks the schema, as (what was found, the rule); None where nothing does.
_Fault = tuple[str, str] | None


def _form_fault(name: str, record: Mapping[str, Any], sizes: dict[str, int]) -> _Fault:
    field, value = SCHEMA[name], record[name]
    if field.kind == SLICES:
        return _slices_fault(value)
    return _shape_fault(field, value, sizes) if field.shape else _scalar_fault(field, value)


def _content_fault(name: str, record: Mapping[str, Any], ranges: Mapping[str, range]) -> _Fault:
    field, value = SCHEMA[name], record[name]
    if field.kind == SLICES:
        return None
    if isinstance(field.values, str):
        field = dataclasses.replace(field, values=ranges[field.values])
    corners = _boxes_fault(value) if field.kind == BOXES else None
    return _value_fault(field, value) or corners or _pairing_fault(field, value, record)


def _slices_fault(value: Any) -> _Fault:
    if not isinstance(value, list):
        return f"is a {type(value).__name__}", "a list of records"
    for record in value:
        check(record)
    return None


def _scalar_fault(field: Field, value: Any) -> _Fault:
    """A Python number will do for a NumPy one."""
    if field.kind == TEXT:
        wanted, rule = str, "text"
    else:
        whole = np.issubdtype(field.dtype, np.integer)
        wanted = numbers.Integral if whole else numbers.Real
        rule = f"one number, {np.dtype(field.dtype)}"
    fits = isinstance(value, wanted) and not isinstance(value, bool)
    return None if fits else (f"is {_described(value)}", rule)


def _shape_fault(field: Field, value: Any, sizes: dict[str, int]) -> _Fault:
    """Learns the lengths of letters from the first field that has them."""
    wanted = [sizes.get(length, length) for length in field.shape]
    fits = isinstance(value, np.ndarray) and value.dtype == field.dtype
    fits = fits and value.ndim == len(wanted)
    if not fits or any(isinstance(w, int) and n != w for n, w in zip(value.shape, wanted)):
        rule = f"{np.dtype(field.dtype)} [{', '.join(map(str, wanted))}]"
        return f"is {_described(value)}", rule
    sizes |= {w: n for n, w in zip(value.shape, wanted) if isinstance(w, str)}
    return None


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]


def _value_fault(field: Field, value: Any) -> _Fault:
    if field.kind == TEXT:
        fine = field.values is None or value in field.values
        return None if fine else (f"has {value!r}", ", ".join(map(repr, field.values)))
    there = np.asarray(value)
    wrong = there[~_allowed(field, there)]
    return (f"has {wrong.flat[0].item()!r}", _allowed_words(field)) if wrong.size else None


def _allowed(field: Field, values: np.ndarray) -> np.ndarray:
    """bool, the shape of `values`."""
    fine = np.ones(values.shape, bool)
    if field.values is not None:
        fine &= np.isin(values, list(field.values))
    if np.issubdtype(values.dtype, np.floating):
        missing = np.isnan(values)
        fine = np.where(missing, field.nan, fine & np.isfinite(values))
    if field.positive:
        fine &= values > 0
    return fine


def _allowed_words(field: Field) -> str:
    words = "numbers" if field.values is None else ", ".join(map(str, field.values))
    return words + (" above 0" if field.positive else "") + (" or NaN" if field.nan else "")


def _boxes_fault(boxes: np.ndarray) -> _Fault:
    for number, box in enumerate(boxes):
        x0, y0, x1, y1 = box.tolist()
        if not (x0 < x1 and y0 < y1) and not np.isnan(box).all():
            rule = "x0 < x1 and y0 < y1 in x0, y0, x1, y1, or NaN in all four"
            return f"has {box.tolist()} in row {number}", rule
    return None


def _pairing_fault(field: Field, value: Any, record: Mapping[str, Any]) -> _Fault:
    """A row that says its box is gone, where it is there, or the other way round."""
    # A row of NaN may also say that nobody knows of a region that is there.
    if not field.boxes or field.boxes not in record or field.nan:
        return None
    missing = np.isnan(record[field.boxes]).any(axis=-1)
    for number in np.flatnonzero((value == field.gone) != missing):
        found = f"has {value[number].item()!r} in row {number}"
        return found, f"{field.gone!r} exactly where {field.boxes} is NaN"
    return None
