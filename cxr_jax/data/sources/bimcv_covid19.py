"""BIMCV-COVID19+: films of patients with a positive test, with labels mined from reports.

Source: bimcv.cipf.es/bimcv-projects/bimcv-covid19; de la Iglesia Vayá et al. 2020, arXiv
2006.01174. CR and DX films and CT of patients of the Valencian hospitals; grey PNG of 16 bits.

The layout as unpacked: `sub-S*/ses-E*/mod-rx/sub-S*_ses-E*_..._vp-pa_dx.png`, beside each film its
DICOM header as JSON under the same name, and `derivatives/labels/labels_covid19_posi.tsv` (or
`labels_covid_posi.tsv`) with `PatientID` (sub-S..), `ReportID` (ses-E..) and `Labels`, a list as
Python prints it. `participants.tsv` is not read.

- The patient is the folder; the view is the `vp` of the film's name. Films that state neither pa
  nor ap are left out and counted. Users of the set have found lateral films that state pa.
- A film whose header says MONOCHROME1 is inverted. Windows of headers are not applied: the lowest
  ..highest value is mapped to 0..255. A film without a header is taken as it is, and counted.

For the three classes of Park et al. 2021 (408 COVID-19 films PA in its Table 1; 374 COVID-19 and 93
normal ones AP in Table 2) the report decides: its label `COVID 19` is covid-19, `normal` alone is
normal, all else (`COVID 19 uncertain`, `unchanged`, no report, labels that are no list) has no
`diagnosis`. The paper does not say how it chose its films. A normal film here is one of a patient
with COVID-19 on which the report sees nothing.

All patients are dealt to five folds, balanced by class; the last is the test split and 0..3 are for
training and validation. No real file was at hand: the layout is as users of the set describe it.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from cxr_jax import small_files
from cxr_jax.data import readers
from cxr_jax.data.records import DIAGNOSES
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import FoldedOptions, told_classes
from cxr_jax.errors import InputError

NAME = "bimcv_covid19"
SOURCE = "the folder with sub-S*/ and derivatives/labels/"
FIELDS = prepared.DEALT_FIELDS
Options = FoldedOptions
TABLES = ("labels_covid19_posi.tsv", "labels_covid_posi.tsv")
VIEWS = {"pa": "PA", "ap": "AP"}
COVID_LABEL, NORMAL_LABEL = "covid 19", "normal"  # in lower case
PHOTOMETRIC = "00280004"  # (0028,0004) in DICOM's JSON
_NAME = re.compile(r"(sub-S[0-9A-Za-z]+)_(ses-E[0-9A-Za-z]+)_.*?(?:vp-([a-zA-Z]+)_)?[a-z]+\.png")
_REMEDY = "unpack it again, or remove it"


@dataclasses.dataclass(frozen=True, slots=True)
class Film(prepared.DealtFilm):
    """A frontal film; `header` is its JSON file where there is one."""

    header: pathlib.Path | None


class BIMCVCovid19(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/bimcv_covid19/1.0.0."""

    name = NAME
    description = "Frontal chest radiographs of patients with COVID-19."
    homepage = "https://bimcv.cipf.es/bimcv-projects/bimcv-covid19/"
    citation = (
        "de la Iglesia Vayá et al., BIMCV COVID-19+: a large annotated dataset of RX and CT images "
        "from COVID-19 patients. arXiv:2006.01174, 2020"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> BIMCVCovid19:
    """The builder of the set from its folder; reads the table and the names of the films.

    Raises:
      InputError: see `read_index`.
    """
    films, notes = read_index(source)
    return prepared.dealt_builder(
        BIMCVCovid19,
        films,
        read_image=_read_image,
        table=_table(pathlib.Path(source)),
        others=[film.header for film in films if film.header],
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; arguments and errors as of `prepared.open_dealt`."""
    return prepared.open_dealt(options, NAME, split, source=SOURCE)


def read_index(folder: pathlib.Path) -> tuple[list[Film], list[str]]:
    """The frontal films of the folder, by name, and notes on what was left out.

    Raises:
      InputError: no table or film; a missing column; a report listed twice, or of another patient
        than the folder in which its films lie; a film of another name than the set's.
    """
    folder = pathlib.Path(folder)
    reports, broken = _read_reports(_table(folder))
    paths = sorted(folder.glob("sub-*/ses-*/mod-rx/*.png"))
    if not paths:
        raise InputError(f"{folder}: there is no film in sub-*/ses-*/mod-rx/; --source is {SOURCE}")
    films = [film for path in paths if (film := _film(path, reports)).view]
    if not films:
        raise InputError(f"{folder}: none of {len(paths)} films states the view pa or ap")
    notes = [f"diagnosis: {told_classes(film.diagnosis for film in films)}"]
    told = {
        "films that state neither pa nor ap left out": len(paths) - len(films),
        "films have no header: taken as they are": sum(f.header is None for f in films),
        "reports have labels that are no list: no diagnosis": broken,
    }
    return films, notes + [f"{count} {what}" for what, count in told.items() if count]


def _table(folder: pathlib.Path) -> pathlib.Path:
    places = [folder / "derivatives" / "labels" / name for name in TABLES]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(
            f"{folder}: found none of {', '.join(TABLES)} in derivatives/labels/; --source is "
            f"{SOURCE}"
        )
    return found


def _read_reports(table: pathlib.Path) -> tuple[dict[str, tuple[str, int | None]], int]:
    """Session -> its patient and diagnosis; and how many cells of labels are no list."""
    _, rows = tables.scan_table(table, ("PatientID", "ReportID", "Labels"), separators="\t")
    reports, broken = {}, 0
    for row in rows:
        session = row.text("reportid")
        if session in reports:
            raise row.error("reportid", "this report is listed twice; leave one row")
        labels = tables.quoted_list(row["labels"] or "[]")
        broken += labels is None
        reports[session] = row.text("patientid"), _diagnosis(labels or [])
    return reports, broken


def _diagnosis(labels: list[str]) -> int | None:
    """Of the three classes, see the module."""
    found = {label.casefold() for label in labels}
    if COVID_LABEL in found:
        return DIAGNOSES.index("covid-19")
    return DIAGNOSES.index("normal") if found == {NORMAL_LABEL} else None


def _film(path: pathlib.Path, reports: Mapping[str, tuple[str, int | None]]) -> Film:
    match = _NAME.fullmatch(path.name)
    patient, session = path.parts[-4], path.parts[-3]
    if not match or match.groups()[:2] != (patient, session):
        raise InputError(
            f"{path}: expected a name {patient}_{session}_..._vp-pa_dx.png, as unpacked"
        )
    owner, diagnosis = reports.get(session, (patient, None))
    if owner != patient:
        raise InputError(
            f"{path}: the table of labels gives {session} to {owner[:80]}, not to {patient}; "
            "unpack the set again"
        )
    header = path.with_suffix(".json")
    return Film(
        path=path,
        header=header if small_files.is_file(header) else None,
        id=path.stem,
        group=patient,
        view=VIEWS.get((match[3] or "").casefold(), ""),
        diagnosis=diagnosis,
    )


def _read_image(film: Film) -> np.ndarray:
    image = readers.read_film(film.path)
    return 255 - image if _is_inverted(film) else image


def _is_inverted(film: Film) -> bool:
    """Whether its low values are bright."""
    if film.header is None:
        return False
    fields = small_files.read_fields(film.header, _REMEDY)
    values = fields.fields(PHOTOMETRIC, {"Value": ["MONOCHROME2"]}).get("Value", list)
    if values not in (["MONOCHROME1"], ["MONOCHROME2"]):
        raise InputError(
            f"{film.header}: {PHOTOMETRIC} (photometric interpretation) is neither MONOCHROME1 nor "
            f"MONOCHROME2; {_REMEDY}"
        )
    return values == ["MONOCHROME1"]
