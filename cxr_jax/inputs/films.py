"""Films as files: PNG, JPEG and DICOM, one prediction each."""

import argparse
import collections
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from cxr_jax import model_files
from cxr_jax.data import lungs as lung_labels
from cxr_jax.data import readers, zones
from cxr_jax.data.found import Found
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError
from cxr_jax.figures import mark
from cxr_jax.inputs import dicom_files, quality
from cxr_jax.inputs.doors import Prediction
from cxr_jax.inputs.lungs import Segmenter
from cxr_jax.tasks.base import VolumeTask
from cxr_jax.trained import TrainedRun


class Films:
    """Applies a run to films.

    Args:
      run: of a task of films.
      lungs: work directory of a trained lungs run, or the name of a model that comes along; '': the
        one that the run was trained with. Read
        where the task needs lung masks and `masks` is not given.
      masks: folder of lung masks, NAME.png; FOLDER/NAME.png where a film of that name lies in
        FOLDER of a searched folder.
      dicom: of a DICOM film, what was found as DICOM too.

    Raises:
      InputError: the run needs lung masks and there is nothing to get them from.
    """

    unit: ClassVar[str] = "film"
    options: ClassVar[tuple[str, ...]] = ("lungs", "masks", "dicom")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """--lungs, --masks and --dicom."""
        parser.add_argument("--lungs", default="", help="a trained lungs run, or the model lungs")
        parser.add_argument("--masks", type=pathlib.Path, help="folder of lung masks, NAME.png")
        parser.add_argument("--dicom", action="store_true", help=dicom_files.HELP)

    def __init__(
        self,
        run: TrainedRun,
        *,
        lungs: str = "",
        masks: pathlib.Path | None = None,
        dicom: bool = False,
    ):
        self._run, self._masks, self._segmenter = run, masks, None
        self._dicom = dicom
        if dicom:
            dicom_files.check_installed()
        self._places: dict[pathlib.Path, pathlib.Path] = {}
        if "lungs" in run.task.data.inputs and masks is None:
            lungs = lungs or run.config.lungs.workdir
            if not lungs:
                raise InputError(
                    f"{run.workdir}: this model needs lung masks; give --lungs=DIR, a trained run "
                    "of configs/lungs.py, --lungs=lungs, which comes along, or --masks=FOLDER"
                )
            self._segmenter = Segmenter.load(model_files.find(lungs))

    def find(self, paths: Iterable[str | pathlib.Path]) -> Found:
        """The films among files and folders."""
        asked = [pathlib.Path(path) for path in paths]
        found = readers.find_films(asked)
        self._places = {file: _place(file, asked) for file in found.files}
        return found

    def predict(self, path: pathlib.Path) -> Prediction:
        """What the run says of one film.

        Raises:
          InputError: the film cannot be read, or no lung was found where one is needed.
        """
        record = self.read(path)
        found = self.look(record, coloured=readers.read_colour(path))
        layers, figure = self._run.task.layers(record, found.outputs), found.draw()
        drawn = _drawn(layers, record.get("lungs"))
        if "lungs" in record:
            layers["lungs"] = np.where(record["lungs"] > 0, 255, 0).astype(np.uint8)
        files = {name: (f"-{name}.png", _png(layer)) for name, layer in layers.items()}
        if self._dicom:
            files |= dicom_files.files_of(path, drawn, figure, model=self._run.name)
        return Prediction(stem=path.stem, line=found.line, figure=figure, files=files)

    def look(self, record: Record, *, coloured: float = 0.0) -> "Look":
        """What the run says of a film that is read already, and what is to be said of the film.

        Args:
          record: of `read` or `record`.
          coloured: as `quality.judge`.
        """
        task, outputs = self._run.task, self._run.explain(record)
        if isinstance(task, VolumeTask):  # whose pictures are slices
            judged = quality.judge_slice(record["image"])
        else:
            judged = quality.judge(record["image"], lungs=record.get("lungs"), coloured=coloured)
        reasons = judged.reasons
        line = task.describe(record, outputs) | {"quality": judged.to_json()}

        def draw() -> Figure:
            figure = task.figure(record, outputs)
            if reasons:
                mark(figure, f"This picture {'; '.join(reasons)}. Its scores may mean nothing.")
            return figure

        return Look(outputs, line, draw)

    def read(self, path: pathlib.Path) -> Record:
        """A record with the film and, where they are asked for, its lungs.

        Raises:
          InputError: as `predict`.
        """
        readers.check_frontal(path)
        image = readers.read_film(path)
        if self._masks is None:
            return self.record(image, path.name, told=str(path))
        mask = readers.read_mask(self._mask_of(path, self._masks), image.shape)
        return self.record(image, path.name, told=str(path), lungs=zones.split_lungs(mask))

    def record(
        self, image: np.ndarray, name: str, *, told: str, lungs: np.ndarray | None = None
    ) -> Record:
        """A record of a film that is read already.

        Args:
          image: uint8 [H, W].
          name: of the film.
          told: how an error calls it.
          lungs: its lungs; where they are asked for and None, those that the run finds.

        Raises:
          InputError: no lung was found where one is needed.
        """
        record = {"image": image, "id": name, "group": name}
        if lungs is None and self._segmenter is not None:
            lungs = lung_labels.enlarge(self._segmenter.labels([image])[0], image.shape)
        if lungs is None:
            return record
        if not lungs.any():
            raise InputError(f"{told}: no lung was found; give a mask with --masks")
        return record | {"lungs": lungs}

    def _mask_of(self, path: pathlib.Path, masks: pathlib.Path) -> pathlib.Path:
        """The one mask that can be meant.

        Raises:
          InputError: it would be that of another film too.
        """
        places = collections.Counter(self._places.values())
        stems = collections.Counter(place.name for place in self._places.values())
        place = self._places.get(path, pathlib.Path(path.stem))
        inside = masks / place.parent / f"{place.name}.png"
        if places[place] > 1 or (stems[place.name] > 1 and not inside.is_file()):
            raise InputError(
                f"{path}: {stems[place.name]} films are called {place.name!r}; give their masks "
                f"as --masks={masks} with {place.parent / place.name}.png in it, and films "
                "of the same place in two folders in two runs"
            )
        return inside if inside.is_file() else masks / f"{path.stem}.png"


class Look(NamedTuple):
    """What is said of a film.

    Attributes:
      outputs: the arrays of the model.
      line: plain JSON for `predictions.jsonl`.
      draw: makes the picture.
    """

    outputs: dict[str, np.ndarray]
    line: dict[str, Any]
    draw: Callable[[], Figure]


def _drawn(layers: Mapping[str, np.ndarray], lungs: np.ndarray | None) -> list[dicom_files.Drawn]:
    """For DICOM: the layers of the task, maps of lesions but for one of the lungs, and the lungs
    that the film came with."""
    drawn = [
        dicom_files.Drawn("lungs", "lungs", layer)
        if name == "lungs"
        else dicom_files.Drawn("lesions", name, layer, is_map=True)
        for name, layer in layers.items()
    ]
    if lungs is not None:
        sides = {"right lung": 1, "left lung": 2}
        drawn += [
            dicom_files.Drawn("lungs", side, (lungs == label).astype(np.uint8))
            for side, label in sides.items()
        ]
    return drawn


def _png(layer: np.ndarray) -> Callable[[pathlib.Path], object]:
    return lambda path: path.write_bytes(readers.encode_png(layer))


def _place(file: pathlib.Path, paths: Iterable[pathlib.Path]) -> pathlib.Path:
    """Where a film lies in the folder that was searched, without its ending."""
    roots = [path for path in paths if path != file and file.is_relative_to(path)]
    place = file.relative_to(min(roots, key=lambda root: len(root.parts))) if roots else file.name
    return pathlib.Path(place).parent / file.stem
