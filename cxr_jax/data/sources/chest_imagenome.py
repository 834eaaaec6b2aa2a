"""Chest ImaGenome: frontal films of MIMIC-CXR with boxes and findings of 29 regions.

Source: physionet.org/content/chest-imagenome/1.0.0 and physionet.org/content/mimic-cxr-jpg/2.0.0
(both for credentialed users); Wu et al., NeurIPS Datasets and Benchmarks 2021, arXiv 2108.00316;
Johnson et al., arXiv 1901.07042. Some 240,000 frontal films of one hospital. The scene graphs were
made by programs from reports and an atlas; nobody drew them.

Below --source, at most two folders deep, lie both downloads:

- `silver_dataset/scene_graph/` with DICOM_SceneGraph.json (scene_graph.zip, unpacked): see
  `scene_graphs`, which has the rules of boxes and findings;
- `mimic-cxr-2.0.0-split.csv.gz` (dicom_id, study_id, subject_id, split), beside it
  `mimic-cxr-2.0.0-metadata.csv.gz` (dicom_id, ViewPosition, Rows, Columns) and the films,
  `files/p10/p10000032/s50414267/DICOM.jpg`. The tables may be unpacked (.csv).

The findings are the set's own, 43 anatomical findings and 10 diseases. `region_findings` are 1 or 0
of a region with a box and unknown of one without; `findings`, the film's, are 1 where any region
that the graph names has them, with or without a box, and else 0 (Müller et al. 2023, Sec. 3.4).

Left out and counted: films that are not PA or AP, have no scene graph, are not there, have fewer
than five regions of the 29, or a region twice. What was found wrong with boxes is told by its
first case.

Splits are the official ones of MIMIC-CXR, by patient. No real file was at hand: the layout is as
published and as users of the set read it.
"""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from cxr_jax import small_files
from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared, scene_graphs, tables
from cxr_jax.data.sources.base import VIEWS, PreparedOptions
from cxr_jax.data.sources.scene_graphs import FINDINGS
from cxr_jax.errors import InputError

__all__ = ["FINDINGS", "ChestImaGenome", "Options", "builder", "open_split", "read_index"]

NAME = "chest_imagenome"
SOURCE = "the folder with silver_dataset/ and mimic-cxr-2.0.0-split.csv.gz, or above both"
FIELDS = frozenset({"image", "id", "group", "view", "findings"}) | {
    *("regions", "region_present", "region_findings")
}
Options = PreparedOptions
SPLITS = {"train": "train", "validate": "val", "test": "test"}  # theirs -> ours
SPLIT_TABLE, METADATA = "mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-metadata.csv"
GRAPHS = ("silver_dataset/scene_graph/scene_graph", "silver_dataset/scene_graph")
FEWEST = 5  # regions with a box [paper, Sec. 3.4]
_DICOM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}")
_NUMBER = re.compile(r"\d{1,12}")


@dataclasses.dataclass(frozen=True, slots=True)
class Film:
    """A film with a scene graph; `shape` is its height and width by the metadata."""

    path: str
    graph: str
    id: str
    patient: str
    split: str
    view: str
    shape: tuple[int, int]


class ChestImaGenome(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/chest_imagenome/1.0.0."""

    name = NAME
    description = "Frontal chest radiographs with boxes and findings of 29 anatomical regions."
    homepage = "https://physionet.org/content/chest-imagenome/1.0.0/"
    citation = (
        "Wu et al., Chest ImaGenome dataset for clinical reasoning. NeurIPS Datasets and "
        "Benchmarks 2021. arXiv:2108.00316"
    )
    findings = FINDINGS


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> ChestImaGenome:
    """The builder of the set; reads the tables and every scene graph, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    films, notes = read_index(source)
    _, table = _places(pathlib.Path(source))
    by_split = {ours: [f for f in films if f.split == ours] for ours in SPLITS.values()}
    files = (pathlib.Path(path) for film in films for path in (film.path, film.graph))
    return prepared.film_builder(
        ChestImaGenome,
        by_split,
        read=_read_film,
        fields=FIELDS,
        columns=lambda part: prepared.film_columns(views=(film.view for film in part)),
        fingerprint=prepared.fingerprint(table, files, max_side),
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def open_split(options: Options, split: str) -> prepared.Prepared:
    """Opens the prepared set; 'val' is MIMIC-CXR's 'validate'.

    Raises:
      InputError: not prepared (with the command), or damaged.
    """
    return prepared.open_whole(options.data_dir, NAME, split, source=SOURCE)


def read_index(folder: pathlib.Path) -> tuple[list[Film], list[str]]:
    """The films that are used, in the order of the split table, and notes on what is not.

    Raises:
      InputError: a missing folder or table; a bad row of one; a patient in two splits; a film that
        is listed twice or of another patient than its graph says; a scene graph that is none (see
        `scene_graphs.read_graph`); no film in a split.
    """
    graphs, table = _places(pathlib.Path(folder))
    frontal = _read_metadata(table)
    left_out, first = Counter(), {}
    films, faults = [], Counter()
    for film in _listed(table, graphs, frontal, left_out):
        shown = _graph_faults(film, faults, first)
        if shown:
            left_out[shown] += 1
        else:
            films.append(film)
    splits.check_unique((film.id for film in films), where=table)
    groups = {ours: [f.patient for f in films if f.split == ours] for ours in SPLITS.values()}
    splits.check_disjoint(groups, where=str(table))
    if empty := [ours for ours, part in groups.items() if not part]:
        why = ", ".join(f"{count} {what}" for what, count in left_out.items()) or "no rows of it"
        raise InputError(f"{table}: no film of split {empty[0]!r} can be used ({why})")
    notes = [f"left out: {count} films {what}" for what, count in sorted(left_out.items())]
    notes += [f"{count} {kind}, the first: {first[kind]}" for kind, count in sorted(faults.items())]
    return films, notes


def _places(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The folder of scene graphs, and the split table."""
    found = []
    for names in (GRAPHS, (f"{SPLIT_TABLE}.gz", SPLIT_TABLE)):
        depths = ("", "*/", "*/*/")
        places = (place for at in depths for name in names for place in folder.glob(at + name))
        if (place := next(places, None)) is None:
            raise InputError(
                f"{folder}: there is no {names[-1]} in it or two folders deep; --source is {SOURCE}"
            )
        found.append(place)
    return found[0], found[1]


def _read_metadata(table: pathlib.Path) -> dict[str, tuple[str, tuple[int, int]]]:
    """Film -> view and shape, of the frontal films."""
    places = [table.parent / f"{METADATA}.gz", table.parent / METADATA]
    path = next((place for place in places if small_files.is_file(place)), places[0])
    _, rows = tables.scan_table(path, ("dicom_id", "ViewPosition", "Rows", "Columns"))
    frontal = {}
    for row in rows:
        if row["viewposition"] in VIEWS:
            shape = tuple(int(row.real(side, 1, 100_000)) for side in ("rows", "columns"))
            frontal[row.text("dicom_id")] = row["viewposition"], shape
    return frontal


def _listed(
    table: pathlib.Path,
    graphs: pathlib.Path,
    frontal: dict[str, tuple[str, tuple[int, int]]],
    left_out: Counter,
) -> Iterator[Film]:
    """The frontal films of the split table that are there and have a scene graph."""
    _, rows = tables.scan_table(table, ("dicom_id", "study_id", "subject_id", "split"))
    for row in rows:
        split = SPLITS[row.choice("split", SPLITS)]
        for column, form in (("dicom_id", _DICOM), ("study_id", _NUMBER), ("subject_id", _NUMBER)):
            if not form.fullmatch(row[column]):
                raise row.error(column, "expected an id as MIMIC-CXR has them")
        dicom, patient = row["dicom_id"], row["subject_id"]
        folders = ("files", f"p{patient[:2]}", f"p{patient}", f"s{row['study_id']}")
        path = table.parent.joinpath(*folders, f"{dicom}.jpg")
        graph = graphs / f"{dicom}{scene_graphs.SUFFIX}"
        if dicom not in frontal:
            left_out["that are neither PA nor AP"] += 1
        elif not small_files.is_file(graph):
            left_out["without a scene graph"] += 1
        elif not small_files.is_file(path):
            left_out["that are not there"] += 1
        else:
            view, shape = frontal[dicom]
            yield Film(
                path=str(path),
                graph=str(graph),
                id=dicom,
                patient=patient,
                split=split,
                view=view,
                shape=shape,
            )


def _graph_faults(film: Film, faults: Counter, first: dict[str, str]) -> str:
    """Why the film is left out, '' where it is not; notes what else is wrong with its graph."""
    graph = scene_graphs.read_graph(pathlib.Path(film.graph), film.shape)
    if graph.patient != film.patient:
        raise InputError(
            f"{film.graph} is of patient {graph.patient[:40]!r}, but the split table gives the "
            f"film to {film.patient}; unpack both again"
        )
    for kind, texts in graph.faults.items():
        faults[kind] += len(texts)
        first.setdefault(kind, f"{film.graph}: {texts[0]}")
    if graph.twice:
        faults["regions with two boxes"] += 1
        first.setdefault("regions with two boxes", f"{film.graph}: {graph.twice!r}")
        return "of which a region has two boxes"
    count = int((~np.isnan(graph.regions[:, 0])).sum())
    if count < FEWEST:
        kind = f"scene graphs with fewer than {FEWEST} regions"
        faults[kind] += 1
        first.setdefault(kind, f"{film.graph}: {count}")
        return f"with fewer than {FEWEST} regions"
    return "" if graph.view in VIEWS else "whose scene graph says neither PA nor AP"


def _read_film(film: Film, max_side: int) -> Record:
    image = readers.read_film(film.path)
    if image.shape != film.shape:
        found, told = ("x".join(map(str, shape[::-1])) for shape in (image.shape, film.shape))
        raise InputError(
            f"{film.path} is {found} px, but {METADATA} and the boxes are of {told} px; give the "
            "films as published"
        )
    graph = scene_graphs.read_graph(pathlib.Path(film.graph), film.shape)
    present = ~np.isnan(graph.regions[:, 0])
    record = {
        "image": image,
        "id": film.id,
        "group": f"mimic-{film.patient}",
        "view": film.view,
        "findings": graph.anywhere.astype(np.float32),
        "regions": graph.regions,
        "region_present": present,
        "region_findings": np.where(present[:, None], graph.findings, np.float32(np.nan)),
    }
    return preprocess.shrink(record, max_side)
