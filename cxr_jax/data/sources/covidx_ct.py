"""COVIDx CT-2A: CT slices of many public sets in three classes: normal, pneumonia, COVID-19.

Source: kaggle.com/hgunraj/covidxct, version 4, built by github.com/haydengunraj/COVIDNet-CT; Gunraj
et al., Frontiers in Medicine 2020 (COVIDNet-CT) and 2021 (COVID-Net CT-2). 194,922 slices of 3,745
patients.

The layout as downloaded: `2A_images/` with PNG of 8 bits, and `train_COVIDx_CT-2A.txt`,
`val_COVIDx_CT-2A.txt` and `test_COVIDx_CT-2A.txt`, a line a slice: filename class xmin ymin xmax
ymax, parted by blanks; class 0 is normal, 1 pneumonia, 2 COVID-19, which are the three of
`records.DIAGNOSES`. The box is that of the body: what is outside, table and air, is cut off, as the
authors do before all else. `metadata.csv` is not read.

`group` is the patient, from the names of the sets that it was put together from:

- CNCB: NCP_341_1834_0022.png is patient NCP_341, examination 1834;
- COVID-CTset: normal1_patient202_SR_2_IM00007.png and normal4_patient202_... are patient 202;
- TCIA and COVID-19-20: volume-covid19-A-0047_1-0012.png is patient 0047 of both;
- iCTCF (HUST-Patient1-...), LIDC-IDRI-0001-..., coronacases_001-..., radiopaedia_10_85902_1-... and
  radiopaedia-29090-..., and MosMed's study_0001 of the B variant.

A file of another name is refused, for its patient would be a guess. The splits are the authors'; a
patient whom they part (a second examination in another set) is whole in the later split, and what
was left out is counted. **Slices of `cncb` and `covid19_ct_seg` are in it**: no test of each other.
No real picture was at hand: the layout and the names are those of the published lists.
"""

import pathlib
import re

from cxr_jax import small_files
from cxr_jax.data import splits
from cxr_jax.data.sources import ct_classes, prepared, tables
from cxr_jax.data.sources.base import SPLITS, PreparedOptions
from cxr_jax.data.sources.ct_classes import ClassedSlice
from cxr_jax.errors import InputError

NAME = "covidx_ct"
SOURCE = "the folder with 2A_images/ and train_, val_ and test_COVIDx_CT-2A.txt"
FIELDS = ct_classes.FIELDS
Options = PreparedOptions
IMAGES, LISTS = "2A_images", "{}_COVIDx_CT-2A.txt"
COLUMNS = ("filename", "class", "xmin", "ymin", "xmax", "ymax")
_MOST = 65536  # px

# What of a name is the patient.
_PATIENTS = [
    re.compile(pattern)
    for pattern in (
        r"((?:NCP|CP|Normal)_\d+)_\d+_.+",
        r"\w*?_(patient\d+)_SR_.+",
        r"(volume-covid19-A-\d+)(?:[_-].+)",
        r"(HUST-Patient\d+)-.+",
        r"(LIDC-IDRI-\d+)-.+",
        r"(coronacases_\d+)-.+",
        r"(radiopaedia[_-]\d+)[_-].+",
        r"(study_\d+)[_-].+",
    )
]


class COVIDxCT(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/covidx_ct/1.0.0."""

    name = NAME
    description = "CT slices of normal lungs, of pneumonia and of COVID-19, from public sets."
    homepage = "https://github.com/haydengunraj/COVIDNet-CT"
    citation = (
        "Gunraj et al., COVIDNet-CT: a tailored deep convolutional neural network design for "
        "detection of COVID-19 cases from chest CT images. Frontiers in Medicine 7, 2020. "
        "doi:10.3389/fmed.2020.608525"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> COVIDxCT:
    """The builder of the set from its folder; reads the lists, no picture yet.

    Raises:
      InputError: see `read_index`.
    """
    parts, notes = read_index(source)
    return ct_classes.classed_builder(
        COVIDxCT,
        parts,
        tables=[pathlib.Path(source) / LISTS.format(split) for split in SPLITS],
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; the splits are the authors'.

    Raises:
      InputError: what `prepared.open_whole` raises.
    """
    return prepared.open_whole(options.data_dir, NAME, split, source=SOURCE)


def read_index(folder: pathlib.Path) -> tuple[dict[str, list[ClassedSlice]], list[str]]:
    """Split -> its slices, in the order of the lists, and notes on what was left out.

    Raises:
      InputError: a missing list, folder or picture; a line that is none, an unknown class or name,
        an empty box; a picture listed twice; a split without a slice.
    """
    folder = pathlib.Path(folder)
    if not (folder / IMAGES).is_dir():
        raise InputError(f"{folder}: there is no {IMAGES}/ in it; --source is {SOURCE}")
    parts = {split: _read_list(folder, folder / LISTS.format(split)) for split in SPLITS}
    every = (one.id for part in parts.values() for one in part)
    splits.check_unique(every, where=folder, what="picture")
    kept = splits.kept_apart({s: [one.group for one in part] for s, part in parts.items()})
    patients = {one.group for part in parts.values() for one in part}
    notes = [f"{len(patients)} patients, by the names of the files"]
    for split, part in parts.items():
        if left := len(part) - len(kept[split]):
            notes.append(
                f"left out of {split}: {left} of {len(part)} slices, of patients that a later "
                "split has too"
            )
        if not kept[split]:
            raise InputError(f"{folder / LISTS.format(split)}: no slice is left of this split")
    return {split: [parts[split][k] for k in kept[split]] for split in parts}, notes


def _read_list(folder: pathlib.Path, path: pathlib.Path) -> list[ClassedSlice]:
    rows = []
    for line, cells in tables.scan_lines(path, separators=" "):
        if cells := [cell for cell in cells if cell]:
            if len(cells) != len(COLUMNS):
                raise InputError(
                    f"{path}: line {line} has {len(cells)} words; expected {' '.join(COLUMNS)}"
                )
            row = tables.Row(path, line, dict(zip(COLUMNS, cells)))
            rows.append(_slice(row, folder / IMAGES))
    return rows


def _slice(row: tables.Row, images: pathlib.Path) -> ClassedSlice:
    name = row["filename"]
    if pathlib.PurePath(name).name != name:
        raise row.error("filename", "expected a name without folders")
    if not small_files.is_file(images / name):
        raise row.error("filename", f"there is no file {images / name}")
    x0, y0, x1, y1 = box = tuple(row.number(column, 0, _MOST) for column in COLUMNS[2:])
    least = ct_classes.LEAST_BOX
    if x1 - x0 < least or y1 - y0 < least:
        raise row.error("xmax" if x1 - x0 < least else "ymax", f"the box {box} is under {least} px")
    return ClassedSlice(
        path=images / name,
        id=name.removesuffix(".png"),
        group=patient_of(name) or _no_patient(row),
        diagnosis=row.number("class", 0, 2),
        box=box,
    )


def patient_of(name: str) -> str | None:
    """The patient that a file is of; None where the name is of no set that is known."""
    for pattern in _PATIENTS:
        if match := pattern.fullmatch(name):
            return match[1]
    return None


def _no_patient(row: tables.Row) -> str:
    raise row.error("filename", "not a name of COVIDx CT-2; expected e.g. NCP_341_1834_0022.png")
