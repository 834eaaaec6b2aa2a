"""Data sets behind one door: `open_source(config.data, split)`.

`config.data` is a block: the data set's `name` and that set's own options. To add a data set, write
a file beside this one, with what `DataSet` asks for, and one line in `DATASETS`.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import ml_collections

from cxr_jax.data.sources.base import (
    SPLITS,
    SliceSource,
    SliceTable,
    Source,
    Subset,
    by_classes,
    by_lesion,
    by_severity,
    by_view,
    names_of,
    of_files,
    only_with,
    peek,
    told_classes,
    whole,
)
from cxr_jax.errors import InputError

__all__ = [
    "DATASETS",
    "SPLITS",
    "DataSet",
    "Entry",
    "SliceSource",
    "SliceTable",
    "Source",
    "Subset",
    "block",
    "by_classes",
    "by_lesion",
    "by_severity",
    "by_view",
    "check_options",
    "find",
    "names_of",
    "of_files",
    "only_with",
    "open_source",
    "option_names",
    "peek",
    "read_options",
    "second_block",
    "switched",
    "told_classes",
    "whole",
]


class Entry(NamedTuple):
    """A line of the table.

    Attributes:
      file: the file beside this one; FILE:NAME where it holds several data sets.
      source: what `prepare --source` is given; empty where nothing is prepared.
      by_path: the prepared folder is named by the option `path`.
      ct: its records are slices of CT, not films.
    """

    file: str
    source: str = ""
    by_path: bool = False
    ct: bool = False


DATASETS = {
    "phantom_cxr": Entry("phantom_cxr"),
    "phantom_ct": Entry("phantom_ct", ct=True),
    "brixia_cohen": Entry("brixia_cohen", "the clone of BrixIA/Brixia-score-COVID-19"),
    "manifest": Entry("manifest", "your CSV file of films", by_path=True),
    "chexpert": Entry("chexpert", "the folder CheXpert-v1.0-small, or CheXpert-v1.0"),
    "nih_cxr14": Entry("nih_cxr14", "the folder with Data_Entry_2017_v2020.csv and the films"),
    "nih_cxr8": Entry("nih_cxr8", "the same folder"),
    "vindr_cxr": Entry("vindr_cxr", "the folder with train/, test/ and annotations/"),
    "chest_imagenome": Entry(
        "chest_imagenome", "the folder above chest-imagenome/ and mimic-cxr-jpg/, as downloaded"
    ),
    "chest_imagenome_nih": Entry("chest_imagenome_nih"),
    "cxr_3class": Entry("cxr_3class", "the folder with labels.csv, boxes.csv and images/"),
    "brixia": Entry("brixia", "the download of brixia.github.io"),
    "padchest": Entry("padchest", "the folder with PADCHEST_chest_x_ray_images_labels_*.csv"),
    "bimcv_covid19": Entry("bimcv_covid19", "the folder with sub-S*/ and derivatives/labels/"),
    "jsrt_scr": Entry("lung_masks:JSRT_SCR", "the folder with All247images/, fold1/ and fold2/"),
    "montgomery": Entry("lung_masks:MONTGOMERY", "the folder MontgomerySet/"),
    "shenzhen": Entry("lung_masks:SHENZHEN", "the folder ChinaSet_AllFiles/ beside mask/"),
    "films": Entry("films"),
    "ct_lesions": Entry(
        "ct_lesions", "the folder with ct/, lesions/, lungs/ and the tables", ct=True
    ),
    "covid19_ct_seg": Entry(
        "covid19_ct_seg", "the folder COVID-19-CT-Seg_20cases/ lies in", ct=True
    ),
    "ct_volume": Entry("ct_volume", "your CSV file of volumes", by_path=True, ct=True),
    "covid_ct": Entry(
        "covid_ct", "the clone of UCSD-AI4H/COVID-CT, unpacked, or labels.csv and images/", ct=True
    ),
    "covidx_ct": Entry(
        "covidx_ct", "the folder with 2A_images/ and train_COVIDx_CT-2A.txt", ct=True
    ),
    "cncb": Entry("cncb:SLICES", "the folder with NCP/, CP/, Normal/ and the tables", ct=True),
    "cncb_lesions": Entry(
        "cncb:LESIONS", "the folder with ct_lesion_seg/, or that with image/ and mask/", ct=True
    ),
    "sarscov2_ct": Entry("sarscov2_ct", "the folder with COVID/ and non-COVID/", ct=True),
}
NOT_OPTIONS = ("name", "labels")  # what a block holds beside the options; `labels`: a second block
# A second set of phantoms is of other films than the first one, whose seed is 0.
SECOND_SEED = 1_000_000


class DataSet(Protocol):
    """What a data set's file, or a name in it, holds."""

    Options: type

    def open_split(self, options: Any, split: str) -> Source:
        """Opens one split ('train', 'val' or 'test').

        Raises:
          InputError: an option's value that cannot be meant, no such split, or data that are not
            prepared (with the command).
        """
        ...

    def builder(self, source: pathlib.Path, *, data_dir: str, max_side: int) -> Any:
        """The `prepared.RecordBuilder`; only where `Entry.source` says what is prepared.

        Raises:
          InputError: names what is wrong with the folder or table.
        """
        ...


def find(name: str, field: str = "data.name") -> DataSet:
    """The data set of this name. Imports its file: those of prepared sets take a moment.

    Args:
      name: a name of `DATASETS`.
      field: where the name comes from, for the message.

    Raises:
      InputError: there is none of this name.
    """
    if name not in DATASETS:
        raise InputError(f"{field}={name!r}; expected one of {', '.join(DATASETS)}")
    file, _, inside = DATASETS[name].file.partition(":")
    module = importlib.import_module(f"{__name__}.{file}")
    return vars(module)[inside] if inside else module


def option_names(name: str) -> list[str]:
    """The options of a data set.

    Raises:
      InputError: there is none of this name.
    """
    return [field.name for field in dataclasses.fields(find(name).Options)]


def check_options(name: str, options: Iterable[str]) -> None:
    """Refuses options that are another data set's.

    Raises:
      InputError: names the first one, and the options there are.
    """
    known = option_names(name)
    for option in options:
        if option not in known:
            raise InputError(
                f"data set {name!r} has no option {option!r}; its options are {', '.join(known)}"
            )


def block(name: str, **options: Any) -> ml_collections.ConfigDict:
    """`config.data` of a data set: its name and all its options, the defaults where none is given.

    Raises:
      InputError: an unknown data set, or an option that is another one's.
    """
    check_options(name, options)
    made = ml_collections.ConfigDict({"name": name} | dataclasses.asdict(find(name).Options()))
    made.update(options)  # of the defaults' types
    return made


def read_options(name: str, arguments: Iterable[str]) -> dict[str, Any]:
    """Options of a data set on a command line, --OPTION=VALUE, each of its default's type.

    Raises:
      InputError: another argument, another set's option, or a value of another type.
    """
    defaults, options = block(name), {}
    for argument in arguments:
        option, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise InputError(f"unexpected argument {argument!r}; options are given as --NAME=VALUE")
        check_options(name, [option])
        options[option] = _typed(option, value, type(defaults[option]))
    return options


def _typed(option: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InputError(f"--{option}={text}; expected true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        words = {int: "a whole number", float: "a number"}[kind]
        raise InputError(f"--{option}={text}; expected {words}") from None


def second_block(
    name: str = "", *, labels: str = "hidden", **options: Any
) -> ml_collections.ConfigDict:
    """`config.second`, a training set behind the first: a block, and whether its `labels` are used.

    Args:
      name: '' for no second set; then there are no options.
      labels: 'hidden' or 'given'.
      options: as of `block`.

    Raises:
      InputError: as `block`.
    """
    if not name:
        return ml_collections.ConfigDict({"name": "", "labels": labels})
    if "seed" in option_names(name):
        options = {"seed": SECOND_SEED} | options
    made = block(name, **options)
    made.labels = labels
    return made


def switched(
    data: ml_collections.ConfigDict, name: str, field: str = "data.name"
) -> ml_collections.ConfigDict:
    """The block of another data set: options that both sets have keep the values of `data`.

    Args:
      data: `config.data`, or `config.second`.
      name: of the other set; '' is no second set.
      field: where the name comes from, for the message.

    Raises:
      InputError: an unknown data set.
    """
    if "labels" in data and not name:
        return second_block(labels=data.labels)
    find(name, field)
    kept = {option: data[option] for option in option_names(name) if option in data}
    if "labels" in data:
        return second_block(name, labels=data.labels, **kept)
    return block(name, **kept)


def open_source(data: Mapping[str, Any] | ml_collections.ConfigDict, split: str) -> Source:
    """Opens one split of the data set that a config names.

    Args:
      data: the config's `data` or `second`: `name` and that data set's options, all of them.
      split: 'train', 'val' or 'test'.

    Raises:
      InputError: an unknown data set, option or split, an option that is missing, or what the data
        set's `open_split` raises, e.g. that it is not prepared (with the command).
    """
    dataset = find(data["name"])
    if split not in SPLITS:
        raise InputError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
    options = {option: value for option, value in data.items() if option not in NOT_OPTIONS}
    check_options(data["name"], options)
    for option in option_names(data["name"]):
        if option not in options:
            raise InputError(
                f"data set {data['name']!r}: option {option!r} is missing; sources.block fills in "
                "those that are not given"
            )
    return dataset.open_split(dataset.Options(**options), split)
