"""CT volumes with COVID-19, lesions and lungs drawn under radiologists: 20 volumes, 18 patients.

Source: the COVID-19 CT Lung and Infection Segmentation Dataset, doi 10.5281/zenodo.3757476; Ma et
al., Medical Physics 2021, doi 10.1002/mp.14676. **16 of the volumes are in `ct_lesions` too**, as
8-bit copies of the middle slices: the sets are no test of each other, but for the two test splits,
which hold the same patients.

The folder, as downloaded: `COVID-19-CT-Seg_20cases/`, `Lung_Mask/` and `Infection_Mask/`, each with
`coronacases_001.nii.gz`, ..., `radiopaedia_10_85902_1.nii.gz`, ... of the same names;
`Lung_and_Infection_Mask/` is not used. Every slice of a volume is stored.

Values: the coronacases volumes are in HU and shown in the lung window; the radiopaedia volumes were
mapped to 0..255 before they were published, nobody says by which window, and are taken as they are.
Which is which is told from the values: lowest at least 0 and highest at most 255.

The axes are those of the volume's header; its masks are in the same order, whatever theirs say (so
everybody reads this set).

`slice_label` is 1 where the infection mask has a pixel, else 0. Lungs are 1 (left) and 2 (right) in
the files; here 1 is the right lung, the one further left in the picture.

Splits, whole patients (radiopaedia_10 has two volumes, radiopaedia_29 too): nobody published one.
The test split is that of `ct_lesions`, five volumes; the others are dealt to five folds by patient,
balanced by the lesion's share of the slice.
"""

import dataclasses
import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np
from absl import logging

from cxr_jax.data import preprocess, splits, volumes
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.errors import InputError

NAME = "covid19_ct_seg"
Options = FoldedOptions
SOURCE = "the folder with COVID-19-CT-Seg_20cases/, Lung_Mask/ and Infection_Mask/"
FIELDS = frozenset(
    {"image", "id", "group", "volume", "slice", "slice_label", "pixel_area", "lesion", "lungs"}
)
TEST_PATIENTS = frozenset(
    {"coronacases_002", "coronacases_009", "radiopaedia_36", "radiopaedia_40", "radiopaedia_7"}
)
EDGES = (1e-6, 0.005, 0.02)  # of the lesion's share of a slice, between the classes of the folds
_FOLDERS = {"image": "COVID-19-CT-Seg_20cases", "lungs": "Lung_Mask", "lesion": "Infection_Mask"}
# The patient is what stands before the numbers of the examination and the series.
_VOLUME = re.compile(r"(coronacases_\d+|radiopaedia_\d+(?=_\d+_\d+$))(_\d+_\d+)?")
_AS_THEY_ARE = (127.5, 255.0)  # the window that maps 0..255 to itself


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
    """One volume; `lesion_pixels` int [S]."""

    files: dict[str, pathlib.Path]  # field -> file
    volume: str
    group: str
    number: int
    outline: volumes.Outline
    lesion_pixels: np.ndarray


class Covid19CTSeg(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/covid19_ct_seg/1.0.0."""

    name = NAME
    description = "CT volumes with COVID-19, lesions and lungs drawn."
    homepage = "https://doi.org/10.5281/zenodo.3757476"
    citation = (
        "Ma et al., Towards Data-Efficient Learning: A Benchmark for COVID-19 CT Lung and "
        "Infection Segmentation. Medical Physics 48, 2021. doi:10.1002/mp.14676"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> Covid19CTSeg:
    """The builder of the set from its folder; reads headers and infection masks, no volume yet.

    Raises:
      InputError: see `read_index`.
    """
    scans = read_index(source)
    latest = volumes.Latest(_read_scan)
    films, columns, folds = {}, {}, {}
    for split in ("train", "test"):
        part = [s for s in scans if (s.group in TEST_PATIENTS) == (split == "test")]
        rows = [(scan, position) for scan in part for position in range(scan.outline.shape[0])]
        films[split] = [functools.partial(_record, latest, *row, max_side) for row in rows]
        pixels = [int(scan.lesion_pixels[position]) for scan, position in rows]
        columns[split] = prepared.slice_columns(
            [scan.number for scan, _ in rows],
            [position for _, position in rows],
            [float(count > 0) for count in pixels],
        )
        folds[split] = [-1] * len(rows)
        if split == "train":
            shares = [
                count / (scan.outline.shape[1] * scan.outline.shape[2])
                for count, (scan, _) in zip(pixels, rows)
            ]
            groups = [scan.group for scan, _ in rows]
            folds[split] = splits.balanced_folds(groups, shares, folds=prepared.FOLDS, edges=EDGES)
    files = [file for scan in scans for file in scan.files.values()]
    return Covid19CTSeg(
        data_dir=prepared.data_folder(data_dir),
        fields=FIELDS,
        partial=frozenset(),
        films=films,
        film_fold=folds,
        columns=columns,
        metadata={"fingerprint": prepared.fingerprint(None, files, max_side), "max_side": max_side},
        notes=[
            f"{len(scans)} volumes of {len({scan.group for scan in scans})} patients",
            "volumes whose values are all in 0..255 (radiopaedia) are taken as they are, others "
            f"shown from {_low_high(*volumes.LUNG_WINDOW)} HU",
        ],
    )


def open_split(options: Options, split: str) -> prepared.PreparedSlices:
    """Opens the prepared set.

    Args:
      options: `fold` is 0..4, or -1: all other volumes are 'train' and there is no 'val'.
      split: 'test' is that of `ct_lesions`. With `fold` k, 'val' is fold k of the other volumes
        and 'train' the rest.

    Raises:
      InputError: what `prepared.open_folded` raises.
    """
    return prepared.open_folded(
        options.data_dir,
        NAME,
        split,
        fold=options.fold,
        source=SOURCE,
        kind=prepared.PreparedSlices,
    )


def read_index(folder: pathlib.Path) -> list[Scan]:
    """The volumes of the folder by name. Reads headers, and the infection masks one at a time.

    Raises:
      InputError: a missing folder or mask, a name that is not of the release, no volume of the test
        patients or of others, and what `volumes.outline` and `volumes.read_mask` raise.
    """
    folder = pathlib.Path(folder)
    found = {field: _files(folder, name) for field, name in _FOLDERS.items()}
    scans = []
    for number, name in enumerate(sorted(found["image"])):
        match = _VOLUME.fullmatch(name)
        if match is None:
            raise InputError(
                f"{found['image'][name]}: not a name of the release; expected e.g. "
                "coronacases_001.nii.gz or radiopaedia_10_85902_1.nii.gz"
            )
        files = {}
        for field, by_name in found.items():
            if name not in by_name:
                raise InputError(
                    f"{folder / _FOLDERS[field]}: there is no mask {name}.nii.gz of "
                    f"{found['image'][name]}"
                )
            files[field] = by_name[name]
        outline = volumes.outline(files["image"])
        mask = volumes.read_mask(files["lesion"], outline, as_stored=True)
        pixels = np.array([np.count_nonzero(plane) for plane in mask])
        scans.append(
            Scan(
                files=files,
                volume=name,
                group=match[1],
                number=number,
                outline=outline,
                lesion_pixels=pixels,
            )
        )
    if not {scan.group for scan in scans} & TEST_PATIENTS:
        raise InputError(
            f"{folder}: no volume of the test split ({', '.join(sorted(TEST_PATIENTS))})"
        )
    if not {scan.group for scan in scans} - TEST_PATIENTS:
        raise InputError(f"{folder}: only volumes of the test split; give the other volumes too")
    return scans


def _files(folder: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
    """Name without suffix -> NIfTI file."""
    if not (folder / name).is_dir():
        raise InputError(f"{folder}: there is no folder {name}/ in it; --source is {SOURCE}")
    found = {}
    for file in sorted((folder / name).iterdir()):
        if match := re.fullmatch(r"([^.].*)\.nii(\.gz)?", file.name):
            if match[1] in found:
                raise InputError(f"{file}: beside {found[match[1]].name}; leave one")
            found[match[1]] = file
    if not found:
        raise InputError(f"{folder / name}: no .nii.gz file in this folder")
    return found


class _Pictures(NamedTuple):
    """uint8 [S, H, W] each."""

    image: np.ndarray
    lesion: np.ndarray
    lungs: np.ndarray


def _read_scan(scan: Scan) -> _Pictures:
    volume = volumes.read_nifti(scan.files["image"])
    lowest, highest = volume.values.min(), volume.values.max()
    as_they_are = lowest >= 0 and highest <= 255
    shown = volumes.pictures(volume, *(_AS_THEY_ARE if as_they_are else volumes.LUNG_WINDOW))
    how = "as they are" if as_they_are else "through the lung window"
    logging.info("%s: values %g..%g, taken %s", scan.volume, lowest, highest, how)
    del volume
    lungs = volumes.read_mask(scan.files["lungs"], scan.outline, most=2, as_stored=True)
    drawn = volumes.read_mask(scan.files["lesion"], scan.outline, as_stored=True)
    lesion = (drawn > 0).astype(np.uint8)
    sided = volumes.sided_lungs(lungs)
    if ((lungs == 1) & (sided == 1)).sum() > ((lungs == 1) & (sided == 2)).sum():
        logging.warning(
            "%s: its left lung (1) lies on the image's left: the header's axes or the labels are "
            "the wrong way round; lungs are told from the picture",
            scan.files["lungs"],
        )
    return _Pictures(shown, lesion, sided)


def _record(latest: volumes.Latest, scan: Scan, position: int, max_side: int) -> Record:
    planes = latest(scan)
    record = {
        "image": np.ascontiguousarray(planes.image[position]),
        "id": f"{scan.volume}-{position:04d}",
        "group": scan.group,
        "volume": scan.volume,
        "slice": position,
        "slice_label": float(scan.lesion_pixels[position] > 0),
        "pixel_area": 1.0,
        "lesion": np.ascontiguousarray(planes.lesion[position]),
        "lungs": np.ascontiguousarray(planes.lungs[position]),
    }
    return preprocess.shrink(record, max_side)


def _low_high(centre: float, width: float) -> str:
    return f"{centre - width / 2:g} to {centre + width / 2:g}"
