"""What is kept of the films of a data set: features, labels, patients, prints; no picture."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import tqdm

from cxr_jax.data import sources
from cxr_jax.data.audit import duplicates, features
from cxr_jax.data.ct_slices import LungCrop
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import Record
from cxr_jax.data.visible import Visible
from cxr_jax.errors import InputError

ORIGINAL, STORED, NO_FILE, SEEN, SEEN_LUNGS = (
    "the films' own files",
    "as prepared: shrunk and encoded anew",
    "there are no files",
    "of the middle square, shrunk, blurred and equalised",
    "of the lungs, cut out and resized, black outside",
)


@dataclasses.dataclass(frozen=True)
class Label:
    """A categorical label.

    Attributes:
      field: of the records, from which it is.
      values: int [N], numbers of `classes`, -1 where nobody knows.
      classes: their names.
    """

    field: str
    values: np.ndarray
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Films:
    """N films of a data set.

    Attributes:
      name: of the set.
      total: films that the set has; N where all were looked at.
      places: (source, index in it) of each.
      ids, groups, splits, views: text of each; `views` is '' where unknown.
      shapes: int [N, 2], height and width as stored.
      features: float32 [N, F], see `features.NAMES`.
      labels: by name.
      prints: of each; empty where no copies are looked for.
      files: what the features of the file are of.
      notes: lines on splits that there are not.
    """

    name: str
    total: int
    places: list[tuple[sources.Source, int]]
    ids: list[str]
    groups: list[str]
    splits: list[str]
    views: list[str]
    shapes: np.ndarray
    features: np.ndarray
    labels: dict[str, Label]
    prints: list[duplicates.Print]
    files: str
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Seen:
    """The middle square of a film as `configs/diagnosis.py:cxr3` shows it to a network.

    Attributes:
      size: px of its sides.
    """

    size: int
    words: ClassVar[str] = SEEN

    def __call__(self, film: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> uint8 [size, size], blurred and equalised."""
        square = Visible(crop="square")({"image": film})["image"]
        return Preprocess(self.size, order=("resize", "blur", "equalize")).film(square)


@dataclasses.dataclass(frozen=True)
class SeenLungs:
    """A CT slice as `ct_slices.LungCrop` shows it to a network.

    Attributes:
      size: px of its sides.
    """

    size: int
    words: ClassVar[str] = SEEN_LUNGS

    def __call__(self, slice_: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> uint8 [size, size]: the lungs, the whole slice where none are found."""
        seen = LungCrop()({"image": slice_})["image"]
        return Preprocess(self.size, order=("resize",)).film(seen)


def open_splits(data: Any) -> tuple[list[sources.Source], list[str]]:
    """Every split of a data set that there is.

    Args:
      data: a block of `sources.block`.

    Returns:
      The sources that have films, and a line on each split that cannot be opened.

    Raises:
      InputError: there is none; what opening the first one says.
    """
    opened, errors = [], {}
    for split in sources.SPLITS:
        try:
            source = sources.open_source(data, split)
        except InputError as error:
            errors[split] = error
            continue
        opened += [source] if len(source) else []
    if not opened:
        if errors:
            raise next(iter(errors.values()))
        raise InputError(f"data set {data['name']!r} has no film")
    return opened, [f"no split {split}: {error}" for split, error in errors.items()]


def collect(
    opened: Sequence[sources.Source],
    *,
    most: int,
    prints: bool = True,
    seen: Seen | SeenLungs | None = None,
    notes: Sequence[str] = (),
    bar: bool = False,
) -> Films:
    """Reads each film once.

    Args:
      opened: splits of one data set.
      most: of more films, so many are drawn (always the same ones).
      prints: also for copies.
      seen: what is left of a film, whose features are measured; None: all of it, and its file.
      notes: passed on.
      bar: shows the progress on a terminal.

    Raises:
      InputError: a film that cannot be read.
    """
    places = [(source, index) for source in opened for index in range(len(source))]
    total = len(places)
    if total > most:
        drawn = np.random.default_rng(0).choice(total, most, replace=False)
        places = [places[i] for i in np.sort(drawn)]
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        looks = pool.map(lambda place: _look(*place, prints=prints, seen=seen), places)
        # disable=None: a bar on a terminal only.
        looks = tqdm.tqdm(
            looks, total=len(places), unit="film", desc="audit", disable=None if bar else True
        )
        looks = list(looks)
    first = opened[0]
    return Films(
        name=first.name,
        total=total,
        places=places,
        ids=[look["id"] for look in looks],
        groups=[look["group"] for look in looks],
        splits=[source.split for source, _ in places],
        views=[look["view"] for look in looks],
        shapes=np.array([look["shape"] for look in looks]).reshape(-1, 2),
        features=np.stack([look["features"] for look in looks]),
        labels=dict(_labels(looks, first)),
        prints=[look["print"] for look in looks] if prints else [],
        files=_files(first) if seen is None else seen.words,
        notes=list(notes),
    )


def _look(
    source: sources.Source,
    index: int,
    *,
    prints: bool,
    seen: Callable[[np.ndarray], np.ndarray] | None,
) -> dict[str, Any]:
    record = source[index]
    film, stored = record["image"], b""
    if seen is not None:
        film = seen(film)
    elif sources.of_files(source):
        stored = source.stored(index)
    return {
        "id": str(record["id"]),
        "group": str(record["group"]),
        "view": str(record.get("view", "")),
        "shape": film.shape,
        "features": features.measure(film, stored),
        # Copies are looked for in what there is: cut out lungs are much like one another.
        "print": duplicates.print_of(record["image"]) if prints else None,
        **_truth(record),
    }


def _truth(record: Record) -> dict[str, Any]:
    """The labels of a record that are classes, or can be made some."""
    truth = {"findings": record.get("findings"), "diagnosis": record.get("diagnosis", -1)}
    label = record.get("slice_label", np.nan)
    truth["slice_label"] = -1 if np.isnan(label) else int(label)
    truth["severity"] = np.nan
    if "severity" in record and record["severity_valid"].any():
        truth["severity"] = float(record["severity"][record["severity_valid"]].sum())
    return truth


def _labels(seen: list[dict[str, Any]], source: sources.Source) -> Iterator[tuple[str, Label]]:
    """Those of which anything is known, by the names that the set has for them."""
    findings = sources.names_of(source, "findings")
    diagnoses = sources.names_of(source, "diagnoses")
    plain = {"diagnosis": diagnoses, "slice_label": ("no lesion", "lesion")}
    for name, classes in plain.items():
        values = np.array([int(look[name]) for look in seen])
        if (values >= 0).any():
            yield name, Label(name, values, tuple(classes))
    score = np.array([look["severity"] for look in seen])
    if not np.isnan(score).all():
        for name, cut in {"above 0": 0.0, "above its median": np.nanmedian(score)}.items():
            values = np.where(np.isnan(score), -1, score > cut)
            yield f"severity {name}", Label("severity", values.astype(int), ("no", "yes"))
    unknown = np.full(len(findings), np.nan, np.float32)
    table = np.stack([unknown if x["findings"] is None else x["findings"] for x in seen])
    for column, name in zip(table.T, findings):
        if not np.isnan(column).all():
            values = np.where(np.isnan(column), -1, column == 1)
            yield name, Label("findings", values.astype(int), ("absent", "present"))


def _files(source: sources.Source) -> str:
    if not sources.of_files(source):
        return NO_FILE
    return STORED if hasattr(sources.whole(source), "folder") else ORIGINAL
