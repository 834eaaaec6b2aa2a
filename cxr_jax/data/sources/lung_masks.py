"""Films with drawn lungs, for lung segmentation: JSRT with SCR's masks, Montgomery, Shenzhen.

| set | films | masks | test split |
| --- | --- | --- | --- |
| `jsrt_scr` | 247, half with one nodule | a file a lung, of all | SCR's fold 2 (123 films) |
| `montgomery` | 138, 58 with tuberculosis | a file a lung, of all | the first 50 |
| `shenzhen` | 662, 336 with tuberculosis | one file, of 566 | the first 50 with a mask |

Films: Shiraishi et al., AJR 174, 2000 (db.jsrt.or.jp); Jaeger et al., Quant. Imaging Med. Surg. 4,
2014 (National Library of Medicine). Masks: van Ginneken et al., Medical Image Analysis 10, 2006
(SCR); Candemir et al., IEEE TMI 33, 2014; Stirenko et al., arXiv:1803.01199. All are published as
PA films. SCR trains on fold 1 and tests on fold 2, then the other way round; here the first half
is done. The 'first 50' are Signoroni et al.'s (2021), in the order of the names. A film of
Shenzhen without a mask is for training, without `lungs`.

Folders, each below --source or in one of its usual places (`_PLACES`):

- `jsrt_scr`: `All247images/JPCLN001.IMG` (or `.png`, `.jpg`, `.dcm`) and `fold1/masks/left lung/`,
  `.../right lung/`, `fold2/...` with `JPCLN001.gif` (or `.bmp`, `.png`).
- `montgomery`: `CXR_png/MCUCXR_0001_0.png`, `ManualMask/leftMask/`, `ManualMask/rightMask/`.
- `shenzhen`: `ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png`, `mask/CHNCXR_0001_0_mask.png`.

Which lung is which is told from the picture, never from the folder's name: the one further left in
the image is the right lung. Of a file that holds one lung the largest component counts: some have
stray strokes. A mask drawn on another grid than its film (SCR: 1024 for 2048 pixels) shows the
same field: whichever of the two is larger is reduced to the other's size, the film by area means,
the mask to the nearest pixel; their shapes must agree to one pixel.

The training films are dealt to five folds by patient, balanced by disease and by having a mask.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import ClassVar

import cv2
import numpy as np

from cxr_jax.data import preprocess, readers, splits, zones
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.errors import InputError

FIELDS = frozenset({"image", "id", "group", "view", "lungs"})
TEST_PATIENTS = 50  # of Montgomery and of Shenzhen

LAYOUTS = {
    "jsrt_scr": "All247images/ of db.jsrt.or.jp beside fold1/ and fold2/ of the SCR database",
    "montgomery": "MontgomerySet/ of the National Library of Medicine",
    "shenzhen": "ChinaSet_AllFiles/ of the National Library of Medicine beside mask/",
}
# Where the parts of a set lie below --source: as downloaded, and in the mirrors.
_PLACES = {
    "JSRT films": ("All247images", "JSRT/All247images", "All247images/All247images", "images"),
    "SCR folds": ("", "scratch", "SCR", "scr/scratch", "SCR/scratch"),
    "Montgomery": ("", "MontgomerySet", "Montgomery/MontgomerySet"),
    "Shenzhen films": ("CXR_png", "ChinaSet_AllFiles/CXR_png"),
    "Shenzhen masks": ("mask", "mask/mask", "shcxr-lung-mask/mask/mask", "shcxr-lung-mask/mask"),
}
_JSRT_SUFFIXES = (".img", ".png", ".jpg", ".jpeg", ".dcm")
_MASK_SUFFIXES = (".gif", ".bmp", ".png")


@dataclasses.dataclass(frozen=True)
class Film:
    """One film. `masks`: none, one file of both lungs, or one file a lung. `clear`: there is no
    disease in it that could make a lung lighter than its surroundings."""

    path: pathlib.Path
    id: str
    group: str
    split: str
    diseased: bool
    masks: tuple[pathlib.Path, ...]
    clear: bool = False
    fold: int = -1  # of the training films; -1 in the test split


class JsrtScr(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/jsrt_scr/1.0.0."""

    name = "jsrt_scr"
    description = "JSRT chest radiographs with and without a nodule, lungs drawn for SCR."
    homepage = "http://db.jsrt.or.jp/eng.php"
    citation = (
        "van Ginneken et al., Segmentation of anatomical structures in chest radiographs using "
        "supervised methods. Medical Image Analysis 10, 2006. doi:10.1016/j.media.2005.02.002"
    )


class Montgomery(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/montgomery/1.0.0."""

    name = "montgomery"
    description = "Chest radiographs of a tuberculosis screening in Montgomery County, USA."
    homepage = "https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html"
    citation = (
        "Jaeger et al., Two public chest X-ray datasets for computer-aided screening of pulmonary "
        "diseases. Quant. Imaging Med. Surg. 4, 2014. doi:10.3978/j.issn.2223-4292.2014.11.20"
    )


class Shenzhen(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/shenzhen/1.0.0."""

    name = "shenzhen"
    description = "Chest radiographs of outpatients in Shenzhen, half with tuberculosis."
    homepage = Montgomery.homepage
    citation = Montgomery.citation


def jsrt_scr_films(source: pathlib.Path) -> list[Film]:
    """The films that SCR has drawn, in the order of their names.

    Raises:
      InputError: a missing folder, a film without both masks, a mask without its film, two files
        of one film or lung, a film in both folds, or another name than JPCLN001 and JPCNN001.
    """
    name = r"JPC[LN]N\d{3}"
    folder = _find(source, "JSRT films")
    images = _by_stem(folder, name, _JSRT_SUFFIXES)
    root = _find(source, "SCR folds", holding="fold1/masks")
    folds = {
        split: _pairs([root / fold / "masks" / f"{side} lung" for side in ("left", "right")], name)
        for split, fold in (("train", "fold1"), ("test", "fold2"))
    }
    if both := sorted(set(folds["train"]) & set(folds["test"])):
        raise InputError(f"{root}: {both[0]} is in fold1 and in fold2; unpack SCR's archive again")
    masks = {stem: (split, pair) for split, pairs in folds.items() for stem, pair in pairs.items()}
    _check_films(masks, images, folder)
    _check_masks(images, masks, root)
    films = [
        Film(
            path=path,
            id=stem,
            group=stem,
            split=masks[stem][0],
            diseased=stem.startswith("JPCLN"),
            masks=masks[stem][1],
            clear=True,
        )
        for stem, path in images.items()
    ]
    return _dealt(films, source)


def montgomery_films(source: pathlib.Path) -> list[Film]:
    """The films of Montgomery, in the order of their names.

    Raises:
      InputError: a missing folder, a film without both masks, a mask without its film, another
        name than MCUCXR_0001_0, or too few films.
    """
    name = r"(MCUCXR_\d{4})_[01]"
    root = _find(source, "Montgomery", holding="CXR_png")
    images = _by_stem(root / "CXR_png", name, (".png",))
    masks = _pairs([root / "ManualMask" / f"{side}Mask" for side in ("left", "right")], name)
    _check_films(masks, images, root / "CXR_png")
    _check_masks(images, masks, root / "ManualMask")
    films = [_tb_film(path, name, masks[stem]) for stem, path in images.items()]
    return _dealt(_first_are_test(films), source)


def shenzhen_films(source: pathlib.Path) -> list[Film]:
    """The films of Shenzhen, in the order of their names; those without a mask have none.

    Raises:
      InputError: a missing folder, a mask without its film, two masks of one film, another name
        than CHNCXR_0001_0 and CHNCXR_0001_0_mask, or too few films.
    """
    folder, name = _find(source, "Shenzhen films"), r"(CHNCXR_\d{4})_[01]"
    images = _by_stem(folder, name, (".png",))
    # `mask/mask` of the mirror is looked for where `mask` holds no picture itself.
    masks = _by_stem(_find(source, "Shenzhen masks", holding="*.png"), name)
    _check_films(masks, images, folder)
    films = [
        _tb_film(path, name, (masks[stem],) if stem in masks else ())
        for stem, path in images.items()
    ]
    return _dealt(_first_are_test(films), source)


@dataclasses.dataclass(frozen=True)
class LungSet:
    """One of the three sets, as `sources.DataSet`.

    Attributes:
      kind: what writes it.
      films: folder -> its films; lists the files, reads none.
    """

    Options: ClassVar[type] = FoldedOptions
    kind: type[prepared.RecordBuilder]
    films: Callable[[pathlib.Path], list[Film]]

    def open_split(self, options: FoldedOptions, split: str) -> prepared.Prepared:
        """Opens the prepared set; arguments and errors as of `prepared.open_folded`."""
        name = self.kind.name
        return prepared.open_folded(
            options.data_dir, name, split, fold=options.fold, source=LAYOUTS[name]
        )

    def builder(
        self, source: pathlib.Path, *, data_dir: str, max_side: int
    ) -> prepared.RecordBuilder:
        """The builder of the set; lists the files, reads none.

        Raises:
          InputError: what `films` raises.
        """
        films = self.films(source)
        by_split = {name: [f for f in films if f.split == name] for name in ("train", "test")}
        files = [path for film in films for path in (film.path, *film.masks)]
        return prepared.film_builder(
            self.kind,
            by_split,
            read=read_film_record,
            fields=FIELDS,
            partial=frozenset() if all(film.masks for film in films) else frozenset({"lungs"}),
            folds={split: [film.fold for film in part] for split, part in by_split.items()},
            fingerprint=prepared.fingerprint(None, files, max_side),
            data_dir=data_dir,
            max_side=max_side,
        )


JSRT_SCR = LungSet(JsrtScr, jsrt_scr_films)
MONTGOMERY = LungSet(Montgomery, montgomery_films)
SHENZHEN = LungSet(Shenzhen, shenzhen_films)


def read_film_record(film: Film, max_side: int) -> Record:
    """Reads film and masks, reduced to `max_side`; `lungs` only where there is a mask.

    Raises:
      InputError: an unreadable film or mask, an empty mask, one of another shape than the film's,
        two masks of one lung, or a negative.
    """
    raw = film.path.suffix.lower() == ".img"
    image = (readers.read_jsrt if raw else readers.read_film)(film.path)
    record = {"image": image, "id": film.id, "group": film.group, "view": "PA"}
    if not film.masks:
        return preprocess.shrink(record, max_side)
    record["image"], masks = _on_one_grid(image, film, max_side)
    record["lungs"] = lungs_of(masks, film.masks)
    if film.clear:
        _check_air_is_dark(record["image"], record["lungs"], film.path)
    return record


def _on_one_grid(
    image: np.ndarray, film: Film, max_side: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Film and masks at the smaller of their sizes (see the module), and at most `max_side`."""
    masks = [readers.read_mask(path) for path in film.masks]
    shapes = [image.shape, *(mask.shape for mask in masks)]
    height, width = min(shapes)
    for path, (h, w) in zip(film.masks, shapes[1:]):
        full_h, full_w = image.shape
        if abs(h / w - full_h / full_w) * min(w, full_w) > 1:  # pixels of height at one width
            raise InputError(
                f"{path}: the mask has {w}x{h} px (width x height), its film {film.path.name} "
                f"{full_w}x{full_h}; they must show the same field: download both again"
            )
    scale = min(1.0, max_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))  # OpenCV: width first
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image, [cv2.resize(m, size, interpolation=cv2.INTER_NEAREST_EXACT) for m in masks]


def lungs_of(masks: list[np.ndarray], paths: tuple[pathlib.Path, ...]) -> np.ndarray:
    """Labels of the lungs from one mask of both or from one mask a lung.

    Args:
      masks: one or two [H, W], nonzero inside.
      paths: their files, for the message.

    Returns:
      uint8 [H, W]: 0 outside, 1 right lung (image left), 2 left lung.

    Raises:
      InputError: an empty mask, or two masks of the same lung.
    """
    for mask, path in zip(masks, paths):
        if not mask.any():
            raise InputError(f"{path}: the mask has no lung pixel; download it again")
    if len(masks) == 1:
        return zones.split_lungs(masks[0])
    one, other = (_largest_part(mask) for mask in masks)
    if 2 * (one & other).sum() > min(one.sum(), other.sum()):
        raise InputError(
            f"{paths[1]}: it shows the same lung as {paths[0]}; each file has one lung"
        )
    columns = np.arange(one.shape[1])
    right, left = sorted((one, other), key=lambda lung: np.average(columns, weights=lung.sum(0)))
    labels = np.zeros(one.shape, np.uint8)
    labels[left] = zones.LEFT
    labels[right] = zones.RIGHT
    return labels


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """bool [H, W]: the largest 4-connected component of a mask that is not empty."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return parts == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))  # 0 is the background


def _check_air_is_dark(image: np.ndarray, lungs: np.ndarray, path: pathlib.Path) -> None:
    """Refuses a negative: clear lungs are darker than the mediastinum and what is below them."""
    rows, columns = (np.flatnonzero((lungs > 0).any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = lungs[box] > 0
    if inside.all():
        return  # nothing to compare with
    lung, rest = image[box][inside].mean(), image[box][~inside].mean()
    if lung > rest:
        raise InputError(
            f"{path}: the lungs (mean {lung:.0f}) are brighter than what surrounds them "
            f"({rest:.0f}), so this is a negative; air must be dark: invert it, or use the .IMG"
        )


def _find(source: pathlib.Path, part: str, *, holding: str = "") -> pathlib.Path:
    """The folder of a part of a set, at the first usual place that has (a match of) `holding`."""
    for place in _PLACES[part]:
        folder = pathlib.Path(source) / place
        if folder.is_dir() and (not holding or next(folder.glob(holding), None)):
            return folder
    places = ", ".join("/".join(filter(None, (place, holding))) for place in _PLACES[part])
    raise InputError(f"{source}: found none of {places} ({part}); --source is the folder above")


def _folder(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; download the masks again")
    return path


def _by_stem(
    folder: pathlib.Path, name: str, suffixes: tuple[str, ...] = _MASK_SUFFIXES
) -> dict[str, pathlib.Path]:
    """The pictures of a folder by film name (without '_mask'), in the order of the names."""
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        stem = path.stem.removesuffix("_mask")
        if not re.fullmatch(name, stem):
            raise InputError(f"{path}: not a name of this set ({name}); move it elsewhere")
        if stem in found:
            raise InputError(f"{path}: {stem} is there twice, see {found[stem].name}; leave one")
        found[stem] = path
    if not found:
        raise InputError(f"{folder}: holds none of {', '.join(suffixes)}; download it again")
    return found


def _pairs(folders: list[pathlib.Path], name: str) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
    """The masks of two folders, one a lung, by film name."""
    one, other = (_by_stem(_folder(folder), name) for folder in folders)
    _check_masks(other, one, folders[0])
    _check_masks(one, other, folders[1])
    return {stem: (one[stem], other[stem]) for stem in one}


def _check_films(masks: Iterable[str], images: Iterable[str], folder: pathlib.Path) -> None:
    if missing := sorted(set(masks) - set(images)):
        raise InputError(f"{folder}: no film {missing[0]}, which has a mask; download it again")


def _check_masks(images: Iterable[str], masks: Iterable[str], folder: pathlib.Path) -> None:
    if missing := sorted(set(images) - set(masks)):
        raise InputError(f"{folder}: no mask of {missing[0]}; download the masks again")


def _tb_film(path: pathlib.Path, name: str, masks: tuple[pathlib.Path, ...]) -> Film:
    """A film of the two tuberculosis sets: the patient's number and 0 or 1 are in its name."""
    return Film(
        path=path,
        id=path.stem,
        group=re.fullmatch(name, path.stem)[1],
        split="train",
        diseased=path.stem.endswith("_1"),
        masks=masks,
    )


def _first_are_test(films: list[Film]) -> list[Film]:
    """The first patients with a mask are the test split, with all their films."""
    masked = list(dict.fromkeys(film.group for film in films if film.masks))
    test = set(masked[:TEST_PATIENTS])
    return [dataclasses.replace(f, split="test") if f.group in test else f for f in films]


def _dealt(films: list[Film], source: pathlib.Path) -> list[Film]:
    """The films, those for training with their folds."""
    train = [film for film in films if film.split == "train"]
    for split in ("train", "test"):
        if not any(film.split == split and film.masks for film in films):
            raise InputError(
                f"{source}: {len(films)} films leave none with a mask to the {split} split; "
                "download the set again"
            )
    folds = splits.balanced_folds(
        [film.group for film in train],
        [film.diseased + 2 * bool(film.masks) for film in train],
        folds=prepared.FOLDS,
        edges=(1, 2, 3),
    )
    fold_of = {film.id: int(fold) for film, fold in zip(train, folds)}
    return [dataclasses.replace(film, fold=fold_of.get(film.id, -1)) for film in films]
