"""SARS-CoV-2 CT-scan dataset: CT slices of patients with COVID-19 and of others.

Source: kaggle.com/plameneduardo/sarscov2-ctscan-dataset; Soares et al. 2020, medRxiv
2020.04.24.20078584. 1,252 slices of patients with COVID-19 and 1,230 of others, some sixty each,
from hospitals of Sao Paulo.

The layout as downloaded: `COVID/Covid (1).png`, ... and `non-COVID/Non-Covid (1).png`, ....

**Nobody tells which slices are of one patient.** Patients have some twenty slices each, and slices
whose numbers are close are likely of one. A `group` is therefore a run of 25 numbers of one class,
and whole groups are dealt to five folds, balanced by class: the last is the test split and 0..3 are
for training and validation. A patient may still be on both sides, so that scores of this set are
too high. What the pictures are: 8 bits of unknown windows, cut to the body, of every size.

No real file was at hand: the layout is as published.
"""

import pathlib
import re

from cxr_jax.data import splits
from cxr_jax.data.sources import ct_classes, prepared
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.data.sources.ct_classes import COVID_OR_NOT, ClassedSlice
from cxr_jax.errors import InputError

NAME = "sarscov2_ct"
SOURCE = "the folder with COVID/ and non-COVID/"
FIELDS = ct_classes.FIELDS
Options = FoldedOptions
FOLDERS = ("non-COVID", "COVID")  # in the order of COVID_OR_NOT
RUN = 25  # numbers of a group
TEST_FOLD = prepared.FOLDS - 1
_NAME = re.compile(r"(?:non-)?covid \((\d{1,6})\)\.(?:png|jpg|jpeg)", re.IGNORECASE)


class SarsCov2CT(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/sarscov2_ct/1.0.0."""

    name = NAME
    description = "CT slices of patients with and without COVID-19, patients not told."
    homepage = "https://www.kaggle.com/plameneduardo/sarscov2-ctscan-dataset"
    citation = (
        "Soares et al., SARS-CoV-2 CT-scan dataset: a large dataset of real patients CT scans for "
        "SARS-CoV-2 identification. medRxiv 2020.04.24.20078584"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> SarsCov2CT:
    """The builder of the set from its folder; lists the files, reads no picture yet.

    Raises:
      InputError: see `read_index`.
    """
    index = read_index(source)
    folds = splits.folds_by_class([one.group for one in index], [one.diagnosis for one in index])
    train = [(one, int(fold)) for one, fold in zip(index, folds) if fold != TEST_FOLD]
    return ct_classes.classed_builder(
        SarsCov2CT,
        {
            "train": [one for one, _ in train],
            "test": [one for one, fold in zip(index, folds) if fold == TEST_FOLD],
        },
        folds={"train": [fold for _, fold in train]},
        diagnoses=COVID_OR_NOT,
        data_dir=data_dir,
        max_side=max_side,
        notes=[
            f"patients are not told: {len({one.group for one in index})} groups of {RUN} numbers "
            "stand for them, and a patient may be in two splits"
        ],
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; arguments and errors as of `prepared.open_dealt`."""
    return prepared.open_dealt(options, NAME, split, source=SOURCE)


def read_index(folder: pathlib.Path) -> list[ClassedSlice]:
    """The slices of the folder, class by class, by number.

    Raises:
      InputError: a missing folder, another name than 'Covid (1).png', a number twice, or too few
        slices for five folds.
    """
    index = []
    for diagnosis, name in enumerate(FOLDERS):
        place = pathlib.Path(folder) / name
        if not place.is_dir():
            raise InputError(f"{folder}: there is no {name}/ in it; --source is {SOURCE}")
        numbered: dict[int, pathlib.Path] = {}
        for path in sorted(path for path in place.iterdir() if path.name[0] != "."):
            match = _NAME.fullmatch(path.name)
            if match is None:
                raise InputError(
                    f"{path}: not a name of the set; expected 'Covid (1).png' or 'Non-Covid "
                    "(1).png'"
                )
            if int(match[1]) in numbered:
                raise InputError(f"{path}: number {int(match[1])} comes twice; leave one")
            numbered[int(match[1])] = path
        if len(numbered) <= RUN * prepared.FOLDS:
            raise InputError(
                f"{place}: {len(numbered)} slices; {prepared.FOLDS} folds of runs of {RUN} need "
                f"more than {RUN * prepared.FOLDS}"
            )
        index += [
            ClassedSlice(path, f"{name}-{number:04d}", f"{name}-run{number // RUN}", diagnosis)
            for number, path in sorted(numbered.items())
        ]
    return index
