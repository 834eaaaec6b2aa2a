"""Brixia scores on the public COVID-19 films: six zone scores by two radiologists.

Source: repository BrixIA/Brixia-score-COVID-19, `data/public-annotations.csv` with 192 films of
`data/public-cohen-subset/`; Signoroni et al., Medical Image Analysis 2021,
doi 10.1016/j.media.2021.102046. Films: repository ieee8023/covid-chestxray-dataset.
Annotations CC BY-NC-SA 4.0; films per image. Not only COVID-19; PA and AP, children too.

Zones: A, B, C are upper, middle and lower zone on the image's left, the patient's right lung;
D, E, F those on the image's right. Each 0..3. The senior reader's scores are `severity`, the
junior's `severity_second`.

Two layouts are read:

- the repository as cloned. Lung masks are optional: `lungs/STEM.png` (0 outside, 255 lung, the
  film's size) in or beside the folder of films. The table gives neither patients nor splits: the
  group is derived from the file name (`group_of`), a quarter of the films is the test split,
  whole groups, balanced by the senior's global score.
- a prepared folder: `annotations.csv` (image, S_A..S_F, J_A..J_F, lungs, group, split), `images/`,
  `lungs/`. Its groups and splits are taken as they are.

The training films are dealt to five folds, whole groups, balanced by global score, for a
validation split and for cross-validation.
"""

import dataclasses
import pathlib
import re

import numpy as np

from cxr_jax.data import preprocess, readers, splits, zones
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import GradedOptions, Source, by_severity
from cxr_jax.errors import InputError

NAME = "brixia_cohen"
FOLDS = prepared.FOLDS
GLOBAL_CLASSES = (3, 7, 10, 14)  # cuts of the global score 0..18 by which splits are balanced
TEST_SHARE = 4  # a quarter
PUBLIC_COMMAND = "git clone https://github.com/BrixIA/Brixia-score-COVID-19"

Options = GradedOptions
FIELDS = frozenset(
    {"image", "id", "group", "severity", "severity_second", "severity_valid", "lungs"}
)


@dataclasses.dataclass(frozen=True)
class Film:
    """One row of the table: `severity` and `second` int8 [3, 2], `valid` bool [3, 2]."""

    path: pathlib.Path
    id: str
    group: str
    split: str
    fold: int  # of the training films; -1 in the test split
    severity: np.ndarray
    second: np.ndarray
    valid: np.ndarray
    lungs: pathlib.Path | None


class BrixiaCohen(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/brixia_cohen/1.0.0."""

    name = NAME
    description = "Brixia severity scores of two radiologists on public chest radiographs."
    homepage = "https://github.com/BrixIA/Brixia-score-COVID-19"
    citation = (
        "Signoroni et al., BS-Net: learning COVID-19 pneumonia severity on a large chest X-ray "
        "dataset. Medical Image Analysis 71, 2021. doi:10.1016/j.media.2021.102046"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> BrixiaCohen:
    """The builder of the set from a folder in either layout; reads the table, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    films = read_index(source)
    by_split = {name: [f for f in films if f.split == name] for name in ("train", "test")}
    files = [path for film in films for path in (film.path, film.lungs) if path]
    return prepared.film_builder(
        BrixiaCohen,
        by_split,
        read=read_film_record,
        fields=FIELDS,
        partial=frozenset({"lungs"}),
        folds={split: [film.fold for film in part] for split, part in by_split.items()},
        fingerprint=prepared.fingerprint(_table(source), files, max_side),
        data_dir=data_dir,
        max_side=max_side,
    )


def open_split(options: Options, split: str) -> Source:
    """Opens the prepared set; the training films may be chosen by their score.

    Args:
      options: `fold` is 0..4, or -1: all training films are 'train' and there is no 'val'.
      split: 'test' is the test films. With `fold` k, 'val' is fold k of the training films and
        'train' the others.

    Raises:
      InputError: what `prepared.open_folded` and `by_severity` raise.
    """
    source = prepared.open_folded(
        options.data_dir, NAME, split, fold=options.fold, source=PUBLIC_COMMAND
    )
    if split != "train":
        return source
    return by_severity(source, options.min_severity, options.max_severity)


def read_film_record(film: Film, max_side: int) -> Record:
    """Reads film and mask of one row, reduced to `max_side`; `lungs` only where there is a mask.

    Raises:
      InputError: an unreadable film or mask, a mask of another size or without a lung.
    """
    record = {
        "image": readers.read_film(film.path),
        "id": film.id,
        "group": film.group,
        "severity": film.severity,
        "severity_second": film.second,
        "severity_valid": film.valid,
    }
    if film.lungs is not None:
        record["lungs"] = lungs_of(film.lungs, record["image"].shape)
    return preprocess.shrink(record, max_side)


def lungs_of(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads a lung mask as labels: uint8 [H, W], 0 outside, 1 right lung, 2 left lung.

    Raises:
      InputError: unreadable, another size than `shape`, or no lung in it.
    """
    labels = zones.split_lungs(readers.read_mask(path, shape=shape))
    if not labels.any():
        raise InputError(
            f"{path}: the mask has no lung pixel; a lung mask is 255 in both lungs and 0 "
            "elsewhere. Draw it, or take the file away so that the film has no mask"
        )
    return labels


def read_index(folder: pathlib.Path) -> list[Film]:
    """The films of a folder in either layout (see the module), in the order of the table.

    Raises:
      InputError: no table, a missing column, a score outside 0..3, a missing film or mask, a film
        listed twice, a group in two splits.
    """
    table = _table(folder)
    films = _read_prepared(table) if table.name == "annotations.csv" else _read_public(table)
    splits.check_unique((film.id for film in films), where=table)
    splits.check_disjoint(
        {s: [f.group for f in films if f.split == s] for s in ("train", "test")}, where=str(table)
    )
    train = [film for film in films if film.split == "train"]
    folds = splits.balanced_folds(
        [film.group for film in train],
        [film.severity.sum() for film in train],
        folds=FOLDS,
        edges=GLOBAL_CLASSES,
    )
    fold_of = {film.id: int(fold) for film, fold in zip(train, folds)}
    return [dataclasses.replace(film, fold=fold_of.get(film.id, -1)) for film in films]


def _table(folder: pathlib.Path) -> pathlib.Path:
    folder = pathlib.Path(folder)
    places = ("annotations.csv", "data/public-annotations.csv", "public-annotations.csv")
    for place in places:
        if (folder / place).is_file():
            return folder / place
    raise InputError(
        f"{folder}: found none of {', '.join(places)}; --source is the folder made by "
        f"`{PUBLIC_COMMAND}`, or one with annotations.csv, images/ and lungs/"
    )


def _read_prepared(table: pathlib.Path) -> list[Film]:
    zones_of = {reader: [f"{reader}_{zone}" for zone in "ABCDEF"] for reader in "SJ"}
    _, rows = tables.read_table(
        table, ["image", *zones_of["S"], *zones_of["J"], "lungs", "group", "split"]
    )
    films = []
    for row in rows:
        path = table.parent / "images" / row.text("image")
        if not path.is_file():
            raise row.error("image", f"there is no file {path}")
        lungs = table.parent / "lungs" / f"{path.stem}.png" if row.number("lungs", 0, 1) else None
        if lungs and not lungs.is_file():
            raise row.error("lungs", f"there is no file {lungs}; write 0 for a film without a mask")
        severity, valid = _scores(row, zones_of["S"])
        films.append(
            Film(
                path=path,
                id=path.stem,
                group=row.text("group"),
                split=row.choice("split", ("train", "test")),
                fold=-1,
                severity=severity,
                second=_scores(row, zones_of["J"])[0],
                valid=valid,
                lungs=lungs,
            )
        )
    return films


def _read_public(table: pathlib.Path) -> list[Film]:
    zones_of = {reader: [f"{reader}-{zone}" for zone in "ABCDEF"] for reader in "SJ"}
    _, rows = tables.read_table(table, ["filename", *zones_of["S"], *zones_of["J"]])
    pictures = table.parent / "public-cohen-subset"
    if not pictures.is_dir():
        raise InputError(f"{table}: the films' folder {pictures} is missing; clone the repository")
    stems = [pathlib.PurePath(row.text("filename")).stem for row in rows]
    groups = [group_of(stem) for stem in stems]
    scores = [_scores(row, zones_of["S"]) for row in rows]
    quarter = splits.balanced_folds(
        groups, [s.sum() for s, _ in scores], folds=TEST_SHARE, edges=GLOBAL_CLASSES
    )
    films = []
    for row, stem, group, (severity, valid), part in zip(rows, stems, groups, scores, quarter):
        path = pictures / row["filename"]
        if not path.is_file():
            raise row.error("filename", f"there is no file {path}; clone the repository again")
        places = (pictures / "lungs" / f"{stem}.png", table.parent / "lungs" / f"{stem}.png")
        films.append(
            Film(
                path=path,
                id=stem,
                group=group,
                # The last quarter: the largest groups go to the first ones.
                split="test" if part == TEST_SHARE - 1 else "train",
                fold=-1,
                severity=severity,
                second=_scores(row, zones_of["J"])[0],
                valid=valid,
                lungs=next((place for place in places if place.is_file()), None),
            )
        )
    return films


def _scores(row: tables.Row, columns: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Columns A..F of one reader -> scores int8 [3, 2] (0 where empty), scored bool [3, 2]."""
    scores = [row.number(column.casefold(), 0, 3) for column in columns]
    # A, B, C go down the image's left (the right lung), D, E, F down its right.
    valid = np.array([score is not None for score in scores]).reshape(2, 3).T
    return np.array([score or 0 for score in scores], np.int8).reshape(2, 3).T, valid


# Names that only a look at the films tells to be one case.
_SAME_CASE = {
    "F4341CE7-73C9-45C6-99C8-8567A5484B63": "E63574A7-4188-4C8D-8D17-9D67A18A1AFA",
    "F2DE909F-E19C-4900-92F5-8F435B031AC6": "31BA3780-2323-493F-8AED-62081B9C383B",
    "9C34AF49-E589-44D5-92D3-168B3B04E4A6": "8FDE8DBA-CFBD-4B4C-B1A4-6F36A93B7E87",
}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# Whole names -> group; the first that fits counts.
_FAMILIES = (
    (re.compile(r"0|1-\d+-\d+"), "brescia-series"),
    (re.compile(r"(4-x-day|AR-|extubation-)\d+"), "extubation"),
    (re.compile(r"([0-9a-f]{32})-[0-9a-f]+-\d+"), r"\1"),  # study hash, then the film's
    (re.compile(r"(\d{5})_\d+_\d+"), r"\1"),  # case_visit_film
    # All figures of a publication: which of them show one patient is not in the name.
    (re.compile(r"(.+?)(?:\.pdf|[-_.](?:f|g|gr|fig)\d).*", re.IGNORECASE), r"\1"),
)
# Endings that tell films of one case apart, taken off until none is left.
_ENDINGS = re.compile(
    r"("
    r"[-_ ](pa|ap|aps|l|right|left|later|prior|admission|on-admission|supine)"
    r"|-day-?\d+(-\d+)?|-\d+-(hours|days)"
    r"|(?<=\d)[a-d]|(?<=-[a-z])-[a-d]"
    r"|(?<=-\d)-\d|(?<=-\d\d)-\d|(?<=-ap)-\d|(?<=-ap-\d)-\d| \d"
    r")$",
    re.IGNORECASE,
)


def group_of(stem: str) -> str:
    """The case a film of the public repository belongs to, guessed from its file name.

    Films of one case are named alike, with a day, a view, a letter or a number at the end. Where
    the name leaves a doubt the films are taken as one case, so that no case is in two splits.
    """
    if _UUID.match(stem):
        return _SAME_CASE.get(stem, stem)
    for family, group in _FAMILIES:
        if match := family.fullmatch(stem):
            return match.expand(group)
    while (shorter := _ENDINGS.sub("", stem)) and shorter != stem:
        stem = shorter
    return stem
