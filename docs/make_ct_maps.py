"""Draws the lesion maps of several seam runs side by side: heat red, truth blue, found yellow.

    python docs/make_ct_maps.py --output=docs/ct_maps.png CAM=runs/cam@0.5 SEAM=runs/seam@0.2

No slice is picked by its result: of the first patients with a lesion in the split, each one's slice
with most of it. After the @ stands the threshold of what is found, of which the config's is the
default. A slice that the run calls free of lesions has no map.
"""

import argparse
import pathlib

import cv2
import numpy as np
from PIL import Image

from cxr_jax.data import sources
from cxr_jax.inputs import splits
from cxr_jax.trained import TrainedRun
from cxr_jax.workdir import read_config

TILE, HEAD, GAP = 150, 22, 4
RED, BLUE, YELLOW = (0, 0, 255), (255, 160, 58), (0, 225, 255)  # BGR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="NAME=WORKDIR[@THRESHOLD]")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--patients", type=int, default=4)
    args = parser.parse_args()
    runs = dict(run.split("=", 1) for run in args.runs)
    data = read_config(pathlib.Path(next(iter(runs.values())).partition("@")[0])).data
    chosen = _slices(sources.open_source(data, args.split), args.patients)
    columns = []
    for name, run in runs.items():
        folder, _, threshold = run.partition("@")
        columns.append(_column(name, pathlib.Path(folder), threshold, args.split, chosen))
    bare = _header("truth"), *(_tile(record, None, 0.0) for record in columns[0][1])
    sheet = np.hstack([np.vstack(bare), *(tiles for tiles, _ in columns)])
    colours = Image.fromarray(cv2.cvtColor(sheet, cv2.COLOR_BGR2RGB)).quantize(96)
    colours.save(args.output, optimize=True)
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


def _slices(source, count: int) -> list[int]:
    """Of each of the first `count` volumes with a lesion the record with most of it."""
    table = source.slice_table()
    chosen = []
    for volume in np.unique(table.volume[table.label == 1])[:count]:
        indices = np.flatnonzero((table.volume == volume) & (table.label == 1))
        areas = [(source[int(i)]["lesion"] > 0).sum() for i in indices]
        chosen.append(int(indices[np.argmax(areas)]))
    return chosen


def _column(name: str, folder: pathlib.Path, threshold: str, split: str, chosen: list[int]):
    """The tiles of one run, and the records."""
    run = TrainedRun.load(folder)
    source = splits.open_split(run.task, run.config, split, workdir=folder)
    records = [source[index] for index in chosen]
    tiles = [_header(name)]
    for record in records:
        (out,) = run.predict([record])
        heat = run.task.shown_map(out, (TILE, TILE))
        tiles.append(_tile(record, heat, float(threshold or run.config.threshold)))
    return np.vstack(tiles), records


def _header(text: str) -> np.ndarray:
    head = np.full((HEAD, TILE + GAP, 3), 255, np.uint8)
    cv2.putText(head, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.48, (0, 0, 0), 1, cv2.LINE_AA)
    return head


def _tile(record, heat: np.ndarray | None, threshold: float) -> np.ndarray:
    image = cv2.resize(record["image"], (TILE, TILE), interpolation=cv2.INTER_CUBIC)
    tile = np.repeat(image[..., None], 3, axis=-1)
    if heat is not None:
        share = (0.65 * np.clip(heat, 0, 1))[..., None]
        tile = (tile * (1 - share) + np.array(RED) * share).astype(np.uint8)
        _outline(tile, heat > threshold, YELLOW)
    _outline(tile, cv2.resize(record["lesion"], (TILE, TILE)) > 0, BLUE)
    framed = np.full((TILE + GAP, TILE + GAP, 3), 255, np.uint8)
    framed[:TILE, :TILE] = tile
    return framed


def _outline(tile: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, found, -1, color, 1)


if __name__ == "__main__":
    main()
