"""COVID-CT: single CT slices cut from publications, COVID-19 or not.

Source: repository UCSD-AI4H/COVID-CT; Zhao et al., COVID-CT-Dataset, arXiv 2003.13865; 349 slices
of COVID-19 of 216 patients and 397 others. He et al. 2020 (Self-Trans) use the same splits.

Two layouts:

- the public repository with its two archives unpacked: `Images-processed/CT_COVID/` and
  `CT_NonCOVID/`, and lists of file names, `Data-split/COVID/trainCT_COVID.txt`, `valCT_COVID.txt`,
  `testCT_COVID.txt`, and those of `Data-split/NonCOVID/`;
- a copy with a table: `images/` and `labels.csv` (image, label = 1 COVID-19 or 0, split = train,
  val or test, group).

`group` is the publication, not the patient, who is not told: of the first layout by `group_of` from
the file's name, of the second the table's. The public lists part patients, and so publications: a
publication stays whole where the later split has it (test, then val), and what was left out of the
others is counted. The test split is theirs to the slice. A table that parts a group is refused.

What the pictures are: 8 bits of whatever window the figure had, some of them mediastinal ones, with
arrows, letters and borders. The two classes come from different kinds of document, and trivial
features tell them apart (docs/data_sets.md, Audit). Labels are from captions.
"""

import pathlib
import re
from collections.abc import Iterator

from cxr_jax import small_files
from cxr_jax.data import splits
from cxr_jax.data.sources import ct_classes, prepared, tables
from cxr_jax.data.sources.base import SPLITS, PreparedOptions
from cxr_jax.data.sources.ct_classes import COVID_OR_NOT, ClassedSlice
from cxr_jax.errors import InputError

NAME = "covid_ct"
SOURCE = "the clone of UCSD-AI4H/COVID-CT with its archives unpacked, or labels.csv and images/"
FIELDS = ct_classes.FIELDS
Options = PreparedOptions
GAP = 6  # between numbers of one case
CLASSES = ("NonCOVID", "COVID")  # of the public folders, in the order of COVID_OR_NOT

_PAGE = re.compile(r"(.+?)-p\d+(?:-\d+)*.*")  # PUBLICATION-pPAGE-FIGURE
_PART = re.compile(r"(.+?)(?:[%_]\d+)+")  # a part of a figure
_NUMBER = re.compile(r"(\d+)(?:[%_]\d+)*")


class CovidCT(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/covid_ct/1.0.0."""

    name = NAME
    description = "CT slices from publications, COVID-19 or not."
    homepage = "https://github.com/UCSD-AI4H/COVID-CT"
    citation = (
        "Zhao et al., COVID-CT-Dataset: a CT scan dataset about COVID-19. arXiv:2003.13865, 2020"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> CovidCT:
    """The builder of the set from its folder; reads the lists or the table, no picture yet.

    Raises:
      InputError: see `read_index`.
    """
    parts, notes, read = read_index(source)
    return ct_classes.classed_builder(
        CovidCT,
        parts,
        tables=read,
        diagnoses=COVID_OR_NOT,
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; the splits are those of its lists or table.

    Raises:
      InputError: what `prepared.open_whole` raises.
    """
    return prepared.open_whole(options.data_dir, NAME, split, source=SOURCE)


_Index = tuple[dict[str, list[ClassedSlice]], list[str], list[pathlib.Path]]


def read_index(folder: pathlib.Path) -> _Index:
    """Split -> its slices, in the order of the lists; notes on what was left out; what was read.

    Raises:
      InputError: a folder of neither layout; a missing list, column or picture; a picture listed
        twice; a split without a slice; a group of the table in two splits.
    """
    folder = pathlib.Path(folder)
    if (folder / "labels.csv").is_file():
        return _from_table(folder / "labels.csv")
    if (folder / "Data-split").is_dir():
        return _from_lists(folder)
    raise InputError(
        f"{folder}: there is no labels.csv and no Data-split/ in it; --source is {SOURCE}"
    )


def _from_table(table: pathlib.Path) -> _Index:
    _, rows = tables.read_table(table, ("image", "label", "split", "group"))
    splits.check_unique((row["image"] for row in rows), where=table, what="picture")
    parts: dict[str, list[ClassedSlice]] = {split: [] for split in SPLITS}
    for row in rows:
        path = table.parent / "images" / row.text("image")
        if not small_files.is_file(path):
            raise row.error("image", f"there is no file {path}")
        row.text("label")
        one = ClassedSlice(path, path.name, row.text("group"), row.number("label", 0, 1))
        parts[row.choice("split", SPLITS)].append(one)
    groups = {split: [one.group for one in part] for split, part in parts.items()}
    splits.check_disjoint(groups, where=str(table))
    _check_filled(parts, table)
    count = len({group for names in groups.values() for group in names})
    return parts, [f"groups: {count} publications and cases, as the table has them"], [table]


def _from_lists(folder: pathlib.Path) -> _Index:
    parts: dict[str, list[ClassedSlice]] = {split: [] for split in SPLITS}
    read = []
    for diagnosis, name in enumerate(CLASSES):
        pictures = folder / "Images-processed" / f"CT_{name}"
        if not pictures.is_dir():
            raise InputError(
                f"{pictures}: there is no such folder; unpack Images-processed/CT_{name}.zip there"
            )
        lists = {s: folder / "Data-split" / name / f"{s}CT_{name}.txt" for s in SPLITS}
        read += lists.values()
        listed = {split: list(_names(path, pictures)) for split, path in lists.items()}
        every = [file for files in listed.values() for file in files]
        splits.check_unique(every, where=folder / "Data-split" / name, what="picture")
        groups = groups_of(every, covid=name == "COVID")
        for split, files in listed.items():
            parts[split] += [
                ClassedSlice(pictures / file, f"{name}/{file}", groups[file], diagnosis)
                for file in files
            ]
    _check_filled(parts, folder / "Data-split")
    kept = splits.kept_apart({s: [one.group for one in part] for s, part in parts.items()})
    notes = []
    for split, part in parts.items():
        if left := len(part) - len(kept[split]):
            notes.append(
                f"left out of {split}: {left} of {len(part)} slices, of publications that a later "
                "split has too"
            )
    parts = {split: [parts[split][k] for k in kept[split]] for split in parts}
    _check_filled(parts, folder / "Data-split")
    return parts, notes, read


def _names(path: pathlib.Path, pictures: pathlib.Path) -> Iterator[str]:
    """The pictures that a list names, a line each."""
    for line, cells in tables.scan_lines(path):
        if name := ",".join(cells):
            if pathlib.PurePath(name).name != name:
                raise InputError(f"{path}: line {line}: {name!r}; expected a name without folders")
            if not small_files.is_file(pictures / name):
                raise InputError(f"{path}: line {line}: there is no file {pictures / name}")
            yield name


def _check_filled(parts: dict[str, list[ClassedSlice]], where: pathlib.Path) -> None:
    for split, part in parts.items():
        if len({one.diagnosis for one in part}) < len(COVID_OR_NOT):
            raise InputError(f"{where}: split {split!r} has no slice of one of the two classes")


def groups_of(files: list[str], *, covid: bool) -> dict[str, str]:
    """File name -> the publication, or the case, that it is guessed to be of.

    COVID-19: what stands before the page, or before the number of the figure's part
    ('2020.02.11.20022053-p12-67%0.png' is of 2020.02.11.20022053). Others: figures of a paper
    ('10%1.jpg' of paper 10) by the paper's number; PNGs of one number each, whose source is not
    told, by runs of numbers at most six apart, which are slices of one case; else the name itself.
    """
    if covid:
        return {file: f"doc-{_publication(pathlib.PurePath(file).stem)}" for file in files}
    groups, numbered = {}, {}
    for file in files:
        path = pathlib.PurePath(file)
        number = _NUMBER.fullmatch(path.stem)
        if number and path.stem.isdecimal() and path.suffix.lower() == ".png":
            numbered[int(path.stem)] = file
        else:
            groups[file] = f"paper-{number[1] if number else path.stem}"
    first, last = None, None
    for number in sorted(numbered):
        if last is None or number > last + GAP:
            first = number
        groups[numbered[number]], last = f"run-{first}", number
    return groups


def _publication(stem: str) -> str:
    match = _PAGE.fullmatch(stem) or _PART.fullmatch(stem)
    return match[1] if match else stem
