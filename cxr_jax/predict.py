"""Run a trained model on films or on CT volumes.

    python -m cxr_jax.predict --workdir=DIR --output=OUT film1.dcm film2.png folder/
    python -m cxr_jax.predict --workdir=DIR --output=OUT scan.nii.gz series/

Writes OUT/predictions.jsonl, one line a film (a folder's in order of name), and OUT/NAME.png, the
film with the prediction drawn on it. A film that cannot be read has an `error` in its line; the
others go on. A volume is a NIfTI file or a folder with one DICOM series; of it there are the
slice with the largest find in OUT/NAME.png and the mask in OUT/NAME-lesions.nii.gz, which lies
where the volume lies. Slices are numbered from 1 as a viewer shows them where the files say how,
else from the feet.
Tasks that need lung masks take them from the `lungs` run that the model was trained with, from
--lungs=DIR (another such run), or from --masks=FOLDER (PNG masks of the films' names and sizes).
"""

import argparse
import json
import os
import pathlib
import re
import sys

import numpy as np
import tqdm

from cxr_jax.cli import Parser, run_command, setup_jax
from cxr_jax.errors import InputError

_SLICES_AT_ONCE = 8
_SHOWN = 5  # errors on the terminal


def main() -> int:
    parser = Parser(
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
    parser.add_argument(
        "--threshold", type=float, help="of a CT model's map, e.g. what report --tune chose"
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
        threshold=args.threshold,
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
    threshold: float | None = None,
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
    if threshold is not None:
        if "threshold" not in config:
            raise InputError(
                f"{workdir}: this model has no threshold to choose; leave out --threshold"
            )
        config.threshold = threshold
    task = make_task(config)
    if task.volumes and (lungs or masks):
        raise InputError(
            f"{workdir}: this model reads CT volumes; --lungs and --masks are of films"
        )
    if window and not task.volumes:
        raise InputError(f"{workdir}: this model reads films; --window is of CT volumes")
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
    _check_earlier(output / "predictions.jsonl", paths)
    part = output / "predictions.jsonl.part"  # an earlier result stays until this one is whole
    names: set[str] = set()
    failed: list[str] = []
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
                name = path.resolve().name
                stem = re.sub(r"\.nii(\.gz)?$", "", name, flags=re.I) if task.volumes else path.stem
                picture = _unused(re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80], names)
                save(figure, output / picture)
                line |= {"picture": picture, **found}
                if task.volumes:
                    line["mask"] = f"{pathlib.Path(picture).stem}-lesions.nii.gz"
                    write_mask(output / line["mask"])
            except InputError as error:
                failed.append(str(error))
                line["error"] = str(error)
            lines.write(json.dumps(line, allow_nan=False) + "\n")
            lines.flush()
    os.replace(part, output / "predictions.jsonl")
    kind = "volumes" if task.volumes else "films"
    print(
        f"{output}: predictions.jsonl and {len(names)} pictures"
        f"{f'; {len(failed)} of {len(paths)} {kind} could not be used' if failed else ''}"
        f"\nmodel: {workdir}, steps {', '.join(map(str, steps))}"
        "\nResearch software: not for any clinical use."
    )
    for error in failed[:_SHOWN]:
        print(f"not used: {error}", file=sys.stderr)
    if len(failed) > _SHOWN:
        print(f"not used: {len(failed) - _SHOWN} more, see predictions.jsonl", file=sys.stderr)
    return 1 if len(failed) == len(paths) else 0


def _check_earlier(lines: pathlib.Path, paths: list[pathlib.Path]) -> None:
    """Refuses to replace the predictions of other films."""
    if not lines.is_file():
        return
    try:
        earlier = {json.loads(line)["file"] for line in lines.read_text("utf-8").splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{lines} is broken ({error}); remove it") from error
    if others := earlier - {str(path) for path in paths}:
        raise InputError(
            f"{lines} holds predictions of {len(others)} other files, e.g. {min(others)}; give "
            "another --output"
        )


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
    if window is None:
        volumes.check_hounsfield(scan, path, "give --window=CENTRE,WIDTH")
    images = volumes.pictures(scan, *(window or volumes.LUNG_WINDOW))
    count, name = len(images), path.resolve().name
    numbers = scan.outline.numbers
    numbers = np.arange(1, count + 1) if numbers is None else numbers
    mask = np.zeros(images.shape, np.uint8)

    def record(k: int) -> dict:
        around = [images[min(max(k + d, 0), count - 1)] for d in (-1, 0, 1)]
        return {
            "image": images[k],
            "slices": [{"image": image} for image in around],
            "id": f"{name}, slice {numbers[k]} of {count}",
            "group": name,
        }

    probs, largest, shown = [], -1, (count // 2, None)
    for start in range(0, count, _SLICES_AT_ONCE):
        some = range(start, min(start + _SLICES_AT_ONCE, count))
        # One shape, one compilation.
        filled = [*some, *[start] * (_SLICES_AT_ONCE - len(some))]
        for k, out in zip(some, forward([record(n) for n in filled])):
            mask[k] = task.mask(out, images[k].shape)
            probs.append(float(out["slice_prob"]))
            area = int(mask[k].sum(dtype=np.int64))
            if area > max(largest, 0) or (shown[1] is None and k == count // 2):
                largest, shown = area, (k, out)
    line = {
        "window": list(window or volumes.LUNG_WINDOW),
        "slices_counted": "from the feet"
        if scan.outline.numbers is None
        else "as a viewer shows them",
        **task.describe_volume(probs, mask, numbers, scan.spacing_mm),
    }
    figure = task.figure(record(shown[0]), shown[1])
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
    if not (np.isfinite(centre) and 0 < width < np.inf):
        raise InputError(f"--window={text}; expected finite numbers, the width positive")
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
