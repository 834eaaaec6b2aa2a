"""Small copies of the public layouts of sets with boxes, with drawn films."""

import csv
import gzip
import io
import json
import pathlib
from typing import Any

from fake_sets import draw_chest, draw_film, write_csv, write_dicom

from cxr_jax.data.records import REGIONS
from cxr_jax.data.sources import scene_graphs, vindr_cxr

SHAPE = (60, 80)  # of a drawn film


def write_gz(path: pathlib.Path, rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path.write_bytes(gzip.compress(text.getvalue().encode()))


def dicom_name(number: int) -> str:
    return "-".join([f"{number:08x}", *["0a1b2c3d"] * 4])


def graph_object(name: str, box: list[float]) -> dict[str, Any]:
    """A region as the real files have it: a box on a copy of 224 px, and the original one."""
    small = dict(zip(("x1", "y1", "x2", "y2"), (3, 4, 100, 120)))
    original = dict(zip(("original_x1", "original_y1", "original_x2", "original_y2"), box))
    return {
        "object_id": f"x_{name}",
        **small,
        "width": 97,
        "height": 116,
        "bbox_name": name,
        "synsets": ["C0024109"],
        "name": name.title(),
        **original,
        "original_width": box[2] - box[0],
        "original_height": box[3] - box[1],
    }


def graph_attributes(name: str, *sentences: list[str]) -> dict[str, Any]:
    return {
        name: True,
        "bbox_name": name,
        "synsets": ["C0024109"],
        "name": name.title(),
        "attributes": list(sentences),
        "attributes_ids": [["C1"] for _ in sentences],
        "phrases": ["A sentence." for _ in sentences],
        "severity_cues": [[] for _ in sentences],
        "object_id": f"x_{name}",
    }


def scene_graph(number: int, patient: int) -> dict[str, Any]:
    """Boxes of all regions but the abdomen, one of them over the film's edge; another region of
    the 36; sentences of a lung, its zone and the chest wall."""
    objects = [
        graph_object(name, [row, row // 2, row + 20, row // 2 + 15])
        for row, name in enumerate(REGIONS[:-1])
    ]
    objects[0] = graph_object("right lung", [-5, 10, 30, 66])
    objects.append(graph_object("left cardiac silhouette", [1, 1, 2, 2]))
    sentences = (
        ["anatomicalfinding|yes|lung opacity", "anatomicalfinding|no|pneumothorax"],
        ["anatomicalfinding|no|lung opacity", "disease|yes|pneumonia", "nlp|yes|abnormal"],
    )
    return {
        "image_id": dicom_name(number),
        "viewpoint": ("PA", "AP")[number % 2],
        "patient_id": patient,
        "study_id": 50000000 + number,
        "gender": "F",
        "age_decile": "50-60",
        "StudyOrder": 1,
        "objects": objects,
        "attributes": [
            graph_attributes("right lung", *sentences),
            graph_attributes("left lung", ["anatomicalfinding|no|lung opacity"]),
            graph_attributes("left chest wall", ["anatomicalfinding|yes|rib fracture"]),
            graph_attributes("abdomen", ["anatomicalfinding|yes|hernia", "texture|yes|opacity"]),
        ],
        "relationships": [],
    }


IMAGENOME_SPLITS = ["train", "train", "train", "train", "validate", "test", "test"]


def make_imagenome(root: pathlib.Path) -> pathlib.Path:
    """Seven films of six patients in both downloads, and a lateral film without a scene graph."""
    mimic = root / "mimic-cxr-jpg" / "2.0.0"
    split, metadata = [["dicom_id", "study_id", "subject_id", "split"]], []
    metadata.append(["dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns"])
    for i in range(8):
        lateral = i == 7
        name, patient, study = dicom_name(i), 10000000 + max(i, 1), 50000000 + i
        split.append([name, study, patient, "train" if lateral else IMAGENOME_SPLITS[i]])
        view = "LATERAL" if lateral else ("PA", "AP")[i % 2]
        metadata.append([name, patient, study, view, *SHAPE])
        folder = mimic / "files" / f"p{str(patient)[:2]}" / f"p{patient}" / f"s{study}"
        draw_film(folder / f"{name}.jpg", i, SHAPE)
        if not lateral:
            write_graph(root, i, scene_graph(i, patient))
    write_gz(mimic / "mimic-cxr-2.0.0-split.csv.gz", split)
    write_gz(mimic / "mimic-cxr-2.0.0-metadata.csv.gz", metadata)
    return root


def graph_path(root: pathlib.Path, number: int) -> pathlib.Path:
    folder = root / "chest-imagenome" / "1.0.0" / "silver_dataset" / "scene_graph"
    return folder / f"{dicom_name(number)}{scene_graphs.SUFFIX}"


def write_graph(root: pathlib.Path, number: int, graph: Any) -> pathlib.Path:
    path = graph_path(root, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(graph))
    return path


def edit_gz(path: pathlib.Path, line: int, column: str, value: str) -> None:
    """Sets one cell; line 1 is the header."""
    rows = list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode())))
    rows[line - 1][rows[0].index(column)] = value
    write_gz(path, rows)


VINDR_FINDINGS = [name.capitalize() for name in vindr_cxr.FINDINGS[:-2]]


def vindr_name(number: int) -> str:
    return f"{number:032x}"


def vindr_votes(*findings: str) -> list[int]:
    names = [*vindr_cxr.FINDINGS[:-1], "no finding"]
    chosen = findings or ("no finding",)
    return [int(name in chosen) for name in names]


# Film -> what each of its three readers draws.
VINDR_READERS: dict[int, list[list[tuple[str, list[float]]]]] = {
    0: [
        [("cardiomegaly", [10, 20, 30, 40]), ("nodule/mass", [1, 1, 5, 5])],
        [("cardiomegaly", [12, 20, 32, 40])],
        [("cardiomegaly", [14, 20, 34, 40]), ("edema", [3, 3, 8, 8])],
    ],
    1: [[("edema", [1, 1, 9, 9])], [("edema", [20, 20, 29, 29])], []],
}


def make_vindr(root: pathlib.Path) -> pathlib.Path:
    """Ten training films of three readers each and three test films; 40 x 48 px."""
    labels = [["image_id", "rad_id", *VINDR_FINDINGS, "Other diseases", "No finding"]]
    boxes = [["image_id", "rad_id", "class_name", *("x_min", "y_min", "x_max", "y_max")]]
    for i in range(10):
        for reader, drawn in enumerate(VINDR_READERS.get(i, [[]] * 3)):
            who = [vindr_name(i), f"R{reader + 1}"]
            labels.append([*who, *vindr_votes(*(name for name, _ in drawn))])
            boxes += [[*who, name.capitalize(), *box] for name, box in drawn]
            boxes += [] if drawn else [[*who, "No finding", "", "", "", ""]]
    write_csv(root / "annotations" / "image_labels_train.csv", labels)
    write_csv(root / "annotations" / "annotations_train.csv", boxes)
    labels = [["image_id", *VINDR_FINDINGS, "Other disease", "No finding"]]
    boxes = [["image_id", "class_name", *("x_min", "y_min", "x_max", "y_max")]]
    for i in range(10, 13):
        drawn = [("ild", [1, 2, 30, 40]), ("ild", [2, 2, 30, 50.5])] if i == 10 else []
        labels.append([vindr_name(i), *vindr_votes(*(name for name, _ in drawn))])
        boxes += [[vindr_name(i), "ILD", *box] for _, box in drawn]
        boxes += [] if drawn else [[vindr_name(i), "No finding", "", "", "", ""]]
    write_csv(root / "annotations" / "image_labels_test.csv", labels)
    write_csv(root / "annotations" / "annotations_test.csv", boxes)
    for i in range(13):
        film, _ = draw_chest(48, 40, i)
        write_dicom(root / ("train" if i < 10 else "test") / f"{vindr_name(i)}.dicom", film)
    return root
