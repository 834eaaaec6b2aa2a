"""Lung masks from another run: for films that have none, or for all."""

import collections
import dataclasses
import hashlib
import pathlib
from typing import Any

import ml_collections
import numpy as np
import tqdm

from cxr_jax import safe_write
from cxr_jax.checkpoints import complete_steps
from cxr_jax.data import lungs, sources
from cxr_jax.data.lungs import LungMasks
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import has
from cxr_jax.errors import InputError
from cxr_jax.trained import TrainedRun

TASK = "lungs"  # whose outputs have `lung_probs`


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A trained lungs run, ready to label films."""

    run: TrainedRun
    batch_size: int = 8

    @classmethod
    def load(cls, workdir: str | pathlib.Path) -> "Segmenter":
        """Raises InputError where the folder holds no trained lungs run."""
        # The latest checkpoint alone, whatever the run's own evaluation averages: every film of a
        # data set is labelled, and each member costs as much again.
        run = TrainedRun.load(workdir, tuple(complete_steps(pathlib.Path(workdir))[-1:]))
        if run.task.name != TASK:
            raise InputError(
                f"{workdir} is a run of task {run.task.name!r}; lung masks need one of {TASK!r} "
                f"(python -m cxr_jax.main --config=configs/{TASK}.py)"
            )
        return cls(run)

    @property
    def side(self) -> int:
        """Pixels of a side of `labels`."""
        return self.run.config.preprocess.size

    def labels(self, films: list[np.ndarray]) -> np.ndarray:
        """At most `batch_size` films, uint8 [H, W] of any sizes -> uint8 [n, S, S] lung labels."""
        records = [{"image": film, "id": "", "group": ""} for film in films]
        outputs = self.run.predict(records, batch_size=self.batch_size)
        return np.stack([lungs.labels_from_probs(out["lung_probs"]) for out in outputs])


@dataclasses.dataclass(frozen=True)
class PredictedLungs:
    """Completes `lungs` as `config.lungs` says."""

    settings: LungMasks

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "PredictedLungs":
        """Raises InputError for settings that cannot be meant."""
        return cls(LungMasks(masks=config.lungs.masks, workdir=config.lungs.workdir))

    @property
    def adds(self) -> bool:
        """False where the records' own masks are used alone."""
        return self.settings.masks != "record"

    @property
    def way_out(self) -> str:
        """How a trained run can draw the masks."""
        return (
            "; or let a trained lungs run draw the masks (--config.lungs.masks=predicted "
            "--config.lungs.workdir=DIR)"
        )

    def apply(self, source: sources.Source, cache_dir: pathlib.Path) -> sources.Source:
        """`source` with a mask for every film; without predictions, its films that have one.

        Raises:
          InputError: a run is named that the settings leave unused; it cannot be loaded.
        """
        masks = self.settings.masks
        if masks == "record" and self.settings.workdir:
            raise InputError(
                f"config.lungs.workdir={self.settings.workdir} is not used with "
                "config.lungs.masks='record'; set config.lungs.masks to record_or_predicted or "
                "predicted, or leave the folder out"
            )
        if masks == "record":
            return sources.only_with(source, {"lungs"})
        if masks == "record_or_predicted" and "lungs" in source.fields - source.partial:
            return source
        segmenter = Segmenter.load(self.settings.workdir)
        kind = SlicesWithLungs if hasattr(source, "slice_table") else WithLungs
        return kind(source, segmenter, cache_dir, replace=masks == "predicted")


class WithLungs:
    """A source whose records have `lungs` from a trained model where they have none of their own,
    or always.

    The masks are made once, at the segmenter's size, and kept in one memory-mapped file of the
    work directory: 64 kB a film at 256 pixels, whatever the size of the data set.
    """

    def __init__(
        self,
        source: sources.Source,
        segmenter: Segmenter,
        cache_dir: pathlib.Path,
        *,
        replace: bool,
    ):
        self._source, self._replace = source, replace
        self.name, self.version, self.split = source.name, source.version, source.split
        self.fields = source.fields | {"lungs"}
        self.partial = source.partial - {"lungs"}
        self.notes: tuple[str, ...] = ()  # those of the source are told by then
        self.findings = sources.names_of(source, "findings")
        self.diagnoses = sources.names_of(source, "diagnoses")
        model = segmenter.run.version
        key = f"{model}|{source.name}|{source.version}|{source.split}|{len(source)}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._path = cache_dir / f"lungs-{source.split}-{digest}.npy"
        if not self._path.exists():
            self._write_masks(segmenter)
        if missing := self._missing():
            self.notes = (missing,)

    def _write_masks(self, segmenter: Segmenter) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        count, step = len(self._source), segmenter.batch_size
        what = f"lung masks of {self.split}"
        with safe_write.replacing(self._path) as part:
            masks = np.lib.format.open_memmap(
                part, mode="w+", dtype=np.uint8, shape=(count, segmenter.side, segmenter.side)
            )
            for start in tqdm.trange(0, count, step, desc=what, disable=None):
                some = range(start, min(start + step, count))
                films = [self._source[i]["image"] for i in some]
                masks[start : start + len(films)] = segmenter.labels(films)
            masks.flush()

    def _missing(self) -> str:
        """On how many of the films that take their mask from here a lung was not found."""
        masks = np.load(self._path, mmap_mode="r")
        lungs_of = collections.Counter(
            sum(bool((masks[index] == number).any()) for number in (1, 2))
            for index in range(len(masks))
            if self._replace or not has(self._source, index, "lungs")
        )
        told = {"no lung": lungs_of[0], "one lung alone": lungs_of[1]}
        return "; ".join(
            f"{what} was found on {count} of {lungs_of.total()} films"
            for what, count in told.items()
            if count
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        if "lungs" in record and not self._replace:
            return record
        mask = np.load(self._path, mmap_mode="r")[index]
        return {**record, "lungs": lungs.enlarge(np.asarray(mask), record["image"].shape)}

    def peek(self, index: int, field: str) -> Any:
        """See `sources.peek`; of another field than the lungs."""
        return sources.peek(self._source, index, field)


class SlicesWithLungs(WithLungs):
    """The same of CT slices."""

    def slice_table(self) -> sources.SliceTable:
        """The source's."""
        return self._source.slice_table()
