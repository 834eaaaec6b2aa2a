"""The lungs of one axial CT slice by morphology, without a network.

Wu et al. 2022, Sec. 4.2.2, say 'the lung was segmented out by morphological operation' and no more.
Here, in this order [PAPERS, 5: threshold, clear border, two largest components, closing, convex
filling]:

1. threshold: of a slice in HU, below -400, midway between lung and tissue; of an 8-bit picture, of
   whose window nothing is known, Otsu's threshold. Both of the slightly blurred slice. A picture
   whose two sides lie less than 40 grey levels apart has no lung.
2. clear border: what touches a corner is the air around the patient, what is four times as wide as
   high the gap in the table. A lung may touch the frame, for figures are often cut through the
   chest; so what touches it elsewhere is kept where it is large and compact.
3. the two largest components, the second if it has a tenth of the first.
4. closing, and holes filled: vessels, and lesions that touch the pleura by less than its radius.
5. convex filling, away from the other lung only: consolidations at the chest wall are filled and
   heart and liver are not. Where a hull adds more than 30% it is not a lung's, and is left out.

On `ct_lesions`, whose lungs are drawn, the Dice is 0.936 and 0.81 of the lesions lies inside;
without the last step 0.935 and 0.77, with all of every hull 0.834 and 0.88 (the paper reports a
Dice of 0.82, on data of its own). The constants below were chosen on every eleventh slice of all
its volumes.

    python -m cxr_jax.data.ct_lungs ct_lesions [--data_dir=DIR] [--split=test]

prints the Dice of every volume of a data set that has `lungs`, and how much of the lesions lies
inside; a set's options are given as --OPTION=VALUE.
"""

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import tqdm
from scipy import ndimage
from skimage import filters, morphology

from cxr_jax import cli
from cxr_jax.data import zones
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError

AIR_HU = -400.0
LEAST_CONTRAST = 40.0  # grey levels between the means of both sides of the threshold
LEAST_AREA = 0.002  # of the slice, of a lung
LEAST_CUT_AREA, LEAST_CUT_SOLIDITY = 0.02, 0.6  # of one that touches the frame
MOST_WIDE = 4  # times as wide as high: a table
CLOSING = 0.03  # radius, of the slice's side
BLUR = 1 / 256  # standard deviation, of the slice's side
MOST_ADDED = 0.3  # of a lung, by its hull


def segment(slice_: np.ndarray) -> np.ndarray:
    """The lungs of a slice, in any orientation of the body.

    Args:
      slice_: [H, W], uint8: a picture, lung darker than tissue; any other type: HU.

    Returns:
      uint8 [H, W]: 0 outside, 1 the lung on the image's left (the right one, as records are), 2
      the other; all 0 where none is found.

    Raises:
      ValueError: no plane, or a value that is not finite.
    """
    if slice_.ndim != 2 or not slice_.size or not np.isfinite(slice_).all():
        raise ValueError(f"got {slice_.dtype} {slice_.shape}; expected finite values [H, W]")
    side = math.sqrt(slice_.size)
    blurred = cv2.GaussianBlur(slice_.astype(np.float32), (0, 0), BLUR * side)
    threshold = _otsu(blurred) if slice_.dtype == np.uint8 else AIR_HU
    found = [] if threshold is None else _components(blurred <= threshold)
    radius = max(1, round(CLOSING * side))
    lungs = [_filled(mask, radius) for mask in found]
    return _labelled(_hulled(lungs), slice_.shape)


def _otsu(picture: np.ndarray) -> float | None:
    """None where the picture has no two sides."""
    if picture.max() - picture.min() < LEAST_CONTRAST:
        return None
    threshold = float(filters.threshold_otsu(picture))
    air = picture <= threshold
    apart = picture[~air].mean() - picture[air].mean()
    return threshold if apart >= LEAST_CONTRAST else None


def _components(air: np.ndarray) -> list[np.ndarray]:
    """bool [H, W] each: the one or two that are lungs, the larger first."""
    _, parts, stats, _ = zones.components(air)
    corners = parts[[0, 0, -1, -1], [0, -1, 0, -1]]
    areas = stats[:, cv2.CC_STAT_AREA]
    kept: list[np.ndarray] = []
    # A stable sort, so that of two of one size the first in raster order comes first.
    for number in np.argsort(-areas, kind="stable"):
        least = max(LEAST_AREA * air.size, zones.SPECK * kept[0].sum() if kept else 0)
        if len(kept) == 2 or areas[number] < least:
            break
        if number + 1 not in corners and _may_be_a_lung(parts == number + 1, stats[number]):
            kept.append(parts == number + 1)
    return kept


def _may_be_a_lung(mask: np.ndarray, stats: np.ndarray) -> bool:
    """By its box, and by its form where the frame cuts it."""
    left, top, width, height, area = stats.tolist()
    if width > MOST_WIDE * height:
        return False
    cut = not top or not left or top + height == mask.shape[0] or left + width == mask.shape[1]
    if not cut:
        return True
    if area < LEAST_CUT_AREA * mask.size:
        return False
    return area >= LEAST_CUT_SOLIDITY * morphology.convex_hull_image(mask).sum()


def _filled(mask: np.ndarray, radius: int) -> np.ndarray:
    """Closed, and without holes. A lung that the frame cuts goes on behind it."""
    padded = np.pad(mask, radius, mode="edge")
    closed = morphology.isotropic_closing(padded, radius)[radius:-radius, radius:-radius]
    return ndimage.binary_fill_holes(closed)


def _hulled(lungs: list[np.ndarray]) -> list[np.ndarray]:
    """Each with its hull; of two, with the half of it that lies away from the other lung."""
    centres = [np.argwhere(lung).mean(axis=0) for lung in lungs]
    filled = []
    for lung, centre in zip(lungs, centres):
        hull = morphology.convex_hull_image(lung)
        for other in centres:
            if other is not centre:
                rows, columns = np.ogrid[: lung.shape[0], : lung.shape[1]]
                down, along = centre - other
                hull &= (rows - centre[0]) * down + (columns - centre[1]) * along >= 0
        both = lung | hull
        filled.append(both if both.sum() <= (1 + MOST_ADDED) * lung.sum() else lung)
    return filled


def _labelled(lungs: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    if len(lungs) < 2:  # two lungs may have been one component
        return zones.split_lungs(lungs[0] if lungs else np.zeros(shape, bool))
    labels = np.zeros(shape, np.uint8)
    # Hulls may overlap by a little: the first lung has what they share.
    for number, lung in enumerate(sorted(lungs, key=lambda lung: np.argwhere(lung)[:, 1].mean())):
        labels[lung & (labels == 0)] = number + 1
    return labels


# How well that works


def dice(found: np.ndarray, drawn: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks, whichever lung is which; 1 where both are empty."""
    found, drawn = found > 0, drawn > 0
    return _ratio([2 * (found & drawn).sum()], [found.sum() + drawn.sum()], nothing=1.0)


def _ratio(over: Sequence[int], under: Sequence[int], nothing: float) -> float:
    """The ratio of the sums; `nothing` where there is nothing to divide by."""
    total = int(np.sum(under))
    return int(np.sum(over)) / total if total else nothing


class _Volume(NamedTuple):
    """Sums of each slice of a volume: `both` and `total` give the Dice, `inside` and `lesion` the
    share of the lesions that the lungs hold."""

    both: list[int]
    total: list[int]
    inside: list[int]
    lesion: list[int]

    def add(self, found: np.ndarray, record: Record) -> None:
        drawn, lesion = record["lungs"] > 0, record.get("lesion", np.zeros(1)) > 0
        sums = (2 * (found & drawn).sum(), found.sum() + drawn.sum())
        for column, value in zip(self, (*sums, (found & lesion).sum(), lesion.sum())):
            column.append(int(value))

    def dice(self) -> float:
        return _ratio(self.both, self.total, nothing=1.0)

    def of_slices(self) -> list[float]:
        return [_ratio([a], [b], nothing=1.0) for a, b in zip(self.both, self.total)]

    def held(self) -> float:
        return _ratio(self.inside, self.lesion, nothing=math.nan)


def table(opened: Sequence[Sequence[Record]]) -> list[str]:
    """Markdown lines: of every volume the Dice over all of its pixels, that of its slices, and the
    share of its lesions' pixels that lie in the lungs found; last the mean and the standard
    deviation over volumes and over slices.

    Args:
      opened: sources of records with `image`, `lungs` and `volume`, and perhaps `lesion`.
    """
    volumes: dict[str, _Volume] = {}
    records = (source[index] for source in opened for index in range(len(source)))
    for record in tqdm.tqdm(records, total=sum(map(len, opened)), unit="slice", disable=None):
        sums = volumes.setdefault(record["volume"], _Volume([], [], [], []))
        sums.add(segment(record["image"]) > 0, record)
    lines = ["| volume | slices | Dice | of its slices | of its lesions inside |"]
    lines.append("|---|---|---|---|---|")
    for name, v in volumes.items():
        numbers = f"{v.dice():.3f} | {_spread(v.of_slices())} | {v.held():.3f}"
        lines.append(f"| {name} | {len(v.both)} | {numbers} |")
    slices = [value for v in volumes.values() for value in v.of_slices()]
    whole, held = ([f(v) for v in volumes.values()] for f in (_Volume.dice, _Volume.held))
    last = " | ".join(map(_spread, (whole, slices, held)))
    return [*lines, f"| all {len(volumes)} | {len(slices)} | {last} |"]


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} +- {np.std(values):.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """The command. See the module.

    Raises:
      InputError: an unknown or unprepared set, an option that it has not, or one without `lungs`.
    """
    # Here, for the sources need not know how lungs are segmented.
    from cxr_jax.data import sources

    args, rest = _parser().parse_known_args(argv)
    sources.find(args.name, "NAME")
    data = sources.block(args.name, **sources.read_options(args.name, rest))
    opened = [sources.open_source(data, split) for split in args.split.split(",")]
    if any(not {"lungs", "volume"} <= source.fields for source in opened):
        raise InputError(f"data set {args.name!r} has no volumes with lungs drawn in them")
    print("\n".join(table(opened)))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m cxr_jax.data.ct_lungs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="the data set")
    parser.add_argument("--split", default="train,test", help="which, parted by commas")
    return parser


if __name__ == "__main__":
    cli.run_command(main)
