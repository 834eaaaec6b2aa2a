"""The lesions of a split, with what the network sees there."""

import dataclasses
import pathlib

import jax
import numpy as np
from tqdm import tqdm

from cxr_jax.data import lesions as true_lesions
from cxr_jax.data.records import Record
from cxr_jax.data.records import blank as blank_record
from cxr_jax.data.sources.base import Source
from cxr_jax.errors import InputError
from cxr_jax.inputs import splits
from cxr_jax.tasks.lesions import Lesions
from cxr_jax.trained import TrainedRun, make_batch


@dataclasses.dataclass(frozen=True)
class Found:
    """L lesions on the slices of a source.

    Attributes:
      source: its slices.
      slices: int [L], the number of the slice in the source.
      ids: [L], the slices' names.
      boxes: float32 [L, 4], xyxy, pixels of the slice.
      points: float32 [L, 2], x and y, their places.
      heat: float32 [L], 0..1, of the place.
      probs: float32 [L], how probable it is that the slice is positive.
      features: float32 [L, C], what the last block has at the place (Eq. 9).
      brightness: float32 [L], the mean grey level in the box, 0..255.
      types: int [L], of LESION_TYPES: that of the true lesion in which the place lies; -1 where it
        lies in none, or nobody knows.
      masked: bool [L], the slice has a mask of true lesions.
      on_lesion: bool [L], the place lies in one of them.
    """

    source: Source
    slices: np.ndarray
    ids: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    heat: np.ndarray
    probs: np.ndarray
    features: np.ndarray
    brightness: np.ndarray
    types: np.ndarray
    masked: np.ndarray
    on_lesion: np.ndarray

    def __len__(self) -> int:
        return len(self.slices)


def load(workdir: pathlib.Path) -> TrainedRun:
    """A run of the lesions task, with its last checkpoint and the map that is told, alone.

    Raises:
      InputError: none, or of another task.
    """
    run = TrainedRun.load(workdir)
    if not isinstance(run.task, Lesions):
        raise InputError(
            f"{workdir} is a run of task {run.task.name!r}; expected one of configs/lesions.py"
        )
    task = dataclasses.replace(run.task, maps=run.task.maps[:1])
    return dataclasses.replace(run, task=task, steps=run.steps[-1:], ensemble=run.ensemble[-1:])


def collect(run: TrainedRun, split: str) -> Found:
    """Looks at every slice of a split of the run's data.

    Lesions are taken from slices that are called positive and, where that is known, are (Sec. 3.2).

    Raises:
      InputError: the data cannot be read.
    """
    task: Lesions = run.task
    source = splits.open_split(task, run.config, split, workdir=run.workdir)
    function = jax.jit(lambda v, batch: task.predict(v, batch) | {"cells": task.cells(v, batch)})
    variables = run.ensemble[0]
    size = run.config.eval_batch_size
    parts = []
    for start in tqdm(range(0, len(source), size), "slices", disable=None):
        numbers = range(start, min(start + size, len(source)))
        records = [source[index] for index in numbers]
        filling = [records[0]] * (size - len(records))
        batch = make_batch(task, [*records, *filling])
        outputs = jax.device_get(function(variables, batch))
        outputs = {name: values[: len(records)] for name, values in outputs.items()}
        parts.append(_of_batch(task, records, outputs, start))
    # Of no slice, for the shapes: a split may have no lesion, or no slice, at all.
    blank = make_batch(task, [blank_record(task.data.inputs)])
    shapes = jax.eval_shape(function, variables, blank)
    none = {name: np.zeros((0, *shape.shape[1:]), shape.dtype) for name, shape in shapes.items()}
    parts.append(_of_batch(task, [], none, 0))
    return Found(
        source=source, **{n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
    )


def _of_batch(
    task: Lesions, records: list[Record], outputs: dict[str, np.ndarray], start: int
) -> dict[str, np.ndarray]:
    known = [int(record.get("diagnosis", task.positive)) == task.positive for record in records]
    name = f"{task.maps[0]}_heat"
    outputs = outputs | {name: outputs[name] * np.reshape(known, (-1, 1, 1))}
    found = task.told(outputs, records)
    at = found.slice_index
    boxes, points = task.on_slices(found, records)
    types, masked, on_lesion = _types(records, at, points)
    return {
        "slices": start + at,
        "ids": np.array([str(records[k]["id"]) for k in at], object),
        "boxes": boxes,
        "points": points,
        "heat": found.peaks,
        "probs": outputs["probs"][at, task.positive],
        "features": found.features(outputs["cells"]).astype(np.float32),
        "brightness": _brightness(records, at, boxes),
        "types": types,
        "masked": masked,
        "on_lesion": on_lesion,
    }


def _brightness(records: list[Record], at: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The mean grey level in each box."""
    levels = np.zeros(len(at), np.float32)
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        rows = slice(int(y0), max(int(np.ceil(y1)), int(y0) + 1))
        columns = slice(int(x0), max(int(np.ceil(x1)), int(x0) + 1))
        levels[k] = records[at[k]]["image"][rows, columns].mean()
    return levels


def _types(
    records: list[Record], at: np.ndarray, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The types of the true lesions at the places, whether there are masks, and whether a place
    lies in one."""
    types, masked = np.full(len(at), true_lesions.UNKNOWN), np.zeros(len(at), bool)
    on_lesion = np.zeros(len(at), bool)
    for k in np.unique(at):
        if "lesion" not in records[k]:
            continue
        mine = at == k
        true = true_lesions.lesions_of(records[k])
        height, width = true.labels.shape
        x = np.clip(points[mine, 0].astype(int), 0, width - 1)
        y = np.clip(points[mine, 1].astype(int), 0, height - 1)
        kinds = np.array([true_lesions.UNKNOWN, *true.kinds])
        types[mine], masked[mine] = kinds[true.labels[y, x]], True
        on_lesion[mine] = true.labels[y, x] > 0
    return types, masked, on_lesion
