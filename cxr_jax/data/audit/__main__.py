"""Tells what can be told of a data set's classes without looking at the lungs.

    python -m cxr_jax.data.audit cxr_3class [--data_dir=DIR] [--output=DIR]
    python -m cxr_jax.data.audit manifest --path=FILMS.csv --output=DIR
    python -m cxr_jax.data.audit cxr_3class --seen=224

A random forest, cross-validated by patient, is given trivial features alone: size, brightness,
borders, text marks, file, texture of the edges. Beside that: films that look like copies across
splits or patients, and how classes lie over splits, views, sizes and patients. The options of the
data set are given as --OPTION=VALUE. The main numbers are kept beside a prepared set, and go into
results.json.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from cxr_jax import cli, safe_write
from cxr_jax.data import sources
from cxr_jax.errors import InputError, one_line

_PLACES = ("name", "data_dir", "path", "fold")  # what may differ in an audit of the whole set


def main(argv: Sequence[str] | None = None) -> None:
    """The command. See the module; `--help` lists the options.

    Raises:
      InputError: an unknown or unprepared set, an option that it has not, a film that cannot be
        read, or a folder that cannot be written.
    """
    args, rest = _parser().parse_known_args(argv)
    if args.films < 1:
        raise InputError(f"--films={args.films}; expected at least 1")
    if args.seen and not 64 <= args.seen <= 2048:
        raise InputError(f"--seen={args.seen}; expected 64 to 2048 px")
    sources.find(args.name, "NAME")
    data = sources.block(args.name, **sources.read_options(args.name, rest))
    # Imported here so that --help answers at once.
    from cxr_jax.data.audit import films as collected
    from cxr_jax.data.audit import report

    if args.output:
        safe_write.make_folder(args.output, "--output")
    opened, notes = collected.open_splits(data)
    look = collected.SeenLungs if sources.DATASETS[args.name].ct else collected.Seen
    seen = look(args.seen) if args.seen else None
    films = collected.collect(opened, most=args.films, seen=seen, notes=notes, bar=True)
    found = report.audit(films)
    print(report.text(found))
    if args.output:
        _write(args.output, films, found)
    if seen is None:
        _keep(data, opened[0], report.headline(found))


def _write(folder: pathlib.Path, films: Any, found: dict[str, Any]) -> None:
    import cv2

    from cxr_jax.data.audit import report

    text = json.dumps(found, indent=1, allow_nan=False)
    safe_write.write_text(folder / "audit.json", text + "\n")
    written = ["audit.json"]
    picture = report.sheet(films, found["copies"])
    if picture is not None:
        with safe_write.replacing(folder / "copies.png") as part:
            part.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        written.append("copies.png")
    print(one_line(f"{folder}: {', '.join(written)}"))


def _keep(data: Any, source: sources.Source, headline: dict[str, Any]) -> None:
    """Beside the prepared set, where it was audited with its usual options."""
    from cxr_jax.data.audit import stored

    usual = sources.block(data.name)
    folder = stored.folder_of(source)
    if folder is None or any(data[k] != usual[k] for k in data if k not in _PLACES):
        return
    try:
        stored.store(folder, headline)
    except OSError as error:
        print(one_line(f"not kept beside the set: {folder}: {error.strerror}"))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m cxr_jax.data.audit",
        description=__doc__,
        epilog=f"data sets: {', '.join(sources.DATASETS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="the data set")
    parser.add_argument("--output", type=pathlib.Path, help="folder for audit.json and copies.png")
    parser.add_argument(
        "--films", type=int, default=20_000, help="at most so many are looked at (default: 20000)"
    )
    parser.add_argument(
        "--seen",
        type=int,
        default=0,
        help="of the middle square at so many px, blurred and equalised, as a model sees it; of CT "
        "slices the lungs, cut out; such numbers are not kept beside the set (default: of the "
        "films as they are)",
    )
    return parser


if __name__ == "__main__":
    cli.run_command(main)
