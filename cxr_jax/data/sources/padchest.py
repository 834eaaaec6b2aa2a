"""PadChest: films of one hospital with findings from reports; normal ones for the three classes.

Source: bimcv.cipf.es/bimcv-projects/padchest (on registration); Bustos et al., Medical Image
Analysis 2020, arXiv 1901.07441. 160,861 rows of some 67,000 patients of San Juan de Alicante,
2009 to 2017; grey PNG of 16 bits.

The layout as downloaded: `PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv` (unpacked), and the
films in folders by the column `ImageDir`, beside the table or in `images/`, or all in one of these.
Of the table are read:

- `ImageID`, the file; `ImageDir`, its folder; `PatientID`;
- `Projection`: PA; AP and AP_horizontal (lying), which are both AP; L, COSTAL, EXCLUDE and none are
  not frontal: left out and counted;
- `Labels`: a list as Python prints it, ['normal'], or empty.

For the three classes of Park et al. 2021 the set gives normal films, those whose one label is
`normal`. The paper takes AP ones (its Table 2, 1,310 of them) and does not say how they were
chosen. No other film has a `diagnosis`: the paper takes its other infections from hospitals.

The public archive lacks some files and holds some that were cut off: these are left out and
counted. A 16-bit PNG carries no display window: its lowest..highest value is mapped to 0..255.

All patients are dealt to five folds, balanced by class; the last is the test split and 0..3 are for
training and validation. No real file was at hand: the layout is as published.
"""

import pathlib
from collections import Counter

from cxr_jax import small_files
from cxr_jax.data import readers, splits
from cxr_jax.data.records import DIAGNOSES
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.errors import InputError

NAME = "padchest"
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
SOURCE = f"the folder with {TABLE} and the films"
FIELDS = prepared.DEALT_FIELDS
Options = FoldedOptions
VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP"}
NOT_FRONTAL = ("L", "COSTAL", "EXCLUDE", "")
NORMAL = DIAGNOSES.index("normal")


class PadChest(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/padchest/1.0.0."""

    name = NAME
    description = "Frontal chest radiographs of one hospital; normal ones are labelled."
    homepage = "https://bimcv.cipf.es/bimcv-projects/padchest/"
    citation = (
        "Bustos et al., PadChest: a large chest x-ray image dataset with multi-label annotated "
        "reports. Medical Image Analysis 66, 2020. arXiv:1901.07441"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> PadChest:
    """The builder of the set from its folder; reads the table, and header and end of the films.

    Raises:
      InputError: see `read_index`.
    """
    films, notes = read_index(source)
    return prepared.dealt_builder(
        PadChest,
        films,
        read_image=lambda film: readers.read_film(film.path),
        table=pathlib.Path(source) / TABLE,
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; arguments and errors as of `prepared.open_dealt`."""
    return prepared.open_dealt(options, NAME, split, source=SOURCE)


def read_index(folder: pathlib.Path) -> tuple[list[prepared.DealtFilm], list[str]]:
    """The frontal films of the folder, in the order of the table, and notes on what was left out.

    Raises:
      InputError: a missing table or column, an unknown projection, labels that are no list, a film
        listed twice or without a patient, or no film that is there.
    """
    folder = pathlib.Path(folder)
    if not (folder / TABLE).is_file():
        raise InputError(f"{folder}: there is no {TABLE} in it; --source is {SOURCE}")
    columns = ("ImageID", "ImageDir", "PatientID", "Projection", "Labels")
    _, rows = tables.scan_table(folder / TABLE, columns)
    films, left_out, missing = [], Counter(), ""
    for row in rows:
        projection = row.choice("projection", (*VIEWS, *NOT_FRONTAL))
        if projection not in VIEWS:
            left_out["not frontal"] += 1
            continue
        film = _film(row, folder, VIEWS[projection])
        if _is_whole(film.path):
            films.append(film)
        else:
            left_out["not there or cut off"] += 1
            missing = missing or str(film.path)
    if not films:
        why = f"the first one, {missing}, is missing" if missing else "no row is of a frontal film"
        raise InputError(f"{folder}: no film of {TABLE} can be read: {why}; --source is {SOURCE}")
    splits.check_unique((film.id for film in films), where=folder / TABLE)
    normal = sum(film.diagnosis is not None for film in films)
    notes = [f"{normal} of {len(films)} films are of diagnosis normal, the others have none"]
    notes += [f"left out: {count} films that are {why}" for why, count in left_out.items()]
    notes += [f"the first one that is not there or cut off: {missing}"] if missing else []
    return films, notes


def _film(row: tables.Row, folder: pathlib.Path, view: str) -> prepared.DealtFilm:
    name, part = row.text("imageid"), row["imagedir"].removesuffix(".0")
    for column, text in (("imageid", name), ("imagedir", part)):
        if pathlib.PurePath(text).name != text or text == "..":
            raise row.error(column, "expected a name without folders")
    places = (folder / part, folder / "images" / part, folder, folder / "images")
    path = next((p / name for p in places if small_files.is_file(p / name)), places[0] / name)
    labels = tables.quoted_list(row["labels"] or "[]")
    if labels is None:
        raise row.error("labels", "expected a list like ['normal', 'scoliosis'], or empty")
    return prepared.DealtFilm(
        path=path,
        id=path.stem,
        group=f"padchest-{row.text('patientid')}",
        view=view,
        diagnosis=NORMAL if set(labels) == {"normal"} else None,
    )


def _is_whole(path: pathlib.Path) -> bool:
    """Whether the film is there and does not end early."""
    if not small_files.is_file(path):
        return False
    try:
        readers.check_whole(path)
    except InputError:
        return False
    return True
