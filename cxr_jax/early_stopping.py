"""Early stopping: a run ends when a validation metric is no longer better, and its best is kept.

What was validated stands in metrics.jsonl, which a resumed run cuts back to its checkpoint. So a
run that is killed at any moment ends where it would have ended, with the same best checkpoint.
"""

import math
import pathlib

import ml_collections

from cxr_jax import small_files
from cxr_jax.checkpoints import complete_steps
from cxr_jax.errors import InputError

FILE = "metrics.jsonl"


class EarlyStopping:
    """The validations of a run by the metric of `config.early_stopping`; none where it is ''.

    `patience` counts training steps since the best validation; 0 never ends a run, whose best
    checkpoint is kept and evaluated all the same. Of equal values the first is the best; one that
    is undefined never is.
    """

    def __init__(self, config: ml_collections.ConfigDict, values: dict[int, float]):
        """`values`: step -> the metric, of the validations so far."""
        rule = config.early_stopping
        self._metric, self._patience, self._highest = rule.metric, rule.patience, rule.highest
        self._every, self._last = config.eval_every, config.total_steps
        self._values = dict(values)

    @classmethod
    def read(
        cls, config: ml_collections.ConfigDict, workdir: pathlib.Path, *, until: int
    ) -> "EarlyStopping":
        """The validations of a work directory up to a step.

        Raises:
          InputError: metrics.jsonl is missing, so nobody knows which step was the best.
        """
        metric, path = config.early_stopping.metric, workdir / FILE
        if not metric or not until:
            return cls(config, {})
        if not small_files.is_file(path):
            raise InputError(
                f"{path} is missing, which says at which step val/{metric} was best; put it back, "
                "or choose a checkpoint with --steps"
            )
        values = {}
        for _, line in small_files.scan_lines(path):
            step, value = (line or {}).get("step"), (line or {}).get(f"val/{metric}", "")
            if isinstance(step, int) and step <= until and isinstance(value, float | int | None):
                values[step] = math.nan if value is None else float(value)
        return cls(config, values)

    @property
    def best(self) -> int | None:
        """The step of the best validation; None where there is none."""
        sign = 1 if self._highest else -1
        known = {step: sign * v for step, v in sorted(self._values.items()) if not math.isnan(v)}
        return max(known, key=known.__getitem__, default=None)

    def add(self, step: int, values: dict[str, float]) -> bool:
        """Notes a validation; True where it is the best so far.

        Raises:
          InputError: a validation does not report the metric.
        """
        if not self._metric:
            return False
        if self._metric not in values:
            raise InputError(
                f"config.early_stopping.metric={self._metric!r}; a validation reports "
                f"{', '.join(values)}"
            )
        self._values[step] = values[self._metric]
        return self.best == step

    def lacks(self, step: int) -> bool:
        """Whether the validation of a step that was reached is missing: a signal came in it."""
        due = step > 0 and (step % self._every == 0 or step == self._last) if self._every else False
        return bool(self._metric) and due and step not in self._values

    def ends(self, step: int) -> bool:
        """Whether the run ends with this step, which was validated."""
        if not self._patience or step not in self._values:
            return False
        return step - (self.best or 0) >= self._patience

    def complete(self, step: int) -> bool:
        """Whether nothing is left to do at this step."""
        return self.ends(step) or (step == self._last and not self.lacks(step))

    def told(self, step: int) -> str:
        """What a run that ended with this step says; '' where nothing was asked for."""
        if not self._metric:
            return ""
        ended = f"stopped early at step {step}; " if self.ends(step) else ""
        if self.best is None:
            return f"{ended}val/{self._metric} was never defined: the last step is kept"
        value = self._values[self.best]
        return (
            f"{ended}val/{self._metric} was best at step {self.best} ({value:.4g}), which is kept"
        )


def best_steps(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> tuple[int, ...]:
    """The checkpoint that early stopping chose, (step,); () where it was not asked for, or no
    validation has a checkpoint yet.

    Raises:
      InputError: as `EarlyStopping.read`.
    """
    newest = complete_steps(workdir)[-1:]
    if not config.early_stopping.metric or not newest:
        return ()
    best = EarlyStopping.read(config, workdir, until=newest[0]).best
    return () if best is None else (best,)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant.

    Raises:
      InputError: a patience below 0 or without a metric, or a metric that is never validated or
        whose checkpoint `eval_steps` would not take.
    """
    rule = config.early_stopping
    if rule.patience < 0 or (rule.patience and not rule.metric):
        raise InputError(
            f"config.early_stopping.patience={rule.patience}; expected a number of steps of at "
            "least 0, and with it a metric"
        )
    if rule.metric and not config.eval_every:
        raise InputError(
            f"config.early_stopping.metric={rule.metric!r} needs validations: set config.eval_every"
        )
    if rule.metric and config.eval_steps:
        raise InputError(
            f"config.early_stopping.metric={rule.metric!r} and config.eval_steps="
            f"{tuple(config.eval_steps)} both choose what is evaluated; set one of them to nothing"
        )
