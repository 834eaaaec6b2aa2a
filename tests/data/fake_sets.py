"""Small copies of every folder layout the sources read, with drawn films."""

import csv
import pathlib

import cv2
import ml_collections
import numpy as np

from cxr_jax.data import prepare

# The headers of the real tables.
PUBLIC_HEADER = ["filename"] + [f"{r}-{zone}" for r in "SJ" for zone in (*"ABCDEF", "Global")]
PREPARED_HEADER = (
    ["image", "width", "height"]
    + [f"{reader}_{zone}" for reader in "SJ" for zone in "ABCDEF"]
    + ["lungs", "group", "split"]
)


def draw_film(path: pathlib.Path, seed: int, size=(60, 80)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    film = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    film = cv2.GaussianBlur(film, (9, 9), 0)
    assert cv2.imwrite(str(path), film)
    return film


def draw_lungs(path: pathlib.Path, size=(60, 80)) -> None:
    """Two boxes, so that the right lung is the one on the image's left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    h, w = size
    mask[h // 6 : -h // 6, w // 8 : w // 2 - 4] = 255
    mask[h // 6 : -h // 4, w // 2 + 4 : -w // 8] = 255
    assert cv2.imwrite(str(path), mask)


def write_csv(path: pathlib.Path, rows: list[list], *, bom: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8-sig" if bom else "utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


PUBLIC_STEMS = [f"covid-19-pneumonia-{k}-day{d}" for k in range(20, 32) for d in (1, 5)]


def make_public(root: pathlib.Path) -> pathlib.Path:
    """The public repository as cloned: a byte order mark, odd names, masks for some films."""
    rng = np.random.default_rng(0)
    data = root / "data"
    rows = [PUBLIC_HEADER]
    names = [f"{stem}.png" for stem in PUBLIC_STEMS] + ["immagine 2.png", "mild.JPG"]
    for i, name in enumerate(names):
        senior, junior = rng.integers(0, 4, 6), rng.integers(0, 4, 6)
        rows.append([name, *senior, senior.sum(), *junior, junior.sum()])
        draw_film(data / "public-cohen-subset" / name, i)
        if i % 3 == 0:
            draw_lungs(data / "public-cohen-subset" / "lungs" / f"{pathlib.Path(name).stem}.png")
    write_csv(data / "public-annotations.csv", rows, bom=True)
    return root


def make_prepared(root: pathlib.Path) -> pathlib.Path:
    """The other layout: groups and splits in the table, a film larger than `max_side`."""
    rows = [PREPARED_HEADER]
    for i in range(14):
        size = (90, 120) if i == 0 else (60, 80)
        senior = [0, 1, 2, 3, 0, 1] if i == 0 else [i % 4] * 6
        mask = int(i % 4 != 1)
        rows.append(
            [f"f{i}.png", size[1], size[0], *senior, *[(i + 1) % 4] * 6, mask, f"p{i // 2}"]
            + ["test" if i >= 10 else "train"]
        )
        draw_film(root / "images" / f"f{i}.png", i, size)
        if mask:
            draw_lungs(root / "lungs" / f"f{i}.png", size)
    write_csv(root / "annotations.csv", rows)
    return root


def edit(path: pathlib.Path, line: int, column: str, value: str) -> None:
    """Sets one cell; line 1 is the header."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    rows[line - 1][rows[0].index(column)] = value
    write_csv(path, rows)


def run_prepare(name: str, source: pathlib.Path, data_dir: pathlib.Path, *options: str) -> None:
    prepare.main([name, f"--source={source}", f"--data_dir={data_dir}", *options])


def brixia_config(data_dir: pathlib.Path, fold: int = -1) -> ml_collections.ConfigDict:
    data = {"name": "brixia_cohen", "data_dir": str(data_dir), "fold": fold}
    return ml_collections.ConfigDict(data | {"min_severity": 0, "max_severity": 18})


MANIFEST_HEADER = (
    ["image", "group", "split", "view", "lungs", "lesion", "diagnosis"]
    + [f"severity_{zone}" for zone in "ABCDEF"]
    + ["Edema", "pleural effusion", "scanner"]
)


def make_manifest(root: pathlib.Path) -> pathlib.Path:
    rows = [MANIFEST_HEADER]
    for i, split in enumerate(["train", "train", "val", "test"]):
        name = f"films/{i}.png"
        draw_film(root / name, i)
        draw_lungs(root / f"masks/{i}.png")
        masks = [f"masks/{i}.png"] * 2 if i != 1 else ["", ""]
        diagnosis = ["COVID-19", "", "normal", "other infection"][i]
        scores = [0, 1, 2, 3, "", 1] if i == 0 else [""] * 6
        rows.append([name, f"p{i}", split, "pa", *masks, diagnosis, *scores, i % 2, "", "x"])
    write_csv(root / "films.csv", rows)
    return root / "films.csv"


def manifest_config(path) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"name": "manifest", "path": str(path)})
