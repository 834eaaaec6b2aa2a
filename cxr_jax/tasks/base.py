"""What one paper adds to the shared loop."""

import abc
import pathlib
from typing import Any, ClassVar

import jax
import numpy as np
from matplotlib.figure import Figure

from cxr_jax.data.pipeline import Stage, Transforms
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source
from cxr_jax.errors import InputError

Array = jax.Array
Batch = dict[str, Array]
Outputs = dict[str, Array]
Rows = dict[str, np.ndarray]
Variables = dict[str, Any]


class Task(abc.ABC):
    """One paper, behind ten names. A subclass is a frozen dataclass made from a config.

    A task owns no arrays and no loop. `init`, `loss`, `predict` and `score` are pure and are
    jitted by the loop; `report`, `figures` and `describe` run on the host.
    """

    name: ClassVar[str]
    volumes: ClassVar[bool] = False  # its examples are slices of CT volumes and not films

    @property
    @abc.abstractmethod
    def fields(self) -> frozenset[str]:
        """The record fields it trains and is scored on (see `data/records.py`)."""

    @property
    def inputs(self) -> frozenset[str]:
        """Those of `fields` that `predict` reads."""
        return frozenset({"image"})

    @property
    def adds(self) -> frozenset[str]:
        """Those of `fields` that `adapt` can give to a source without them."""
        return frozenset()

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of the parameter paths this task never trains, e.g. ('backbone/.*',)."""
        return ()

    @property
    def labels(self) -> frozenset[str]:
        """Those of `fields`, and those that go with them, that a film without labels lacks: what
        is hidden of a second data set whose labels are not to be used."""
        return frozenset()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """When how much of a second data set joins the training."""
        return (Stage(0),)

    @property
    @abc.abstractmethod
    def transforms(self) -> Transforms:
        """How a record becomes an example. Labels are optional: `predict` has none."""

    def adapt(self, source: Source, cache_dir: pathlib.Path, *, training: bool = False) -> Source:
        """Adds what the records lack, e.g. lung masks from another trained model, or makes of them
        what is trained on, e.g. bags of slices."""
        del cache_dir, training
        return source

    @abc.abstractmethod
    def init(self, rng: Array, batch: Batch) -> Variables:
        """Fresh variables; `batch` gives the shapes."""

    @abc.abstractmethod
    def loss(
        self, variables: Variables, batch: Batch, *, rng: Array, step: Array
    ) -> tuple[Array, tuple[Variables, dict[str, Array]]]:
        """Scalar loss, (new model state, unweighted terms).

        The loss is a mean over examples of one number each, so that the mean over devices of
        their means is the mean over the global batch.
        """

    @abc.abstractmethod
    def predict(self, variables: Variables, batch: Batch) -> Outputs:
        """Arrays [B, ...], probabilities rather than logits, so that the mean over an ensemble
        of checkpoints means something. Never reads a label."""

    @abc.abstractmethod
    def score(self, outputs: Outputs, batch: Batch) -> dict[str, Array]:
        """Rows [B, ...]: one an example, nothing averaged."""

    def units(self, rows: Rows) -> Rows:
        """What `report` and its intervals count, from the rows of a whole split: the rows
        themselves, or one for each patient, of whose slices the rows are. Has `id` and `group`."""
        return rows

    def finish_rows(self, rows: Rows) -> Rows:
        """Host work on the rows of one batch (post-processing) before they are kept."""
        return rows

    @abc.abstractmethod
    def report(self, rows: Rows) -> dict[str, float]:
        """Numbers over the `units` of a whole split; NaN where one is not defined."""

    def counts(self, rows: Rows) -> dict[str, int]:
        """How many films, zones, ... each number of `report` is computed from."""
        return {name: len(rows["id"]) for name in self.report(rows)}

    def compared(self, units: Rows) -> dict[str, np.ndarray]:
        """By which numbers runs are compared in pairs (Wilcoxon): name of a part of the `units` ->
        one number of each unit of it."""
        del units
        return {}

    def tuned(self, rows: Rows, validation: Rows) -> tuple[Rows, float]:
        """`rows` at the threshold that is best on the `validation` rows of the run, and which.

        Raises:
          InputError: the task's numbers depend on no threshold.
        """
        raise InputError(f"task {self.name!r} has no threshold to choose; leave out --tune")

    def summary_figures(self, rows: Rows) -> dict[str, Figure]:
        """Pictures of a whole split, by file stem."""
        del rows
        return {}

    def drawn(self, source: Source, count: int) -> np.ndarray:
        """Which records of a split an evaluation draws: at most `count`, evenly spaced."""
        return evenly(np.arange(len(source)), count)

    @abc.abstractmethod
    def figure(self, record: Record, outputs: dict[str, np.ndarray]) -> Figure:
        """One example: the film at its own size, the truth where there is one, the prediction."""

    @abc.abstractmethod
    def describe(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """One example's prediction as plain JSON, for `predictions.jsonl`."""


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, first and last among them."""
    if not len(values):
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, count).astype(int))]
