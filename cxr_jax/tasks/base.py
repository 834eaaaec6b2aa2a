"""What one paper adds to the shared loops: a task of ten names, in three parts.

| name | what | where it runs |
| --- | --- | --- |
| `name` | of the task, in configs and results | |
| `data` | what it reads, and how a record becomes an example (`Data`) | host |
| `frozen` | the parts that are never trained | |
| `init`, `loss`, `predict`, `score` | pure functions of variables and batch | jitted |
| `evaluation` | from the rows of a split to numbers and charts (`Evaluation`) | host |
| `figure`, `describe` | one example as a picture, and as plain JSON | host |

Four more where a task needs them: `explain`, for the records that are drawn, `measure`, how good
the explanations of a whole split are, `combine`, how the outputs of several checkpoints become
one, and `layers`, the maps that `predict` writes as files. A task of CT volumes is a `VolumeTask`.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from matplotlib.figure import Figure

from cxr_jax.data.pipeline import Stage, Transforms
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source
from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import Value

Array = jax.Array
Batch = dict[str, Array]
Outputs = dict[str, Array]
Rows = dict[str, np.ndarray]
Variables = dict[str, Any]


class Adapt(Protocol):
    """Makes of a source what is trained on, or evaluated."""

    def __call__(self, source: Source, *, training: bool) -> Source: ...


def as_it_is(source: Source, *, training: bool) -> Source:
    """The source itself."""
    del training
    return source


def all_labelled(source: Source) -> tuple[str, ...]:
    """Of a task whose outputs are all learned, whatever the source."""
    del source
    return ()


@dataclasses.dataclass(frozen=True)
class Data:
    """What a task reads.

    Attributes:
      fields: the record fields it trains and is scored on (`data/records.py`). Those of them that
        a source lacks may be completed (`inputs/`).
      transforms: how a record becomes an example. Labels are optional: `predict` has none.
      inputs: those of `fields` that `predict` reads.
      labels: those of `fields`, and those that go with them, that a film without labels lacks: what
        is hidden of a second data set whose labels are not to be used.
      stages: when how much of a second data set joins the training.
      adapt: leaves out records, or makes of them what is trained on, e.g. bags of slices.
      completed_first: what records lack is completed before `adapt`, which makes others of them.
      only_evaluated: those of `fields` that training does not read.
      unlabelled: of a training source, names of outputs that no record of it has a label for, so
        that they are noise. They are told at training and kept with the run, which is then loaded
        with them in `config.untrained`.
    """

    fields: frozenset[str]
    transforms: Transforms
    inputs: frozenset[str] = frozenset({"image"})
    labels: frozenset[str] = frozenset()
    stages: tuple[Stage, ...] = (Stage(0),)
    adapt: Adapt = as_it_is
    completed_first: bool = False
    only_evaluated: frozenset[str] = frozenset()
    unlabelled: Callable[[Source], tuple[str, ...]] = all_labelled


class Evaluation(abc.ABC):
    """From the rows of a whole split to numbers and charts, on the host.

    Attributes:
      free_settings: config fields that an evaluation may set otherwise than the training did, since
        they decide only what becomes of the outputs, e.g. a threshold.
      columns: the metrics of a table over runs; () takes all.
      mean_over_runs: rows that are predictions, of which several runs have a mean; () if none.
      compared_with_references: metrics whose differences to the `references` are told.
      fitted_rows: rows that `with_fit` adds: they are one run's own and have no mean.
      fits: an evaluation first chooses by `fit`, on the validation split that the run was trained
        beside, and reports the split with what was chosen.
    """

    fitted_rows: tuple[str, ...] = ()
    fits: bool = False
    free_settings: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    mean_over_runs: tuple[str, ...] = ()
    compared_with_references: tuple[str, ...] = ()

    def finish_rows(self, rows: Rows) -> Rows:
        """Host work on the rows of one batch (post-processing) before they are kept."""
        return rows

    def units(self, rows: Rows) -> Rows:
        """What `report` and its intervals count, from the rows of a whole split: the rows
        themselves, or one for each patient, of whose slices the rows are. Has `id` and `group`."""
        return rows

    @abc.abstractmethod
    def report(self, units: Rows) -> dict[str, Value]:
        """Numbers over the `units` of a whole split, each with how many films, zones, patients, ...
        it is computed from; NaN where one is not defined."""

    def report_of(self, units: Rows) -> Callable[[Rows], dict[str, Value]]:
        """`report`, to be asked of resamples of these `units` and of themselves: means over
        findings, say, are over those that can be measured on the whole, in every resample; where a
        resample cannot measure one of them, its mean is NaN."""
        del units
        return self.report

    def paired_values(self, units: Rows) -> dict[str, np.ndarray]:
        """By which numbers runs are compared in pairs (Wilcoxon): name of a part of the `units` ->
        one number of each unit of it."""
        del units
        return {}

    def case_errors(self, rows: Rows) -> np.ndarray | None:
        """How wrong the prediction of each example is, [N], from 0; NaN where the truth is not
        known. By it the worst and best cases are drawn. None: one example has no such number."""
        del rows
        return None

    def fit(self, validation: Rows) -> dict[str, float]:
        """What is chosen on the rows of the validation split, by name: a threshold, a temperature.

        Raises:
          InputError: there is nothing to choose, or nothing to choose it by.
        """
        del validation
        raise InputError("this task has no threshold to choose; leave out --tune")

    def with_fit(self, rows: Rows, fitted: dict[str, float]) -> Rows:
        """The rows of another split with what `fit` chose."""
        del fitted
        return rows

    def references(self, rows: Rows, training: Source) -> dict[str, Rows]:
        """Rows of predictors that are no model, on the same examples: a second reader, a constant.

        Args:
          rows: of an evaluation.
          training: the training films, of which a constant may be the mean.
        """
        del rows, training
        return {}

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """Charts of a whole split, by file stem."""
        del rows
        return {}

    def figure_indices(self, source: Source, count: int) -> np.ndarray:
        """Which records of a split are drawn: at most `count`, evenly spaced."""
        return evenly(np.arange(len(source)), count)


class Task(abc.ABC):
    """One paper, behind ten names. A subclass is a frozen dataclass made from a config.

    A task owns no arrays and no loop. `init`, `loss`, `predict`, `score` and `explain` are pure and
    are jitted by the loops; the rest runs on the host.
    """

    name: ClassVar[str]

    @property
    @abc.abstractmethod
    def data(self) -> Data:
        """What it reads, and how a record becomes an example."""

    @property
    def frozen(self) -> Mapping[str, str]:
        """Patterns of the parameter paths that are never trained -> the setting that would train
        them, e.g. {'backbone/.*': 'config.model.train_backbone=True'}."""
        return {}

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

    @property
    @abc.abstractmethod
    def evaluation(self) -> Evaluation:
        """From the rows of a whole split to numbers and charts."""

    @abc.abstractmethod
    def figure(self, record: Record, outputs: dict[str, np.ndarray]) -> Figure:
        """One example: the film at its own size, the truth where there is one, the prediction.
        `outputs` are those of `predict`, and of `explain` where there is one."""

    @abc.abstractmethod
    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """One example's prediction as plain JSON, for `predictions.jsonl`; places are told in the
        record's own pixels."""

    def layers(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What was found where, as pictures on the film's own pixels, which `predict` writes beside
        the figure: name -> uint8 [H, W], 255 where a mask is or a probability is 1."""
        del record, outputs
        return {}

    # Optional: (variables, batch) -> further arrays [B, ...] for `figure`, e.g. attention. It may
    # cost more than `predict`, so it runs for the records that are drawn only, and is combined
    # together with what `predict` gives.
    explain: ClassVar[Callable[..., Outputs] | None] = None

    # Optional: (variables, batch) -> further arrays [B, ...] for `score`, e.g. explanations and how
    # faithful they are. It costs many times `predict`, and runs over a whole split where
    # `config.measure_explanations` asks for it. As `score`, it may read labels.
    measure: ClassVar[Callable[..., Outputs] | None] = None

    def combine(self, outputs: Sequence[Outputs]) -> Outputs:
        """One prediction of the members of an ensemble, also of one alone: the mean, output by
        output. A task whose outputs have no mean (boxes, say) does it its own way, on the host if
        need be; shapes are the same for every batch. `explain`'s arrays may be among them."""
        return mean(outputs)


class VolumeTask(Task):
    """A task whose records are slices of CT volumes, each with its neighbours (`slices`).

    Attributes:
      pictures: slices that come as single pictures are read too; such a task needs no neighbours.
    """

    pictures: ClassVar[bool] = False

    @abc.abstractmethod
    def mask(self, record: Record, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """What is found on a slice: uint8 [H, W] of the record's `image`, 1 inside."""

    @abc.abstractmethod
    def slice_prob(self, outputs: dict[str, np.ndarray]) -> float:
        """How probable it is that there is a find in the slice of these outputs."""

    def describe_volume(
        self,
        probs: list[float],
        mask: np.ndarray,
        *,
        numbers: np.ndarray,
        spacing_mm: tuple[float, float, float],
    ) -> dict[str, Any]:
        """A volume's prediction as plain JSON.

        Args:
            probs: [S] `slice_prob` of every slice.
            mask: [S, H, W] what was found.
            numbers: [S] of the slices, as they are told.
            spacing_mm: between slices, rows, columns.
        """
        slices = mask.sum((1, 2), dtype=np.int64)
        return {
            "slices": len(mask),
            "slices_with_lesion": sorted(np.asarray(numbers)[slices > 0].tolist()),
            "slice_probs": {str(n): round(p, 4) for n, p in sorted(zip(numbers.tolist(), probs))},
            "lesion_ml": round(float(slices.sum() * np.prod(spacing_mm) / 1000), 3),
        }


def mean(outputs: Sequence[Outputs]) -> Outputs:
    """The mean of several outputs, array by array."""
    return jax.tree.map(lambda *arrays: sum(arrays) / len(arrays), *outputs)


def evenly(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, first and last among them."""
    if not len(values):
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, count).astype(int))]
