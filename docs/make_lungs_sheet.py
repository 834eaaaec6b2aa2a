"""Draws the severest films of a data set, with the lungs that several runs find in them.

    python docs/make_lungs_sheet.py --output=docs/lungs.png U-Net=runs/lungs semi=runs/lungs-semi

Films are taken by their true global severity score, the highest first, and not by the result. The
first run's config says the data set.
"""

import argparse
import pathlib

import cv2
import numpy as np

from cxr_jax import figures
from cxr_jax.data import sources
from cxr_jax.data.lungs import enlarge
from cxr_jax.inputs.lungs import Segmenter
from cxr_jax.workdir import read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="NAME=WORKDIR of trained lungs runs")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--films", type=int, default=4)
    parser.add_argument("--width", type=int, default=1200, help="px of a film's row of panels")
    args = parser.parse_args()
    runs = dict(run.split("=", 1) for run in args.runs)
    segmenters = {name: Segmenter.load(folder) for name, folder in runs.items()}
    data = read_config(pathlib.Path(next(iter(runs.values())))).data
    source = sources.only_with(sources.open_source(data, args.split), {"lungs", "severity"})
    records = [source[index] for index in range(len(source))]
    scores = [int((r["severity"] * r["severity_valid"]).sum()) for r in records]
    rows = []
    for index in np.argsort(-np.asarray(scores), kind="stable")[: args.films]:
        film, lungs = records[index]["image"], records[index]["lungs"]
        found = {
            name: enlarge(segmenter.labels([film])[0], film.shape)
            for name, segmenter in segmenters.items()
        }
        title = f"{records[index]['id']}: severity {scores[index]} of 18"
        row = figures.to_array(figures.lungs_comparison(film, lungs, found, title))
        size = args.width, round(row.shape[0] * args.width / row.shape[1])
        rows.append(cv2.resize(row, size, interpolation=cv2.INTER_AREA))
    sheet = cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(args.output), sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
