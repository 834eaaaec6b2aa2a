"""A finished run, loaded and applied: what prediction, evaluation and other runs use."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from cxr_jax import hosts, model_files
from cxr_jax.checkpoints import restore_variables
from cxr_jax.data import records
from cxr_jax.data.records import Record
from cxr_jax.early_stopping import best_steps
from cxr_jax.errors import InputError
from cxr_jax.tasks import Task, make_task
from cxr_jax.tasks.base import Outputs, Variables
from cxr_jax.workdir import read_config, trained_on

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The task of a work directory and the variables of its checkpoints.

    Attributes:
      config: of the run, or what an evaluation made of it.
      steps: of the checkpoints; of a model with a card those that its members had.
      ensemble: the variables of each; their outputs are combined by `task.combine`.
    """

    workdir: pathlib.Path
    config: ml_collections.ConfigDict
    task: Task
    steps: tuple[int, ...]
    ensemble: list[Variables]

    @classmethod
    def load(
        cls,
        workdir: str | pathlib.Path,
        steps: tuple[int, ...] = (),
        *,
        config: ml_collections.ConfigDict | None = None,
        sharding: jax.sharding.Sharding | None = None,
    ) -> "TrainedRun":
        """Loads a run, or a model with its card.

        Args:
          workdir: of the run, or the folder of a model; 'model:NAME' is a packaged one.
          steps: checkpoints whose outputs are combined; () takes `config.eval_steps`; where that
            is empty too, the one that early stopping chose; without it the latest.
          config: in place of the work directory's own, e.g. with another threshold.
          sharding: where the arrays go; None is the first device.

        Raises:
          InputError: no work directory of a run, no such checkpoint, or one of another model.
        """
        if str(workdir).startswith(model_files.SCHEME):
            workdir = model_files.find(workdir)
        workdir = pathlib.Path(workdir)
        config = read_config(workdir) if config is None else config
        config = _with_untrained(config, workdir)
        task = make_task(config)
        # What is wrong with the model is said before a record is read.
        shapes = variable_shapes(task, make_batch(task, [records.blank(task.data.inputs)]))
        sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if model_files.is_one(workdir):
            if steps:
                raise InputError(f"{workdir}: this model has no checkpoints to choose from")
            steps, ensemble = model_files.restore(workdir, shapes, sharding)
        else:
            steps = steps or tuple(config.eval_steps) or best_steps(config, workdir)
            steps, ensemble = restore_variables(workdir, shapes, sharding=sharding, steps=steps)
        return cls(workdir=workdir, config=config, task=task, steps=steps, ensemble=ensemble)

    def predict(self, examples: Sequence[Record], *, batch_size: int = 0) -> list[Batch]:
        """What the run says of each record: the arrays of `task.predict`, [...] each.

        Args:
          examples: records with the task's inputs.
          batch_size: the batch is filled up to so many, so that every call has one shape and
            compiles once; 0 takes the number of records.
        """
        return self._apply([self._predict], examples, batch_size)

    def explain(self, record: Record) -> Batch:
        """`predict` of a record that is drawn, with the arrays of `task.explain` where the task
        explains something: both of the same members of the ensemble."""
        functions = [self._predict, self._explain] if self._explain else [self._predict]
        return self._apply(functions, [record], 1)[0]

    @property
    def name(self) -> str:
        """Of its folder."""
        return pathlib.Path(self.workdir).resolve().name

    @functools.cached_property
    def card(self) -> dict[str, Any]:
        """Of a model with a card; {} of a run."""
        folder = pathlib.Path(self.workdir)
        return model_files.read_card(folder) if model_files.is_one(folder) else {}

    def alone(self) -> "TrainedRun":
        """For this host of several: it may compute without the others."""
        return dataclasses.replace(self, ensemble=hosts.own(self.ensemble))

    @functools.cached_property
    def version(self) -> str:
        """A digest of config and weights."""
        digest = hashlib.sha256(self.config.to_json().encode())
        for array in jax.tree.leaves(self.ensemble):
            digest.update(np.asarray(array).tobytes())
        return digest.hexdigest()

    @functools.cached_property
    def _predict(self) -> Callable[..., Outputs]:
        return jax.jit(self.task.predict)

    @functools.cached_property
    def _explain(self) -> Callable[..., Outputs] | None:
        return None if self.task.explain is None else jax.jit(self.task.explain)

    def _apply(
        self, functions: Sequence[Callable[..., Outputs]], examples: Sequence[Record], size: int
    ) -> list[Batch]:
        filling = [examples[0]] * (size - len(examples))
        batch = make_batch(self.task, [*examples, *filling])
        members = [_merged(functions, variables, batch) for variables in self.ensemble]
        outputs = self.task.combine(members)
        return [{k: np.asarray(v[i]) for k, v in outputs.items()} for i in range(len(examples))]


def _with_untrained(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
    """The config with the outputs that no training film labelled among its `untrained`."""
    names = (trained_on(workdir) or {}).get("unlabelled", ())
    if not names or "untrained" not in config:
        return config
    config = config.copy_and_resolve_references()
    config.untrained = tuple(dict.fromkeys((*config.untrained, *names)))
    return config


def _merged(functions: Sequence[Callable[..., Outputs]], variables: Variables, batch: Batch):
    found: Outputs = {}
    for function in functions:
        found |= jax.device_get(function(variables, batch))
    return found


def make_batch(task: Task, examples: Sequence[Record]) -> Batch:
    """Records as one batch, as in an evaluation."""
    transforms = task.data.transforms
    finished = [transforms.finish(transforms.example(record), None) for record in examples]
    return {name: np.stack([np.asarray(e[name]) for e in finished]) for name in finished[0]}


def variable_shapes(task: Task, example: Batch) -> Variables:
    """Shapes of the variables; runs nothing.

    Raises:
      InputError: the parts of the model do not fit each other or the image size.
    """
    try:
        shapes = dict(jax.eval_shape(task.init, jax.random.PRNGKey(0), example))
        jax.eval_shape(task.predict, shapes, example)
    except (ValueError, TypeError) as error:
        first = next(line for line in f"{error}\n?".splitlines() if line.strip())
        raise InputError(
            f"config.model does not fit together or to images of {example['image'].shape[2]} px: "
            f"{first}"
        ) from error
    return shapes
