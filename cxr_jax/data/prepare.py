"""Turns a downloaded data set into ArrayRecord files, once.

    python -m cxr_jax.data.prepare brixia_cohen --source=FOLDER [--data_dir=DIR] [--max_side=512]
    python -m cxr_jax.data.prepare manifest --source=films.csv
    python -m cxr_jax.data.prepare ct_volume --source=volumes.csv

`--help` lists the data sets; each one's file in `data/sources` says what its folder holds.
Films are reduced to 512 px, which is enough where a config resizes them first. One of 512 px that
equalises or blurs them before (Park et al. 2021) needs --max_side=1024; training says so.
A run that is killed leaves no half data set; running it again is safe.

It ends with a warning where classes can be told apart without looking at the lungs, by a small
audit of some of the films; `python -m cxr_jax.data.audit NAME` is the whole one.
"""

import argparse
import os
import pathlib
from collections.abc import Callable, Sequence

import tqdm

from cxr_jax import cli
from cxr_jax.data import sources
from cxr_jax.errors import InputError, one_line

PREPARED = {name: entry for name, entry in sources.DATASETS.items() if entry.source}


# A field of the records -> what it can train.
EXAMPLES = {
    "slice_label": "configs/seam.py:quick,method=cam",
    "severity": "configs/severity.py:quick",
    "diagnosis": "configs/diagnosis.py:quick",
    "findings": "configs/findings.py:quick",
    "lungs": "configs/lungs.py:quick",
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command. See the module; `--help` lists the options.

    Raises:
      InputError: an unreadable source, or a folder that cannot be written.
    """
    args = _parser().parse_args(argv)
    if args.max_side < 32:
        raise InputError(f"--max_side={args.max_side}; expected at least 32 pixels")
    make_builder = find_builder(args.name)
    # Imported here so that --help answers at once.
    from cxr_jax.data.sources import prepared

    source = pathlib.Path(args.source).expanduser()
    options = {"classes": args.classes} if args.classes else {}
    sources.check_options(args.name, options)
    builder = make_builder(source, data_dir=args.data_dir, max_side=args.max_side, **options)
    counts = {split: len(films) for split, films in builder.films.items()}
    total = sum(counts.values())
    for note in builder.notes:
        print(one_line(f"{args.name}: {note}"))
    # disable=None: a bar on a terminal only.
    unit = "slice" if PREPARED[args.name].ct else "film"
    with tqdm.tqdm(total=total, unit=unit, desc=args.name, disable=None) as bar:
        new = prepared.build(builder, on_film=bar.update)
    films = ", ".join(f"{count} {split}" for split, count in counts.items())
    done = "prepared" if new else "nothing to do, already prepared:"
    print(f"{args.name}: {done} {films} {unit}s in {builder.data_dir}")
    _warn(args, builder.data_dir)
    example = next((c for field, c in EXAMPLES.items() if field in builder.fields), "")
    if PREPARED[args.name].by_path and example:
        print(
            f"train with, for example: python -m cxr_jax.main --config={example} "
            f"--config.data.name={args.name} --config.data.path={builder.data_dir} --workdir=DIR"
        )


def _warn(args: argparse.Namespace, folder: str | os.PathLike) -> None:
    """What trivial features tell of the classes; the full audit is a command of its own."""
    from cxr_jax.data.audit import quick

    by_path = PREPARED[args.name].by_path
    place = {"path": str(folder)} if by_path else {"data_dir": args.data_dir}
    for warning in quick.warnings(sources.block(args.name, **place)):
        print(one_line(f"{args.name}: warning: {warning}"))


def find_builder(name: str) -> Callable:
    """The `builder` of a data set.

    Raises:
      InputError: no data set that can be prepared has this name.
    """
    if name not in PREPARED:
        raise InputError(f"data set {name!r}; expected one of {', '.join(sorted(PREPARED))}")
    return sources.find(name).builder


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, PREPARED))
    lines = [f"  {name:<{width}}  {entry.source}" for name, entry in PREPARED.items()]
    parser = cli.Parser(
        prog="python -m cxr_jax.data.prepare",
        description="Turns a downloaded data set into ArrayRecord files, once.",
        epilog="\n".join(["data sets, and what --source is:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="the data set, see below")
    parser.add_argument("--source", required=True, help="its folder or CSV file, see below")
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
    parser.add_argument(
        "--classes",
        default="",
        help="of a table: its diagnoses, parted by commas (default: normal, other infection, "
        "covid-19)",
    )
    return parser


if __name__ == "__main__":
    cli.run_command(main)
