"""The one evaluation loop: rows of a whole split, then numbers with intervals, then pictures."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import time

import jax
import ml_collections
import numpy as np
import tqdm

from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import StopSignal, restore_variables
from cxr_jax.data import pipeline, sources
from cxr_jax.data.sources import combine
from cxr_jax.errors import InputError
from cxr_jax.figures import save
from cxr_jax.metrics.bootstrap import Metric, bootstrap
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import Task, make_task
from cxr_jax.tasks.base import Rows, Variables
from cxr_jax.writers import metrics_json, provenance, write_json


@dataclasses.dataclass(frozen=True)
class Result:
    """One pass over a split: a row an example, and the full outputs of the chosen few."""

    rows: Rows  # [N, ...] each, with `id` and `group`
    outputs: dict[int, dict[str, np.ndarray]]  # record index -> predict's arrays of that example


class Scorer:
    """Scores a split as often as it is asked: compiled once, films prepared once."""

    def __init__(
        self,
        task: Task,
        source: sources.Source,
        parallel: Parallel,
        config: ml_collections.ConfigDict,
    ):
        parallel.check_batch_size(config.eval_batch_size, "config.eval_batch_size")
        self._task, self._parallel = task, parallel
        self._batch_size, self._threads = config.eval_batch_size, config.threads
        self._examples = pipeline.Examples(source, task.transforms, cache_mb=config.cache_mb)
        self._predict = parallel.compile_predict(task.predict)
        self._score = parallel.compile_score(task.score)

    def __call__(
        self,
        ensemble: list[Variables],
        *,
        keep_outputs: frozenset[int] = frozenset(),
        stop: StopSignal | None = None,
    ) -> Result:
        """Every example once; the prediction is the mean over `ensemble`, output by output.

        Args:
          keep_outputs: record indices whose arrays are kept for figures.
          stop: polled, so that SIGTERM ends an evaluation too; the rows are then partial.
        """
        source = self._examples.source
        collected: list[Rows] = []
        outputs: dict[int, dict[str, np.ndarray]] = {}
        batches = pipeline.eval_batches(
            source,
            self._task.transforms,
            batch_size=self._batch_size,
            threads=self._threads,
            examples=self._examples,
        )
        total = pipeline.num_batches(len(source), batch_size=self._batch_size)
        progress = tqdm.tqdm(
            batches, total=total, desc="evaluate", unit="batch", leave=False, disable=None
        )
        with contextlib.closing(batches):
            for batch in progress:
                if stop is not None and stop.received:
                    break
                arrays = self._parallel.shard_batch(batch)
                predicted = [self._predict(variables, arrays) for variables in ensemble]
                mean = jax.tree.map(lambda *xs: sum(xs) / len(xs), *predicted)
                rows = jax.device_get(self._score(mean, arrays))
                valid = batch["valid"]
                rows |= {key: batch[key] for key in ("id", "group", "index")}
                rows = {k: np.asarray(v)[valid] for k, v in rows.items()}
                collected.append(self._task.finish_rows(rows))
                for i in np.flatnonzero(valid):
                    if (index := int(batch["index"][i])) in keep_outputs:
                        outputs[index] = {k: np.asarray(v[i]) for k, v in mean.items()}
        if not collected:
            return Result({}, {})
        rows = {key: np.concatenate([r[key] for r in collected]) for key in collected[0]}
        return Result(rows, outputs)


def open_split(
    task: Task,
    data: ml_collections.ConfigDict,
    split: str,
    workdir: pathlib.Path,
    *,
    hidden: frozenset[str] = frozenset(),
    training: bool = False,
) -> sources.Source:
    """A split of a data set with all the fields the task needs but the `hidden` ones; refused by
    name where one is missing."""
    source = sources.open_source(data, split)
    if hidden:
        source = combine.Hidden(source, hidden)
    needed = task.fields - hidden
    # What the task can add itself is checked after it has; the rest before that costs anything.
    pipeline.check_fields(source, needed - task.adds)
    source = task.adapt(source, workdir / "cache", training=training)
    pipeline.check_fields(source, needed)
    return source


def example_batch(task: Task, source: sources.Source) -> dict[str, np.ndarray]:
    """One example as a batch, for its shapes."""
    batches = pipeline.eval_batches(source, task.transforms, batch_size=1, threads=0)
    with contextlib.closing(batches):
        return {k: v for k, v in next(batches).items() if v.dtype.kind not in "US"}


def variable_shapes(task: Task, example: dict[str, np.ndarray]) -> Variables:
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


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    split: str = "test",
    steps: tuple[int, ...] = (),
) -> dict[str, Metric] | None:
    """Evaluates checkpoints of a work directory; writes results.json, the rows and the figures.

    The config may name other data than the run was trained on (an external test): its metrics,
    rows and figures are then called DATA-SPLIT.

    Args:
      steps: checkpoints whose predictions are averaged; () takes `config.eval_steps`, and the
        latest checkpoint where that is empty too.

    Returns:
      The metrics, or None where SIGTERM ended the evaluation; nothing is written then.
    """
    started = time.monotonic()
    trained = workdirs.read_config(workdir)
    workdirs.check_config(config, workdir, workdirs.FREE_IN_EVALUATION)
    task = make_task(config)
    parallel = Parallel.create(config.parallel, config.devices)
    source = open_split(task, config.data, split, workdir)
    shapes = variable_shapes(task, example_batch(task, source))
    steps, ensemble = restore_variables(
        workdir, shapes, parallel.replicated, steps or tuple(config.eval_steps)
    )
    label = split if config.data.name == trained.data.name else f"{source.name}-{split}"

    chosen = task.drawn(source, config.figures)
    with StopSignal() as stop:
        result = Scorer(task, source, parallel, config)(
            ensemble, keep_outputs=frozenset(chosen.tolist()), stop=stop
        )
    if stop.received:
        return None
    rows = result.rows
    units = task.units(rows)
    # None where the split has no truth at all: then there are predictions and no numbers.
    found = {}
    if len(units["group"]):
        found = bootstrap(
            task.report,
            units,
            units["group"],
            resamples=config.bootstrap,
            seed=config.seed,
            counts=task.counts,
        )
    # n = 0: the data set has no such truth (no lesion masks, say), so there is no such metric.
    metrics = {f"{label}/{name}": m for name, m in found.items() if m.n}
    evaluation = {
        "steps": list(steps),
        "seed": config.seed,
        "data": {
            "name": source.name,
            "version": source.version,
            "split": split,
            "fold": config.data.get("fold", -1),  # -1: none validates
            "examples": len(source),
        },
        "trained_on": workdirs.trained_on(workdir),
        "init_from": config.init_from,
        "changed": workdirs.changed(config, trained),
        "lungs": config.lungs.to_dict() if "lungs" in config else None,
        "precision": config.precision,
        "wall_s": round(time.monotonic() - started, 1),
        **provenance(),
    }
    _write_rows(workdir / f"rows-{label}.npz", rows)
    _write_results(workdir / "results.json", label, metrics, {"task": task.name} | evaluation)
    folder = workdir / "figures"
    for index, outputs in result.outputs.items():
        record = source[index]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(record["id"]))[:80]
        save(task.figure(record, outputs), folder / f"{label}-{index:04d}-{name}.png")
    for name, figure in task.summary_figures(rows).items():
        save(figure, folder / f"{label}-{name}.png")
    return metrics


def _write_rows(path: pathlib.Path, rows: Rows) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **rows)
    os.replace(part, path)


def _write_results(
    path: pathlib.Path, label: str, metrics: dict[str, Metric], evaluation: dict
) -> None:
    """The newest evaluation on top; metrics of other splits stay, with how they came about."""
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path} is broken ({error}); remove it") from error
    kept = {k: v for k, v in old.get("metrics", {}).items() if not k.startswith(f"{label}/")}
    write_json(
        path,
        {
            "metrics": metrics_json(metrics) | kept,
            **evaluation,
            "evaluations": old.get("evaluations", {}) | {label: evaluation},
        },
    )
