"""Whether the numbers of every step are finite, without waiting for one."""

import collections
import math

import jax
import numpy as np

from cxr_jax.checkpoints import Checkpoints
from cxr_jax.data import sources
from cxr_jax.errors import InputError

NAMED = 8  # examples that a message names


class Steps:
    """The scalars of the steps that the device has not finished yet, each with its batch.

    A step's scalars are on their way to the host while the device computes the next steps; they are
    looked at as they arrive. So a number that is not finite is told as the step where it came up,
    whatever is logged, and no step waits for that.
    """

    def __init__(self, source: sources.Source, checkpoints: Checkpoints):
        self._source, self._checkpoints = source, checkpoints
        self._pending: collections.deque = collections.deque()
        self._last: dict[str, float] = {}

    def add(self, step: int, scalars: dict[str, jax.Array], index: np.ndarray) -> None:
        """Notes a step that was started; checks those that have arrived.

        Args:
          index: int [B], of the batch's records.

        Raises:
          InputError: as `finish`.
        """
        for scalar in scalars.values():
            scalar.copy_to_host_async()
        self._pending.append((step, scalars, index))
        while self._pending and all(x.is_ready() for x in self._pending[0][1].values()):
            self._check(*self._pending.popleft())

    def finish(self) -> dict[str, float]:
        """Waits for all steps; the numbers of the last one.

        Raises:
          InputError: one is not finite: which, of which step and which examples.
        """
        while self._pending:
            self._check(*self._pending.popleft())
        return self._last

    def _check(self, step: int, scalars: dict[str, jax.Array], index: np.ndarray) -> None:
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise InputError(
                f"{bad[0]} is {values[bad[0]]} at step {step}, whose batch was "
                f"{self._names(index)}; the last checkpoint is of step "
                f"{self._checkpoints.latest() or 0}. Lower config.optimizer.lr or set "
                "config.optimizer.clip_norm, and use another --workdir"
            )
        self._last = values

    def _names(self, index: np.ndarray) -> str:
        ids = dict.fromkeys(str(self._source[int(i)]["id"]) for i in index[:NAMED])
        more = f" and {len(index) - NAMED} more" if len(index) > NAMED else ""
        return f"{', '.join(ids)}{more}"
