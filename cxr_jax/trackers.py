"""Where a run's numbers go beside its own files: TensorBoard always, others where asked for.

`config.trackers` names them, with commas between: 'wandb' (Weights & Biases), 'mlflow'. Their own
environment variables say which server, project and account (WANDB_PROJECT, WANDB_MODE=offline,
MLFLOW_TRACKING_URI, ...). A run that is resumed goes on with its entry there, whose name stands in
`trackers.json` of the work directory. What they get is numbers and the config: no film, no picture,
no name of one.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorboardX

from cxr_jax import small_files
from cxr_jax.errors import InputError, one_line
from cxr_jax.safe_write import write_text

FILE = "trackers.json"
PROJECT = "cxr_jax"


class Tracker(Protocol):
    """One of them. `key`: what its entry is called, by which a later process finds it again."""

    key: str

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""

    def close(self) -> None:
        """The process has no more."""


class TensorBoard:
    """Event files in `tensorboard/`."""

    key = ""

    def __init__(self, workdir: pathlib.Path, first_step: int):
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1 if first_step else None
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._board.close()


class WeightsAndBiases:
    """An entry of Weights & Biases."""

    def __init__(self, workdir: pathlib.Path, key: str, settings: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else PROJECT,
            dir=str(workdir),
            name=workdir.name,
            id=key or None,
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off"),
        )
        self.key = str(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


class MLflow:
    """A run of MLflow."""

    def __init__(self, workdir: pathlib.Path, key: str, settings: Mapping[str, Any]):
        import mlflow

        self._client = mlflow.MlflowClient()
        if not key:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            there = self._client.get_experiment_by_name(name)
            number = there.experiment_id if there else self._client.create_experiment(name)
            key = self._client.create_run(number, run_name=workdir.name).info.run_id
            for name, value in settings.items():
                self._client.log_param(key, name, str(value)[:500])
        self.key = key

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""
        for name, value in values.items():
            self._client.log_metric(self.key, name, value, step=step)

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self.key)


KINDS: dict[str, Callable[..., Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


def names(asked: str) -> tuple[str, ...]:
    """'wandb,mlflow' -> the names.

    Raises:
      InputError: one is not known.
    """
    found = tuple(filter(None, (name.strip() for name in asked.split(","))))
    for name in found:
        if name not in KINDS:
            raise InputError(f"config.trackers={asked!r}; expected some of {', '.join(KINDS)}")
    return found


def start(
    asked: str, workdir: pathlib.Path, *, first_step: int, settings: Mapping[str, Any]
) -> list[Tracker]:
    """TensorBoard, and those that are asked for.

    Args:
      asked: `config.trackers`.
      workdir: of the run.
      first_step: that it is resumed from; 0 of a new one.
      settings: field of the config -> value.

    Raises:
      InputError: one is not installed, or does not begin.
    """
    started: list[Tracker] = [TensorBoard(workdir, first_step)]
    keys = _read_keys(workdir)
    for name in names(asked):
        try:
            tracker = KINDS[name](workdir, keys.get(name, ""), settings)
        except ImportError as error:
            raise InputError(
                f"config.trackers={asked!r}: {name} is not installed; pip install "
                "'cxr_jax[trackers]'"
            ) from error
        except Exception as error:  # of its own kinds: no account, no network, no such server
            raise InputError(
                f"config.trackers={asked!r}: {name} does not begin: {one_line(str(error))[:300]}"
            ) from error
        started.append(tracker)
        keys[name] = tracker.key
    if names(asked):
        _write_keys(workdir, keys)
    return started


def _read_keys(workdir: pathlib.Path) -> dict[str, str]:
    path = workdir / FILE
    if not small_files.exists(path):
        return {}
    fields = small_files.read_fields(path, "remove it: the run then begins a new entry")
    return {name: fields.get(name, str, "") for name in KINDS}


def _write_keys(workdir: pathlib.Path, keys: Mapping[str, str]) -> None:
    write_text(workdir / FILE, json.dumps(dict(keys)) + "\n")
