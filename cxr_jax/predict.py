"""Run a trained model on films or on CT volumes.

    python -m cxr_jax.predict --workdir=DIR --output=OUT film1.dcm film2.png folder/
    python -m cxr_jax.predict --workdir=DIR --output=OUT scan.nii.gz series/
    python -m cxr_jax.predict --model=NAME --output=OUT film1.png      one that comes along

Writes OUT/predictions.jsonl, one line a film (a folder's in order of name), the same as a table in
OUT/predictions.csv, OUT/NAME.png, the film with the prediction drawn on it, and the maps and masks
that belong to it on the film's own pixels, OUT/NAME-map.png and others. A film that cannot be
read has an `error` in its line; the others go on. A volume is a NIfTI file or a folder with one
DICOM series; of it there are the slice with the largest find in OUT/NAME.png and the mask beside
it, which lies where the volume lies. Slices are numbered from 1 as a viewer shows them where the
files say how, else from the feet.
Masks that a model of films needs come from the run it was trained with, from another such run, or
from a folder of PNG masks of the films' names and sizes: the options below say which.
"""

import argparse
import pathlib
import sys
from typing import Any

import tqdm

from cxr_jax import model_files
from cxr_jax.cli import Parser, run_command, setup_jax
from cxr_jax.errors import InputError, one_line
from cxr_jax.inputs.doors import Door
from cxr_jax.inputs.outputs import OutputFolder, own_files
from cxr_jax.trained import TrainedRun
from cxr_jax.writers import code_version

_SHOWN = 5  # errors on the terminal
_COMMON = ("paths", "workdir", "model", "output", "steps", "threshold")  # the others are a door's


def main() -> int:
    setup_jax()
    args = vars(_parser().parse_args())
    try:
        steps = tuple(int(step) for step in args["steps"].split(",") if step)
    except ValueError as error:
        raise InputError(f"--steps={args['steps']}; expected whole numbers") from error
    if (args["workdir"] is None) == (args["model"] is None):
        raise InputError(
            "give --workdir=DIR, a trained run, or --model=NAME, one that comes along: "
            f"{', '.join(model_files.names()) or 'none in this version'}"
        )
    workdir = args["workdir"] or model_files.find(f"{model_files.SCHEME}{args['model']}")
    return predict(
        args["paths"],
        workdir,
        args["output"],
        steps=steps,
        threshold=args["threshold"],
        **{name: value for name, value in args.items() if name not in _COMMON and value},
    )


def _parser() -> argparse.ArgumentParser:
    from cxr_jax.inputs.films import Films
    from cxr_jax.inputs.volumes import Volumes

    parser = Parser(
        prog="python -m cxr_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=pathlib.Path,
        metavar="film or volume",
        help="films, or CT volumes; files or folders",
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="of a trained run")
    names = ", ".join(model_files.names())
    parser.add_argument("--model", metavar="NAME", help=f"one that comes along: {names}")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder that is made")
    parser.add_argument(
        "--steps", default="", help="checkpoints to average, 1000,1100; default: as evaluated"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="of the model's map, e.g. what report --tune chose; default: the config's",
    )
    for door in (Films, Volumes):
        door.add_arguments(parser)
    return parser


def predict(
    paths: list[pathlib.Path],
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    steps: tuple[int, ...] = (),
    threshold: float | None = None,
    **options: Any,
) -> int:
    """See the module.

    Args:
      paths: files and folders.
      workdir: of the run.
      output: the folder that is written.
      steps: as `TrainedRun.load`.
      threshold: in place of the config's.
      options: of the door, `inputs.films.Films` or `inputs.volumes.Volumes`.

    Returns:
      The exit status: 0, or 1 where no file could be used.

    Raises:
      InputError: what is wrong with the model or the options, before the first file is read.
    """
    door, run = _open(paths, workdir, steps=steps, threshold=threshold, options=options)
    found = door.find(paths)
    found = found.without(own_files(found.files), "an earlier prediction wrote")
    if not found.files:
        raise InputError(f"no {door.unit} is left to predict on; {'; '.join(found.told())}")
    folder, about = OutputFolder(output, found.files), _about(run)
    failed: list[str] = []
    doubtful = 0
    with folder.writing():
        for path in tqdm.tqdm(found.files, desc="predict", unit=door.unit, disable=None):
            try:
                found_there = door.predict(path)
                folder.add(path, found_there._replace(line={**found_there.line, "model": about}))
                doubtful += not found_there.line.get("quality", {}).get("usable", True)
            except InputError as error:
                failed.append(str(error))
                folder.fail(path, str(error))
    count = len(found.files)
    unused = f"; {len(failed)} of {_counted(count, door.unit)} could not be used" if failed else ""
    pictures = _counted(folder.pictures, "picture")
    ends = [
        f"{output}: predictions.jsonl, predictions.csv and {pictures}{unused}",
        *found.told(),
        *([_doubts(doubtful, door.unit)] if doubtful else []),
        f"model: {workdir}, steps {', '.join(map(str, run.steps))}",
        *about.get("limits", [])[:1],
        "Research software: not for any clinical use.",
    ]
    print("\n".join(map(one_line, ends)))
    _complain(failed)
    return 1 if len(failed) == count else 0


def _open(
    paths: list[pathlib.Path],
    workdir: pathlib.Path,
    *,
    steps: tuple[int, ...],
    threshold: float | None,
    options: dict[str, Any],
) -> tuple[Door, TrainedRun]:
    """The door that the run's task, and the files where it reads both kinds, need, and the run."""
    from cxr_jax.data.volumes import holds_volume
    from cxr_jax.inputs.films import Films
    from cxr_jax.inputs.volumes import Volumes
    from cxr_jax.tasks.base import VolumeTask
    from cxr_jax.workdir import read_config

    config = read_config(workdir)
    if threshold is not None:
        if "threshold" not in config:
            raise InputError(
                f"{workdir}: this model has no threshold to choose; leave out --threshold"
            )
        config.threshold = threshold
    run = TrainedRun.load(workdir, steps, config=config)
    volumes = isinstance(run.task, VolumeTask) and (
        not run.task.pictures or any(map(holds_volume, paths))
    )
    door, other = (Volumes, Films) if volumes else (Films, Volumes)
    for name, value in options.items():
        if value and name in other.options and name not in door.options:
            raise InputError(
                f"{workdir}: this model reads {door.unit}s; --{name} is of {other.unit}s"
            )
    return door(run, **{name: value for name, value in options.items() if value}), run


def _counted(count: int, what: str) -> str:
    """'1 film', '2 films'."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _doubts(count: int, unit: str) -> str:
    return (
        f"{_counted(count, unit)} may not be fit for this model: the reasons are "
        "under `quality` in the lines, and on the pictures"
    )


def _about(run: TrainedRun) -> dict[str, Any]:
    """Which model a line is of."""
    threshold = {"threshold": run.config.threshold} if "threshold" in run.config else {}
    told = {name: said for name, said in run.card.items() if name in ("licence", "limits")}
    return {
        "name": run.name,
        "steps": list(run.steps),
        "version": run.version[:16],
        "code_version": code_version(),
        **told,
        **threshold,
    }


def _complain(failed: list[str]) -> None:
    """The first errors on the terminal; all are in the lines."""
    for error in failed[:_SHOWN]:
        print(f"not used: {error}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"not used: {len(failed) - _SHOWN} more, see predictions.jsonl", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
