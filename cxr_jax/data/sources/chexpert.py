"""CheXpert: frontal films with findings that reports affirm, deny, doubt or do not mention.

Source: CheXpert-v1.0 or CheXpert-v1.0-small (Stanford, after registration); Irvin et al., AAAI
2019, arXiv 1901.07031. 223,414 films of 64,540 patients for training, of which 191,027 are frontal;
the official development set, `valid.csv`, has 200 patients and was read by three radiologists. It
is 'test' here, because the set's own test part came later and apart.

The layout as downloaded: `train.csv` and `valid.csv`, whose column `Path` starts with the set's own
folder name, whatever the folder is called now:

    CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg

The group is the patient of that path; the id is the path after the set's folder, without suffix.
Lateral films are left out and counted. Of the 14 findings the ten of `records.FINDINGS` are kept.

A label is 1 (affirmed), 0 (denied), -1 (uncertain) or blank (not mentioned). All four are stored;
what they mean is decided when the set is opened:

- `uncertain`, the policies of the CheXpert paper: 'zeros', 'ones', 'ignore' (unknown), and
  'per_finding': the PCAM authors' choice, under which an uncertain edema or atelectasis counts as
  present and any other finding as absent.
- `blank`: 'zero', a finding that is not mentioned is absent, as in the lists of PCAM's authors; or
  'ignore', it is unknown. A blank in the column `No Finding` is treated alike: with 'ignore', that
  finding has no negatives and so nothing to learn.

For the three classes of Park et al. 2021 the set gives normal films: those of which `No Finding` is
affirmed. The paper takes AP ones (its Table 2, 9,500 of them) and does not say how they were
chosen. No other film has a `diagnosis`.

A share of the training films is dealt to five folds, whole patients, balanced by the number of
findings, for a validation split.
"""

import dataclasses
import functools
import pathlib
import re

import numpy as np

from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.records import DIAGNOSES, FINDINGS, Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.errors import InputError

NAME = "chexpert"
SOURCE = (
    "the folder CheXpert-v1.0-small with train.csv, valid.csv, train/ and valid/, from "
    "https://stanfordmlgroup.github.io/competitions/chexpert/"
)
FIELDS = frozenset({"image", "id", "group", "view", "findings", "diagnosis"})
NORMAL = DIAGNOSES.index("normal")

TABLES = {"train": ("train.csv", "train"), "test": ("valid.csv", "valid")}  # split: table, folder
UNCERTAIN_LABEL = -1
# What an uncertain label becomes, [10] by policy.
UNCERTAIN = {
    "zeros": np.zeros(len(FINDINGS), np.float32),
    "ones": np.ones(len(FINDINGS), np.float32),
    "ignore": np.full(len(FINDINGS), np.nan, np.float32),
    "per_finding": np.isin(FINDINGS, ("edema", "atelectasis")).astype(np.float32),
}
BLANK = {"zero": np.float32(0), "ignore": np.float32(np.nan)}

_VIEW_COLUMNS = ("path", "frontal/lateral", "ap/pa")
_NOT_USED = (
    *("sex", "age"),
    *("enlarged cardiomediastinum", "lung lesion", "pleural other", "fracture"),
)
_PATH = re.compile(
    r"CheXpert-v1\.0[^/]*/((train|valid)/(patient\d+)/study\d+/[^/]+)\.(?:jpg|jpeg|png)"
)
# 17 frontal films of train.csv are decubitus films (LL, RL): frontal, but neither AP nor PA.
_VIEWS = ("AP", "PA", "LL", "RL", "")


@dataclasses.dataclass(frozen=True)
class Options(FoldedOptions):
    """See the module for the two rules.

    Attributes:
      uncertain: what an uncertain label becomes: per_finding [PAPERS, 2], zeros, ones or ignore
      blank: a finding that is not mentioned is absent: zero [PCAM authors]; or unknown: ignore
    """

    uncertain: str = "per_finding"
    blank: str = "zero"


@dataclasses.dataclass(frozen=True, slots=True)
class Film:
    """One frontal row: `file` counts from the folder; `labels` [10] are 1, 0, -1 or NaN (blank)."""

    file: str
    id: str
    group: str
    view: str
    labels: tuple[float, ...]

    @property
    def diagnosis(self) -> int | None:
        """Of the three classes, see the module."""
        return NORMAL if self.labels[FINDINGS.index("no finding")] == 1 else None


@dataclasses.dataclass(frozen=True)
class Index:
    """The tables read: `films` by split, how many lateral `rows` were left out, columns unused."""

    folder: pathlib.Path
    films: dict[str, list[Film]]
    lateral: dict[str, int]
    ignored: tuple[str, ...]


class CheXpert(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/chexpert/1.0.0."""

    name = NAME
    description = "Frontal chest radiographs with ten findings, from reports."
    homepage = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    citation = (
        "Irvin et al., CheXpert: a large chest radiograph dataset with uncertainty labels and "
        "expert comparison. AAAI 2019. arXiv:1901.07031"
    )
    coded = frozenset({"findings"})  # uncertain ones are -1


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> CheXpert:
    """The builder of the set from its folder; reads the tables, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    index = read_index(source)
    films = {split: index.films[split] for split in TABLES}
    train, valid = (index.folder / table for table, _ in TABLES.values())
    files = (index.folder / film.file for part in films.values() for film in part)
    return prepared.film_builder(
        CheXpert,
        films,
        read=functools.partial(_read_film, index.folder),
        fields=FIELDS,
        partial=frozenset({"diagnosis"}),
        folds={"train": _folds(films["train"])},
        columns=lambda part: (
            _label_counts(part)
            | prepared.film_columns(
                views=(film.view for film in part), diagnoses=(film.diagnosis for film in part)
            )
        ),
        # 'diagnosis': a set prepared before it had this field is another one.
        fingerprint=prepared.fingerprint(
            train, files, prepared.fingerprint(valid, ()), (max_side, "diagnosis")
        ),
        data_dir=data_dir,
        max_side=max_side,
        notes=_notes(index),
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; its `findings` are 0, 1 or NaN by the two rules (see the module).

    Args:
      options: `fold` is 0..4, or -1: all training films are 'train' and there is no 'val'.
      split: 'test' is the official development set. With `fold` k, 'val' is fold k of the
        training patients and 'train' the others.

    Raises:
      InputError: an unknown rule; what `prepared.open_folded` raises.
    """
    for field, known in (("uncertain", UNCERTAIN), ("blank", BLANK)):
        value = getattr(options, field)
        if value not in known:
            raise InputError(f"data.{field}={value!r}; expected one of {', '.join(known)}")
    uncertain, blank = options.uncertain, options.blank
    counted = ["certain"]
    counted += ["uncertain"] if uncertain != "ignore" else []
    counted += ["blank"] if blank != "ignore" else []
    opened = prepared.open_folded(
        options.data_dir,
        NAME,
        split,
        fold=options.fold,
        source=SOURCE,
        known=counted,
        change=functools.partial(_settle_record, uncertain=uncertain, blank=blank),
    )
    opened.version += f"+uncertain-{uncertain},blank-{blank}"  # other labels are other data
    return opened


def settle(labels: np.ndarray, *, uncertain: str, blank: str) -> np.ndarray:
    """Stored labels -> labels to train on.

    Args:
      labels: [10], 1, 0, -1 (uncertain) or NaN (blank).
      uncertain, blank: rules, see the module.

    Returns:
      float32 [10], 1, 0 or NaN (unknown).
    """
    labels = np.asarray(labels, np.float32)
    settled = np.where(labels == UNCERTAIN_LABEL, UNCERTAIN[uncertain], labels)
    return np.where(np.isnan(labels), BLANK[blank], settled)


def read_index(folder: pathlib.Path) -> Index:
    """The frontal films of both tables, in their order. Rows are read one at a time.

    Args:
      folder: the one with train.csv and valid.csv, or the folder above it.

    Raises:
      InputError: no table, a missing column, a label that is none of 1, 0, -1 and blank, a view
        that is neither frontal nor lateral, a path of another form, a missing film, a film listed
        twice, a patient in both tables.
    """
    folder = _folder(pathlib.Path(folder))
    films, lateral, ignored = {}, {}, set()
    for split, (name, part) in TABLES.items():
        header, rows = tables.scan_table(folder / name, (*_VIEW_COLUMNS, *FINDINGS))
        ignored |= set(header) - {*_VIEW_COLUMNS, *FINDINGS, *_NOT_USED, ""}
        found = [_film(row, folder, part) for row in rows]
        films[split] = [film for film in found if film is not None]
        lateral[split] = len(found) - len(films[split])
        if not films[split]:
            raise InputError(f"{folder / name}: every row is a lateral film; frontal ones are read")
        splits.check_unique((film.id for film in films[split]), where=folder / name)
    splits.check_disjoint(
        {TABLES[split][0]: [f.group for f in films[split]] for split in TABLES}, where=str(folder)
    )
    return Index(folder, films, lateral, tuple(sorted(ignored)))


def _folder(folder: pathlib.Path) -> pathlib.Path:
    places = (folder, folder / "CheXpert-v1.0-small", folder / "CheXpert-v1.0")
    for place in places:
        if (place / "train.csv").is_file():
            return place
    raise InputError(f"{folder}: there is no train.csv in it; --source is {SOURCE}")


def _film(row: tables.Row, folder: pathlib.Path, part: str) -> Film | None:
    """One row, checked; None for a lateral film."""
    if row.choice("frontal/lateral", ("Frontal", "Lateral")) == "Lateral":
        return None
    match = _PATH.fullmatch(row["path"])
    if not match or match[2] != part:
        raise row.error(
            "path", f"expected CheXpert-v1.0-small/{part}/patientN/studyN/NAME.jpg, as downloaded"
        )
    file = row["path"].partition("/")[2]
    if not (folder / file).is_file():
        raise row.error("path", f"there is no file {folder / file}")
    labels = [row.number(finding, UNCERTAIN_LABEL, 1) for finding in FINDINGS]
    view = row.choice("ap/pa", _VIEWS)
    return Film(
        file=file,
        id=match[1],
        group=match[3],
        view=view if view in ("AP", "PA") else "",
        labels=tuple(np.nan if label is None else float(label) for label in labels),
    )


def _read_film(folder: pathlib.Path, film: Film, max_side: int) -> Record:
    record = {
        "image": readers.read_film(folder / film.file),
        "id": film.id,
        "group": film.group,
        "view": film.view,
        "findings": np.array(film.labels, np.float32),
    }
    if film.diagnosis is not None:
        record["diagnosis"] = film.diagnosis
    return preprocess.shrink(record, max_side)


def _settle_record(record: Record, *, uncertain: str, blank: str) -> Record:
    return record | {"findings": settle(record["findings"], uncertain=uncertain, blank=blank)}


def _folds(films: list[Film]) -> list[int]:
    return splits.folds_by_findings([f.group for f in films], [f.labels for f in films]).tolist()


def _label_counts(films: list[Film]) -> dict[str, list[int]]:
    """How many of each film's labels are certain, uncertain and blank."""
    labels = np.array([film.labels for film in films])  # [N, 10]
    return {
        "certain": (labels >= 0).sum(1).tolist(),
        "uncertain": (labels == UNCERTAIN_LABEL).sum(1).tolist(),
        "blank": np.isnan(labels).sum(1).tolist(),
    }


def _notes(index: Index) -> list[str]:
    notes = []
    for split, (name, _) in TABLES.items():
        labels = np.array([film.labels for film in index.films[split]])
        mentioned = ~np.isnan(labels).all(1)
        notes.append(
            f"{name}: {index.lateral[split]} lateral films left out; of {len(labels)} frontal ones "
            f"{mentioned.sum()} mention a finding, {(labels == UNCERTAIN_LABEL).any(1).sum()} an "
            "uncertain one"
        )
        normal = sum(film.diagnosis is not None for film in index.films[split])
        notes.append(f"{name}: {normal} films are of diagnosis normal, the others have none")
    if index.ignored:
        notes.append(f"columns that are not known and not used: {', '.join(index.ignored)}")
    return notes
