"""Films as files: PNG, JPEG and DICOM, one prediction each."""

import argparse
import pathlib
from collections.abc import Iterable

from cxr_jax.data import lungs as lung_labels
from cxr_jax.data import readers, zones
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError
from cxr_jax.inputs.doors import Prediction
from cxr_jax.inputs.lungs import Segmenter
from cxr_jax.trained import TrainedRun


class Films:
    """Applies a run to films.

    Args:
      run: of a task of films.
      lungs: work directory of a trained lungs run; '': the one that the run was trained with. Read
        where the task needs lung masks and `masks` is not given.
      masks: folder of lung masks, NAME.png.

    Raises:
      InputError: the run needs lung masks and there is nothing to get them from.
    """

    unit = "film"
    options = ("lungs", "masks")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """--lungs and --masks."""
        parser.add_argument("--lungs", default="", help="work directory of a trained lungs run")
        parser.add_argument("--masks", type=pathlib.Path, help="folder of lung masks, NAME.png")

    def __init__(self, run: TrainedRun, *, lungs: str = "", masks: pathlib.Path | None = None):
        self._run, self._masks, self._segmenter = run, masks, None
        if "lungs" in run.task.data.inputs and masks is None:
            lungs = lungs or run.config.lungs.workdir
            if not lungs:
                raise InputError(
                    f"{run.workdir}: this model needs lung masks; give --lungs=DIR, a trained run "
                    "of configs/lungs.py, or --masks=FOLDER"
                )
            self._segmenter = Segmenter.load(lungs)

    def find(self, paths: Iterable[str | pathlib.Path]) -> list[pathlib.Path]:
        """The films among files and folders."""
        return readers.films_in(paths)

    def predict(self, path: pathlib.Path) -> Prediction:
        """What the run says of one film.

        Raises:
          InputError: the film cannot be read, or no lung was found where one is needed.
        """
        record = self._read(path)
        task, outputs = self._run.task, self._run.explain(record)
        return Prediction(path.stem, task.describe(record, outputs), task.figure(record, outputs))

    def _read(self, path: pathlib.Path) -> Record:
        """A record with the film and, where they are asked for, its lungs."""
        record = {"image": readers.read_film(path), "id": path.name, "group": path.name}
        shape = record["image"].shape
        if self._masks is not None:
            mask = readers.read_mask(self._masks / f"{path.stem}.png", shape)
            record["lungs"] = zones.split_lungs(mask)
        elif self._segmenter is not None:
            labels = self._segmenter.labels([record["image"]])[0]
            record["lungs"] = lung_labels.enlarge(labels, shape)
        if "lungs" in record and not record["lungs"].any():
            raise InputError(f"{path}: no lung was found; give a mask with --masks")
        return record
