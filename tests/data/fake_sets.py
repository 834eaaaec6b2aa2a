"""Small copies of every folder layout the sources read, with drawn films."""

import csv
import json
import pathlib

import cv2
import ml_collections
import numpy as np
import pydicom
from PIL import Image

from cxr_jax.data import prepare, sources

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
    return folded_config("brixia_cohen", data_dir, fold)


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
    return sources.block("manifest", path=str(path))


def draw_chest(height: int, width: int, seed: int, *, swapped: bool = False):
    """Film and one mask a lung, by folder side: air dark; the patient's right lung further left."""
    noise = np.random.default_rng(seed).integers(0, 40, (height // 8, width // 8), dtype=np.uint8)
    film = cv2.resize(noise, (width, height)) + np.uint8(180)
    top, bottom = height // 4, 3 * height // 4
    right, left = np.zeros((2, height, width), np.uint8)
    right[top:bottom, width // 8 : 3 * width // 8] = 255
    left[top : bottom - height // 8, 5 * width // 8 : 7 * width // 8] = 255
    film[(right | left) > 0] -= 140
    return film, ({"left": right, "right": left} if swapped else {"left": left, "right": right})


def write_mask(path: pathlib.Path, mask: np.ndarray) -> None:
    """By the suffix; GIF as SCR's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def raw_jsrt(film: np.ndarray) -> bytes:
    """uint8 [H, W], air dark -> the words of an .IMG file of 2048x2048: 12 bits, 0 is white."""
    words = ((255 - cv2.resize(film, (2048, 2048)).astype(np.uint16)) * 16).astype(">u2")
    return words.tobytes()


JSRT_NAMES = {"fold1": ("JPCLN001", "JPCLN003", "JPCNN001"), "fold2": ("JPCLN002", "JPCNN002")}


def make_jsrt(root: pathlib.Path, *, suffix: str = ".IMG", masks: str = ".gif") -> pathlib.Path:
    """JSRT beside SCR: raw films of 2048 pixels (or pictures of 512), masks of 1024."""
    (root / "All247images").mkdir(parents=True)
    for fold, names in JSRT_NAMES.items():
        for name in names:
            film, lungs = draw_chest(512, 512, int(name[-3:]))
            path = root / "All247images" / f"{name}{suffix}"
            path.write_bytes(raw_jsrt(film)) if suffix == ".IMG" else cv2.imwrite(str(path), film)
            for side, mask in lungs.items():
                big = cv2.resize(mask, (1024, 1024), interpolation=cv2.INTER_NEAREST)
                write_mask(root / fold / "masks" / f"{side} lung" / f"{name}{masks}", big)
    return root


def make_montgomery(root: pathlib.Path, count: int = 57) -> pathlib.Path:
    """MontgomerySet: every third film has tuberculosis, sides named the wrong way round."""
    for i in range(1, count + 1):
        film, lungs = draw_chest(80, 64, i, swapped=True)
        name = f"MCUCXR_{i:04d}_{int(i % 3 == 0)}.png"
        write_mask(root / "MontgomerySet" / "CXR_png" / name, film)
        for side, mask in lungs.items():
            write_mask(root / "MontgomerySet" / "ManualMask" / f"{side}Mask" / name, mask)
    return root


def make_shenzhen(root: pathlib.Path, count: int = 70) -> pathlib.Path:
    """ChinaSet_AllFiles beside mask/: every seventh film has no mask."""
    for i in range(1, count + 1):
        film, lungs = draw_chest(64, 72, i)
        stem = f"CHNCXR_{i:04d}_{i % 2}"
        write_mask(root / "ChinaSet_AllFiles" / "CXR_png" / f"{stem}.png", film)
        if i % 7:
            write_mask(root / "mask" / f"{stem}_mask.png", lungs["left"] | lungs["right"])
    return root


BRIXIA_HEADER = [
    "Filename",
    "StudyDate",
    "Modality",
    "StudyId",
    "BrixiaScore",
    "BrixiaScoreGlobal",
] + ["ConsensusTestset", "Subject", "Sex", "AgeAtStudyDateFiveYear"]
CONSENSUS_HEADER = ["Filename"] + [
    f"{kind}{zone}" for kind in ("Mean", "Mode") for zone in (*"ABCDEF", "Global")
]


def write_dicom(path: pathlib.Path, film: np.ndarray, *, inverted: bool = False) -> None:
    """A film uint8 [H, W] as 12-bit DICOM, MONOCHROME1 where `inverted`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.Dataset()
    meta = dataset.file_meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[path.stem])
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.SamplesPerPixel, dataset.PixelRepresentation = "CR", 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = film.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    words = film.astype(np.uint16) * 16
    dataset.PixelData = (4095 - words if inverted else words).astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def make_brixia(root: pathlib.Path, *, separator: str = ";") -> pathlib.Path:
    """The full Brixia set: 24 films of 12 subjects, 3 in the consensus subset."""
    rows, consensus = [BRIXIA_HEADER], [CONSENSUS_HEADER]
    for i in range(24):
        name = f"{1000 + i}.dcm"
        scores = [(i + k) % 4 for k in range(6)] if i else [0, 0, 1, 2, 3, 1]
        in_consensus = int(i in (0, 7, 14))
        score = "".join(map(str, scores))
        rows.append([name, 20200310 + i, "CR", i, score, sum(scores), in_consensus]
                    + [f"s{i // 2}", "F", 12])  # fmt: skip
        if in_consensus:
            modes = [0, 1, 2, 3, 0, 1]
            means = [mode + 0.2 for mode in modes]
            consensus.append([name, *means, sum(means), *modes, sum(modes)])
        film, _ = draw_chest(48, 40, i)
        write_dicom(root / "dicom_clean" / name, film, inverted=bool(i % 2))
    with open(root / "metadata_global_v2.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    write_csv(root / "metadata_consensus_v1.csv", consensus, bom=True)
    return root


def folded_config(name: str, data_dir: pathlib.Path, fold: int = -1) -> ml_collections.ConfigDict:
    """The config's `data` of a prepared set with folds."""
    return sources.block(name, data_dir=str(data_dir), fold=fold)


CHEXPERT_HEADER = [
    *("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding"),
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion"),
    *("Pleural Other", "Fracture", "Support Devices"),
]
CHEXPERT_FILES = {
    "train.csv": [
        "train/patient00001/study1/view1_frontal.jpg",
        "train/patient00002/study2/view1_frontal.jpg",
        "train/patient00002/study1/view1_frontal.jpg",
        "train/patient00002/study1/view2_lateral.jpg",
        *(f"train/patient{k:05}/study1/view1_frontal.jpg" for k in range(3, 13)),
    ],
    "valid.csv": [
        "valid/patient64541/study1/view1_frontal.jpg",
        "valid/patient64542/study1/view1_frontal.jpg",
        "valid/patient64542/study1/view2_lateral.jpg",
    ],
}
# The labels of the 14 columns, as the real tables write them: blank, 0.0, 1.0, -1.0.
CHEXPERT_LABELS = {
    "train/patient00001/study1/view1_frontal.jpg": "1.0,,,,,,,,,0.0,,,,1.0",
    "train/patient00002/study2/view1_frontal.jpg": ",,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "train/patient00002/study1/view1_frontal.jpg": ",1.0,,,1.0,,,,,,,1.0,1.0,",
    "valid/patient64541/study1/view1_frontal.jpg": ",".join(["0.0"] * 13 + ["1.0"]),
}


def make_chexpert(root: pathlib.Path) -> pathlib.Path:
    """CheXpert-v1.0-small under another folder name: 13 + 2 frontal films and a lateral in each."""
    for table, files in CHEXPERT_FILES.items():
        rows = [CHEXPERT_HEADER]
        for i, file in enumerate(files):
            lateral = "lateral" in file
            view = "" if lateral else ("LL" if i == 4 else ("AP", "PA")[i % 2])
            labels = CHEXPERT_LABELS.get(file, ",,,1.0,,-1.0,,,,,0.0,,,").split(",")
            kind = "Lateral" if lateral else "Frontal"
            rows.append([f"CheXpert-v1.0-small/{file}", "Female", 68, kind, view, *labels])
            draw_film(root / file, i)
        write_csv(root / table, rows)
    return root


NIH_HEADER = [
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age"),
    *("Patient Gender", "View Position", "OriginalImage[Width", "Height]"),
    *("OriginalImagePixelSpacing[x", "y]"),
]
NIH_BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
NIH_LABELS = [
    *("Cardiomegaly", "Cardiomegaly|Emphysema", "Edema|Effusion|Pneumonia", "Infiltration"),
    *("No Finding", "Mass|Nodule", "Hernia", "Atelectasis|Nodule", "Pneumothorax", "No Finding"),
]
NIH_FILM_SIDE = 256  # px here; 1024 in the real set


def make_nih(root: pathlib.Path) -> pathlib.Path:
    """24 films of 12 patients in two image folders, the last 4 patients in the test list."""
    rows, lists = [NIH_HEADER], {"train_val_list.txt": [], "test_list.txt": []}
    for i in range(24):
        patient, visit = 1 + i // 2, i % 2
        name = f"{patient:08}_{visit:03}.png"
        rows.append([name, NIH_LABELS[i % 10], visit, patient, 57, "M", ("PA", "AP")[visit]]
                    + [2682, 2749, 0.143, 0.143])  # fmt: skip
        lists["test_list.txt" if patient > 8 else "train_val_list.txt"].append(name)
        folder = root / ("images_001" if i < 20 else "images_002") / "images"
        draw_film(folder / name, i, (NIH_FILM_SIDE, NIH_FILM_SIDE))
    write_csv(root / "Data_Entry_2017_v2020.csv", rows)
    (root / "BBox_List_2017.csv").write_text(
        f"{NIH_BOX_HEADER}\n"
        "00000002_000.png,Pneumonia,256,512,128,64.5\n"
        "00000002_000.png,Effusion,0,100,1024,924,,,\n"
        "00000002_001.png,Infiltrate,10.5,20,30,40\n"
        "00000003_001.png,Mass,1,2,3,4\n"
        "00009999_000.png,Pneumonia,1,2,3,4\n"
    )
    for file, names in lists.items():
        (root / file).write_text("\n".join(names) + "\n")
    return root


def make_3class(root: pathlib.Path) -> pathlib.Path:
    """15 NIH films and 5 COVID-19 films over five folds; patient c0 is in brixia_cohen too."""
    rows = [["image", "class", "source", "nih_findings", "patient", "fold", "in_brixia_cohen"]]
    for i in range(15):
        name, findings = f"{i:08}_000.jpg", ("No Finding", "Pneumonia|Effusion")[i % 2]
        kind = ("normal", "pneumonia")[i % 2]
        rows.append([name, kind, "nih", findings, f"nih-{i:08}", i % 5, 0])
    for i, (patient, fold) in enumerate([("c0", 0), ("c0", 0), ("c1", 1), ("c2", 4), ("c3", 4)]):
        rows.append([f"covid {i}.jpg", "covid", "cohen", "", patient, fold, int(i in (0, 3))])
    for i, row in enumerate(rows[1:]):
        draw_film(root / "images" / row[0], i, (90, 120) if i == 1 else (60, 80))
    write_csv(root / "labels.csv", rows)
    boxes = [
        ["image", "label", *"xywh"],
        ["00000001_000.jpg", "Pneumonia", 30, 15, 60, 60],
        ["00000001_000.jpg", "Mass", 3, 1.5, 6, 6],
        ["00000003_000.jpg", "Infiltration", 1, 2, 3.5, 4],
    ]
    write_csv(root / "boxes.csv", boxes)
    return root


PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_HEADER = [
    *("", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth"),
    *("Projection", "MethodProjection", "Pediatric", "ReportID", "Report", "MethodLabel", "Labels"),
    *("Localizations", "LabelsLocalizationsBySentence", "labelCUIS", "LocalizationsCUIS"),
]
PADCHEST_LABELS = [
    *("['normal']", "['pneumonia', 'pleural effusion']", "['normal', 'scoliosis']", ""),
    *("""['normal', '', " normal "]""", "['unchanged']", "[]"),
]


def draw_film16(path: pathlib.Path, seed: int, size=(60, 80)) -> np.ndarray:
    """A grey film of 16 bits, of which 12 are used: uint16, as it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    film = np.random.default_rng(seed).integers(200, 4000, size).astype(np.uint16)
    film = cv2.GaussianBlur(film, (9, 9), 0)
    assert cv2.imwrite(str(path), film)
    return film


def make_padchest(root: pathlib.Path) -> pathlib.Path:
    """28 rows of 14 patients: 21 frontal, of which 9 are normal; a lateral one in four."""
    rows = [PADCHEST_HEADER]
    for i in range(28):
        name, part = f"2168401113_{i:03d}.png", i % 3
        projection = ("PA", "AP", "AP_horizontal", "L")[i % 4]
        labels = PADCHEST_LABELS[i % 7]
        rows.append([i, name, part, 20140915, f"e{i}", 839860488694 + i // 2, 1930.0, projection]
                    + ["Manual review of DICOM fields", "No", 4991845 + i, "sin hallazgos ."]
                    + ["Physician", labels, "[]", f"[{labels}]", "[]", "[]"])  # fmt: skip
        if projection != "L":
            draw_film16(root / str(part) / name, i)
    write_csv(root / PADCHEST_TABLE, rows)
    return root


BIMCV_LABELS = [
    *("['COVID 19', 'pneumonia']", "['normal']", "['COVID 19 uncertain']", "['normal']"),
    *("['pneumonia'\t 'COVID 19']", "['exclude']", "", "['normal', 'unchanged"),
]


def make_bimcv(root: pathlib.Path) -> pathlib.Path:
    """24 sessions of 12 patients: a frontal film each, every third one stored inverted; and
    one lateral film and one that states no view. The last session has no report."""
    table = [["", "PatientID", "ReportID", "Report", "Labels", "Localizations"]]
    for i in range(24):
        patient, session = f"sub-S{3000 + i // 2:05d}", f"ses-E{6000 + i:05d}"
        folder = root / patient / session / "mod-rx"
        ending = f"run-1_bp-chest_vp-{('pa', 'ap')[i % 2]}_{('dx', 'cr')[i % 3 % 2]}"
        path = folder / f"{patient}_{session}_{ending}.png"
        film = draw_film16(path, i)
        kind = "MONOCHROME1" if i % 3 == 0 else "MONOCHROME2"
        if kind == "MONOCHROME1":
            assert cv2.imwrite(str(path), 4095 - film)
        header = {"00280004": {"vr": "CS", "Value": [kind]}, "00080060": {"Value": ["DX"]}}
        path.with_suffix(".json").write_text(json.dumps(header))
        if i < 23:
            table.append([i, patient, session, "sin hallazgos", BIMCV_LABELS[i % 8], "[]"])
    for ending in ("acq-2_run-1_bp-chest_vp-ll_dx", "run-2_bp-chest_cr"):
        draw_film16(folder / f"{patient}_{session}_{ending}.png", 99)
    labels = root / "derivatives" / "labels" / "labels_covid19_posi.tsv"
    labels.parent.mkdir(parents=True)
    with open(labels, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(table)
    return root


def findings_config(name: str, data_dir: pathlib.Path, **fields) -> ml_collections.ConfigDict:
    """The config's `data` of a set with findings."""
    return sources.block(name, data_dir=str(data_dir), **fields)
