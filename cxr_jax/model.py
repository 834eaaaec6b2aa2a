"""A trained model in one line, from Python.

    model = cxr_jax.load("severity-cohen")      # a model that comes along, or a work directory
    result = model("film.dcm")                  # a path, an array or a pydicom data set
    result["map"], result.to_json(), result.figure()

docs/python.md says what the arrays are. Research software: not for any clinical use.
"""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from cxr_jax import model_files
from cxr_jax.cli import setup_jax
from cxr_jax.errors import InputError

if TYPE_CHECKING:
    import pydicom
    from matplotlib.figure import Figure

    from cxr_jax.data.volumes import Volume

    Image = np.ndarray | str | os.PathLike[str] | pydicom.Dataset

Spacing = tuple[float, float, float]


def load(
    model: str | os.PathLike[str],
    *,
    steps: tuple[int, ...] = (),
    lungs: str | os.PathLike[str] = "",
    window: tuple[float, float] | None = None,
) -> "Model":
    """Loads a trained model.

    Args:
      model: the name of one that comes along (`cxr_jax.available()`), a folder that
        `python -m cxr_jax.weights pack` wrote, or the work directory of a run.
      steps: of a run: the checkpoints that are averaged; () takes the run's own.
      lungs: of a model that needs lung masks: another model or run that finds them.
      window: of a model of CT volumes: centre and width in HU; None is the lung window.

    Raises:
      InputError: there is no such model, or it is damaged.
    """
    setup_jax()
    from cxr_jax.trained import TrainedRun

    return Model(TrainedRun.load(model_files.find(model), steps), lungs=lungs, window=window)


class Model:
    """A trained model, to be called with films or volumes: see the module.

    Attributes:
      name: of its folder.
      card: what it was trained on, what it measured, its licence and limits; {} of a run.
      task: e.g. 'severity'.
    """

    def __init__(
        self,
        run: Any,
        *,
        lungs: str | os.PathLike[str] = "",
        window: tuple[float, float] | None = None,
    ):
        """`run`: a `trained.TrainedRun`; the rest is that of `load`."""
        from cxr_jax.tasks.base import VolumeTask

        self._run, self._lungs, self._window = run, lungs, window
        self._has_volumes = isinstance(run.task, VolumeTask)
        self._has_films = not self._has_volumes or run.task.pictures
        self.name, self.task, self.card = run.name, run.task.name, run.card

    def __repr__(self) -> str:
        return f"<cxr_jax model {self.name!r}: {self.card.get('title', self.task)}>"

    @overload
    def __call__(self, image: "Image", *, spacing_mm: Spacing | None = None) -> "Result": ...

    @overload
    def __call__(
        self, image: "list[Image]", *, spacing_mm: Spacing | None = None
    ) -> "list[Result]": ...

    def __call__(self, image, *, spacing_mm=None):
        """What the model says of a film or a volume; of a list, of each.

        Args:
          image: a film: the path of a PNG, JPEG or DICOM file, a pydicom data set, or an array
            [H, W] or [H, W, 3], uint8 as the reader sees it (air dark); of other numbers the lowest
            becomes 0 and the highest 255. A volume: the path of a NIfTI file or of a folder with
            one DICOM series, or an array [S, H, W] in HU with `spacing_mm`, from the feet to the
            head, from front to back, from the patient's right to the left.
          spacing_mm: of a volume that is an array: between slices, rows and columns.

        Raises:
          InputError: it cannot be read or used; one line that says why.
        """
        if isinstance(image, list):
            return [self._of_list(image, k, spacing_mm) for k in range(len(image))]
        if spacing_mm is not None or self._is_volume(image):
            return self._volume(image, spacing_mm)
        return self._film(image)

    def _of_list(self, images: "list[Image]", k: int, spacing_mm: Spacing | None) -> "Result":
        try:
            return self(images[k], spacing_mm=spacing_mm)
        except InputError as error:
            raise InputError(f"image {k} of {len(images)}, from 0: {error}") from error

    def _is_volume(self, image: "Image") -> bool:
        if not self._has_volumes:
            return False
        if not self._has_films:
            return True
        from cxr_jax.data.volumes import holds_volume

        if not isinstance(image, str | os.PathLike):
            return False
        return holds_volume(pathlib.Path(image))

    @functools.cached_property
    def _films(self):
        from cxr_jax.inputs.films import Films

        return Films(self._run, lungs=str(self._lungs))

    @functools.cached_property
    def _volumes(self):
        from cxr_jax.inputs.volumes import Volumes

        return Volumes(self._run, window=self._window or "")

    def _film(self, image: "Image") -> "Result":
        from cxr_jax.data import readers

        coloured = 0.0
        if isinstance(image, str | os.PathLike):
            record = self._films.read(pathlib.Path(image))
            coloured = readers.read_colour(pathlib.Path(image))
        elif isinstance(image, np.ndarray):
            record = self._films.record(_pixels(image), "image", told="the image")
            if image.ndim == 3 and image.dtype == np.uint8:
                coloured = readers.colourfulness(image[..., :3])
        else:
            with tempfile.TemporaryDirectory() as folder:
                record = self._films.read(_written(image, pathlib.Path(folder)))
        found = self._films.look(record, coloured=coloured)
        lungs = {"lungs": record["lungs"]} if "lungs" in record else {}
        arrays = {name: np.asarray(array) for name, array in found.outputs.items()} | lungs
        return Result(arrays, found.line, found.draw)

    def _volume(self, image: "Image", spacing_mm: Spacing | None) -> "Result":
        if not self._has_volumes:
            raise InputError(f"{self.name} reads films, which have no spacing_mm")
        if isinstance(image, np.ndarray):
            scan, name = _scan(image, spacing_mm), "volume"
        elif isinstance(image, (str, os.PathLike)):
            from cxr_jax.data import volumes

            if spacing_mm is not None:
                raise InputError(f"{image}: a file has a spacing of its own; leave out spacing_mm")
            scan, name = volumes.read(pathlib.Path(image)), pathlib.Path(image).resolve().name
        else:
            raise InputError(
                f"{self.name} reads volumes: give a NIfTI file, the folder of a DICOM series, or "
                "an array [S, H, W] in HU"
            )
        found = self._volumes.look(scan, name, told=name)

        def draw() -> "Figure":
            return self._run.task.figure(found.shown, self._run.explain(found.shown))

        return Result({"mask": found.mask, "slice_probs": found.probs}, found.line, draw)


@dataclasses.dataclass(frozen=True)
class Result(Mapping):
    """What a model says of one film or volume: arrays by name; in a notebook it shows itself.

    Attributes:
      arrays: the same as a mapping.
      description: plain JSON, as a line of `predictions.jsonl`.
    """

    arrays: Mapping[str, np.ndarray]
    description: dict[str, Any]
    _draw: Callable[[], "Figure"] = dataclasses.field(repr=False)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)

    def __repr__(self) -> str:
        shapes = (f"{name} {array.dtype}{list(array.shape)}" for name, array in self.items())
        return f"<cxr_jax result: {', '.join(shapes)}>"

    def figure(self) -> "Figure":
        """The picture that `predict` writes: what was found, drawn on the film."""
        return self._draw()

    def to_json(self) -> str:
        """`description` as a line of JSON."""
        return json.dumps(self.description, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture; the ending of the name says in which format.

        Raises:
          InputError: there is no such format.
        """
        from cxr_jax.figures import save

        figure, kind = self.figure(), pathlib.Path(path).suffix[1:].lower()
        if kind not in (known := figure.canvas.get_supported_filetypes()):
            raise InputError(f"{path}: no format of pictures; expected one of {', '.join(known)}")
        save(figure, path)

    def _repr_png_(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "result.png"
            self.save(path)
            return path.read_bytes()


def _pixels(image: np.ndarray) -> np.ndarray:
    """An array -> uint8 [H, W]."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise InputError(f"the image has shape {list(image.shape)}; expected [H, W] or [H, W, 3]")
    if image.dtype.kind not in "uif" or not image.size:
        raise InputError(f"the image is of {image.dtype}, {image.size} numbers; expected a picture")
    if broken := int((~np.isfinite(image)).sum()):
        raise InputError(f"the image has {broken} numbers that are not finite")
    if image.ndim == 3:
        grey = image[..., :3] @ np.array([0.299, 0.587, 0.114])  # as `readers`
        image = np.rint(grey).astype(np.uint8) if image.dtype == np.uint8 else grey
    low, high = float(image.min()), float(image.max())
    if low == high:
        raise InputError(f"the image is {low:g} everywhere; expected a picture")
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    return np.rint((image.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def _scan(values: np.ndarray, spacing_mm: Spacing | None) -> "Volume":
    from cxr_jax.data.volumes import Outline, Volume

    if spacing_mm is None:
        raise InputError("a volume that is an array needs spacing_mm=(slices, rows, columns)")
    if values.ndim != 3 or values.dtype.kind not in "uif" or not values.size:
        raise InputError(
            f"the volume is of {values.dtype} and shape {list(values.shape)}; expected numbers "
            "[S, H, W] in HU"
        )
    if broken := int((~np.isfinite(values)).sum()):
        raise InputError(f"the volume has {broken} numbers that are not finite")
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != 3 or not all(0 < step < np.inf for step in spacing):
        raise InputError(f"spacing_mm={spacing_mm}; expected three positive numbers")
    outline = Outline(shape=values.shape, numbers=None, axes=None, matrix=None)
    return Volume(values=values.astype(np.float32), spacing_mm=spacing, outline=outline)


def _written(dataset: "pydicom.Dataset", folder: pathlib.Path) -> pathlib.Path:
    """A data set as a file, which the one reader of DICOM files checks."""
    import pydicom

    if not isinstance(dataset, pydicom.Dataset):
        raise InputError(
            f"{type(dataset).__name__} is no image; give a path, an array or a pydicom data set"
        )
    path = folder / "data_set.dcm"
    try:
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(f"the pydicom data set cannot be written: {error}") from error
    return path
