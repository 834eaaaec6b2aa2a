"""Run a trained model on films.

    python -m cxr_jax.predict --workdir=DIR --output=OUT film1.dcm film2.png folder/

Writes OUT/predictions.jsonl, one line a film (a folder's in order of name), and OUT/NAME.png, the
film with the prediction drawn on it. A film that cannot be read has an `error` in its line; the
others go on.
Tasks that need lung masks take them from the `lungs` run that the model was trained with, from
--lungs=DIR (another such run), or from --masks=FOLDER (PNG masks of the films' names and sizes).
"""

import argparse
import json
import os
import pathlib
import re

import numpy as np
import tqdm

from cxr_jax.cli import run_command, setup_jax
from cxr_jax.errors import InputError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxr_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("films", nargs="+", type=pathlib.Path, help="files or folders")
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--steps", default="", help="checkpoints to average, e.g. 1000,1100,1200")
    parser.add_argument("--lungs", default="", help="work directory of a trained lungs run")
    parser.add_argument("--masks", type=pathlib.Path, help="folder of lung masks, NAME.png")
    args = parser.parse_args()
    try:
        steps = tuple(int(step) for step in args.steps.split(",") if step)
    except ValueError as error:
        raise InputError(f"--steps={args.steps}; expected whole numbers") from error
    setup_jax()
    return predict(
        args.films, args.workdir, args.output, steps=steps, lungs=args.lungs, masks=args.masks
    )


def predict(
    films: list[pathlib.Path],
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    steps: tuple[int, ...] = (),
    lungs: str = "",
    masks: pathlib.Path | None = None,
) -> int:
    """See the module. Returns the exit status: 0, or 1 where no film could be read."""
    import jax

    from cxr_jax.checkpoints import restore_variables
    from cxr_jax.data import readers
    from cxr_jax.evaluate import variable_shapes
    from cxr_jax.figures import save
    from cxr_jax.tasks import make_task
    from cxr_jax.tasks.lungs import Segmenter
    from cxr_jax.workdir import read_config

    config = read_config(workdir)
    task = make_task(config)
    paths = readers.films_in(films)
    segmenter = None
    if "lungs" in task.inputs and masks is None:
        lungs = lungs or config.lungs.workdir
        if not lungs:
            raise InputError(
                f"{workdir}: this model needs lung masks; give --lungs=DIR, a trained run of "
                "configs/lungs.py, or --masks=FOLDER"
            )
        segmenter = Segmenter.load(lungs)
    # What is wrong with the model is said once, before the first film.
    shapes = variable_shapes(task, _batch(task, _blank_film()))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    steps, ensemble = restore_variables(workdir, shapes, device, steps or tuple(config.eval_steps))
    forward = jax.jit(task.predict)

    output.mkdir(parents=True, exist_ok=True)
    part = output / "predictions.jsonl.part"  # an earlier result stays until this one is whole
    names: set[str] = set()
    failed = 0
    with part.open("w", encoding="utf-8") as lines:
        for path in tqdm.tqdm(paths, desc="predict", unit="film", disable=None):
            line = {"file": str(path)}
            try:
                record = _read(path, masks, segmenter)
                batch = _batch(task, record)
                predicted = [jax.device_get(forward(v, batch)) for v in ensemble]
                outputs = {k: np.mean([p[k][0] for p in predicted], axis=0) for k in predicted[0]}
                picture = _unused(re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem)[:80], names)
                save(task.figure(record, outputs), output / picture)
                line |= {"picture": picture, **task.describe(outputs)}
            except InputError as error:
                failed += 1
                line["error"] = str(error)
            lines.write(json.dumps(line, allow_nan=False) + "\n")
            lines.flush()
    os.replace(part, output / "predictions.jsonl")
    print(
        f"{output}: predictions.jsonl and {len(names)} pictures"
        f"{f'; {failed} of {len(paths)} films could not be used' if failed else ''}"
        f"\nmodel: {workdir}, steps {', '.join(map(str, steps))}"
        "\nResearch software: not for any clinical use."
    )
    return 1 if failed == len(paths) else 0


def _read(path: pathlib.Path, masks: pathlib.Path | None, segmenter) -> dict:
    """A record with the film and, where they are asked for, its lungs."""
    from cxr_jax.data import readers, zones
    from cxr_jax.tasks.lungs import enlarge

    record = {"image": readers.read_film(path), "id": path.name, "group": path.name}
    if masks is not None:
        mask = readers.read_mask(masks / f"{path.stem}.png", record["image"].shape)
        record["lungs"] = zones.split_lungs(mask)
    elif segmenter is not None:
        labels = segmenter.labels([record["image"]])[0]
        record["lungs"] = enlarge(labels, record["image"].shape)
    if "lungs" in record and not record["lungs"].any():
        raise InputError(f"{path}: no lung was found; give a mask with --masks")
    return record


def _batch(task, record: dict) -> dict[str, np.ndarray]:
    example = task.transforms.finish(task.transforms.example(record), None)
    return {name: np.asarray(array)[None] for name, array in example.items()}


def _blank_film() -> dict:
    """A record for its shapes: two rectangles are lungs."""
    lungs = np.zeros((64, 64), np.uint8)
    lungs[16:48, 8:28], lungs[16:48, 36:56] = 1, 2
    return {"image": lungs * 60, "lungs": lungs, "id": "blank", "group": "blank"}


def _unused(stem: str, names: set[str]) -> str:
    """stem.png, or stem-2.png, ... where two folders have films of one name."""
    name, count = f"{stem}.png", 1
    while name in names:
        count += 1
        name = f"{stem}-{count}.png"
    names.add(name)
    return name


if __name__ == "__main__":
    run_command(main)
