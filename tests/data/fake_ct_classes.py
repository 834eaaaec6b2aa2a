"""Small copies of the folders of CT sets whose slices have a class."""

import pathlib

import cv2
import numpy as np
from fake_sets import draw_film, write_csv
from fake_volumes import draw_chest

SPLITS = ("train", "val", "test")

# Publication or paper -> slices; 2020.02.10 is in training and test, paper 6 in training and val.
COVID = {
    "train": ["2020.02.10.20021584-p6-52%0.png", "2020.03.01.20029769-p21-73_1%1.png"],
    "val": ["bmj.m606.full-p4-22%6.png"],
    "test": ["2020.02.10.20021584-p6-52%1.png", "PIIS0140673620303603%8.png"],
}
NON_COVID = {
    "train": ["6%0.jpg", "10%1.jpg", "1030.png"],
    "val": ["6%2.jpg", "1200.png"],
    "test": ["1033.png", "ncovid3.jpg"],
}


def make_covid_ct(root: pathlib.Path) -> pathlib.Path:
    """The public repository, its archives unpacked."""
    for name, lists in (("COVID", COVID), ("NonCOVID", NON_COVID)):
        for k, split in enumerate(SPLITS):
            for i, file in enumerate(lists[split]):
                path = root / "Images-processed" / f"CT_{name}" / file
                draw_film(path, 10 * k + i + (100 if name == "COVID" else 0), (40 + i, 50))
            path = root / "Data-split" / name / f"{split}CT_{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lists[split]) + "\n\n")
    return root


def make_covid_table(root: pathlib.Path) -> pathlib.Path:
    """The other layout: four slices of two publications a split."""
    rows = [["image", "label", "source_hint", "split", "group"]]
    for i in range(12):
        split = SPLITS[i // 4]
        rows.append([f"s{i}.jpg", i % 2, "x", split, f"{split}-{i % 4 // 2}"])
        draw_film(root / "images" / f"s{i}.jpg", i, (40, 48))
    write_csv(root / "labels.csv", rows)
    return root


# One of every set that COVIDx is made of; patients 202 and 0047 are in two splits.
COVIDX = {
    "train": [
        ("NCP_341_1834_0022.png", 2, "NCP_341"),
        ("CP_1170_3388_0082.png", 1, "CP_1170"),
        ("Normal_3840_5_0001.png", 0, "Normal_3840"),
        ("normal1_patient202_SR_2_IM00007.png", 0, "patient202"),
        ("volume-covid19-A-0047_0-0012.png", 2, "volume-covid19-A-0047"),
        ("HUST-Patient1-0001.png", 2, "HUST-Patient1"),
        ("radiopaedia-29090-25135-0-0030.png", 2, "radiopaedia-29090"),
        ("study_0793-0012.png", 2, "study_0793"),
    ],
    "val": [
        ("volume-covid19-A-0047_1_ct-0020.png", 2, "volume-covid19-A-0047"),
        ("LIDC-IDRI-0012-1.3.6.1.4.1-0100.png", 0, "LIDC-IDRI-0012"),
        ("CP_590_2952_0010.png", 1, "CP_590"),
    ],
    "test": [
        ("normal4_patient202_SR_2_IM00007.png", 0, "patient202"),
        ("137covid_patient1_SR_3_IM00023.png", 2, "patient1"),
        ("coronacases_003-0040.png", 2, "coronacases_003"),
        ("radiopaedia_10_85902_1-0060.png", 2, "radiopaedia_10"),
        ("CP_664_3026_0005.png", 1, "CP_664"),
    ],
}
BOX = (4, 6, 44, 38)


def make_covidx(root: pathlib.Path) -> pathlib.Path:
    """Lists parted by blanks, a box of the body in each line."""
    for k, split in enumerate(SPLITS):
        lines = []
        for i, (name, label, _) in enumerate(COVIDX[split]):
            draw_film(root / "2A_images" / name, 10 * k + i, (48, 48))
            lines.append(" ".join(map(str, (name, label, *BOX))))
        (root / f"{split}_COVIDx_CT-2A.txt").write_text("\n".join(lines) + "\n")
    return root


def make_sarscov2(root: pathlib.Path, count: int = 140) -> pathlib.Path:
    """Numbers from 1, some missing; every picture of its own size."""
    for folder, name in (("COVID", "Covid"), ("non-COVID", "Non-Covid")):
        for number in range(1, count + 1):
            if number % 17:
                path = root / folder / f"{name} ({number}).png"
                draw_film(path, number, (20 + number % 5, 24))
    return root


def make_cncb(root: pathlib.Path, patients: int = 6) -> pathlib.Path:
    """Patients 1..6 of each class, of one or two examinations of four slices; a slice and an
    examination are missing."""
    scans = [["zip_file", "label", "patient_id", "scan_id", "n_slice"]]
    lesions = [["imgpath"]]
    number = 100
    for label in ("NCP", "CP", "Normal"):
        for patient in range(1, patients + 1):
            for _ in range(1 + patient % 2):
                number += 1
                scans.append([f"{label}-1.zip", label, patient, number, 4])
                for k in range(4):
                    name = (
                        f"{label}/{patient}/{number}/{k:04d}{'.jpg' if label == 'CP' else '.png'}"
                    )
                    draw_film(root / name, number * 10 + k, (32, 36))
                    if label != "Normal" and k in (1, 2):
                        lesions.append([name])
    scans.append(["Normal-9.zip", "Normal", 99, 999, 4])
    lesions.append(["NCP/1/101/0077.png"])
    write_csv(root / "unzip_filenames.csv", scans)
    write_csv(root / "lesions_slices.csv", lesions)
    write_csv(root / "metadata.csv", [["patient_id", "scan_id", "age"], [1, 101, 50]])
    return root


def drawn_mask(k: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice in 8 bits and its mask: k % 3 tells no lesion, ground glass, consolidation too."""
    values, lungs, lesion = draw_chest(4, 48, k, lesions=range(4))
    mask = (lungs[1] > 0).astype(np.uint8)
    if k % 3:
        mask[lesion[1] > 0] = 2
    if k % 3 == 2:
        rows, columns = np.nonzero(lesion[1])
        mask[rows.min() : rows.min() + 3, columns.min() : columns.min() + 4] = 3
    return np.clip((values[1] + 1350) / 6, 0, 255).astype(np.uint8), mask


def make_cncb_lesions(root: pathlib.Path, patients: int = 7) -> pathlib.Path:
    """ct_lesion_seg/: three slices with a mask for each patient, and one without."""
    folder = root / "ct_lesion_seg"
    for patient in range(1, patients + 1):
        for k in range(4):
            image, mask = drawn_mask(k)
            for kind in ("image", "mask"):
                (folder / kind / str(patient)).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / "image" / str(patient) / f"{k}.jpg"), image)
            if k < 3:
                assert cv2.imwrite(str(folder / "mask" / str(patient) / f"{k}.png"), mask)
    return root
