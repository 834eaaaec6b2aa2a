"""Chooses what a film is held against before it is scored, and says what that catches.

    python benchmarks/film_quality.py --lungs=LUNGS [--data_dir=DIR] [--output=x.json] [--write]

LUNGS is a trained run of `configs/lungs.py:cohen`, or a model with a card. Good films are those of
`brixia_cohen`, `cxr_3class` and phantoms. Mean film and ranges come from training films (of
`cxr_3class` the folds 0 to 2): each range leaves out a five-hundredth of them, at each end that is
a fault. The likeness above which a picture is no CT slice leaves out as many of the training slices
of `ct_lesions` and `covid_ct`. `--write` puts them into the package. Counted are test films (folds
3 and 4), and pictures that should be noticed, made of them: turned, inverted, cut to one lung;
axial CT slices of `ct_lesions` and `covid_ct`; photographs that come with scikit-image and
scikit-learn, and cuts of them. No lateral film is at hand; a DICOM file that says it is one is
refused by the reader.
"""

import argparse
import json
import pathlib
import sys
import warnings

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import skimage.data
import sklearn.datasets
from tqdm import tqdm

from benchmarks.common import write_result
from cxr_jax import writers
from cxr_jax.data import lungs as lung_labels
from cxr_jax.data import readers, sources
from cxr_jax.inputs import quality
from cxr_jax.inputs.lungs import Segmenter

TAIL = 0.002  # of the training films, at each end that is a fault
# By hand: the films at hand are stored grey; a picture that is like nothing is neither turned nor
# inverted, but no film.
BY_HAND = {"coloured": 12.0, "turned": 0.1, "inverted": 0.4}
PHOTOGRAPHS = (
    *("astronaut", "camera", "coffee", "chelsea", "rocket", "coins", "page", "text", "moon"),
    *("clock", "brick", "grass", "gravel", "immunohistochemistry", "retina", "colorwheel"),
)


def films(data_dir: str, part: str, phantoms: int) -> dict[str, list[np.ndarray]]:
    """Set -> films, uint8 [H, W], for `part` 'train' or 'test'."""
    cohen = sources.open_source(sources.block("brixia_cohen", data_dir=data_dir), part)
    found = {"brixia_cohen": [cohen[k]["image"] for k in range(len(cohen))]}
    found["cxr_3class"] = []
    for fold in (0, 1, 2) if part == "train" else (3, 4):
        block = sources.block("cxr_3class", data_dir=data_dir, fold=(fold + 1) % 5, test_fold=fold)
        source = sources.open_source(block, "test")
        found["cxr_3class"] += [source[k]["image"] for k in range(len(source))]
    drawn = sources.open_source(sources.block("phantom_cxr", size=256, test=phantoms), part)
    found["phantoms"] = [drawn[k]["image"] for k in range(min(phantoms, len(drawn)))]
    return found


def photographs() -> list[tuple[np.ndarray, float]]:
    """Photographs and eight cuts of each, uint8 [H, W], with how coloured they are."""
    pictures = list(sklearn.datasets.load_sample_images().images)
    for name in PHOTOGRAPHS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pictures.append(np.asarray(getattr(skimage.data, name)()))
        except (OSError, ImportError, ConnectionError):  # one that would have to be fetched
            continue
    rng, found = np.random.default_rng(0), []
    for picture in pictures:
        picture = np.dstack([picture] * 3) if picture.ndim == 2 else picture[..., :3]
        height, width = picture.shape[:2]
        for share in (1.0, *rng.uniform(0.4, 1.0, 8)):
            side = (round(height * share), round(width * share))
            y, x = (int(rng.integers(0, n - m + 1)) for n, m in zip((height, width), side))
            cut = picture[y : y + side[0], x : x + side[1]]
            grey = cv2.cvtColor(cut, cv2.COLOR_RGB2GRAY)
            found.append((grey, readers.colourfulness(cut)))
    return found


def slices(data_dir: str, part: str, most: int) -> dict[str, list[np.ndarray]]:
    """CT slices of two sets, about `most` of each, for `part` 'train' or 'test'."""
    found = {}
    for name in ("ct_lesions", "covid_ct"):
        source = sources.open_source(sources.block(name, data_dir=data_dir), part)
        some = range(0, len(source), max(1, len(source) // most))
        found[f"CT slices, {name}"] = [source[k]["image"] for k in some]
    return found


def spoilt(good: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Good films made wrong."""
    halves = [(f[:, : f.shape[1] // 2], f[:, f.shape[1] // 2 :]) for f in good]
    return {
        "turned by 90 degrees": [np.rot90(f) for f in good],
        "turned by 270 degrees": [np.rot90(f, 3) for f in good],
        "turned by 180 degrees": [np.rot90(f, 2) for f in good],
        "inverted": [255 - f for f in good],
        "cut to the right lung": [right for right, _ in halves],
        "cut to the left lung": [left for _, left in halves],
    }


class Measured:
    """Films with what is measured of them, their lungs found once."""

    def __init__(self, segmenter: Segmenter, mean_film: np.ndarray):
        self._segmenter, self._mean = segmenter, mean_film

    def __call__(self, pictures: list[np.ndarray], name: str) -> list[dict[str, float]]:
        """Measures of each."""
        pictures, step = [np.ascontiguousarray(p) for p in pictures], self._segmenter.batch_size
        found = []
        for k in tqdm(range(0, len(pictures), step), name, disable=None):
            some = pictures[k : k + step]
            for film, label in zip(some, self._segmenter.labels(some)):
                lungs = lung_labels.enlarge(label, film.shape)
                found.append(quality.measures(film, self._mean, lungs=lungs))
        return found


def chosen(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Measure -> [lowest, highest] of good films; None at an end that is no fault."""
    found = {name: [None, high] for name, high in BY_HAND.items()}
    for name, (below, above) in quality.REASONS.items():
        values = [row[name] for row in rows if name in row]
        if name in BY_HAND:
            continue
        low, high = np.quantile(values, (TAIL, 1 - TAIL)).round(4).tolist()
        found[name] = [low if below else None, high if above else None]
    return found


def as_slices(groups: dict[str, list[np.ndarray]], standard: quality.Standard) -> dict[str, dict]:
    """Of pictures given to a model of CT slices, how many are told as chest films."""
    return {
        name: {
            "n": len(some),
            "told": round(
                float(np.mean([bool(quality.judge_slice(p, by=standard).reasons) for p in some])), 4
            ),
        }
        for name, some in groups.items()
    }


def share_noticed(
    rows: list[dict[str, float]], ranges: dict, *, colours: list[float] | None, lungs: bool
) -> dict[str, float]:
    """How many of the rows have a reason, and how many have each."""
    reasons: dict[str, int] = {}
    noticed = 0
    for k, row in enumerate(rows):
        row = {n: v for n, v in row.items() if lungs or not n.startswith("lung_")}
        if colours is not None:
            row["coloured"] = colours[k]
        told = quality.reasons_of(row, ranges)
        noticed += bool(told)
        for reason in told:
            reasons[reason] = reasons.get(reason, 0) + 1
    return {"n": len(rows), "noticed": round(noticed / len(rows), 4)} | {
        reason: round(count / len(rows), 4) for reason, count in sorted(reasons.items())
    }


def both_ways(
    rows: list[dict[str, float]], ranges: dict, *, colours: list[float] | None = None
) -> dict[str, dict[str, float]]:
    """`share_noticed` where lungs are at hand, and where they are not."""
    return {
        said: share_noticed(rows, ranges, colours=colours, lungs=lungs)
        for said, lungs in (("with lungs", True), ("picture alone", False))
    }


def counted(
    measured: Measured,
    train: dict[str, list[dict[str, float]]],
    test: dict,
    ranges: dict,
    data_dir: str,
) -> dict[str, dict]:
    """Name of pictures -> how many are noticed, with lungs and from the picture alone."""
    table = {f"training films, {name}": both_ways(rows, ranges) for name, rows in train.items()}
    wrong = spoilt(test["brixia_cohen"] + test["cxr_3class"][::4])
    wrong |= slices(data_dir, "test", 100)
    photos = photographs()
    groups = [(f"good films, {name}", some, None) for name, some in test.items()]
    groups += [(name, some, None) for name, some in wrong.items()]
    groups.append(("photographs", [p for p, _ in photos], [c for _, c in photos]))
    for name, some, colours in groups:
        rows = measured(some, name)
        table[name] = both_ways(rows, ranges, colours=colours)
    table["photographs"]["in grey"] = share_noticed(rows, ranges, colours=None, lungs=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lungs", required=True)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--phantoms", type=int, default=300)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--write", action="store_true", help="into the package")
    args = parser.parse_args()
    train, test = (films(args.data_dir, part, args.phantoms) for part in ("train", "test"))
    real = [f for name in ("brixia_cohen", "cxr_3class") for f in train[name]]
    mean = np.mean([quality.order_of_brightness(film) for film in real], axis=0)
    mean = (mean / np.linalg.norm(mean - mean.mean())).astype(np.float32)
    measured = Measured(Segmenter.load(args.lungs), mean)
    seen = {name: measured(some, f"train, {name}") for name, some in train.items()}
    ranges = chosen([row for rows in seen.values() for row in rows])
    learned = slices(args.data_dir, "train", 1000)
    like = [quality.likeness(p, mean) for some in learned.values() for p in some]
    standard = quality.Standard(mean, ranges, round(float(np.quantile(like, 1 - TAIL)), 4))
    found = {
        "chosen_on": {name: len(some) for name, some in (train | learned).items()},
        "ranges": ranges,
        "slice_likeness": standard.slice_likeness,
    }
    table = counted(measured, seen, test, ranges, args.data_dir)
    told = as_slices(test | slices(args.data_dir, "test", 1000), standard)
    write_result(
        found | {"table": table, "asked as a slice of a CT": told, **writers.provenance()},
        args.output,
    )
    if args.write:
        text = {
            "made_by": "benchmarks/film_quality.py",
            "licence": "from films of brixia_cohen (CC BY-NC-SA 4.0 and others) and cxr_3class",
            **found,
            "mean_film": mean.round(4).tolist(),
        }
        quality.FILE.write_text(json.dumps(text) + "\n")


if __name__ == "__main__":
    main()
