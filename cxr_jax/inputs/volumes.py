"""CT volumes as files: NIfTI, or a folder with one DICOM series; a mask is written beside."""

import argparse
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from cxr_jax.data import lungs as lung_labels
from cxr_jax.data import volumes
from cxr_jax.data.found import Found
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError
from cxr_jax.inputs import dicom_files
from cxr_jax.inputs.doors import Prediction
from cxr_jax.inputs.lungs import Segmenter
from cxr_jax.tasks.base import VolumeTask
from cxr_jax.trained import TrainedRun

_SLICES_AT_ONCE = 8

Window = tuple[float, float]


class Volumes:
    """Applies a run to CT volumes, slice by slice. Where it needs lungs, those that the run of its
    `config.lungs.workdir` finds.

    Args:
      run: of a `VolumeTask`.
      window: CENTRE,WIDTH in HU; '' is the lung window, which needs values in HU.
      dicom: of a DICOM series, the mask as DICOM too.

    Raises:
      InputError: no such window, or lungs are needed and there is no run that finds them.
    """

    unit: ClassVar[str] = "CT volume"
    options: ClassVar[tuple[str, ...]] = ("window", "dicom")

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """--window; --dicom is that of films."""
        parser.add_argument(
            "--window",
            default="",
            help="CENTRE,WIDTH of the CT volumes' window in HU (default: -600,1500, the lung "
            "window)",
        )

    def __init__(self, run: TrainedRun, *, window: str | Window = "", dicom: bool = False):
        self._run, self._dicom = run, dicom
        if dicom:
            dicom_files.check_installed()
        assert isinstance(run.task, VolumeTask)
        self._task: VolumeTask = run.task
        self._window = _parse_window(window) if isinstance(window, str) else window
        self._segmenter = None
        if "lungs" in run.task.data.inputs:
            if not run.config.lungs.workdir:
                raise InputError(
                    f"{run.workdir}: this model needs lung masks, which a volume has not; give the "
                    "run another source of them (config.lungs.masks)"
                )
            self._segmenter = Segmenter.load(run.config.lungs.workdir)

    def find(self, paths: Iterable[str | pathlib.Path]) -> Found:
        """The volumes among files and folders."""
        return volumes.find_volumes(paths)

    def predict(self, path: pathlib.Path) -> Prediction:
        """What the run says of one volume: the line, the slice with the largest find, the mask.

        Raises:
          InputError: the volume cannot be read.
        """
        scan = volumes.read(path)
        found = self.look(scan, path.resolve().name, told=str(path))
        stem = re.sub(r"\.nii(\.gz)?$", "", path.resolve().name, flags=re.I)
        write = functools.partial(volumes.write_mask, mask=found.mask, volume=scan)
        figure = self._task.figure(found.shown, self._run.explain(found.shown))
        files: dict[str, tuple[str, Callable[[pathlib.Path], object]]] = {}
        files["mask"] = ("-lesions.nii.gz", write)
        if self._dicom:
            drawn = [dicom_files.Drawn("lesions", "lesions", found.mask)]
            files |= dicom_files.files_of(path, drawn, figure, model=self._run.name)
        return Prediction(stem=stem, line=found.line, figure=figure, files=files)

    def look(self, scan: volumes.Volume, name: str, *, told: str) -> "Look":
        """What the run says of a volume that is read already.

        Args:
          scan: the volume.
          name: of the volume.
          told: how an error calls it.

        Raises:
          InputError: the values are not in HU, and no window was given.
        """
        if self._window is None:
            volumes.check_hounsfield(scan, told, "give --window=CENTRE,WIDTH")
        window = self._window or volumes.LUNG_WINDOW
        images = volumes.pictures(scan, *window)
        counted = scan.outline.numbers is not None
        numbers = np.arange(1, len(images) + 1)
        if scan.outline.numbers is not None:
            numbers = scan.outline.numbers
        slices = _Slices(images, name, numbers, lungs=self.lungs(images))
        found = self._apply(slices)
        line = {
            "window": list(window),
            "slices_counted": "as a viewer shows them" if counted else "from the feet",
            **self._task.describe_volume(
                found.probs, found.mask, numbers=numbers, spacing_mm=scan.spacing_mm
            ),
        }
        probs = np.array(found.probs, np.float32)
        return Look(line=line, mask=found.mask, probs=probs, shown=slices.record(found.shown))

    def lungs(self, images: np.ndarray) -> np.ndarray | None:
        """The lungs of all slices, uint8 [S, H, W]; None where they are not asked for."""
        if self._segmenter is None:
            return None
        step = self._segmenter.batch_size
        some = [list(images[k : k + step]) for k in range(0, len(images), step)]
        labels = [label for part in some for label in self._segmenter.labels(part)]
        return np.stack([lung_labels.enlarge(label, images[0].shape) for label in labels])

    def _apply(self, slices: "_Slices") -> "_Found":
        count = len(slices.images)
        # Shown is the slice with the largest find, else the one in the middle.
        found = _Found(mask=np.zeros(slices.images.shape, np.uint8), shown=count // 2)
        largest = 0
        for start in range(0, count, _SLICES_AT_ONCE):
            some = range(start, min(start + _SLICES_AT_ONCE, count))
            outputs = self._run.predict(
                [slices.record(k) for k in some], batch_size=_SLICES_AT_ONCE
            )
            for k, out in zip(some, outputs):
                found.mask[k] = self._task.mask(slices.record(k), out)
                found.probs.append(self._task.slice_prob(out))
                area = int(found.mask[k].sum(dtype=np.int64))
                if area > largest:
                    largest, found.shown = area, k
        return found


class Look(NamedTuple):
    """What is said of a volume.

    Attributes:
      line: plain JSON.
      mask: uint8 [S, H, W], in the orientation of `data.volumes`.
      probs: [S] of a find in each slice.
      shown: the record of the slice with the largest find, else of the middle one.
    """

    line: dict[str, Any]
    mask: np.ndarray
    probs: np.ndarray
    shown: Record


@dataclasses.dataclass
class _Found:
    """What was found in a volume, and which slice is shown."""

    mask: np.ndarray  # uint8 [S, H, W]
    shown: int
    probs: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Slices:
    """A volume as records: uint8 [S, H, W], its name, the slices' numbers as they are told, and
    perhaps the lungs."""

    images: np.ndarray
    name: str
    numbers: np.ndarray
    lungs: np.ndarray | None = None

    def record(self, k: int) -> Record:
        """Slice k with its neighbours; at an end the slice itself stands in for the missing one."""
        count = len(self.images)
        around = [self.images[min(max(k + d, 0), count - 1)] for d in (-1, 0, 1)]
        lungs = {} if self.lungs is None else {"lungs": self.lungs[k]}
        return lungs | {
            "image": self.images[k],
            "slices": [{"image": image} for image in around],
            "id": f"{self.name}, slice {self.numbers[k]} of {count}",
            "group": self.name,
        }


def _parse_window(text: str) -> Window | None:
    if not text:
        return None
    try:
        centre, width = (float(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"--window={text}; expected CENTRE,WIDTH in HU, e.g. -600,1500") from error
    if not (np.isfinite(centre) and 0 < width < np.inf):
        raise InputError(f"--window={text}; expected finite numbers, the width positive")
    return centre, width
