"""Run a trained model on films or on CT volumes.

    python -m cxr_jax.predict --workdir=DIR --output=OUT film1.dcm film2.png folder/
    python -m cxr_jax.predict --workdir=DIR --output=OUT scan.nii.gz series/

Writes OUT/predictions.jsonl, one line a film (a folder's in order of name), and OUT/NAME.png, the
film with the prediction drawn on it. A film that cannot be read has an `error` in its line; the
others go on. A volume is a NIfTI file or a folder with one DICOM series; of it there are the
slices with the largest finds in OUT/NAME.png and the mask in OUT/NAME-lesions.nii.gz, which lies
where the volume lies.
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

_SLICES_AT_ONCE = 8


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxr_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "films", nargs="+", type=pathlib.Path, help="films, or CT volumes; files or folders"
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--steps", default="", help="checkpoints to average, e.g. 1000,1100,1200")
    parser.add_argument("--lungs", default="", help="work directory of a trained lungs run")
    parser.add_argument("--masks", type=pathlib.Path, help="folder of lung masks, NAME.png")
    parser.add_argument(
        "--window",
        default="",
        help="CENTRE,WIDTH of the CT volumes' window in HU (default: -600,1500, the lung window)",
    )
    args = parser.parse_args()
    try:
        steps = tuple(int(step) for step in args.steps.split(",") if step)
    except ValueError as error:
        raise InputError(f"--steps={args.steps}; expected whole numbers") from error
    setup_jax()
    return predict(
        args.films,
        args.workdir,
        args.output,
        steps=steps,
        lungs=args.lungs,
        masks=args.masks,
        window=_window(args.window),
    )


def predict(
    films: list[pathlib.Path],
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    steps: tuple[int, ...] = (),
    lungs: str = "",
    masks: pathlib.Path | None = None,
    window: tuple[float, float] | None = None,
) -> int:
    """See the module. Returns the exit status: 0, or 1 where no film could be read."""
    import jax

    from cxr_jax.checkpoints import restore_variables
    from cxr_jax.data import readers, volumes
    from cxr_jax.evaluate import variable_shapes
    from cxr_jax.figures import save
    from cxr_jax.tasks import make_task
    from cxr_jax.tasks.lungs import Segmenter
    from cxr_jax.workdir import read_config

    config = read_config(workdir)
    task = make_task(config)
    paths = (volumes.volumes_in if task.volumes else readers.films_in)(films)
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
    blank = _blank_slice() if task.volumes else _blank_film()
    shapes = variable_shapes(task, _batch(task, [blank]))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    steps, ensemble = restore_variables(workdir, shapes, device, steps or tuple(config.eval_steps))
    one_model = jax.jit(task.predict)

    def forward(records: list[dict]) -> list[dict[str, np.ndarray]]:
        """The outputs of every record: the mean over the ensemble."""
        batch = _batch(task, records)
        predicted = [jax.device_get(one_model(variables, batch)) for variables in ensemble]
        mean = {k: np.mean([p[k] for p in predicted], axis=0) for k in predicted[0]}
        return [{k: v[i] for k, v in mean.items()} for i in range(len(records))]

    output.mkdir(parents=True, exist_ok=True)
    part = output / "predictions.jsonl.part"  # an earlier result stays until this one is whole
    names: set[str] = set()
    failed = 0
    with part.open("w", encoding="utf-8") as lines:
        for path in tqdm.tqdm(paths, desc="predict", unit="film", disable=None):
            line = {"file": str(path)}
            try:
                if task.volumes:
                    found, figure, write_mask = _volume(path, task, forward, window)
                else:
                    record = _read(path, masks, segmenter)
                    (outputs,) = forward([record])
                    found, figure = task.describe(outputs), task.figure(record, outputs)
                stem = path.name.removesuffix(".gz").removesuffix(".nii")
                stem = stem if task.volumes else path.stem
                picture = _unused(re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80], names)
                save(figure, output / picture)
                line |= {"picture": picture, **found}
                if task.volumes:
                    line["mask"] = f"{pathlib.Path(picture).stem}-lesions.nii.gz"
                    write_mask(output / line["mask"])
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


def _volume(path: pathlib.Path, task, forward, window: tuple[float, float] | None):
    """A volume's line and figure, and a function that writes its mask to a path."""
    from cxr_jax.data import volumes

    scan = volumes.read(path)
    images = volumes.pictures(scan, *(window or volumes.LUNG_WINDOW))
    count = len(images)
    mask = np.zeros(images.shape, np.uint8)
    records = [
        {
            "image": images[k],
            "slices": [{"image": images[min(max(k + d, 0), count - 1)]} for d in (-1, 0, 1)],
            "id": f"{path.name}, slice {k + 1} of {count} from the feet",
            "group": path.name,
        }
        for k in range(count)
    ]
    outputs = []
    for start in range(0, count, _SLICES_AT_ONCE):
        some = records[start : start + _SLICES_AT_ONCE]
        # One shape, one compilation.
        filled = some + [some[0]] * (_SLICES_AT_ONCE - len(some))
        outputs += forward(filled)[: len(some)]
    for k, out in enumerate(outputs):
        mask[k] = task.mask(out, images[k].shape)
    line = task.describe_volume(outputs, mask, scan.spacing_mm)
    largest = int(np.argmax(mask.sum((1, 2), dtype=np.int64))) if mask.any() else count // 2
    figure = task.figure(records[largest], outputs[largest])
    return line, figure, lambda file: volumes.write_mask(file, mask, scan)


def _batch(task, records: list[dict]) -> dict[str, np.ndarray]:
    examples = [task.transforms.finish(task.transforms.example(r), None) for r in records]
    return {name: np.stack([np.asarray(e[name]) for e in examples]) for name in examples[0]}


def _window(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        centre, width = (float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"--window={text}; expected CENTRE,WIDTH in HU, e.g. -600,1500") from error
    if not width > 0:
        raise InputError(f"--window={text}; the width must be positive")
    return centre, width


def _blank_film() -> dict:
    """A record for its shapes: two rectangles are lungs."""
    lungs = np.zeros((64, 64), np.uint8)
    lungs[16:48, 8:28], lungs[16:48, 36:56] = 1, 2
    return {"image": lungs * 60, "lungs": lungs, "id": "blank", "group": "blank"}


def _blank_slice() -> dict:
    image = np.zeros((64, 64), np.uint8)
    return {"image": image, "slices": [{"image": image}] * 3, "id": "blank", "group": "blank"}


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
