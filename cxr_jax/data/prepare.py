"""Turns a downloaded data set into ArrayRecord files, once.

    python -m cxr_jax.data.prepare brixia_cohen --source=FOLDER [--data_dir=DIR] [--max_side=512]
    python -m cxr_jax.data.prepare manifest --source=films.csv
    python -m cxr_jax.data.prepare ct_volume --source=volumes.csv

`--help` lists the data sets; each one's file in `data/sources` says what its folder holds.
A run that is killed leaves no half data set; running it again is safe.
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence

import tqdm

from cxr_jax import cli
from cxr_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> None:
    """The command. See the module; `--help` lists the options.

    Raises:
      InputError: an unreadable source, or a folder that cannot be written.
    """
    args = _parser().parse_args(argv)
    if args.max_side < 32:
        raise InputError(f"--max_side={args.max_side}; expected at least 32 pixels")
    # Imported here so that --help answers at once.
    from cxr_jax.data.sources import prepared

    make_builder = BUILDERS[args.name]()
    source = pathlib.Path(args.source).expanduser()
    builder = make_builder(source, data_dir=args.data_dir, max_side=args.max_side)
    counts = {split: len(films) for split, films in builder.films.items()}
    total = sum(counts.values())
    for note in builder.notes:
        print(f"{args.name}: {note}")
    # disable=None: a bar on a terminal only.
    unit = "slice" if "slice" in builder.fields else "film"
    with tqdm.tqdm(total=total, unit=unit, desc=args.name, disable=None) as bar:
        new = prepared.build(builder, on_film=bar.update)
    films = ", ".join(f"{count} {split}" for split, count in counts.items())
    done = "prepared" if new else "nothing to do, already prepared:"
    print(f"{args.name}: {done} {films} {unit}s in {builder.data_dir}")
    if args.name in ("manifest", "ct_volume"):
        print(f"train with --config.data.name={args.name} --config.data.path={builder.data_dir}")


# Each opener imports its own file: TensorFlow Datasets takes seconds to import.


def _brixia_cohen() -> Callable:
    from cxr_jax.data.sources import brixia_cohen

    return brixia_cohen.builder


def _manifest() -> Callable:
    from cxr_jax.data.sources import manifest

    return manifest.builder


def _brixia() -> Callable:
    from cxr_jax.data.sources import brixia

    return brixia.builder


def _jsrt_scr() -> Callable:
    from cxr_jax.data.sources import lung_masks

    return lung_masks.jsrt_scr


def _montgomery() -> Callable:
    from cxr_jax.data.sources import lung_masks

    return lung_masks.montgomery


def _shenzhen() -> Callable:
    from cxr_jax.data.sources import lung_masks

    return lung_masks.shenzhen


def _chexpert() -> Callable:
    from cxr_jax.data.sources import chexpert

    return chexpert.builder


def _nih_cxr14() -> Callable:
    from cxr_jax.data.sources import nih_cxr14

    return nih_cxr14.builder


def _cxr_3class() -> Callable:
    from cxr_jax.data.sources import cxr_3class

    return cxr_3class.builder


def _ct_lesions() -> Callable:
    from cxr_jax.data.sources import ct_lesions

    return ct_lesions.builder


def _covid19_ct_seg() -> Callable:
    from cxr_jax.data.sources import covid19_ct_seg

    return covid19_ct_seg.builder


def _ct_volume() -> Callable:
    from cxr_jax.data.sources import ct_volume

    return ct_volume.builder


# Data set -> its `builder(source, *, data_dir, max_side)`.
BUILDERS = {
    "brixia_cohen": _brixia_cohen,
    "manifest": _manifest,
    "chexpert": _chexpert,
    "nih_cxr14": _nih_cxr14,
    "cxr_3class": _cxr_3class,
    "brixia": _brixia,
    "jsrt_scr": _jsrt_scr,
    "montgomery": _montgomery,
    "shenzhen": _shenzhen,
    "ct_lesions": _ct_lesions,
    "covid19_ct_seg": _covid19_ct_seg,
    "ct_volume": _ct_volume,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cxr_jax.data.prepare",
        description="Turns a downloaded data set into ArrayRecord files, once.",
    )
    parser.add_argument("name", choices=tuple(BUILDERS), help="the data set")
    parser.add_argument(
        "--source",
        required=True,
        help="its folder as downloaded; for manifest and ct_volume the CSV file",
    )
    parser.add_argument(
        "--data_dir",
        default="",
        help="where prepared sets are kept (default: $CXR_DATA_DIR, else ~/cxr_jax_data)",
    )
    parser.add_argument(
        "--max_side",
        type=int,
        default=512,
        help="longest side of a stored film in pixels; never enlarged (default: 512)",
    )
    return parser


if __name__ == "__main__":
    cli.run_command(main)
